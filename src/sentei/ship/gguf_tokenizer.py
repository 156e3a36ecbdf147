"""A Hugging Face tokenizer as llama.cpp's metadata: vocabulary, merges or scores, special tokens, chat template.

llama.cpp has a tokenizer of its own, told by `tokenizer.ggml.model`: "gpt2" (byte-level BPE; its splitting rule has a
name, `tokenizer.ggml.pre`), "llama" (SentencePiece BPE) and "t5" (SentencePiece unigram).
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any

from gguf import GGUFWriter, TokenType

from sentei.errors import InputError
from sentei.models.splitting import RULES

_SPACE = "\u2581"  # SentencePiece's mark for a space
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_METASPACE = (
    "llama.cpp puts a space before every text and after every special token, as SentencePiece does; this tokenizer "
    "does not where the text begins with a space"
)
_ELSE = "export it with --to hf, onnx or openvino instead"

# How llama.cpp's converter knows a splitting rule: the sha256 of the token ids that a tokenizer gives for this text
# (llama.cpp, conversion/base.py, get_vocab_base_pre). Here: the tokenizers of models that our families hold.
_PROBE = (
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n🚀 (normal) 😶\u200d🌫️ (multiple emojis concatenated) ✅ 🦙🦙 "
    "3 33 333 3333 33333 333333 3333333 33333333 3.3 3..3 3...3 កាន់តែពិសេសអាច😁 ?我想在apple工作1314151天～ "
    "------======= нещо на Български ''''''```````\"\"\"\"......!!!!!!?????? I've been 'told he's there, 'RE you sure? "
    "'M not sure I'll make it, 'D you like some tea? We'Ve a'lL"
)
_HASHES = {
    "0ef9807a4087ebef797fc749390439009c3b9eda9ad1a097abbe738f486c01e5": "llama-bpe",
    "855059429035d75a914d1eda9f10a876752e281a054a7a3d421ef0533e5b6249": "smollm",
    "e636dc30a262dcc0d8c323492e32ae2b70728f4df7dfe9737d9f920a282b8aea": "qwen2",
    "d4540891389ea895b53b399da6ac824becc30f2fba0e9ddbb98f92e55ca0e97c": "qwen2",
    "b3f499bb4255f8ca19fccd664443283318f2fd2414d5e0b040fbdd0cc195d6c5": "deepseek-r1-qwen",
    "049ecf7629871e3041641907f3de7c733e4dbfdc736f57d882ba0b0845599754": "deepseek-llm",
    "347715f544604f9118bb75ed199f68779f423cabb20db6de6f31b908d04d7821": "deepseek-coder",
    "c136ed14d01c2745d4f60a9596ae66800e2b61fa45643e72436041855ad4089d": "smaug-bpe",
    "c7ea5862a53e4272c035c8238367063e2b270d51faa48c0f09e9d5b54746c360": "poro-chat",
    "7fc505bd3104ca1083b150b17d088b59534ede9bde81f0dd2090967d7fe52cee": "viking",
    "63b97e4253352e6f357cc59ea5b583e3a680eaeaf2632188c2b952de2588485e": "tekken",
    "0e9433cbbb161f89e264eb32e8e64bfe69e834973ffca5d41d3948a604a3e2a3": "pixtral",
    "1431a23e583c97432bc230bff598d103ddb5a1f89960c8f1d1051aaa944d0b35": "minerva-7b",
    "d4c8f286ea6b520b3d495c4455483cfa2302c0cfcd4be05d781b6a8a0a7cdaf1": "megrez",
    "d5f1dd6f980fec569fb218a81a7658ac45fc56b38c5a0adeb1c232fbe04ef5ec": "seed-coder",
    "9d032fcbd5501f4a38150912590928bfb36091efb5df11b8e2124b0390e3fb1e": "falcon3",
    "3ce83efda5659b07b1ad37ca97ca5797ea4285d9b9ab0dc679e4a720c9da7454": "gpt-2",
    "6221ad2852e85ce96f791f476e0b390cf9b474c9e3d1362f53a24a06dc8220ff": "refact",
    "35d91631860c815f952d711435f48d356ebac988362536bed955d43bfa436e34": "starcoder",
    "a1e163ecab2e718a4c829d1148b6e86824ec36163bb71941c3dca9cd5ac25756": "mellum",
    "1994ffd01900cfb37395608534236ecd63f2bd5995d6cb1004dda1af50240f15": "trillion",
    "b0a6b1c0bd5998ebd9df08611efde34a4ff03faed45ae09c43e6b31ebd4b94cf": "a.x-4.0",
    "f6791d196f87ce6b56a7d234be618e0d58f8cda3549416635b2bebcd22cd95c4": "midm-2.0",
    "4a2e2abae11ca2b86d570fc5b44be4d5eb5e72cc8f22dd136a94b37da83ab665": "kormo",
    "862f827721df956049dff5ca81a57f29e575280bc622e290d3bf4e35eca29015": "f2llmv2",
}


@dataclass
class Vocabulary:
    """What a GGUF file says of a tokenizer; lists are in the order of token ids."""

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    space_prefix: bool | None = None
    charsmap: bytes = b""
    metaspace: bool = False  # spaces are marked word by word, not once for the text


def read_vocabulary(tokenizer: Any, size: int) -> Vocabulary:
    """Reads a fast tokenizer.

    Args:
        tokenizer: a transformers tokenizer.
        size: rows of the embedding; ids without a token become unused ones.

    Raises:
        InputError: no tokenizer, or none that llama.cpp knows; more tokens than embeddings.
    """
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise InputError(f"the model has no fast tokenizer, which llama.cpp's vocabulary is made from; {_ELSE}")
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    by_id = {index: token for token, index in tokenizer.get_vocab().items()}
    if max(by_id) >= size:
        raise InputError(
            f"the tokenizer has ids up to {max(by_id)}, the model only {size} embeddings; mend config.json"
        )
    added = {token["id"]: token for token in state["added_tokens"]}
    tokens = [by_id.get(i, f"[PAD{i}]") for i in range(size)]
    types = [_type(by_id.get(i), added.get(i)) for i in range(size)]
    model = state["model"]
    if model["type"] == "BPE" and _is_byte_level(state):
        pre = _pre_name(tokenizer, state)
        if not model["merges"]:
            raise InputError(f"the tokenizer has no merges, without which llama.cpp does not load it; {_ELSE}")
        merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
        return Vocabulary("gpt2", pre, tokens, types, merges=merges)
    unknown = model.get("unk_token") if model["type"] == "BPE" else by_id.get(model.get("unk_id"))
    if unknown in tokens:
        types[tokens.index(unknown)] = TokenType.UNKNOWN
    types = [TokenType.BYTE if _BYTE.fullmatch(t) and not added.get(i) else types[i] for i, t in enumerate(tokens)]
    prefix = _space_prefix(state)
    metaspace = bool(prefix) and any(step["type"] == "Metaspace" for step in _flat(state, "pre_tokenizer"))
    if prefix is not None and model["type"] == "BPE":
        ranks = _ranks(model, tokens)
        return Vocabulary("llama", "default", tokens, types, scores=ranks, space_prefix=prefix, metaspace=metaspace)
    if prefix is not None and model["type"] == "Unigram" and not model.get("byte_fallback"):
        scores = dict(model["vocab"])
        listed = [float(scores.get(token, 0.0)) for token in tokens]
        found = Vocabulary("t5", "default", tokens, types, scores=listed, space_prefix=prefix, metaspace=metaspace)
        found.charsmap = _charsmap(state)
        return found
    kind = f"{model['type']}, {', '.join(_steps(state)) or 'no splitting'}"
    raise InputError(f"llama.cpp has no tokenizer of this kind ({kind}); {_ELSE}")


def add_tokenizer(writer: GGUFWriter, tokenizer: Any, size: int) -> list[str]:
    """Writes a tokenizer into a GGUF file's metadata; see `read_vocabulary` for arguments and errors.

    Returns:
        What a user should know, in sentences.
    """
    found = read_vocabulary(tokenizer, size)
    writer.add_tokenizer_model(found.model)
    writer.add_tokenizer_pre(found.pre)
    writer.add_token_list(found.tokens)
    writer.add_token_types(found.types)
    if found.merges:
        writer.add_token_merges(found.merges)
    if found.scores:
        writer.add_token_scores(found.scores)
    if found.space_prefix is not None:
        writer.add_add_space_prefix(found.space_prefix)
    if found.charsmap:
        writer.add_precompiled_charsmap(found.charsmap)
    for name in ("bos", "eos", "unk", "pad"):
        index = getattr(tokenizer, f"{name}_token_id")
        if index is not None:
            getattr(writer, f"add_{name}_token_id")(index)
    ids = tokenizer("a").input_ids  # what it does, whichever of its settings says so
    writer.add_add_bos_token(bool(ids) and ids[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(bool(ids) and ids[-1] == tokenizer.eos_token_id)
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = [{"name": name, "template": text} for name, text in template.items()]
    if template:
        writer.add_chat_template(template)
    return [_METASPACE] if found.metaspace else []


def _type(token: str | None, added: dict[str, Any] | None) -> int:
    if token is None:
        return TokenType.UNUSED
    if added is None:
        return TokenType.NORMAL
    return TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED


def _flat(state: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, without the sequences around them."""
    step = state.get(kind)
    if step is None:
        return []
    inner = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers"}[kind]
    return [s for part in step[inner] for s in _flat({kind: part}, kind)] if step["type"] == "Sequence" else [step]


def _steps(state: dict[str, Any]) -> tuple[str, ...]:
    """The pre-tokenizer in the words of `RULES`."""
    words = []
    for step in _flat(state, "pre_tokenizer"):
        if step["type"] == "ByteLevel" and not step["add_prefix_space"]:
            words.append("bytes, split" if step["use_regex"] else "bytes")
        elif step["type"] == "Digits" and step["individual_digits"]:
            words.append("digits")
        elif step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
            words.append(next(iter(step["pattern"].values())))
        else:
            words.append(json.dumps(step, ensure_ascii=False))
    return tuple(words)


def _is_byte_level(state: dict[str, Any]) -> bool:
    return any(step["type"] == "ByteLevel" for step in _flat(state, "pre_tokenizer"))


def _pre_name(tokenizer: Any, state: dict[str, Any]) -> str:
    """llama.cpp's name of the rule that splits text into words.

    Raises:
        InputError: llama.cpp has no such rule.
    """
    name = _HASHES.get(hashlib.sha256(str(tokenizer.encode(_PROBE)).encode()).hexdigest())
    if name is None and all(step["type"] == "NFC" for step in _flat(state, "normalizer")):
        name = RULES.get((_steps(state), bool(state["model"].get("ignore_merges"))))
    if name is None:
        raise InputError(
            f"llama.cpp has no rule that splits text as this tokenizer does ({', '.join(_steps(state))}); {_ELSE}"
        )
    return name


def _space_prefix(state: dict[str, Any]) -> bool | None:
    """Whether a space is put before the text; None where spaces are not marked as SentencePiece does."""
    normal, pre = _flat(state, "normalizer"), _flat(state, "pre_tokenizer")
    marks = any(s["type"] == "Replace" and s["content"] == _SPACE for s in normal)
    prepends = any(s["type"] == "Prepend" and s["prepend"] == _SPACE for s in normal)
    meta = [s for s in pre if s["type"] == "Metaspace" and s["replacement"] == _SPACE]
    if len(meta) != len(pre) or not (marks or meta):
        return None
    return prepends or any(step.get("prepend_scheme", "always") != "never" for step in meta)


def _ranks(model: dict[str, Any], tokens: list[str]) -> list[float]:
    """SentencePiece's scores from merges: the earlier a token is made, the higher. Letters are never compared."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(model["merges"]):
        ranks.setdefault("".join(pair) if isinstance(pair, list) else pair.replace(" ", "", 1), rank)
    return [-float(ranks.get(token, len(ranks))) for token in tokens]


def _charsmap(state: dict[str, Any]) -> bytes:
    """SentencePiece's table of characters that become others."""
    maps = [s["precompiled_charsmap"] for s in _flat(state, "normalizer") if s["type"] == "Precompiled"]
    return base64.b64decode(maps[0]) if maps and maps[0] else b""
