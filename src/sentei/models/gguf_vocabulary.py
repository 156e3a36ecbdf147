"""The tokenizer in a GGUF file as a fast tokenizer that gives the same ids."""

from __future__ import annotations

import base64
import json
from typing import Any

from sentei.errors import InputError, one_line
from sentei.models.gguf_file import GgufFile
from sentei.models.splitting import ADD_BOS, pre_tokenizer, rule

_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED = 1, 2, 3, 4, 5  # `tokenizer.ggml.token_type`
_SPACE = "\u2581"  # SentencePiece's mark for a space
_KEY = "tokenizer.ggml."
# What names tokens for purposes that no text-to-ids rule has, and what quantisers leave.
_SILENT = r"tokenizer\.ggml\.(\w+_token_ids?|token_type_count|add_sep_token|seperator_token_id|scores)"


def read_tokenizer(file: GgufFile, rows: int) -> Any:
    """Takes the tokenizer; None where the file has none.

    Args:
        file: with its metadata.
        rows: of the embedding.

    Raises:
        InputError: a kind of tokenizer, or a rule for splitting text, that is not known; lists that do not fit.
    """
    from transformers import PreTrainedTokenizerFast

    kind = file.get(f"{_KEY}model", str, "none")
    template = _templates(file)
    if kind in ("none", "no_vocab"):
        file.drop(r"tokenizer\..*")
        return None
    tokens = file.need(f"{_KEY}tokens", list)
    types = file.get(f"{_KEY}token_type", list, [_NORMAL] * len(tokens))
    if len(tokens) != rows or len(types) != rows:
        raise InputError(f"{file.path}: {len(tokens)} tokens and {len(types)} types for {rows} rows of the embedding")
    used = {token: i for i, (token, type_) in enumerate(zip(tokens, types, strict=True)) if type_ != _UNUSED}
    ids = {n: file.get(f"{_KEY}{key}_token_id", int) for n, key in _SPECIAL.items()}
    named = {f"{n}_token": tokens[i] for n, i in ids.items() if i is not None and 0 <= i < rows}
    make = {"gpt2": _byte_level, "llama": _sentencepiece, "t5": _unigram}.get(kind)
    if make is None:
        raise InputError(f"{file.path}: tokenizers of kind {kind!r} ({_KEY}model) are not read; known: gpt2, llama, t5")
    try:
        backend, bos, eos = make(file, used, types, named.get("unk_token"))
        whole = file.get("tokenizer.huggingface.json", str)
        if whole is not None:
            from tokenizers import Tokenizer

            backend = Tokenizer.from_str(whole)
        else:
            _add_special(backend, tokens, types)
            add = {
                "bos": file.get(f"{_KEY}add_bos_token", bool, bos),
                "eos": file.get(f"{_KEY}add_eos_token", bool, eos),
            }
            _add_ends(backend, {n: named[f"{n}_token"] for n, on in add.items() if on and f"{n}_token" in named}, used)
        made = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **named)
    except InputError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception
        raise InputError(f"{file.path}: its tokenizer cannot be made: {one_line(error)}") from error
    file.drop(_SILENT)
    made.chat_template = template
    return made


_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "sep": "seperator"}


def _templates(file: GgufFile) -> Any:
    """The chat template, or all of them by name."""
    names = file.get("tokenizer.chat_templates", list, [])
    listed = {name: file.get(f"tokenizer.chat_template.{name}", str) for name in names}
    default = file.get("tokenizer.chat_template", str)
    return {"default": default, **listed} if listed and default else listed or default


def _byte_level(file: GgufFile, used: dict[str, int], types: list[int], unknown: str | None) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers

    del types, unknown
    name = file.need(f"{_KEY}pre", str)
    known = rule(name)
    if known is None:
        raise InputError(f"{file.path}: how {_KEY}pre = {name!r} splits text is not known; use the original model")
    steps, whole, first = known
    merges = [tuple(merge.split(" ", 1)) for merge in file.need(f"{_KEY}merges", list)]
    file.drop(r"tokenizer\.ggml\.(add_space_prefix|remove_extra_whitespaces|scores)")  # SentencePiece's alone
    backend = Tokenizer(models.BPE(used, merges, ignore_merges=whole))
    backend.pre_tokenizer, backend.decoder = pre_tokenizer(steps), decoders.ByteLevel()
    if first == "qwen2":
        backend.normalizer = normalizers.NFC()
    return backend, first in ADD_BOS, False


def _sentencepiece(file: GgufFile, used: dict[str, int], types: list[int], unknown: str | None) -> Any:
    """BPE with letters that are no token written as bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = file.need(f"{_KEY}scores", list)
    if len(scores) != len(types):
        raise InputError(f"{file.path}: {len(scores)} scores for {len(types)} tokens")
    prefix = file.get(f"{_KEY}add_space_prefix", bool, True)
    file.drop_if(f"{_KEY}remove_extra_whitespaces", (False,))
    file.drop(r"tokenizer\.ggml\.(pre|merges)")
    unknown = unknown or next((token for token, i in used.items() if types[i] == _UNKNOWN), None)
    plain = {token: i for token, i in used.items() if types[i] == _NORMAL}
    merges = _merges(plain, scores)
    model = models.BPE(used, merges, unk_token=unknown, fuse_unk=True, byte_fallback="<0x00>" in used)
    backend = Tokenizer(model)
    spaces = normalizers.Replace(" ", _SPACE)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces]) if prefix else spaces
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return backend, True, False


def _merges(plain: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """SentencePiece joins the two neighbours whose token has the best score: merges in that order."""
    found = []
    for token, index in plain.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in plain and right in plain:
                found.append((-scores[index], index, plain[left], plain[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def _unigram(file: GgufFile, used: dict[str, int], types: list[int], unknown: str | None) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    scores = file.need(f"{_KEY}scores", list)
    if len(scores) != len(types):
        raise InputError(f"{file.path}: {len(scores)} scores for {len(types)} tokens")
    listed = [(token, float(scores[i])) for token, i in used.items()]
    if list(used.values()) != list(range(len(used))):
        raise InputError(f"{file.path}: unused tokens between others of a unigram vocabulary, which keep no place")
    prefix = file.get(f"{_KEY}add_space_prefix", bool, True)
    charsmap = file.get(f"{_KEY}precompiled_charsmap", list)
    file.drop_if(f"{_KEY}remove_extra_whitespaces", (False,))
    file.drop(r"tokenizer\.ggml\.pre")
    backend = Tokenizer(models.Unigram(listed, unk_id=used.get(unknown or ""), byte_fallback=False))
    if charsmap:
        table = base64.b64encode(bytes(charsmap)).decode()
        state = json.loads(backend.to_str()) | {"normalizer": {"type": "Precompiled", "precompiled_charsmap": table}}
        backend = Tokenizer.from_str(json.dumps(state))
    scheme = "always" if prefix else "never"
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return backend, False, True


def _add_special(backend: Any, tokens: list[str], types: list[int]) -> None:
    """Tokens that are found in the text before it is split."""
    from tokenizers import AddedToken

    for token, type_ in zip(tokens, types, strict=True):
        if type_ in (_UNKNOWN, _CONTROL):
            backend.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif type_ == _USER:
            backend.add_tokens([AddedToken(token, special=False, normalized=False)])


def _add_ends(backend: Any, ends: dict[str, str], used: dict[str, int]) -> None:
    """Puts the first and last token around every text."""
    from tokenizers import processors

    if ends:
        before, after = ([f"{ends[n]}:0"] if n in ends else [] for n in ("bos", "eos"))
        twice = [part.replace(":0", ":1") for part in before], [part.replace(":0", ":1") for part in after]
        backend.post_processor = processors.TemplateProcessing(
            single=[*before, "$A:0", *after],
            pair=[*before, "$A:0", *after, *twice[0], "$B:1", *twice[1]],
            special_tokens=[(token, used[token]) for token in set(ends.values())],
        )
