from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sentei.data.chat import Sample, encode, idle, remarks
from sentei.data.pairs import encode_pairs
from sentei.data.pools import PoolRow, read_pool
from sentei.data.text import token_windows
from sentei.data.tokens import bind
from sentei.errors import InputError

CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nBe kind<|im_end|>\n"
    "{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_SYSTEM = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + (
    "[{{ m.role }}]{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
FORGETS_SYSTEM = (
    "{% for m in messages if m.role != 'system' %}[{{ m.role }}]{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('turns must alternate') }}{% endif %}[{{ m.role }}]{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
# As reasoning models do: the last answer has a thought, its own or an empty one; those before it have none.
THINKS_LAST = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% if loop.last and '</think>' in m.content %}{{ m.content }}{% else %}"
    "{% if loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content.split('</think>')[-1].lstrip('\n') }}{% endif %}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The prompt opens a thought, and no answer is written with one.
OPENS_THOUGHT = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<U>{{ m.content }}{% else %}"
    "<A>{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<A><think>\n{% endif %}"
)
# The system turn stands in the last question, where that is the last turn.
SYSTEM_LAST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] "
    "{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content }}\n\n{% endif %}{{ m.content }}[/INST]"
    "{% elif m.role == 'assistant' %}{{ ' ' + (m.content | trim) + eos_token }}{% endif %}{% endfor %}"
)
NO_PROMPT = "{% for m in messages %}{{ m.role }}: {{ m.content | trim }}{{ eos_token }}{% endfor %}"
MARKED = (
    "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}{%- generation -%}"
    "{{ m.content }}{{ eos_token }}{%- endgeneration -%}{{ '\n' }}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def byte_tokenizer(template: str | None = None, *, bos: bool = False) -> Any:
    """One token per byte, and a merge of two line breaks; optionally a BOS token before everything."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocab = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocab["ĊĊ"] = len(vocab)
    backend = Tokenizer(models.BPE(vocab, [("Ċ", "Ċ")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(t, special=True) for t in ("<s>", "<|im_start|>", "<|im_end|>")])
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
        )
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="<|im_end|>")
    made.chat_template = template
    return made


def rows(*conversations: list[tuple[str, str]]) -> list[PoolRow]:
    return read_pool([{"messages": [{"role": r, "content": c} for r, c in turns]} for turns in conversations]).rows


def said(sample: Sample, tokenizer: Any) -> list[str]:
    """The stretches of targets, decoded."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], sample.response.astype(int), [0]])))
    return [tokenizer.decode(sample.ids[a:b]) for a, b in edges.reshape(-1, 2)]


def test_targets_are_the_answers_with_their_ends() -> None:
    tokenizer = byte_tokenizer(CHATML)
    turns = [("user", "Hi ü"), ("assistant", "Grüß 😀"), ("user", "more"), ("assistant", " yes\n"), ("user", "and?")]
    (sample,) = encode(rows(turns), tokenizer, length=500)
    assert said(sample, tokenizer) == ["Grüß 😀<|im_end|>", " yes\n<|im_end|>"]
    assert tokenizer.decode(sample.ids) == tokenizer.apply_chat_template(
        [{"role": r, "content": c} for r, c in turns], tokenize=False
    )
    assert sample.ids.dtype == np.int32 and sample.response.dtype == bool and not sample.truncated


def test_an_assistant_who_was_not_asked_is_context() -> None:
    tokenizer = byte_tokenizer(CHATML)
    (sample,) = encode(rows([("assistant", "Welcome"), ("user", "Hi"), ("assistant", "Yes")]), tokenizer, length=500)
    assert said(sample, tokenizer) == ["Yes<|im_end|>"]


@pytest.mark.parametrize("bos", [False, True])
def test_without_a_template_answers_follow_a_blank_line(bos: bool) -> None:
    tokenizer = byte_tokenizer(bos=bos)
    turns = [("system", "S"), ("user", "U"), ("assistant", "A"), ("user", "V"), ("assistant", "B")]
    (sample,) = encode(rows(turns), tokenizer, length=99)
    assert tokenizer.decode(sample.ids) == ("<s>" if bos else "") + "S\n\nU\n\nA<|im_end|>\n\nV\n\nB<|im_end|>"
    assert said(sample, tokenizer) == ["A<|im_end|>", "B<|im_end|>"]


def test_bos_is_not_doubled() -> None:
    tokenizer = byte_tokenizer("{{ bos_token }}" + CHATML, bos=True)
    (sample,) = encode(rows([("user", "U"), ("assistant", "A")]), tokenizer, length=99)
    assert (sample.ids == tokenizer.bos_token_id).sum() == 1 and sample.ids[0] == tokenizer.bos_token_id


@pytest.mark.parametrize("bos", [False, True])
def test_all_of_raw_text_but_the_first_token_is_a_target(bos: bool) -> None:
    tokenizer = byte_tokenizer(CHATML, bos=bos)
    long, empty = encode(read_pool([{"text": "one two"}, {"text": ""}]).rows, tokenizer, length=6)
    assert tokenizer.decode(long.ids) == ("<s>one t" if bos else "one tw")
    assert long.truncated and long.response.tolist() == [False] + [True] * 5
    assert len(empty.ids) == bos and not empty.response.any()


def test_a_token_that_reaches_into_an_answer_is_not_a_target() -> None:
    tokenizer = byte_tokenizer(CHATML)
    (sample,) = encode(rows([("user", "U"), ("assistant", "\nA")]), tokenizer, length=99)
    assert said(sample, tokenizer) == ["A<|im_end|>"]  # "assistant\n" and "\nA" share the token of two line breaks


def test_rows_are_cut() -> None:
    tokenizer = byte_tokenizer(CHATML)
    row = rows([("user", "U"), ("assistant", "Answer")])
    (whole,) = encode(row, tokenizer, length=500)
    for length in range(2, len(whole.ids) + 1):
        (sample,) = encode(row, tokenizer, length=length)
        assert sample.ids.tolist() == whole.ids[:length].tolist()
        assert sample.response.tolist() == whole.response[:length].tolist()
        assert sample.truncated == (length < len(whole.ids))
    with pytest.raises(InputError, match="length is 1, expected at least 2"):
        encode(row, tokenizer, length=1)


def test_rows_that_a_template_refuses_are_told() -> None:
    good = [("user", "U"), ("assistant", "A")]
    table = rows(good, [("user", "U"), *good], good)
    samples = encode(table, byte_tokenizer(ALTERNATING), length=99)
    assert [(sample.row, sample.refused, len(sample.ids) > 0) for sample in samples] == [
        *((0, False, True), (1, True, False), (2, False, True))
    ]
    reason = "the tokenizer's chat template refuses the turns user, user, assistant: turns must alternate"
    assert idle(samples) == {1: reason}
    assert remarks(samples, table, 99) == [f"1 rows train nothing: 1 × {reason}", f"  row 1 {reason}"]
    with pytest.raises(InputError, match=r"row 1: .*refuses the turns user, user, assistant: turns must .*; change"):
        encode(table, byte_tokenizer(ALTERNATING), length=99, strict=True)


def test_a_broken_template_is_refused_at_once() -> None:
    with pytest.raises(InputError, match=r"the tokenizer's chat template is broken: .* \(line 1\)"):
        encode(rows([("user", "U")]), byte_tokenizer("{% for m in messages %}{{ m['role'] }"), length=99)


@pytest.mark.parametrize("template", [NO_SYSTEM, FORGETS_SYSTEM])
def test_a_system_turn_that_a_template_forbids_stands_before_the_question(template: str) -> None:
    tokenizer = byte_tokenizer(template)
    table = rows([("system", "S"), ("user", "U"), ("assistant", "A")], [("user", "U"), ("assistant", "A")])
    samples = encode(table, tokenizer, length=99)
    assert [tokenizer.decode(sample.ids) for sample in samples] == [
        *("[user]S\n\nU<|im_end|>[assistant]A<|im_end|>", "[user]U<|im_end|>[assistant]A<|im_end|>")
    ]
    assert [said(sample, tokenizer) for sample in samples] == [["A<|im_end|>"]] * 2
    assert [sample.folded for sample in samples] == [True, False]
    assert remarks(samples, table, 99) == [
        "the chat template knows no system turns: those of 1 rows stand before the first question"
    ]


TWO = [("user", "U"), ("assistant", "A"), ("user", "V"), ("assistant", "B")]


@pytest.mark.parametrize(
    ("template", "turns", "texts"),
    [
        # An empty thought before the last answer: as the prompt has it, never a target.
        (
            THINKS_LAST,
            TWO,
            [
                "<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n[A<|im_end|>]\n",
                "<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n<|im_start|>user\nV<|im_end|>\n"
                "<|im_start|>assistant\n<think>\n\n</think>\n\n[B<|im_end|>]\n",
            ],
        ),
        # A thought of the row's own is said; the one of the answer before is gone by then.
        (
            THINKS_LAST,
            [("user", "U"), ("assistant", "<think>\nr\n</think>\n\nA"), ("user", "V"), ("assistant", "B")],
            [
                "<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n[<think>\nr\n</think>\n\nA<|im_end|>]\n",
                "<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n<|im_start|>user\nV<|im_end|>\n"
                "<|im_start|>assistant\n<think>\n\n</think>\n\n[B<|im_end|>]\n",
            ],
        ),
        # The prompt opens a thought, which no written answer shows: without one the answer stands as it is written,
        (OPENS_THOUGHT, TWO, ["<s><U>U<A>[A<|im_end|>]<U>V<A>[B<|im_end|>]"]),
        # and one with a thought follows the opened one.
        (
            OPENS_THOUGHT,
            [("user", "U"), ("assistant", "<think>r</think>A"), ("user", "V"), ("assistant", "<think>\nq</think>B")],
            [
                "<s><U>U<A><think>\n[r</think>A<|im_end|>]",
                "<s><U>U<A>A<|im_end|><U>V<A><think>\n[q</think>B<|im_end|>]",
            ],
        ),
        # The system turn moves along with the last question, and is gone once that is answered.
        (
            SYSTEM_LAST,
            [("system", "S"), *TWO],
            [
                "<s>[INST] S\n\nU[/INST][ A<|im_end|>]",
                "<s>[INST] U[/INST] A<|im_end|>[INST] S\n\nV[/INST][ B<|im_end|>]",
            ],
        ),
        (SYSTEM_LAST, TWO, ["<s>[INST] U[/INST][ A<|im_end|>][INST] V[/INST][ B<|im_end|>]"]),
        # No prompt of its own: what stands before an answer is the template's all the same.
        (NO_PROMPT, TWO, ["user: U<|im_end|>assistant: [A<|im_end|>]user: V<|im_end|>assistant: [B<|im_end|>]"]),
        # Marks say what is said.
        (MARKED, TWO, ["[user]U[assistant][A<|im_end|>]\n[user]V[assistant][B<|im_end|>]\n"]),
    ],
)
def test_answers_are_found_in_templates_that_rewrite_turns(
    template: str, turns: list[tuple[str, str]], texts: list[str]
) -> None:
    """Targets stand in [brackets]; those of the templates themselves are [INST], [/INST], [user] and [assistant]."""
    tokenizer = byte_tokenizer(template)
    samples = encode(rows(turns), tokenizer, length=500)
    assert [shown(sample, tokenizer) for sample in samples] == texts
    assert not idle(samples) and all(sample.row == 0 for sample in samples)
    split = ["the chat template rewrites earlier turns: 1 rows are read answer by answer"] * (len(texts) > 1)
    assert remarks(samples, rows(turns), 500) == split


def shown(sample: Sample, tokenizer: Any) -> str:
    """The text with brackets around the targets."""
    text, before = "", False
    for token, target in zip(sample.ids, sample.response.tolist(), strict=True):
        text += "]" * (before and not target) + "[" * (target and not before) + tokenizer.decode([token])
        before = target
    return text + "]" * before


def test_a_date_in_a_template_is_the_same_every_day() -> None:
    template = "{{ strftime_now('%d %b %Y') }}\n" + CHATML
    tokenizer = byte_tokenizer(template)
    for own in (template, template.replace("m.content", "m.content | trim")):
        tokenizer.chat_template = own
        (sample,) = encode(rows([("user", "U"), ("assistant", "A")]), tokenizer, length=99)
        assert tokenizer.decode(sample.ids).startswith("26 Jul 2024\n")


def test_rows_that_train_nothing_say_why() -> None:
    tokenizer = byte_tokenizer(CHATML)
    table = rows(
        [("user", "U"), ("assistant", " \n")],
        [("user", "U" * 80), ("assistant", "A")],
        [("user", "U")],
        [("user", "U"), ("assistant", ""), ("user", "V"), ("assistant", "A")],
    )
    samples = encode(table, tokenizer, length=80)
    assert idle(samples) == {
        0: "there is no answer with something in it",
        1: "the question fills the 80 tokens that are read",
        2: "there is no answer with something in it",
    }
    assert said(samples[3], tokenizer) == ["A<|im_end|>"]  # the empty answer is context
    assert remarks(samples, table, 80) == [
        "1 rows are longer than 80 tokens and were cut there; --length sets it",
        "3 rows train nothing: 2 × there is no answer with something in it; 1 × the question fills the N tokens that "
        "are read",
        *(f"  row {row} {reason}" for row, reason in sorted(idle(samples).items())),
    ]


def test_tokens_beyond_the_embedding_are_refused_where_they_occur() -> None:
    tokenizer = byte_tokenizer(CHATML)
    bind(tokenizer, len(tokenizer) - 1)  # the last one is <|im_end|>
    (sample,) = encode(read_pool([{"text": "plain"}]).rows, tokenizer, length=9)
    assert len(sample.ids) == 5
    message = r"the token '<\|im_end\|>', number 259, .* embedding has 259 rows and its tokenizer 260 tokens"
    for bad in (rows([("user", "U"), ("assistant", "A")]), read_pool([{"text": "a<|im_end|>"}]).rows):
        with pytest.raises(InputError, match=message):
            encode(bad, tokenizer, length=99)
    with pytest.raises(InputError, match=message):
        token_windows(["a<|im_end|>b"], tokenizer, window=2)
    with pytest.raises(InputError, match=message):
        encode_pairs([("a", "<|im_end|>")], tokenizer)


def test_slow_tokenizers_are_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(InputError, match=r"Slow does not tell .* a fast tokenizer is needed"):
        encode(rows([("user", "U")]), Slow(), length=9)


contents = st.text(alphabet="ab \nü😀<>", max_size=12)
_TOKENIZERS = {template: byte_tokenizer(template) for template in (CHATML, None)}


@settings(deadline=None, max_examples=60)
@given(
    turns=st.lists(st.tuples(st.sampled_from(["user", "assistant"]), contents), min_size=1, max_size=6),
    template=st.sampled_from([CHATML, None]),
)
def test_what_is_said_is_what_was_written(turns: list[tuple[str, str]], template: str | None) -> None:
    tokenizer = _TOKENIZERS[template]
    (sample,) = encode(rows(turns), tokenizer, length=1000)
    first = next((i for i, (role, _) in enumerate(turns) if role == "user"), len(turns))
    asked = "".join(text + "<|im_end|>" for role, text in turns[first:] if role == "assistant" and text.strip())
    found = "".join(said(sample, tokenizer))
    # A line break at the start of an answer may share a token with the prompt; nothing else may be missing.
    assert found.replace("\n", "") == asked.replace("\n", "")


def test_real_rows(data_dir: Path, stories: Any) -> None:
    pool = read_pool(data_dir / "instruct" / "alpaca_gpt4_en_1k.jsonl")
    samples = encode(pool.rows[:200], stories.tokenizer, length=100_000)
    for row, sample in zip(pool.rows, samples, strict=False):
        assert sample.response.sum() >= len(row.response.split())
        assert not sample.response[: len(row.prompt.split())].any()
