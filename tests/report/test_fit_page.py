from __future__ import annotations

import json
import re
from typing import Any

import pytest

from report import task_example as example
from report.test_report import Page
from sentei.report import picture
from sentei.report.axes import Axis, spanned
from sentei.report.fit import render, summary
from sentei.report.search import divided
from sentei.report.words import changed, count, metric_name, number


def page(report: dict[str, Any]) -> tuple[str, Page]:
    html = render(json.loads(json.dumps(report, allow_nan=False)))
    parser = Page()
    parser.feed(html)
    assert parser.open == []
    return html, parser


def dots(html: str, kind: str) -> list[tuple[float, float, str]]:
    """Where the dots of a class are, and the rest of the class."""
    found = re.findall(rf'<circle class="{kind} (\w+)" cx="([\d.]+)" cy="([\d.]+)"', html)
    return [(float(x), float(y), rest) for rest, x, y in found]


def test_the_page_needs_no_network_and_no_script() -> None:
    html, parser = page(example.fit())
    assert parser.links == [] and "script" not in parser.count
    assert not re.search(r"@import|url\(|https?://", html)


def test_a_manager_can_decide_from_four_lines() -> None:
    what, sure, test, cost = summary(example.fit()).split("\n")
    assert "keeps acc within 1.0 % of the dense model's" in what and "44.0 % of its block params removed" in what
    assert "(106.2 M → 59.47 M)" in what
    assert "On 300 confirmation rows acc went from 0.620 to 0.617 (−0.5 %, 95 % interval −3.2 % … +2.1 %)" in sure
    assert "not the whole interval" in sure and "about 5,400 confirmation rows" in sure
    assert "On 250 test rows, read once" in test and test.endswith(": within the tolerance.")
    assert cost == "It took 2 looks at the confirmation rows, 11 evaluations, 4 of them of real cuts, and 9 min 49 s."
    html, _ = page(example.fit())
    assert all(f'<p class="lead">{line}'.replace("'", "&#x27;") in html for line in (what, sure, test, cost))


def test_rows_needed_are_named_only_where_the_interval_is_wider_than_the_tolerance() -> None:
    sure = summary(example.fit(interval=[-0.009, 0.03]))
    assert "the whole interval is within the tolerance" in sure and "5,400" not in sure
    assert "no number of rows" in summary(example.fit(rows_needed=None))
    lower = example.fit(interval=[-0.03, 0.009])
    lower["task"] = example.task(metric="perplexity", higher=False)
    assert "the whole interval is within the tolerance" in summary(lower)
    assert "the whole interval is within" not in summary(example.fit(interval=[-0.03, 0.009]))


def test_a_failed_test_is_said_loudly() -> None:
    test = {"dense": 0.61, "pruned": 0.59, "interval": [-0.06, -0.01], "rows": 250, "met": False}
    assert "NOT within the tolerance" in summary(example.fit(test=test))


def test_missed_says_what_the_best_reached_and_what_to_do() -> None:
    why, todo, _ = summary(example.missed()).split("\n")
    assert why.startswith("Missed: no smaller tiny keeps acc within 1.0 %")
    assert "The best of 2 looks, with 44.0 % of the block params removed, took it from 0.620 to 0.593" in why
    assert "--tolerance 0.044 is what the best one needs" in todo and "--minutes" not in todo
    html, _ = page(example.missed())
    assert "nothing smaller holds" in html and "What was removed" not in html and "<th>pruned</th>" not in html
    assert 'class="look unmet"' in html


def test_missed_without_a_single_look() -> None:
    nothing = dict.fromkeys(("confirmed", "interval", "searched", "removed"))
    report = example.missed(**nothing, looks=0, cuts=0.0, stopped="deadline")
    report["history"] = []
    assert "none held on the 300 search rows" in summary(report) and "more time (--minutes)" in summary(report)
    html, _ = page(report)
    assert 'class="look' not in html and "0 candidates in place, 0 real cuts" in html


def test_missed_by_its_interval_alone_asks_for_rows() -> None:
    close = example.missed(strict=True, confirmed=0.617, interval=[-0.032, 0.021], rows_needed=5400)
    todo = summary(close).split("\n")[1]
    assert "give about 5,400 confirmation rows" in todo and "--tolerance 0.032 is what" in todo


def test_the_picture_tells_candidates_in_place_from_real_cuts() -> None:
    report = example.fit()
    html, _ = page(report)
    assert len(dots(html, "cut")) == 4 and len(dots(html, "tried")) == len(report["history"]) - 4
    assert sum(kind == "part" for _, _, kind in dots(html, "tried")) == 8
    assert "generation 2: 35.0 % removed\nno number on 300 search rows: not within the tolerance" in html
    across = [x for x, _, _ in dots(html, "cut")]
    assert across == sorted(across), "more removed is further to the right"


def test_higher_values_are_higher_up_and_what_is_far_off_is_on_the_edge() -> None:
    html, _ = page(example.fit())
    heights = [y for _, y, _ in dots(html, "cut")]
    assert heights == sorted(heights), "the values of the cuts fall"
    lost = [y for x, y, _ in dots(html, "tried")][-2:]
    assert lost[0] == max(y for _, y, _ in dots(html, "tried")) and all(y <= 352 for y in lost)


def test_the_limit_is_drawn_for_the_rows_whose_dense_metric_is_known() -> None:
    html, _ = page(example.fit())
    assert html.count('class="limit"') == 1 and "limit on confirmation rows: 0.614" in html
    html, _ = page(example.fit(dense_searched=0.63))
    assert html.count('class="limit"') == 2 and "limit on search rows: 0.624" in html
    report = example.fit(dense=20.0, confirmed=20.1, interval=[-0.01, 0.02], searched=20.1)
    report["task"] = example.task(metric="perplexity", higher=False)
    report["history"] = [example.row("bisection", 0.2, 1e9, 1)]
    html, _ = page(report)
    assert "limit on confirmation rows: 20.20" in html
    assert dots(html, "tried")[0][1] < 60, "a perplexity that is far off is on the upper edge, and squeezes nothing"


def test_searches_whose_only_cut_is_not_in_the_history() -> None:
    placed = example.history()[:10]
    assert divided(placed, 1.0) == (placed, [])
    assert divided([], 1.0) == ([], []) and divided([], 0.0) == ([], [])
    assert [len(part) for part in divided(example.history(), 4.0)] == [14, 4]


def test_low_rank_matrices_are_in_the_picture_and_in_the_table() -> None:
    html, _ = page(example.fit())
    assert "<td>q 64, up 200</td>" in html and "of low rank: q 64, up 200" in html and "<th>ranks</th>" in html
    report = example.fit()
    for row in report["blocks"]:
        del row["ranks"]  # as in reports from before there were any
    html, _ = page(report)
    assert "low rank" not in html and "<th>ranks</th>" not in html


def test_the_lowest_row_has_a_cell_for_every_matrix_that_is_left() -> None:
    rows = example.fit()["blocks"]
    plain = picture.blocks([{**row, "ranks": {}} for row in rows])
    marked = picture.blocks(rows)
    more = {
        kind: marked.count(f'"{kind}"') - plain.count(f'"{kind}"') for kind in ("cell attention", "cell ffn", "gone")
    }
    assert more == {"cell attention": 4, "cell ffn": 4, "gone": 8 * 7 - 8 - 4}, "block 5 has no attention"


def test_names_are_escaped() -> None:
    report = example.fit(search="<i>evolve", stopped="<i>&")
    report["model"], report["task"] = "<script>a&b", example.task(name="</title><b>", metric="<u>", data="<em>.jsonl")
    report["history"][0]["by"] = report["blocks"][0]["reason"] = "<script>alert(1)</script>"
    html, parser = page(report)
    assert not {"script", "em", "u"} & set(parser.count)
    assert html.count("<title>&lt;script&gt;a&amp;b for &lt;/title&gt;&lt;b&gt;") == 1
    assert "&lt;script&gt;alert(1)&lt;/script&gt;: 50.0 % removed" in html


def test_time_and_protocol() -> None:
    html, _ = page(example.fit(seed=7))
    assert "<td>real cuts</td><td>4 min 10 s" in html and "<td>42 %</td>" in html
    assert "calibrate 500, search 300, confirm 300, test 250" in html and "<dt>seed</dt><dd>7</dd>" in html
    assert "<dt>guessing gives</dt><dd>0.040</dd>" in html


@pytest.mark.parametrize(
    ("name", "short"),
    [("acc", "acc"), ("python:shop.scores.cost", "cost"), ("python:/home/me/scores.py:cost", "cost")],
)
def test_metrics_show_no_directories(name: str, short: str) -> None:
    assert metric_name(name) == short


def test_words() -> None:
    assert [number(v) for v in (0.61749, 12.3456, None, float("nan"), float("inf"))] == [
        "0.617",
        "12.35",
        "–",
        "–",
        "–",
    ]
    assert changed(0.5, None, None) == "from 0.500 to – (–)"
    assert changed(0.5, 0.4, [None, 0.1]) == "from 0.500 to 0.400 (−20.0 %)"
    assert [count(n, "look") for n in (0, 1, 1.25, 2.0, 1234.5)] == [
        "0 looks",
        "1 look",
        "1.2 looks",
        "2 looks",
        "1,234 looks",
    ]


def test_axes_have_round_numbers_and_hold_what_is_outside_on_their_edge() -> None:
    axis = Axis(0.0, 0.83, 100, 200)
    assert axis.ticks(10) == pytest.approx([n / 10 for n in range(9)])
    assert axis.at(-5) == 100 and axis.at(9) == 200 and axis.at(0.415) == pytest.approx(150)
    alone = spanned([7.0], 0, 100)
    assert alone.at(7.0) == pytest.approx(50) and alone.ticks()
