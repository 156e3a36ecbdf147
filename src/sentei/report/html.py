"""`render`: report.json as one page that needs no network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from sentei.progress import duration
from sentei.report import accel, exports, picture
from sentei.report.figures import Change, Figure, mean_accuracy, scaled, show
from sentei.report.page import page, scrolled
from sentei.report.recovery import in_words, section, tile
from sentei.report.removed import blocks, table
from sentei.report.words import calibrated_on

_GROUPS = {"size": "Size", "perplexity": "Perplexity", "tasks": "Accuracy", "speed": "Speed", "memory": "Memory"}
# The columns of differences for two and three models: which model is set against which.
_PAIRS = {
    2: {"difference": (0, 1)},
    3: {"pruned : dense": (0, 1), "recovered : dense": (0, 2), "recovered : pruned": (1, 2)},
}
_UPPER = " In the pictures the upper dot is the pruned model against the dense one, the lower dot the recovered one."


def render(report: Mapping[str, Any]) -> str:
    """The page."""
    figures = [Figure.from_json(row) for row in report["figures"]]
    recovery = report.get("recovery")
    sheets = ("bars.css", "recovery.css") if recovery or "accel" in report else ()
    title = escape(f"{report['model']}, pruned" + (" and recovered" if recovery else ""))
    body = (
        f"{_header(report, figures)}{_removed(report)}{_figures(report, figures)}"
        f"{section(recovery) if recovery else ''}{accel.section(report['accel']) if 'accel' in report else ''}"
        f"{exports.section(report.get('exports', []))}{_predictions(report)}{_how(report)}"
        f"<footer>Made by sentei {escape(report['sentei'])}. Every figure of this page is in report.json.</footer>"
    )
    return page(title, body, *sheets)


def summary(report: Mapping[str, Any]) -> str:
    """The run in two or three sentences, for those who read nothing else."""
    figures = {(row["group"], row["name"]): Figure.from_json(row) for row in report["figures"]}
    dense, pruned = [*figures["size", "block params"].values, None][:2]
    if not dense or pruned is None:
        return ""
    lost = f"{100 * (1 - pruned / dense):.1f} % of its block params ({scaled(dense)} → {scaled(pruned)})"
    text = f"{report['model']} lost {lost}. "
    if recovery := report.get("recovery"):
        text += f"{in_words(recovery)} "
    if texts := [f for f in figures.values() if f.group == "perplexity" and f.outcome]:
        changes = "; ".join(
            f"{' → '.join(map(f.show, f.values))} ({f.outcome}) on {f.name}{_guessing(f)}" for f in texts
        )
        text += f"Perplexity went from {changes}. "
    if shares := report.get("calibrated_on"):
        text += f"{calibrated_on(shares)} "
    if mean := mean_accuracy(figures.values()):
        change = f" ({mean.outcome} points{_sure(mean.outcome)})" if mean.outcome else ""
        text += f"Mean accuracy over {mean.samples}: {' → '.join(map(mean.show, mean.values))}{change}. "
    speeds = [f"{f.name} {f.outcome}" for f in figures.values() if f.group == "speed" and f.outcome]
    text += f"Speed on this machine: {', '.join(speeds)}. " if speeds else ""
    failed = [f"The stage {name} failed: {why}." for name, why in report.get("failed", {}).items()]
    return (text + " ".join(failed)).strip()


def _sure(change: Change) -> str:
    """The interval of a change, behind it."""
    return f", 95 % interval {change.between}" if change.interval else ""


def _guessing(figure: Figure) -> str:
    """Said of a perplexity that guessing would beat."""
    _, worse, words = figure.samples.partition("worse than guessing")
    return f", {worse}{words}" if worse else ""


def _header(report: Mapping[str, Any], figures: list[Figure]) -> str:
    by_name = {(f.group, f.name): f for f in figures}
    size = by_name["size", "block params"]
    tiles = []
    if size.change:
        tiles.append((f"−{100 * (1 - size.change.value):.1f} %", f"block params, now {size.show(size.values[1])}"))
    for f in [f for f in figures if f.group == "perplexity" and f.outcome][:1]:
        tiles.append((str(f.outcome), f"perplexity on {f.name}, now {f.show(f.values[-1])}"))
    if (mean := mean_accuracy(figures)) and mean.outcome:
        small = f"points of mean accuracy{_sure(mean.outcome)}, now {mean.show(mean.values[-1])}"
        tiles.append((str(mean.outcome), small))
    if recovery := report.get("recovery"):
        tiles += tile(recovery)
    for name in ("prefill", "decode"):
        speed = by_name.get(("speed", name))
        if speed and speed.outcome:
            tiles.append((str(speed.outcome), f"{name} speed, now {speed.show(speed.values[-1])} tokens/s"))
    cards = "".join(f'<div class="tile"><b>{escape(big)}</b><span>{escape(small)}</span></div>' for big, small in tiles)
    return (
        f'<header><p class="eyebrow">pruning report</p><h1>{escape(report["model"])}: '
        f"{escape(report['budget']['words'])}</h1>"
        f'<p class="lead">{escape(summary(report))}</p><div class="tiles">{cards}</div></header>'
    )


def _removed(report: Mapping[str, Any]) -> str:
    method = report["method"]
    made = f"Method <b>{escape(method['name'])}</b>: {escape(method['line'])}" + (
        f" ({escape(method['paper'])})." if method["paper"] else "."
    )
    parts = f"Score {method['score']}, allocation {method['allocation']}, compensation {method['compensation']}."
    if "protect" in method:  # pages of older reports are drawn too
        parts += f" Protected: {method['protect']}; parts compared by: {method['weigh']}."
    sensitive = any(row["ffn"]["sensitivity"] is not None for row in report["blocks"])
    why = (
        "Sensitivity compares parts to first order: Σ|weight · gradient| of the dense model. It predicts no loss."
        if sensitive
        else "The profile has no gradients, so no sensitivity is shown."
    )
    return (
        f'<section><h2>What was removed, and why</h2><p class="hint">{made} {escape(parts)} {why} '
        f"Point at a block to read more.</p>{blocks(report['blocks'])}</section>"
    )


def _figures(report: Mapping[str, Any], figures: list[Figure]) -> str:
    points = [c for f in figures for c in f.changes if c and c.kind == "points"]
    reach = 1.1 * max((abs(end) for c in points for end in (c.interval or (c.value,))), default=0.0) or 1.0
    roles = list(report["models"])
    pairs = _PAIRS[len(roles)]
    both = "both" if len(roles) == 2 else "all"
    body = ""
    for group, label in _GROUPS.items():
        rows = [f for f in figures if f.group == group]
        if not rows:
            continue
        span = len(roles) + len(pairs) + 2
        body += f'<tr class="group"><td colspan="{span}">{label}</td></tr>' + "".join(_figure(f, reach) for f in rows)
        if group == "tasks" and (mean := mean_accuracy(figures)):
            body += _figure(mean, reach, "sum")
    return (
        f'<section><h2>What it did</h2><p class="hint">Intervals hold 95 % (perplexity: bootstrap over windows; '
        "accuracy: Wilson, differences Newcombe, the mean over tasks joined from theirs); differences are paired: "
        f"{both} "
        "models read the same windows and answered the same rows. An interval that crosses the dotted line "
        "is no clear change. For speed, the interval holds the middle half of the rounds."
        f"{_UPPER if len(roles) > 2 else ''}</p>"
        f"{scrolled(('', *roles, *pairs, ''), body)}</section>"
    )


def _figure(figure: Figure, reach: float, style: str = "") -> str:
    cells = ""
    for value, between in zip(figure.values, figure.intervals, strict=True):
        sure = f"<small>{figure.show(between[0])} – {figure.show(between[1])}</small>" if between else ""
        cells += f"<td>{figure.show(value)}{sure}</td>"
    steps = figure.steps or [None] * (len(figure.values) - 2)
    for change in [*(figure.changes or [None] * (len(figure.values) - 1)), *steps]:
        small = f"<small>{change.between}</small>" if change and change.interval else ""
        cells += f'<td class="{_verdict(figure, change)}">{change or "–"}{small}</td>'
    drawn = [(c.value, c.interval) for c in figure.changes if c and c.interval and c.kind == "points"]
    plot = picture.intervals(drawn, reach) if drawn else ""
    samples = f"<small>{escape(figure.samples)}</small>" if figure.samples else ""
    samples += f"<small>{escape(figure.note)}</small>" if figure.note else ""
    row = f'<tr class="{style}">' if style else "<tr>"
    return f'{row}<td>{escape(figure.name)}{samples}</td>{cells}<td class="plot">{plot}</td></tr>'


def _verdict(figure: Figure, change: Change | None) -> str:
    """Colours only what is clear: an interval that leaves out no change."""
    if change is None:
        return ""
    neutral = 1.0 if change.kind == "ratio" else 0.0
    low, high = change.interval or (change.value, change.value)
    if low <= neutral <= high:
        return ""
    return "better" if (low > neutral) == (figure.better == "higher") else "worse"


def _predictions(report: Mapping[str, Any]) -> str:
    rows = []
    for row in report["predictions"]:
        predicted, measured = row["predicted"], row["measured"]
        off = f"{measured / predicted - 1:+.1%}" if predicted else "–"
        rows.append([row["name"], show(predicted, row["unit"]), show(measured, row["unit"]), off, row["note"]])
    cells = table(("", "predicted", "measured", "off by", ""), rows, notes=True)
    hint = "The plan knew this before the model was cut; here it is beside what was measured afterwards."
    return f'<section><h2>Predicted and measured</h2><p class="hint">{hint}</p>{cells}</section>'


def _how(report: Mapping[str, Any]) -> str:
    protocol, seconds = report["protocol"], report["seconds"]
    calibration, prove, machine = protocol["calibration"], protocol["prove"], protocol["machine"]
    some = f"the first {prove['windows']} windows" if prove["windows"] else "all windows"
    rows = f"the first {prove['limit']} rows" if prove["limit"] else "all rows"
    facts = {
        "calibration": f"{calibration['data']}: {calibration['tokens']:,} tokens in windows of "
        f"{calibration['window']:,}; gradients of {calibration['gradient_tokens']:,}",
        "perplexity": f"{', '.join(prove['texts'])}: {some} of {prove['window']:,} tokens, loss over tokens 2 to "
        f"{prove['window']:,} of each",
        "tasks": f"{rows} of each, zero-shot, scored by lm-evaluation-harness",
        "speed": "the models in turns in one process, medians" if prove["speed"] else "not measured",
        "precision, seed": f"{protocol['dtype']}, seed {protocol['seed']}",
        "machine": f"{machine['name']} ({machine['device']}, bf16: {machine['bf16']}), {machine['threads']} threads, "
        f"Python {machine['python']}, torch {machine['torch']}, transformers {machine['transformers']}",
        "time": ", ".join(f"{name} {duration(value)}" for name, value in seconds.items()),
    }
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts.items())
    hashes = "".join(
        f"<dt>{escape(name)}</dt><dd><code>{escape(value)}</code></dd>" for name, value in protocol["hashes"].items()
    )
    recipe = escape(json.dumps(report["recipe"], indent=2, ensure_ascii=False))
    return (
        f"<section><h2>How it was measured</h2><dl>{items}</dl>"
        "<details><summary>Hashes and the resolved recipe</summary>"
        f"<h3>sha256</h3><dl>{hashes}</dl><h3>recipe</h3><pre>{recipe}</pre></details></section>"
    )
