from __future__ import annotations

import json
import re
import shlex
from typing import Any

from report import task_example as example
from report.test_report import Page
from sentei.report.frontier import command, render, summary, within


def page(report: dict[str, Any]) -> tuple[str, Page]:
    html = render(json.loads(json.dumps(report, allow_nan=False)))
    parser = Page()
    parser.feed(html)
    assert parser.open == []
    return html, parser


def layers(html: str) -> dict[str, str]:
    """The drawing of every axis."""
    found = re.split(r'<g class="layer(?: on)?" data-axis="(\w+)"', html.split("</svg>")[0])
    return dict(zip(found[1::2], found[2::2], strict=True))


def shown(html: str) -> list[str]:
    """Numbers of the cards that are not hidden."""
    return re.findall(r'<div class="card" data-point="(\d+)">', html)


def test_the_page_needs_no_network_and_one_script_of_its_own() -> None:
    html, parser = page(example.frontier())
    assert parser.links == [] and parser.count["script"] == 1
    assert not re.search(r"@import|url\(|https?://|innerHTML|eval\(", html)


def test_every_axis_has_every_point_from_small_to_large() -> None:
    html, _ = page(example.frontier())
    drawings = layers(html)
    axes = ["block_params", "params", "flops_per_token", "bytes", "prefill_seconds", "decode_seconds"]
    assert list(drawings) == axes == re.findall(r'<input type="radio" name="axis" value="(\w+)"', html)
    for drawing in drawings.values():
        across = [float(x) for x in re.findall(r'<circle class="dot" cx="([\d.]+)"', drawing)]
        assert len(across) == 6 and across == sorted(across)
        assert re.findall(r'data-point="(\d)"', drawing) == ["5", "4", "3", "2", "1", "0"]
        assert drawing.count('class="whisker"') == 6
        assert drawing.count('tabindex="0"') == drawing.count('aria-checked="true"') == 1
    assert html.count('class="layer on"') == 1


def test_whiskers_are_around_their_points() -> None:
    whisker = r'class="whisker" x1="([\d.]+)" x2="[\d.]+" y1="([\d.]+)" y2="([\d.]+)"/>'
    whisker += r'<circle class="dot" cx="([\d.]+)" cy="([\d.]+)"'
    found = re.findall(whisker, layers(page(example.frontier())[0])["bytes"])
    for x, low, high, across, middle in found[:-1]:
        assert x == across and float(low) > float(middle) > float(high)
        assert abs(float(low) + float(high) - 2 * float(middle)) < 0.3, "the interval of the example is symmetric"
    assert len(found) == 6 and found[-1][1] == found[-1][2], "the dense model does not differ from itself"


def test_without_latency_there_is_no_axis_for_it() -> None:
    html, _ = page(example.frontier(latency=False))
    assert list(layers(html)) == ["block_params", "params", "flops_per_token", "bytes"]
    assert "prefill" not in html.split("</svg>")[0] and "predicted" not in summary(example.frontier(latency=False))


def test_latency_of_some_points_only() -> None:
    report = example.frontier()
    report["points"][2].pop("latency")
    drawings = layers(page(report)[0])
    assert drawings["decode_seconds"].count('class="choice"') == 5
    assert drawings["bytes"].count('class="choice"') == 6


def test_the_smallest_that_loses_little_is_shown_first() -> None:
    report = example.frontier()
    assert within(report, 0.01)["number"] == 2 and within(report, 0.05)["number"] == 4
    html, _ = page(report)
    assert shown(html) == ["2"] and re.findall(r'<tr data-point="(\d)" class=chosen>', html) == ["2"]
    lines = summary(report).split("\n")
    assert len(lines) == 3 and "acc 0.620 dense, on 300 search rows; 5 smaller models" in lines[0]
    assert lines[1].startswith("Within 1 %: 20.0 % of the block params can go (0.614, −1.0 %, 95 % interval")
    assert "prefill ×1.19, decoding step ×1.19" in lines[1] and lines[1].endswith("plans/02.json.")


def test_one_model_is_not_named_twice() -> None:
    report = example.frontier(points=3)
    assert within(report, 0.01) is within(report, 0.05)
    assert summary(report).count("plans/02.json") == 1


def test_less_is_better_for_perplexity() -> None:
    report = example.frontier()
    report["task"] = example.task(metric="perplexity", higher=False)
    for point in report["points"]:
        point["value"], point["change"] = 20 * (1 - point["change"]), -point["change"]
    assert within(report, 0.01)["number"] == 2
    report["points"][5] |= {"value": 1e7, "change": 5e5, "interval": [4e5, 6e5]}
    heights = re.findall(r'<circle class="dot" cx="[\d.]+" cy="([\d.]+)"', layers(page(report)[0])["bytes"])
    assert len({float(y) for y in heights}) == 6, "what is far off does not squeeze the rest into a line"
    assert "guessing gives" not in page(report)[0]


def test_commands_apply_the_plan_of_a_point() -> None:
    report = example.frontier()
    html, _ = page(report)
    wanted = "sentei cut tiny --plan OUT/plans/03.json --data TASK.yaml --out tiny-30"
    assert command(report, report["points"][3]) == wanted and f"<code>{wanted}</code>" in html
    assert html.count("<code>") == 5, "there is no plan for the dense model"
    report["given"] = {"model": "my models/tiny", "task": "support.yaml", "out": "runs/a b/"}
    words = shlex.split(command(report, report["points"][3]))
    assert words[2:] == [
        "my models/tiny",
        "--plan",
        "runs/a b/plans/03.json",
        "--data",
        "support.yaml",
        "--out",
        "tiny-30",
    ]


def test_one_point_only() -> None:
    report = example.frontier(points=1)
    html, _ = page(report)
    assert shown(html) == ["0"] and "The dense model: acc 0.620" in html
    assert summary(report).split("\n") == [
        "tiny on the task support: acc 0.620 dense, on 300 search rows; 0 smaller models cut and measured."
    ]


def test_points_that_scored_no_number() -> None:
    report = example.frontier()
    report["points"][1] |= {"value": None, "change": None, "interval": None}
    report["points"][2]["interval"] = [None, None]
    html, _ = page(report)
    drawing = layers(html)["params"]
    assert drawing.count('class="choice"') == 5 and drawing.count('class="whisker"') == 4
    assert "10.0 % of the block params removed: acc –" in html
    assert within(report, 0.01)["number"] == 2 and "95 % interval –" in summary(report)


def test_nothing_within_the_losses() -> None:
    report = example.frontier()
    for point in report["points"][1:]:
        point["change"] = -0.2
    assert "No smaller model that was tried is within 1 %." in summary(report)
    assert shown(page(report)[0]) == ["1"]


def test_names_are_escaped() -> None:
    report = example.frontier()
    report["model"], report["task"] = '<script>"a', example.task(name="</title><b>", metric='"><u>', data="<em>")
    report["points"][1]["file"] = "plans/<i>.json"
    report["points"][1]["blocks"][0]["reason"] = "<script>alert(1)</script>"
    html, parser = page(report)
    assert parser.count["script"] == 1 and not {"em", "u", "i"} & set(parser.count)
    assert "sentei cut &#x27;&lt;script&gt;&quot;a&#x27;" in html
