"""How byte-level BPE tokenizers split text into words, and llama.cpp's names for that (`tokenizer.ggml.pre`)."""

from __future__ import annotations

from typing import Any

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Pre-tokenizer steps, whether a word that is a token as it stands is taken whole, and llama.cpp's name. A step is
# "digits" (one by one), "bytes", "bytes, split" (by GPT-2's rule), or a pattern that splits.
RULES: dict[tuple[tuple[str, ...], bool], str] = {
    (("bytes, split",), False): "gpt-2",
    (("digits", "bytes, split"), False): "smollm",
    ((CONTRACTIONS + r"\p{N}{1,3}" + REST, "bytes"), True): "llama-bpe",
    ((CONTRACTIONS + r"\p{N}{1,3}" + REST, "bytes"), False): "smaug-bpe",
    ((CONTRACTIONS + r"\p{N}" + REST, "bytes"), False): "qwen2",
    ((_TEKKEN, "bytes"), True): "tekken",
}
# Other names of the same rules (llama.cpp, src/llama-vocab.cpp).
_ALIASES = {
    **dict.fromkeys(("mellum", "a.x-4.0"), "gpt-2"),
    **dict.fromkeys(("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), "smollm"),
    **dict.fromkeys(("llama3", "llama-v3", "falcon3", "pixtral", "midm-2.0"), "llama-bpe"),
    **dict.fromkeys(("deepseek-r1-qwen", "megrez"), "qwen2"),
}
ADD_BOS = ("llama-bpe", "tekken")  # where a file does not say whether the first token is put before every text


def rule(name: str) -> tuple[tuple[str, ...], bool, str] | None:
    """Steps, whether whole words are taken, and the first name of a rule; None for one that is not known."""
    name = _ALIASES.get(name, name)
    return next(((steps, whole, name) for (steps, whole), known in RULES.items() if known == name), None)


def pre_tokenizer(steps: tuple[str, ...]) -> Any:
    """The steps as the tokenizers library has them."""
    from tokenizers import Regex, pre_tokenizers

    made: list[Any] = []
    for step in steps:
        if step == "digits":
            made.append(pre_tokenizers.Digits(individual_digits=True))
        elif step.startswith("bytes"):
            made.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=step != "bytes"))
        else:
            made.append(pre_tokenizers.Split(Regex(step), "isolated"))
    return pre_tokenizers.Sequence(made) if len(made) > 1 else made[0]
