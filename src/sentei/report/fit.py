"""The page of a fit: what could go, whether the task is still done, how sure that is, and what it took."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from sentei.progress import duration
from sentei.report import picture
from sentei.report.page import drawn, page, scrolled
from sentei.report.removed import blocks, table
from sentei.report.search import divided, search
from sentei.report.task import SIZES, listed, protocol, size
from sentei.report.training import healing
from sentei.report.verdict import summary, title
from sentei.report.words import count, known, metric_name, number, percent, relative, signed


def render(report: Mapping[str, Any]) -> str:
    """The page.

    Args:
        report: what `sentei.fit.fit` wrote. Where `fit` also holds `dense_searched`, the dense model's metric on the
            search rows, and `seed`, they are shown.
    """
    body = (
        f"{_header(report)}{_searched(report)}{_sizes(report['sizes'])}{_blocks(report)}{_time(report)}{_how(report)}"
        f"<footer>Made by sentei {escape(report['sentei'])}. Every figure of this page is in report.json.</footer>"
    )
    return page(escape(title(report)), body, "bars.css", "fit.css")


def _header(report: Mapping[str, Any]) -> str:
    fit, task, sizes = report["fit"], report["task"], report["sizes"]
    met, name = fit["verdict"] == "met", metric_name(task["metric"])
    tiles = [
        ("met" if met else "missed", f"{percent(fit['tolerance'])} tolerance" + (", strict" if fit["strict"] else ""))
    ]
    if met:
        tiles.append(
            (
                f"−{percent(fit['removed'])}",
                f"block params, now {size('block_params', sizes['pruned']['block_params'])}",
            )
        )
    elif fit["removed"] is not None:
        tiles.append((f"−{percent(fit['removed'])}", "block params in the best that was tried"))
    if known(fit["confirmed"]):
        change = signed(relative(fit["confirmed"], fit["dense"]))
        tiles.append((change, f"{name} on confirmation rows, now {number(fit['confirmed'])}"))
    if test := fit["test"]:
        tiles.append(
            (signed(relative(test["pruned"], test["dense"])), f"{name} on test rows, now {number(test['pruned'])}")
        )
    tiles.append(
        (duration(60 * fit["minutes"]), f"{count(fit['evaluations'], 'evaluation')}, {count(fit['looks'], 'look')}")
    )
    cards = "".join(f'<div class="tile"><b>{escape(big)}</b><span>{escape(small)}</span></div>' for big, small in tiles)
    lead = "".join(f'<p class="lead">{escape(line)}</p>' for line in summary(report).split("\n"))
    return (
        f'<header><p class="eyebrow">fit to a task</p><h1>{escape(title(report))}</h1>{lead}'
        f'<div class="tiles">{cards}</div></header>'
    )


def _searched(report: Mapping[str, Any]) -> str:
    fit, task = report["fit"], report["task"]
    placed, cuts = divided(report["history"], fit["cuts"])
    better = "more is better" if task["higher"] else "less is better"
    hint = (
        f"Each dot is a smaller model and its {metric_name(task['metric'])} ({better}) on the search rows; point at it "
        "to read it. Small ones are candidates in place, large ones real cuts. The ring is the cut that was confirmed, "
        "or else came nearest to it, on the confirmation rows, with its 95 % interval, and the square its test: the "
        "best of many looks better than it is, so it is measured again. What is far off is drawn on the edge."
    )
    keys = (("met", "within the tolerance"), ("unmet", "not within it"), ("part", "given up on a part of the rows"))
    legend = "".join(f'<span><i class="key {kind}"></i>{text}</span>' for kind, text in keys)
    listed = ""
    if cuts:
        rows = [
            [str(n), percent(row["removed"]), number(row["value"]), "yes" if row["met"] else "no"]
            for n, row in enumerate(cuts, start=1)
        ]
        inside = table(("cut", "removed", metric_name(task["metric"]), "within the tolerance"), rows)
        listed = f"<details><summary>Every real cut in a table</summary>{inside}</details>"
    in_place = (
        f"{count(len(placed), 'candidate')} in place, {count(len(cuts), 'real cut')}; the search "
        f"({escape(fit['search'])}) ended by: "
        f"{escape(fit['stopped'])}{_cuts_ended(fit)}. In place, {percent(fit['removed_in_place'])} "
        f"could go."
    )
    return (
        f'<section><h2>The search</h2><p class="hint">{escape(hint)} {in_place}</p>'
        f'<div class="legend">{legend}</div>{drawn(search(report))}{listed}</section>'
    )


def _cuts_ended(fit: Mapping[str, Any]) -> str:
    return f", the real cuts by: {escape(fit['cuts_ended'])}" if "cuts_ended" in fit else ""


def _sizes(sizes: Mapping[str, Mapping[str, int]]) -> str:
    dense, pruned = sizes["dense"], sizes.get("pruned")
    body = ""
    for name, label in SIZES.items():
        body += f"<tr><td>{label}</td><td>{size(name, dense[name])}</td>"
        if pruned:
            left = pruned[name] / dense[name]
            body += f"<td>{size(name, pruned[name])}{picture.share(left, 'share')}</td><td>{signed(left - 1)}</td>"
        body += "</tr>"
    head = ("", "dense", "pruned", "change") if pruned else ("", "dense")
    return f"<section><h2>Sizes</h2>{scrolled(head, body)}</section>"


def _blocks(report: Mapping[str, Any]) -> str:
    if not report["blocks"]:
        return ""
    hint = (
        "Sensitivity is what hangs on a part to first order on the task's rows: Σ|weight · gradient|, nats per token."
    )
    return (
        f'<section><h2>What was removed, and why</h2><p class="hint">{hint} Point at a block to read more.</p>'
        f"{blocks(report['blocks'])}</section>"
    )


def _time(report: Mapping[str, Any]) -> str:
    seconds = report["seconds"]
    total = sum(seconds.values()) or 1.0
    body = "".join(
        f"<tr><td>{escape(name)}</td><td>{duration(value)}{picture.share(value / total, 'share')}</td>"
        f"<td>{percent(value / total, 0)}</td></tr>"
        for name, value in seconds.items()
    )
    return f"<section><h2>How the time was spent</h2>{scrolled(('', 'time', 'share'), body)}</section>"


def _how(report: Mapping[str, Any]) -> str:
    fit = report["fit"]
    strict = "the whole 95 % interval" if fit["strict"] else "the point estimate"
    facts = {
        **protocol(report["task"]),
        "tolerance": f"{percent(fit['tolerance'])} of the dense model's metric on the same rows; {strict} has to hold",
        "intervals": "95 %, rows paired with their dense partners: of right and wrong answers Bonett and "
        "Price's, else a bootstrap",
        **({"training": trained} if (trained := healing(report)) else {}),
        "search": fit["search"],
        **({"seed": str(fit["seed"])} if "seed" in fit else {}),
    }
    return f"<section><h2>How it was measured</h2>{listed(facts)}</section>"
