from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from rich.console import Console

from report import example
from sentei.report.build import build
from sentei.report.figures import Change, Figure, collect, mean_accuracy, scaled
from sentei.report.html import render, summary
from sentei.report.table import figures_table, report_table


def made(**changes: Any) -> dict[str, Any]:
    parts = {
        "recipe": example.recipe(),
        "profile": example.profile(),
        "plan": example.plan(),
        "evidence": example.evidence(),
        "seconds": {"measure": 31.2, "plan": 4.0},
    }
    return build(**{**parts, **changes})


class Page(HTMLParser):
    """Collects what a page refers to and checks that its elements nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.count: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        self.links += [value for name, value in attrs if name in {"src", "href", "xlink:href", "data"}]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page(report: dict[str, Any]) -> tuple[str, Page]:
    html = render(report)
    parser = Page()
    parser.feed(html)
    assert parser.open == []
    return html, parser


def test_the_schema_version_comes_first_and_all_of_it_is_json() -> None:
    report = made()
    assert next(iter(report)) == "schema_version"
    assert json.loads(json.dumps(report, allow_nan=False)) == json.loads(json.dumps(report))
    assert report["models"]["dense"]["perplexity"]["demo"]["value"] == 20.0
    assert report["models"]["pruned"]["perplexity"]["demo"]["value"] == 25.0


def test_figures_survive_json() -> None:
    figures = collect(example.evidence())
    again = [Figure.from_json(json.loads(json.dumps(figure.to_json()))) for figure in figures]
    assert [(f.name, f.values, str(f.change)) for f in again] == [(f.name, f.values, str(f.change)) for f in figures]


def test_paired_differences_come_with_their_intervals() -> None:
    figures = {(f.group, f.name): f for f in collect(example.evidence())}
    assert str(figures["perplexity", "demo"].change) == "×1.25"
    assert str(figures["tasks", "piqa"].change) == "−13.2"
    assert figures["tasks", "piqa"].change.between == "−20.0 … −3.0"


def test_the_page_needs_no_network() -> None:
    html, parser = page(made())
    assert parser.links == []
    assert not re.search(r"@import|url\(|https?://", html)
    assert "prefers-color-scheme: dark" in html


def recovered(**changes: Any) -> dict[str, Any]:
    return made(**{"evidence": example.evidence_recovered(), "recovery": example.recovery(), **changes})


def test_recovery_adds_a_column_everywhere() -> None:
    report = recovered()
    assert list(report["models"]) == list(report["average_accuracy"]) == ["dense", "pruned", "recovered"]
    assert json.loads(json.dumps(report, allow_nan=False))["recovery"]["capabilities"][0]["selected"] == 170
    html, parser = page(report)
    assert "<th>dense</th><th>pruned</th><th>recovered</th>" in html and "<th>recovered : pruned</th>" in html
    assert parser.links == ["selection.html"] and not re.search(r"@import|url\(|https?://", html)
    text = summary(report)
    assert (
        "20.00 → 25.00 → 22.22 (×1.11) on demo" in text
        and "63.0 % → 50.4 % → 56.7 % (−6.0 points, 95 % interval −8.3 … −3.7)" in text
    )
    assert "29 % [21 % … 36 %] of the distance to the dense model came back." in text
    worse = example.recovery()
    worse["overall"] |= {"came_back": -0.15, "interval": [-0.17, -0.13]}
    grew = "the distance to the dense model grew by 15 % [13 % … 17 %]."
    assert grew in summary(recovered(recovery=worse))


def test_the_gain_over_the_pruned_model_is_paired() -> None:
    figures = {(f.group, f.name): f for f in collect(example.evidence_recovered())}
    piqa = figures["tasks", "piqa"]
    assert [str(c) for c in (*piqa.changes, *piqa.steps)] == ["−13.2", "−6.0", "+6.0"]
    assert piqa.steps[0].between == "+2.0 … +10.0" and str(piqa.outcome) == "−6.0"
    assert Figure.from_json(json.loads(json.dumps(piqa.to_json()))).steps[0].value == 0.06
    assert all(f.steps in ([], [None]) for f in figures.values() if f.group in ("size", "speed", "memory"))


def test_what_came_back_is_shown_with_its_interval() -> None:
    html, parser = page(recovered())
    rows = re.findall(r'<tr class="capability">(.*?)</tr>', html)
    assert len(rows) == 3 and "43 %<small>35 % … 50 %</small>" in rows[0] and 'class="better"' in rows[0]
    assert 'class="">5 %' in rows[1], "an interval around nothing is no clear gain"
    assert rows[2].count("<td>–</td>") == 3, "what could not be scored again is not made up"
    assert html.count("point kept") == 1 and "24,000 tokens: 1.5500 nats, kept" in html
    assert parser.count["polyline"] == 1
    assert "2 min 26 s: select 1 min 1 s, tune 1 min 25 s" in html and "about 2.43 Wh" in html


def test_text_of_the_pool_is_escaped() -> None:
    html, parser = page(recovered())
    assert not {"script", "i" * 2} & set(parser.count) and "&lt;script&gt;alert(1)&lt;/script&gt;, &amp; sums" in html
    for text in ("pool &lt;b&gt;.jsonl", "64 rows &lt;i&gt;of&lt;/i&gt; the pool", "0.02 EUR &lt;"):
        assert text in html


def test_recovery_without_a_price_or_anything_to_compare() -> None:
    recovery = example.recovery()
    for key in ("watt_hours", "money", "currency"):
        del recovery["cost"][key]
    nothing = {"came_back": None, "interval": None, "rows": 0}
    recovery["yardstick"]["reason"] = "too few rows to say whether it helped: 0, at least 16 are needed"
    recovery["overall"] |= nothing | {when: {"value": None, "interval": None} for when in ("before", "after")}
    recovery["tune"] |= {"curve": [{"step": 0, "tokens": 0, "heldout": 2.1}], "note": ""}
    report = recovered(recovery=recovery)
    html, _ = page(report)
    assert "energy" not in html and "money" not in html and "distance" not in summary(report)
    assert "too few rows to say whether it helped" in summary(report)


def test_a_recovery_that_made_it_worse_is_not_praised() -> None:
    recovery = example.recovery()
    recovery["overall"] |= {"came_back": -0.05, "interval": [-0.07, -0.03]}
    recovery["tune"]["recommendation"] = "the held-out loss fell: more tokens would still help"
    recovery["yardstick"] |= {"kept": "pruned", "reason": "the distance to the dense model grew by 5.0 %"}
    report = recovered(recovery=recovery)
    html, _ = page(report)
    assert "made it worse: the distance to the dense model grew by 5.0 %. The model that was cut is kept" in summary(
        report
    )
    assert "more tokens" not in html and "−5 %</b>" not in html and "<b>not kept</b>" in html


def test_a_stage_that_failed_is_said() -> None:
    report = made() | {"failed": {"ship": "the engine gives other log-probabilities"}}
    assert summary(report).endswith("The stage ship failed: the engine gives other log-probabilities.")


def test_without_recovery_there_is_no_trace_of_it() -> None:
    html, _ = page(made())
    assert not re.search(r"recover|What came back|selection\.html|class=\"bar|polyline", html)
    assert not any("steps" in row for row in made()["figures"]) and not {"steps", "recovery"} & set(made())


def test_the_picture_shows_every_block_and_its_reason() -> None:
    html, parser = page(made())
    assert parser.count["g"] == example.BLOCKS
    assert "FFN: 1,386 of 1,536 channels" in html
    assert "predicted loss +1e-3 &lt;nats&gt;" in html and "<nats>" not in html


def test_a_profile_without_gradients_has_no_sensitivity() -> None:
    html, _ = page(made(profile=example.profile(gradients=False)))
    assert "no sensitivity is shown" in html


def test_without_texts_tasks_and_speed() -> None:
    evidence = example.evidence()
    for model in evidence["models"]:
        for key in ("perplexity", "tasks", "speed", "memory"):
            model[key] = {}
            evidence["comparisons"][0][key] = {}
    html, _ = page(made(evidence=evidence))
    assert "Perplexity" not in html and "Accuracy" not in html


def test_divergence_is_named_not_averaged() -> None:
    evidence = example.evidence()
    evidence["models"][1]["perplexity"]["demo"] |= {"value": None, "interval": None, "diverged": "NaN in window 3"}
    evidence["comparisons"][0]["perplexity"]["demo"] = {"ratio": None, "interval": None}
    html, _ = page(made(evidence=evidence))
    assert "16,384 tokens, diverged" in html


def test_hostile_names_are_escaped() -> None:
    evidence = example.evidence()
    for model in evidence["models"]:
        model["tasks"] = {"<script>alert(1)</script>": model["tasks"]["piqa"]}
    evidence["comparisons"][0]["tasks"] = {}
    html, parser = page(made(evidence=evidence, recipe=example.recipe().model_copy(update={"model": "a<b>&c"})))
    assert "script" not in parser.count and "a&lt;b&gt;&amp;c" in html


def test_predictions_stand_beside_measurements() -> None:
    rows = {row["name"]: row for row in made()["predictions"]}
    assert set(rows) == {"block params", "all params", "prefill speed-up", "weights", "loss increase"}
    assert rows["prefill speed-up"]["measured"] == 1.25
    assert rows["loss increase"]["measured"] == pytest.approx(0.2231, abs=1e-4)


def test_the_summary_is_for_people_in_a_hurry() -> None:
    text = summary(made())
    assert "lost 20.0 % of its block params (106 M → 84.8 M)" in text
    assert "20.00 → 25.00 (×1.25) on demo" in text
    assert "63.0 % → 50.4 % (−12.6 points, 95 % interval −17.0 … −5.4)" in text


def test_tables_for_the_terminal() -> None:
    console = Console(width=200, file=None, record=True, quiet=False, force_terminal=False)
    with console.capture() as captured:
        console.print(report_table(made()))
    with console.capture() as three:
        console.print(report_table(recovered()))
    assert "56.7 %" in three.get() and re.search("dense +pruned +recovered", three.get())
    text = captured.get()
    assert "66.0 % [56.0 % – 76.0 %]" in text and "mean accuracy" in text and "dense" in text and "pruned" in text


def test_one_model_alone_and_three_together() -> None:
    one = collect(example.evaluated("a", 1.0))
    assert all(len(f.values) == 1 and f.change is None for f in one)
    three: dict[str, Any] = {"models": [example.evaluated(n, s) for n, s in (("a", 1.0), ("b", 0.8), ("c", 0.5))]}
    assert figures_table(collect(three), ["a", "b", "c"]).row_count == figures_table(one, ["a"]).row_count
    mean = mean_accuracy(collect(three))
    assert mean is not None and mean.values == pytest.approx([0.63, 0.504, 0.315])


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "0"), (999, "999"), (1234, "1.234 k"), (106_202_880, "106.2 M"), (999_960, "1 M"), (7e12, "7 T")],
)
def test_scaled(value: float, words: str) -> None:
    assert scaled(value) == words


def test_changes_in_words() -> None:
    assert str(Change(1.2345, None, "ratio")) == "×1.23" and str(Change(-0.031, None, "points")) == "−3.1"
    assert Change(0.0, None, "points").between == ""


def test_the_same_answers_everywhere_are_explained() -> None:
    """Beside the accuracy of a yes-or-no task: what always saying the majority scores, and who says it how often."""
    found = example.evidence()
    for model, yes in zip(found["models"], (0.55, 0.93), strict=True):
        model["tasks"]["piqa"] |= {
            "majority": {"answer": "yes", "share": 0.62},
            "said": {"no": 1 - yes, "yes": yes},
        }
    figures = collect(found)
    note = "always 'yes' scores 62.0 %; said in 55 % → 93 %"
    assert {f.name: f.note for f in figures if f.note} == {"piqa": note}
    assert Figure.from_json(next(f for f in figures if f.note).to_json()).note == note
    assert note in render({**made(), "figures": [f.to_json() for f in figures]}).replace("&#x27;", "'")


def test_the_mean_over_tasks_has_an_interval() -> None:
    mean = mean_accuracy(collect(example.evidence()))
    assert mean is not None and mean.change is not None and mean.change.interval is not None
    count = len(example.evidence()["models"][0]["tasks"])
    low, high = mean.intervals[0] or (0, 0)
    assert (high - low) / 2 == pytest.approx(0.1 / count**0.5), "tasks are independent"
    assert mean_accuracy([]) is None


def test_text_that_was_calibrated_on_is_told() -> None:
    report = made(evidence=example.evidence() | {"calibrated_on": {"demo": 1.0}})
    words = "Calibration text is proving text too (100 % of demo): perplexity there says little of other text."
    assert words in summary(report) and words in render(report)
    assert "proving text too" not in summary(made())
