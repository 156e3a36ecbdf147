from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentei.data.templates import Template, parse_path
from sentei.errors import InputError

ROW: dict[str, Any] = {
    "text": "hi {you}",
    "n": 3,
    "ok": True,
    "none": None,
    "answers": ["a", "b"],
    "a key": "spaced",
    "context": {"contexts": ["first", "second"], "labels": []},
    "docs": [{"title": "T", "text": ["x", "y"]}, {"title": "U", "text": ["z"]}],
}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{text}\nIntent:", "hi {you}\nIntent:"),
        ("{{{n}}} {ok}{{}}", "{3} true{}"),
        ("{context.contexts[0]}/{context.contexts[1]}", "first/second"),
        ("{answers[*]}", "a\nb"),
        ("{docs[*].title}: {docs[*].text[*]}", "T\nU: x\ny\nz"),
        ("{context.labels[*]}.", "."),
        ("{a key}", "spaced"),
        ("", ""),
    ],
)
def test_a_template_is_filled(template: str, text: str) -> None:
    assert Template.parse(template).fill(ROW, "f:1") == text


@pytest.mark.parametrize(
    "template", ["{", "}", "{a", "a}", "{}", "{a..b}", "{.a}", "{[0]}", "{a[x]}", "{a[0]b}", "{a.}"]
)
def test_what_is_no_template_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match=r"single|not understood"):
        Template.parse(template)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{txt}", "f:7: there is no 'txt' (did you mean 'text'?); found: text, n, ok"),
        ("{context.context}", "there is no 'context' in 'context' (did you mean 'contexts'?); found: contexts, labels"),
        ("{answers[2]}", "'answers' has 2 items, there is no [2]"),
        ("{text[0]}", "'text' is str, expected a list"),
        ("{n.a}", "'n' is int, expected an object with 'a' in it"),
        ("{none}", "'none' is null, expected text"),
        ("{answers}", "'answers' is list, expected text; take one item with {answers[0]}, or all with {answers[*]}"),
        ("{docs[1]}", "'docs[1]' is dict, expected text; take one of its values, such as {docs[1].title}"),
        ("{docs[*].txt}", "there is no 'txt' in 'docs[0]' (did you mean 'text'?)"),
    ],
)
def test_a_row_that_does_not_fit_is_named(template: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        Template.parse(template).fill(ROW, "f:7")


@given(st.text())
def test_any_text_can_be_written_as_it_is(text: str) -> None:
    assert Template.parse(text.replace("{", "{{").replace("}", "}}")).fill({}, "") == text


_NAMES = st.text("abz_- é", min_size=1).filter(lambda name: name.strip() == name)


@given(_NAMES, st.lists(_NAMES | st.integers(0, 99) | st.none(), max_size=5))
def test_a_path_is_read_back(first: str, rest: list[Any]) -> None:
    steps = [f".{s}" if isinstance(s, str) else f"[{'*' if s is None else s}]" for s in rest]
    assert parse_path(first + "".join(steps)) == (first, *rest)
