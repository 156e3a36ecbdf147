from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sentei.data.chat import Sample, encode
from sentei.data.pools import PoolRow, read_pool
from sentei.errors import InputError

CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nBe kind<|im_end|>\n"
    "{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_SYSTEM = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + (
    "[{{ m.role }}]{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
LAST_ONLY = (  # as reasoning models do: what the last answer is, depends on what follows
    "{% for m in messages %}[{{ m.role }}]{% if loop.last and m.role == 'assistant' %}<think></think>{% endif %}"
    "{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
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


def test_templates_that_cannot_be_used_are_named() -> None:
    good = [("user", "U"), ("assistant", "A")]
    with pytest.raises(InputError, match=r"row 1: .*refuses the turns system, user, assistant: no system here; change"):
        encode(rows(good, [("system", "S"), *good]), byte_tokenizer(NO_SYSTEM), length=99)
    (sample,) = encode(rows(good), byte_tokenizer(LAST_ONLY), length=99)
    assert said(sample, byte_tokenizer(LAST_ONLY)) == ["<think></think>A<|im_end|>"]
    with pytest.raises(InputError, match=r"row 0: .* writes turn 2 of 4 differently"):
        encode(rows(good * 2), byte_tokenizer(LAST_ONLY), length=99)


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
    asked = "".join(text + "<|im_end|>" for role, text in turns[first:] if role == "assistant")
    found = "".join(said(sample, tokenizer))
    # A line break at the start of an answer may share a token with the prompt; nothing else may be missing.
    assert found.replace("\n", "") == asked.replace("\n", "")


def test_real_rows(data_dir: Path, stories: Any) -> None:
    pool = read_pool(data_dir / "instruct" / "alpaca_gpt4_en_1k.jsonl")
    samples = encode(pool.rows[:200], stories.tokenizer, length=100_000)
    for row, sample in zip(pool.rows, samples, strict=False):
        assert sample.response.sum() >= len(row.response.split())
        assert not sample.response[: len(row.prompt.split())].any()
