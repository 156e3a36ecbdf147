from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from sentei.report.selection import LONGEST, render

HOSTILE = "</script></title></style><script>alert('x\"')</script><img src=x onerror=alert(1)> & \ud83d \x00"


def example(**changes: Any) -> dict[str, Any]:
    row = {"id": "17", "prompt": "Cook rice", "response": "Boil it.", "jsd": 0.0321, "decision": "selected"}
    return {
        "title": "alpaca for tiny",
        "pool": {"source": "alpaca.jsonl", "format": "alpaca", "rows": 1200},
        "models": {"dense": "tiny", "pruned": "tiny-20"},
        "strategy": "paser",
        "budget": {"asked": 0.2, "unit": "of the rows", "selected": 240, "tokens": 31234},
        "clusters": [
            {"id": 0, "name": "recipe, food", "rows": 700, "rejected": 4, "damage": 0.02, "share": 0.3}
            | {"selected": 72, "examples": [row | {"reason": "score 0.9"}]},
            {"id": 1, "name": "python, code", "rows": 400, "rejected": 0, "damage": 0.08, "share": 0.6}
            | {"selected": 144, "examples": []},
            {"id": 2, "name": "poem, song", "rows": 100, "rejected": 0, "damage": None, "share": 0.1}
            | {"selected": 24, "examples": [row | {"jsd": None, "decision": "left", "reason": ""}]},
        ],
        "map": [[0.5, -1.0, 0, 1, "Cook rice"], [2.0, 3.0, 1, 0, "Sort a list"], [1.0, 1.0, 2, False, "Write"]],
        "rejections": [
            {"reason": "empty response", "count": 1, "example": "Say nothing"},
            {"reason": "near-duplicate", "count": 3, "example": "Cook rice!"},
        ],
        "notes": ["The pool has 12 rows longer than the context."],
        **changes,
    }


class Page(HTMLParser):
    """Counts elements, collects texts and attributes, and checks that the elements nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.count: dict[str, int] = {}
        self.attributes: set[str] = set()
        self.texts: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        self.attributes |= {name for name, _ in attrs}
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_page_needs_no_network_and_runs_nothing() -> None:
    html = render(example())
    page = Page(html)
    assert not re.search(r"@import|url\(|https?://", html)
    assert "script" not in page.count and not page.attributes & {"src", "href", "onclick", "onerror"}
    assert html == render(example())


def test_the_most_damaged_cluster_comes_first_and_the_unmeasured_last() -> None:
    html = render(example())
    places = [html.index(f">{name}</td>") for name in ("python, code", "recipe, food", "poem, song")]
    assert places == sorted(places)
    assert "0.0800" in html and "60.0 %" in html and "33.3 %" in html  # damage, share of the budget, of the pool


def test_the_map_marks_what_was_selected() -> None:
    html = render(example())
    page = Page(html)
    assert page.count["circle"] == 3
    left, taken = html.split('<g class="taken">')
    assert left.count("<circle") == 2 and "Sort a list" in left.split('<svg class="map"')[1]
    assert taken.split("</g>")[0].count("<circle") == 1 and "Cook rice" in taken.split("</g>")[0]


def test_rows_are_shown_with_their_reason_and_rejections_by_count() -> None:
    html = render(example())
    assert "<b>selected</b>: score 0.9 · row 17 · damage 0.0321" in html
    assert "<b>left</b> · row 17 · damage –" in html
    assert html.index("near-duplicate") < html.index("empty response")
    assert "12 rows longer" in html


def hostile(value: Any) -> Any:
    if isinstance(value, str):
        return HOSTILE
    if isinstance(value, dict):
        return {key: hostile(inner) for key, inner in value.items()}
    return [hostile(inner) for inner in value] if isinstance(value, list) else value


def test_text_of_the_pool_is_never_markup() -> None:
    plain, html = Page(render(example())), render(hostile(example()))
    page = Page(html)
    assert page.count == plain.count and page.attributes == plain.attributes
    assert any("<script>alert('x\"')</script>" in text for text in page.texts)
    html.encode("utf-8")  # a lone surrogate would fail here


def test_long_texts_are_cut() -> None:
    selection = example()
    selection["clusters"][0]["examples"][0]["response"] = "<" * 50_000
    html = render(selection)
    assert html.count("&lt;") == LONGEST and "&lt; …" in html


@pytest.mark.parametrize("key", ["map", "rejections", "notes", "clusters"])
def test_parts_may_be_empty(key: str) -> None:
    page = Page(render(example(**{key: []})))
    assert ("svg" in page.count) == (key != "map")


def test_all_rows_in_one_place() -> None:
    Page(render(example(map=[[1.0, 1.0, 0, 1, "a"], [1.0, 1.0, 0, 0, "b"]])))


def test_a_cluster_is_shown_with_its_most_typical_row() -> None:
    selection = example()
    selection["clusters"][0]["typical"] = "How do I <sort> a list?"
    html = render(selection)
    assert html.count('<small class="typical" dir="auto">“How do I &lt;sort&gt; a list?”</small>') == 2
