"""A fit in words: what could go, whether the task is still done, how sure that is, what to do about a miss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sentei.progress import duration
from sentei.report.figures import scaled
from sentei.report.training import guessing, healing
from sentei.report.words import changed, count, known, metric_name, number, percent, relative

_ROWS = {"confirm": "confirmation", "test": "test"}
_CUT_SHORT = ("deadline", "evaluations")  # why a search may end before it is through


def title(report: Mapping[str, Any]) -> str:
    """The fit in a line."""
    fit = report["fit"]
    what = f"{percent(fit['removed'])} removed" if fit["verdict"] == "met" else "nothing smaller holds"
    ended = ended_by(report)
    return f"{report['model']} for {report['task']['name']}: {what}{f', {ended}' if ended else ''}"


def ended_by(report: Mapping[str, Any]) -> str:
    """`search ended by the deadline`, where it was not through."""
    fit = report["fit"]
    why = next((why for why in (fit.get("cuts_ended"), fit["stopped"]) if why in _CUT_SHORT), None)
    return {"deadline": "search ended by the deadline", "evaluations": "search ended by its number of evaluations"}.get(
        why or "", ""
    )


def summary(report: Mapping[str, Any]) -> str:
    """The fit in three or four lines, for the terminal and for those who read nothing else."""
    if report["fit"]["verdict"] != "met":
        return "\n".join((_missed(report), _advice(report), _cost(report)))
    said = (_headline(report), _compared(report), _confirmation(report), _test(report), _cost(report))
    return "\n".join(line for line in said if line)


def _wanted(report: Mapping[str, Any]) -> str:
    return f"{metric_name(report['task']['metric'])} within {percent(report['fit']['tolerance'])} of the dense model's"


def _headline(report: Mapping[str, Any]) -> str:
    fit, sizes = report["fit"], report["sizes"]
    before, after = (scaled(sizes[which]["block_params"]) for which in ("dense", "pruned"))
    return (
        f"{report['model']} keeps {_wanted(report)} on the task {report['task']['name']} with "
        f"{percent(fit['removed'])} of its block params removed ({before} → {after})."
    )


def _compared(report: Mapping[str, Any]) -> str:
    """What was trained and what was not, and the dense model trained alike."""
    found = report["fit"].get("dense_trained")
    text = " ".join(filter(None, (healing(report), guessing(report, report["fit"]["confirmed"]))))
    if not found:
        return text
    each = " and ".join(f"{number(found[rows])} on the {words} rows" for rows, words in _ROWS.items())
    return f"{text} Trained alike, the dense model has {metric_name(report['task']['metric'])} {each}."


def _confirmation(report: Mapping[str, Any]) -> str:
    fit, task = report["fit"], report["task"]
    text = f"On {count(task['rows']['confirm'], 'confirmation row')} {metric_name(task['metric'])} went "
    text += changed(fit["dense"], fit["confirmed"], fit["interval"])
    if certain(report):
        return f"{text}: the whole interval is within the tolerance."
    needed = fit["rows_needed"]
    more = (
        f"for that, a model like this one needs about {needed:,} confirmation rows"
        if needed
        else "it is on the limit, so no number of rows would settle it"
    )
    return f"{text}: within the tolerance, but not the whole interval; {more}."


def _test(report: Mapping[str, Any]) -> str:
    test = report["fit"]["test"]
    if test is None:
        return "The test rows were not read."
    text = f"On {count(test['rows'], 'test row')}, read once, it went "
    text += changed(test["dense"], test["pruned"], test["interval"])
    return f"{text}: within the tolerance." if test["met"] else f"{text}: NOT within the tolerance; do not count on it."


def _cost(report: Mapping[str, Any]) -> str:
    fit = report["fit"]
    return (
        f"It took {count(fit['looks'], 'look')} at the confirmation rows, {count(fit['evaluations'], 'evaluation')}, "
        f"{fit['cuts']:.0f} of them of real cuts, and {duration(60 * fit['minutes'])}."
    )


def _missed(report: Mapping[str, Any]) -> str:
    fit, task = report["fit"], report["task"]
    text = f"Missed: no smaller {report['model']} keeps {_wanted(report)} on the task {task['name']}"
    if fit["removed"] is None:
        return f"{text}: none held on the {count(task['rows']['search'], 'search row')}."
    return (
        f"{text}. The best of {count(fit['looks'], 'look')}, with {percent(fit['removed'])} of the block params "
        f"removed, took it {changed(fit['dense'], fit['confirmed'], fit['interval'])} on "
        f"{count(task['rows']['confirm'], 'confirmation row')}."
    )


def _advice(report: Mapping[str, Any]) -> str:
    """What to do about a miss; the likeliest first."""
    fit, ways = report["fit"], []
    low, high = fit["interval"] or (None, None)
    change = relative(fit["confirmed"], fit["dense"])
    if fit["strict"]:
        change = low if report["task"]["higher"] else high
    lost = None if change is None or not known(change) else -change if report["task"]["higher"] else change
    if fit["rows_needed"]:
        ways.append(f"give about {fit['rows_needed']:,} confirmation rows, so that the interval is narrow enough")
    if ended_by(report):
        ways.append("give the search more time (--minutes): it was not through")
    if lost is not None and lost > fit["tolerance"]:
        ways.append(f"allow more (--tolerance {math.ceil(1000 * lost) / 1000:g} is what the best one needs)")
    elif not fit["rows_needed"]:
        ways.append("allow more (--tolerance)")
    ways.append("tune the model on the task first (sentei tune MODEL --data TASK.yaml --loss sft --out TUNED)")
    return f"What to do: {'; or '.join(ways)}."


def certain(report: Mapping[str, Any]) -> bool:
    """Whether the whole interval is within the tolerance."""
    fit = report["fit"]
    low, high = fit["interval"] or (None, None)
    return (
        known(low) and low >= -fit["tolerance"]
        if report["task"]["higher"]
        else known(high) and high <= fit["tolerance"]
    )
