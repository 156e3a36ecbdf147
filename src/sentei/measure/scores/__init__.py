"""Scores: how much the loss grows when a unit goes. One file per score, registered here.

A score turns the statistics of one part (attention or FFN) into a `Remover`; `sentei.measure.ranking` asks it for the
cheapest unit, removes that, and so on, and gets an order with a loss for every count.
"""

from __future__ import annotations

from sentei.measure.scores.base import Additive, Remover, Score
from sentei.registry import Registry

SCORES: Registry[Score] = Registry(
    "score",
    {
        "random": "sentei.measure.scores.simple:RANDOM",
        "magnitude": "sentei.measure.scores.simple:MAGNITUDE",
        "taylor": "sentei.measure.scores.simple:TAYLOR",
        "wanda-sp": "sentei.measure.scores.simple:WANDA_SP",
        "flap": "sentei.measure.scores.simple:FLAP",
        "newton": "sentei.measure.scores.newton:NEWTON",
        "block-influence": "sentei.measure.scores.simple:BLOCK_INFLUENCE",
        "obs": "sentei.measure.scores.obs:OBS",
        "obs-fisher": "sentei.measure.scores.obs:OBS_FISHER",
    },
)

__all__ = ["SCORES", "Additive", "Remover", "Score"]
