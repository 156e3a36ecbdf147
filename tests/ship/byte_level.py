"""A byte-level tokenizer that llama.cpp knows, as small as one can be, and models of its vocabulary."""

from __future__ import annotations

from typing import Any

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from sentei.families import family_of
from sentei.families.surgery import prune
from sentei.models.load import Loaded, as_loaded
from tiny import make_plan, random_blocks, tiny_model

WORDS = 264  # rows of the embedding: 260 tokens, 4 unused
SIZES: dict[str, Any] = {"vocab_size": WORDS, "hidden_size": 48}
TEMPLATE = "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}"


def byte_tokenizer() -> Any:
    """Three special tokens, 256 bytes, one merge; words are split as GPT-2 does."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2}
    words |= {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), start=3)}
    backend = Tokenizer(models.BPE({**words, "ab": 259}, [("a", "b")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    made.chat_template = TEMPLATE
    return made


def whole_model(variant: str = "llama", **sizes: Any) -> Loaded:
    """A tiny dense model with that tokenizer."""
    return as_loaded(tiny_model(variant, **{**SIZES, **sizes}), byte_tokenizer(), variant)


def cut_model(variant: str, seed: int, *, bias: bool = False, skip: float = 0.25, **sizes: Any) -> Loaded:
    """The same, with random units and parts removed; `bias` adds biases, which are random too."""
    model = tiny_model(variant, **{**SIZES, **sizes})
    shape = family_of(model.config).shape(model.config)
    plan = make_plan(model, random_blocks(shape, seed, skip=skip), "bias" if bias else "none")
    small: Any = prune(model, plan)
    for name, value in small.named_parameters():
        if name.endswith(("o_proj.bias", "down_proj.bias")):
            value.data.normal_()
    return as_loaded(small, byte_tokenizer(), f"{variant}-cut")
