"""watch.html: what moved, what it is worth, and which requests show it. All text of the log is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from sentei.report.page import page, scrolled
from sentei.report.picture import share
from sentei.report.words import count, percent

_DO = {
    "nothing": "Nothing to do",
    "alert": "Something moved; no harm is known",
    "re-evaluate": "Evaluate the model again",
    "re-tune": "Tune the model again",
}


def render(result: Mapping[str, Any]) -> str:
    """The page of a watch.json."""
    body = (
        f"{_header(result)}{_why(result)}{_capabilities(result['capabilities'], result['damage'])}"
        f"{_foreign(result['foreign'])}{_how(result)}"
        "<footer>Every figure of this page is in watch.json.</footer>"
    )
    return page(escape(_DO[result["recommendation"]]), body, "bars.css", "recovery.css", "selection.css")


def _header(result: Mapping[str, Any]) -> str:
    window, tests = result["window"], result["tests"]
    alarms = sum(row["alarm"] for row in result["capabilities"])
    low, high = tests["classifier"]["interval"]
    tiles = [
        ("drift" if result["drift"] else "no drift", "requests that the pool of the run hardly has"),
        (count(alarms, "alarm"), f"in {len(result['capabilities']) - 1:,} capabilities and what is beyond them"),
        (
            f"{tests['classifier']['auc']:.2f}",
            f"AUC of window against pool, {low:.2f} … {high:.2f}; 0.5 is no difference",
        ),
        (f"{window['compared']:,}", f"requests compared, of {window['requests']:,}"),
    ]
    cards = "".join(f'<div class="tile"><b>{escape(big)}</b><span>{escape(small)}</span></div>' for big, small in tiles)
    when = f" from {window['first']} to {window['last']}" if window["first"] and window["last"] else ""
    return (
        f'<header><p class="eyebrow">watch</p><h1>{escape(_DO[result["recommendation"]])}</h1>'
        f'<p class="lead">{escape(count(window["requests"], "request"))} of {escape(result["log"]["source"])}'
        f"{escape(when)}, against the pool that {escape(result['run'])} was recovered with.</p>"
        f'<div class="tiles">{cards}</div></header>'
    )


def _why(result: Mapping[str, Any]) -> str:
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in result["arithmetic"])
    return (
        f"<section><h2>Why: {escape(result['recommendation'])}</h2>"
        '<p class="hint">Drift is a part of the requests that is over three times as frequent as in the pool. A pool '
        "is no traffic, so other shares of what it has are no drift; they are weighed by the damage that is left.</p>"
        f"<ul>{items}</ul></section>"
    )


def _capabilities(rows: Sequence[Mapping[str, Any]], measured: str) -> str:
    largest = max((row[when]["share"] for row in rows for when in ("then", "now")), default=0.0) or 1.0
    labelled = any(row["labels"] for row in rows)
    worst = max((row["damage"] or 0.0 for row in rows), default=0.0) or 1.0
    body = ""
    for row in rows:
        shares = "".join(
            f"<td>{percent(row[when]['share'])}{share(row[when]['share'] / largest, kind)}</td>"
            for when, kind in (("then", "share"), ("now", "after"))
        )
        damage = "–" if row["damage"] is None else f"{row['damage']:.4f}{share(row['damage'] / worst, 'damage')}"
        inside = "–" if row["inside"] is None else _p(row["inside"]["p"])
        typical = f'<small dir="auto">“{escape(row["typical"])}”</small>' if row["typical"] else ""
        body += (
            f'<tr class="capability"><td>{escape(row["name"])}{typical}</td>{shares}<td>{_p(row["p"])}</td>'
            f'<td>{inside}</td><td class="{"worse" if row["alarm"] else ""}">{"alarm" if row["alarm"] else "–"}</td>'
            f"<td>{damage}</td>{_label(row['labels']) if labelled else ''}</tr>"
        )
    cards = "".join(
        f'<details class="cluster"><summary><b>{escape(row["name"])}</b><small>requests that are most foreign to the '
        f"pool</small></summary>{_examples(row['examples'])}</details>"
        for row in rows
        if row["examples"]
    )
    heads = (
        "",
        "share in the pool",
        "share now",
        "p of the share",
        "p of the inside",
        "",
        "damage left",
        *(["mean label"] if labelled else []),
    )
    return (
        '<section><h2>Capability by capability</h2><p class="hint">A request belongs to the capability whose mean is '
        "nearest, then and now; those farther from it than 95 % of its pool are beyond all capabilities. p of the "
        "share: Fisher’s exact test; p of the inside: MMD² of its own requests, where there are enough; both adjusted "
        f"over the table (Benjamini–Hochberg). Damage: nats per token, {escape(measured)}.</p>{scrolled(heads, body)}"
        f"{cards}</section>"
    )


def _label(labels: Mapping[str, Any] | None) -> str:
    if labels is None:
        return "<td>–</td>"
    between = labels["interval"]
    ends = f"{between[0]:.2f} – {between[1]:.2f}, " if between else ""
    sure = f"<small>{ends}of {labels['count']:,}</small>"
    return f"<td>{labels['mean']:.2f}{sure}</td>"


def _foreign(examples: Sequence[Mapping[str, Any]]) -> str:
    if not examples:
        return ""
    return (
        '<section><h2>What is new</h2><p class="hint">The requests that a classifier, which did not see them, finds '
        f"most foreign to the pool.</p>{_examples(examples)}</section>"
    )


def _examples(examples: Sequence[Mapping[str, Any]]) -> str:
    return "".join(
        f'<div class="example"><header>request {escape(row["id"][:80])} {escape(row["time"])} · nearest to '
        f"{escape(row['capability'])} · log-odds {row['score']:.2f}</header>"
        f'<p dir="auto">{escape(row["text"])}</p></div>'
        for row in examples
    )


def _how(result: Mapping[str, Any]) -> str:
    log, reference, mmd = result["log"], result["reference"], result["tests"]["mmd"]
    facts = {
        "log": f"{log['source']}: {count(log['requests'], 'request')} ("
        + ", ".join(f"{number:,} {schema}" for schema, number in log["schemas"].items())
        + f"), {log['skipped']:,} lines skipped",
        "reference": f"{reference['compared']:,} of {reference['rows']:,} rows of the pool, those that differ",
        "embedder": reference["embedder"],
        "MMD²": f"{mmd['value']:.5f}, p = {_p(mmd['p'])} of {mmd['permutations']:,} permutations of "
        f"{mmd['rows'][0]:,} + {mmd['rows'][1]:,} rows, width {mmd['width']:.3f}",
        "seed": str(result["seed"]),
    }
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts.items())
    notes = "".join(f"<li>{escape(note)}</li>" for note in result["notes"])
    return f"<section><h2>How it was measured</h2><dl>{items}</dl>{f'<ul>{notes}</ul>' if notes else ''}</section>"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}".replace("-", "−")
