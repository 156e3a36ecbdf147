"""Recovery in the report: what was chosen and trained, what came back, what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from sentei.progress import duration
from sentei.recipe import Recover
from sentei.recover.select.about import read_about, read_manifest
from sentei.report import picture
from sentei.report.figures import scaled
from sentei.report.format_recovery import Capabilities, Tune
from sentei.report.page import drawn, scrolled
from sentei.schema import read


def collect(recover: Recover, select: Path, tune: Path, compare: Path, seconds: Mapping[str, float]) -> dict[str, Any]:
    """What report.json says of recovery, from the directories of its stages.

    Args:
        recover: what the recipe asked for.
        select: the selection.
        tune: with `model/tune.json`.
        compare: with `capabilities.json`.
        seconds: how long each stage took; of one that was killed, only since it went on.

    Returns:
        `{"pool", "strategy", "budget", "filters"}` of the selection, `"tune"`: the record of `tune`, `"overall"`,
        `"capabilities"` and `"notes"` of `sentei.recover.capabilities.compare`, `"yardstick"` of
        `sentei.recover.yardstick.judge`, and `"cost"`: `{"seconds": {"select",
        "tune"}, "trained_tokens", "scored_tokens" (each read by both models), "watt_hours", "money", "currency"}`; the
        estimates are there where watts and a price are given.
    """
    about, record = read_about(select), read(tune / "model" / "tune.json", Tune)
    spent = {name: seconds[name] for name in ("select", "tune")}
    hours = sum(spent.values()) / 3600
    cost: dict[str, Any] = {
        "seconds": spent,
        "trained_tokens": record["tokens"],
        "scored_tokens": sum(row["tokens"] for row in read_manifest(select)),
    }
    if recover.watts is not None:
        cost |= {"watt_hours": hours * recover.watts}
    if recover.price_per_hour is not None:
        cost |= {"money": hours * recover.price_per_hour, "currency": recover.currency}
    return {
        "pool": {**about["pool"], "source": Path(about["pool"]["source"]).name},
        "strategy": about["strategy"],
        "budget": about["budget"],
        "filters": about["filters"],
        "tune": record,
        **read(compare / "capabilities.json", Capabilities),
        "cost": cost,
    }


def in_words(recovery: Mapping[str, Any]) -> str:
    """What recovery gave, in a sentence or two."""
    overall, tune, verdict = recovery["overall"], recovery["tune"], recovery["yardstick"]
    trained = f"Recovery trained {scaled(tune['trainable_params'])} parameters on {scaled(tune['tokens'])} tokens"
    if not is_kept(recovery):
        return f"{trained} and made it worse: {verdict['reason']}. The model that was cut is kept."
    if overall["came_back"] is None or overall["rows"] < verdict["enough"]:
        return f"{trained}; {verdict['reason']}."
    back, between = overall["came_back"], overall["interval"]
    if back >= 0:
        return f"{trained}; {_percent(back)}{_between(between)} of the distance to the dense model came back."
    more = _between([-end for end in reversed(between)] if between else None)
    return f"{trained}; the distance to the dense model grew by {_percent(-back)}{more}."


def is_kept(recovery: Mapping[str, Any]) -> bool:
    """Whether the recovered model is the one that the run ends with; see `sentei.recover.yardstick`."""
    return bool(recovery["yardstick"]["kept"] == "recovered")


def tile(recovery: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The tile of the header, where there is something to say."""
    if not is_kept(recovery):
        return [("not kept", "what recovery made: the model that was cut is nearer to the dense one")]
    back, rows = recovery["overall"]["came_back"], recovery["overall"]["rows"]
    if back is None or rows < recovery["yardstick"]["enough"]:
        return []
    if back < 0:
        return [(f"+{_percent(-back)}", "distance to the dense model on held-out rows")]
    return [(_percent(back), "of the distance to the dense model came back")]


def section(recovery: Mapping[str, Any]) -> str:
    """The section of the page. Names of capabilities come from the pool: all text is escaped."""
    pool, budget, tune = recovery["pool"], recovery["budget"], recovery["tune"]
    chosen = (
        f"{budget['selected']:,} of {pool['rows']:,} rows of {pool['source']} ({budget['tokens']:,} tokens), chosen by "
        f"the strategy {recovery['strategy']}"
    )
    trained = (
        f"The adapter {tune['adapter']} trained {tune['trainable_params']:,} parameters, loss {tune['loss']}, on "
        f"{tune['tokens']:,} tokens: {tune['stopped']}. "
    )
    hint = (
        f'{escape(chosen)}: <a href="selection.html">what was chosen, and why</a>. {escape(trained)}'
        f"{escape(_sentence(tune['recommendation'])) if is_kept(recovery) else ''} {escape(_sentence(tune['note']))}"
    )
    verdict = f'<p class="hint">{escape(_judged(recovery))}</p>'
    notes = "".join(f'<p class="hint">{escape(_sentence(note))}</p>' for note in recovery["notes"])
    return (
        f'<section><h2>What came back</h2><p class="hint">{hint.strip()}</p>{verdict}'
        f"<h3>Loss on held-out rows of the selection, nats per token, over training tokens</h3>{_curve(tune)}"
        f"<h3>Damage by capability</h3>{_capabilities(recovery)}{notes}"
        f"<h3>What it cost</h3><dl>{_cost(recovery['cost'])}</dl></section>"
    )


def _judged(recovery: Mapping[str, Any]) -> str:
    """Which model the run ends with, and by what."""
    verdict = recovery["yardstick"]
    kept = "The recovered model" if is_kept(recovery) else "The model that was cut, not the recovered one,"
    rows, windows = verdict["rows"]["rows"], verdict["text"]["rows"]
    return (
        f"{kept} is kept: {verdict['reason']}. That was measured on {rows:,} held-out rows of the pool and {windows:,} "
        f"windows of other text; less than {verdict['enough']} of one decide nothing."
    )


def _curve(tune: Mapping[str, Any]) -> str:
    points = [(point["tokens"], point["heldout"]) for point in tune["curve"]]
    return drawn(picture.curve(points, min(range(len(points)), key=lambda n: points[n][1])))


def _capabilities(recovery: Mapping[str, Any]) -> str:
    rows, overall = recovery["capabilities"], recovery["overall"]
    worst = max((c[when]["value"] or 0.0 for c in rows for when in ("before", "after")), default=0.0) or 1.0
    largest = max((c["share"] for c in rows), default=0.0) or 1.0
    body = ""
    for c in rows:
        share = f"{100 * c['share']:.1f} %{picture.share(c['share'] / largest, 'share')}"
        body += (
            f'<tr class="capability"><td>{escape(c["name"])}{_typical(c)}</td>{_damages(c, worst)}'
            f"<td>{share}</td><td>{c['selected']:,} of {c['pool_rows']:,}</td><td>{c['rows']:,}</td></tr>"
        )
    total = f"<td></td><td>{recovery['budget']['selected']:,} of {recovery['pool']['rows']:,}</td>"
    body += f'<tr class="sum"><td>all</td>{_damages(overall, worst)}{total}<td>{overall["rows"]:,}</td></tr>'
    heads = ("", "damage before", "after", "came back", "share of the budget", "rows selected", "rows scored again")
    return (
        '<p class="hint">Damage is the Jensen–Shannon divergence from the dense model on answers, nats per token, of '
        "rows that were neither selected nor rejected: evenly many of each capability, before and after recovery. "
        "Capabilities are the clusters of the pool. What came back is 1 − after / before, with its paired 95 % "
        "interval. This is nearness to the dense model, not quality: training on the text of the answers may leave the "
        f"dense model behind.</p>{scrolled(heads, body)}"
    )


def _typical(capability: Mapping[str, Any]) -> str:
    """Its most typical question, for words alone do not say what a capability is."""
    return f"<small>“{escape(capability['typical'])}”</small>" if capability.get("typical") else ""


def _damages(cell: Mapping[str, Any], worst: float) -> str:
    parts = ""
    for when, kind in (("before", "damage"), ("after", "after")):
        value, between = cell[when]["value"], cell[when]["interval"]
        sure = f"<small>{between[0]:.4f} – {between[1]:.4f}</small>" if between else ""
        parts += "<td>–</td>" if value is None else f"<td>{value:.4f}{picture.share(value / worst, kind)}{sure}</td>"
    back, between = cell["came_back"], cell["interval"]
    if back is None:
        return f"{parts}<td>–</td>"
    clear = "" if not between or between[0] <= 0 <= between[1] else "better" if back > 0 else "worse"
    sure = f"<small>{_percent(between[0])} … {_percent(between[1])}</small>" if between else ""
    return f'{parts}<td class="{clear}">{_percent(back)}{sure}</td>'


def _cost(cost: Mapping[str, Any]) -> str:
    seconds = cost["seconds"]
    facts = {
        "time": f"{duration(sum(seconds.values()))}: "
        + ", ".join(f"{name} {duration(value)}" for name, value in seconds.items()),
        "tokens": f"{cost['scored_tokens']:,} scored by both models, {cost['trained_tokens']:,} trained on",
    }
    if "watt_hours" in cost:
        facts["energy"] = f"about {cost['watt_hours']:,.3g} Wh"
    if "money" in cost:
        facts["money"] = f"about {cost['money']:,.2f} {cost['currency']}"
    return "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts.items())


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "." if text else ""


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %".replace("-", "−")


def _between(interval: list[float] | None) -> str:
    return f" [{_percent(interval[0])} … {_percent(interval[1])}]" if interval else ""
