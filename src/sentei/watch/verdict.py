"""What to do about what moved, from numbers that the run has; each with its arithmetic in a sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sentei.report.words import percent
from sentei.watch.capabilities import Moved
from sentei.watch.drift import GROWTH, LEVEL, Classified, Growth, Mmd

ACTIONS = ("nothing", "alert", "re-evaluate", "re-tune")  # each more than the one before
ACTING = ACTIONS[2:]
LEAST_PART = 0.05  # share of the window that has to be new for a drift
LEAST_AUC = 0.55  # from which a difference of the whole is worth a word
WORSE = 1.1  # times the share-weighted damage of before, from which new shares cost something


@dataclass(frozen=True)
class Verdict:
    """What is recommended.

    Attributes:
        drift: whether requests are made that the reference hardly has.
        mix: whether the shares of capabilities changed.
        changed: whether the whole differs, for whatever reason.
        recommendation: one of `ACTIONS`.
        arithmetic: sentences.
    """

    drift: bool
    mix: bool
    changed: bool
    recommendation: str
    arithmetic: list[str]


def judge(
    grown: Growth,
    classified: Classified,
    whole: Mmd,
    moves: Sequence[Moved],
    covered: Sequence[int],
    uncovered: int,
    names: Sequence[str],
    damage: NDArray[np.float64],
    labelled: Sequence[tuple[str, str]] = (),
) -> Verdict:
    """Decides.

    Args:
        grown: the densest part of the window against the reference.
        classified: the classifier that found it.
        whole: MMD of the window.
        moves: of the capabilities, and of what is beyond them.
        covered: requests of that part in each capability that covers them, [K].
        uncovered: those that are like no capability.
        names: of the capabilities, K.
        damage: left in each, NaN where unknown, [K].
        labelled: findings of labels, each an action and a sentence.
    """
    drift = is_drift(grown)
    changed = whole.p <= LEVEL and classified.interval[0] > LEAST_AUC
    mix = any(move.shifted for move in moves)
    findings = [_drifted(drift, grown)]
    if drift:
        findings.append(_towards(covered, uncovered, names, damage))
    if not (drift and uncovered > sum(covered)):  # else shares are of what is like no capability
        findings += _mixed([move for move in moves if move.cluster is not None], names, damage)
    findings += [
        ("alert", f"Inside {names[move.cluster]!r} other things are asked (MMD², adjusted p = {_p(move.inside_p)}).")
        for move in moves
        if move.cluster is not None and move.changed_inside
    ]
    findings += labelled
    findings.append(_as_a_whole(changed, classified, whole))
    action = max((action for action, _ in findings), key=ACTIONS.index)
    return Verdict(drift, mix, changed, action, [sentence for _, sentence in findings])


def is_drift(grown: Growth) -> bool:
    """Whether the part is clearly over `GROWTH` times as frequent, and not a trifle."""
    return grown.p <= LEVEL and grown.now - grown.then >= LEAST_PART


def _drifted(drift: bool, grown: Growth) -> tuple[str, str]:
    if not grown.now:
        return "nothing", f"No part of the window is over {GROWTH:g} times as frequent as in the reference: no drift."
    part = (
        f"{percent(grown.now)} of the window lie where the reference has {percent(grown.then)} "
        f"(over {GROWTH:g} times as frequent: p = {_p(grown.p)})"
    )
    return ("alert", f"Drift: {part}.") if drift else ("nothing", f"No drift: {part}.")


def _towards(
    covered: Sequence[int], uncovered: int, names: Sequence[str], damage: NDArray[np.float64]
) -> tuple[str, str]:
    """Where the new requests are: in capabilities whose damage is known, or in none."""
    total = sum(covered) + uncovered
    if uncovered > total / 2:
        return "re-evaluate", (
            f"{uncovered:,} of these {total:,} requests are like no capability of the pool, so nothing is known of the "
            "damage there: evaluate the model on them, and tune again with them, answered, in the pool."
        )
    known = [k for k in range(len(names)) if covered[k] and math.isfinite(damage[k])]
    if not known:
        return (
            "re-evaluate",
            "The run knows no damage of the capabilities that they belong to: evaluate the model on them.",
        )
    typical = float(np.nanmedian(damage))
    mean = sum(covered[k] * float(damage[k]) for k in known) / sum(covered[k] for k in known)
    compared = (
        f"{total - uncovered:,} of these {total:,} requests belong to capabilities with {mean:.4f} nats per token of "
        f"damage left on average, {_times(mean, typical)} the median of {typical:.4f}"
    )
    if mean > typical:
        return "re-tune", f"{compared}: tune again, with more such requests in the pool."
    return "alert", f"{compared}: harmless, as far as that was measured."


def _times(value: float, of: float) -> str:
    """`1.23 times`; of nothing, anything is without measure."""
    return f"{value / of:.2f} times" if of else "more than"


def _mixed(moves: Sequence[Moved], names: Sequence[str], damage: NDArray[np.float64]) -> list[tuple[str, str]]:
    """What the new shares cost."""
    shifted = [move for move in moves if move.shifted]
    if not shifted:
        return [("nothing", "No capability's share changed clearly and by 2 points or more.")]
    known = [move for move in moves if math.isfinite(damage[_cluster(move)])]
    if not known:
        return [("alert", f"The shares of {len(shifted)} capabilities changed; the run knows no damage of any.")]
    typical = float(np.median([damage[_cluster(move)] for move in known]))
    then, now = (
        sum(share * float(damage[_cluster(move)]) for move, share in zip(known, shares, strict=True)) / sum(shares)
        if sum(shares)
        else 0.0
        for shares in ([move.share_then for move in known], [move.share_now for move in known])
    )
    costs = (
        f"The shares of {len(shifted)} capabilities changed; weighted by them, the damage left went from {then:.4f} to "
        f"{now:.4f} nats per token"
    )
    if now <= WORSE * then:
        return [("alert", f"{costs}, no more than {WORSE:g} times as much: harmless, as far as that was measured.")]
    findings = [("alert", f"{costs}, {_times(now, then)} as much.")]
    for move in shifted:
        left = float(damage[_cluster(move)])
        if move.grew and left > typical:
            findings.append(
                (
                    "re-tune",
                    f"{names[_cluster(move)]!r} grew from {percent(move.share_then)} to {percent(move.share_now)} of "
                    f"the requests (adjusted p = {_p(move.p)}) and has {left:.4f} nats per token of damage left, "
                    f"{_times(left, typical)} the median of {typical:.4f}: tune again with more of it.",
                )
            )
    return findings


def _as_a_whole(changed: bool, classified: Classified, whole: Mmd) -> tuple[str, str]:
    low, high = classified.interval
    told = (
        f"a classifier tells window and reference apart with an AUC of {classified.auc:.3f} ({low:.3f} … {high:.3f}; "
        f"0.5: not at all), MMD² is {whole.value:.5f} (p = {_p(whole.p)})"
    )
    return ("alert", f"The window as a whole differs: {told}.") if changed else ("nothing", f"As a whole, {told}.")


def _cluster(move: Moved) -> int:
    assert move.cluster is not None
    return move.cluster


def _p(value: float | None) -> str:
    """`0.003`; a tiny one as a bound."""
    return "–" if value is None else f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"
