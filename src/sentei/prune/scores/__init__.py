"""Scores: how much the loss grows when a unit goes. One file per score, registered here.

A score turns the statistics of one part (attention or FFN) into a `Remover`; `sentei.prune.ranking` asks it for the
cheapest unit, removes that, and so on, and gets an order with a loss for every count.
"""

from __future__ import annotations

from sentei.prune.scores.base import Additive, Remover, Score
from sentei.registry import Registry

SCORES: Registry[Score] = Registry(
    "score",
    {
        "random": "sentei.prune.scores.simple:RANDOM",
        "magnitude": "sentei.prune.scores.simple:MAGNITUDE",
        "taylor": "sentei.prune.scores.simple:TAYLOR",
        "wanda-sp": "sentei.prune.scores.simple:WANDA_SP",
        "flap": "sentei.prune.scores.simple:FLAP",
        "newton": "sentei.prune.scores.newton:NEWTON",
        "block-influence": "sentei.prune.scores.simple:BLOCK_INFLUENCE",
        "obs": "sentei.prune.scores.obs:OBS",
        "obs-fisher": "sentei.prune.scores.obs:OBS_FISHER",
    },
)

__all__ = ["SCORES", "Additive", "Remover", "Score"]
