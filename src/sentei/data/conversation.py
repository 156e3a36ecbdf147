"""What a chat template makes of a conversation, and where in it the answers are.

An answer is what the model says after the template's own prompt for it (`add_generation_prompt`). Most templates write
each turn by itself, and the whole conversation is one text. Others write a turn differently when it is the last one:
reasoning models drop the thinking of earlier answers or put an empty thought before the last, Mistral's put the system
turn into the last question. There each answer gets a text of its own: what the model would have been asked at that
point, and the answer as the row has it.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sentei.data.pools import Turn
from sentei.errors import InputError, one_line

Draw = Callable[[Sequence[Turn], bool], str]  # (turns, whether the prompt for an answer follows) -> text

TODAY = datetime.datetime(2024, 7, 26)  # for templates that write the date: the same tokens every day
_CODES = ("-d", "-m", *"AaBbcDdeFHIjMmpRSTuwXxYyZz")  # of strftime
_MARK = "\ue000"  # stands for an answer, to see what a template writes around it
_SHORT = 20  # characters; a shorter answer may stand by chance in what the template writes before it
_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


class RefusedError(Exception):
    """Why a template makes nothing of a conversation."""


@dataclass(frozen=True)
class Drawn:
    """A text and the characters [start, end) of each answer in it."""

    text: str
    spans: tuple[tuple[int, int], ...]


def render(turns: Sequence[Turn], draw: Draw) -> list[Drawn]:
    """The conversation as one text with all its answers, or one text per answer where the template rewrites turns.

    Empty answers, and those before the first question, are context.

    Raises:
        RefusedError: what `draw` raises; a system turn that the template leaves out.
    """
    known: dict[tuple[int, bool], str] = {}

    def first(count: int, prompt: bool = False) -> str:
        if (count, prompt) not in known:
            known[count, prompt] = draw(turns[:count], prompt)
        return known[count, prompt]

    whole, asked, found = first(len(turns)), False, []
    for i, turn in enumerate(turns):
        asked = asked or turn.role == "user"
        if asked and turn.role == "assistant" and turn.content.strip():
            found.append(_answer(turns[: i + 1], first, draw))
    said = found[0].text if found else whole
    if any(turn.role == "system" and turn.content.strip() not in said for turn in turns[: _first_user(turns)]):
        raise RefusedError("it leaves the system turn out")
    if all(whole.startswith(one.text) for one in found):
        return [Drawn(whole, tuple(span for one in found for span in one.spans))]
    return found


def fold(turns: Sequence[Turn]) -> list[Turn]:
    """System turns put before the first question, for templates that know none; as they are without a question."""
    at = _first_user(turns)
    system = [turn.content for turn in turns if turn.role == "system"]
    if not system or at == len(turns):
        return list(turns)
    question = replace(turns[at], content="\n\n".join([*system, turns[at].content]))
    return [question if i == at else turn for i, turn in enumerate(turns) if turn.role != "system"]


def drawing(tokenizer: Any, template: str) -> Draw:
    """How a tokenizer draws turns with a template.

    Raises:
        RefusedError: (the drawing does) the template raises something for these turns.
        InputError: (the drawing does) the template itself is broken.
    """
    from jinja2 import TemplateSyntaxError

    def draw(turns: Sequence[Turn], prompt: bool) -> str:
        try:
            text: str = tokenizer.apply_chat_template(
                messages(turns), chat_template=template, tokenize=False, add_generation_prompt=prompt
            )
        except TemplateSyntaxError as error:
            raise InputError(
                f"the tokenizer's chat template is broken: {one_line(error)} (line {error.lineno}); mend "
                "chat_template.jinja or tokenizer_config.json beside the model, or remove it to do without a template"
            ) from error
        except Exception as error:  # templates raise what they like: jinja's errors, but TypeError and others as well
            raise RefusedError(one_line(error)) from error
        return text

    return draw


def messages(turns: Sequence[Turn]) -> list[dict[str, str]]:
    """Turns as templates know them."""
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def dated(template: str) -> str:
    """The template with a clock that stands still: `strftime_now` as a macro, where it is asked for the time."""
    if "strftime_now" not in template:
        return template
    said = "".join(f" | replace('%{code}', '{TODAY.strftime('%' + code)}')" for code in _CODES)
    return "{%- macro strftime_now(format) -%}{{ format" + said + " }}{%- endmacro -%}" + template


def has_marks(template: str) -> bool:
    """Whether a template says itself what the model is to say: `{% generation %}`."""
    return _GENERATION.search(template) is not None


def _answer(turns: Sequence[Turn], first: Callable[[int, bool], str], draw: Draw) -> Drawn:
    """The text in which the last turn is answered, and where the answer is in it."""
    count, content = len(turns), turns[-1].content.strip()
    before, after = first(count - 1, True), first(count, False)
    if len(content) >= _SHORT and after.startswith(before) and after[len(before) :].lstrip().startswith(content):
        return _from(after, len(before))
    marked = draw([*turns[:-1], Turn("assistant", _MARK)], False)
    head, _, tail = marked.rpartition(_MARK)
    if not (head and after.startswith(head) and after.endswith(tail)):  # what is around an answer depends on it
        return _from(after, _common(before, after))
    said = after[len(head) : len(after) - len(tail)].strip()
    thinking_is_dropped = said != content and content.endswith(said)
    if not thinking_is_dropped and after.startswith(first(count - 1, False)):
        # White space before an answer often shares its first token; other words between the two are the template's.
        plain = after.startswith(before) and not after[len(before) : len(head)].strip()
        return _from(after, len(before) if plain else len(head))
    if thinking_is_dropped and (opened := _overlap(before.rstrip(), content)):
        content = content[opened:].lstrip()  # the prompt opens the thought already
    gap = head[len(head.rstrip()) :]
    return _from(before + ("" if before.endswith(gap) else gap) + content + tail, len(before))


def _from(text: str, start: int) -> Drawn:
    return Drawn(text, ((start, len(text.rstrip())),))


def _common(a: str, b: str) -> int:
    """Characters with which both texts begin."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _overlap(a: str, b: str) -> int:
    """The most characters with which `a` ends and `b` begins."""
    return next((n for n in range(min(len(a), len(b), 64), 0, -1) if a.endswith(b[:n])), 0)


def _first_user(turns: Sequence[Turn]) -> int:
    return next((i for i, turn in enumerate(turns) if turn.role == "user"), len(turns))
