"""llama.cpp, by the PyPI package `xllamacpp`: its server, in this process, on a free port of the loopback interface.

The server tells log-probabilities of one position per request, as text, which takes half a second for a vocabulary of
50,000 words. So those of a prefill come by another way: as embeddings without pooling, which are what the head reads,
of all positions at once, times the head as the file holds it. Decoded positions are what the server itself tells, its
own head included.
"""

from __future__ import annotations

import http.client
import importlib.metadata
import importlib.util
import json
import os
import re
import secrets
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sentei.errors import InputError, SenteiError, one_line
from sentei.ship.engines import LogProbs, Timing

_NORMAL = 1  # of gguf.TokenType: neither control nor byte
_CONTEXT = 4096  # tokens that a session can hold, where the model was made for more


class LlamaCppSession:
    """A GGUF file, open in llama.cpp. Parity is asked with an F32 cache and plain attention; timing is as served."""

    def __init__(self, path: Path) -> None:
        from gguf import GGUFReader

        try:
            self._file: Any = GGUFReader(path)
            arch = str(self._file.get_field("general.architecture").contents())
            trained = int(self._file.get_field(f"{arch}.context_length").contents())
            tokens = self._file.get_field("tokenizer.ggml.tokens").contents()
            types = self._file.get_field("tokenizer.ggml.token_type").contents()
        except (OSError, ValueError, IndexError, KeyError, AttributeError) as error:
            raise InputError(f"{path} is no whole GGUF model ({one_line(error)}); export it again") from error
        tensors = {tensor.name: tensor for tensor in self._file.tensors}
        self._head: Any = tensors.get("output.weight", tensors.get("token_embd.weight"))
        kinds = {tensor.tensor_type.name: 0 for tensor in self._file.tensors}
        for tensor in self._file.tensors:
            kinds[tensor.tensor_type.name] += int(tensor.n_bytes)
        self.dtype = max(kinds, key=lambda name: kinds[name])
        self._word = _plain_word(tokens, types)
        self._path, self._context = path, min(trained, _CONTEXT)
        self._key = secrets.token_urlsafe(24)  # others on this machine have no business here
        self._asked: Any = None
        self._timed: Any = None

    def log_probs(self, ids: list[int]) -> LogProbs:
        """See `Session`."""
        from gguf.quants import dequantize

        self._check(ids, 0)
        found = self._post(self._parity(), "/embedding", {"content": ids})
        hidden = np.array(found[0]["embedding"], dtype=np.float32)
        if len(hidden) != len(ids):
            raise SenteiError(f"llama.cpp gave {len(hidden)} embeddings for {len(ids)} tokens")
        head = dequantize(self._head.data, self._head.tensor_type).astype(np.float32, copy=False)
        logits = hidden @ head.T
        logits -= logits.max(axis=1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return logits

    def decode(self, ids: list[int], start: int) -> LogProbs:
        """See `Session`. Each request extends the cached prompt by one token; the first may find it in the cache."""
        self._check(ids, 1)
        self._post(self._parity(), "/completion", {"prompt": ids[:start], "n_predict": 0, "cache_prompt": True})
        return np.stack([self._step(ids[: end + 1]) for end in range(start, len(ids))])

    def generate(self, ids: list[int], n: int) -> Timing:
        """See `Session`; the times are those that the server took itself."""
        self._check(ids, n)
        if self._timed is None:
            self._timed = self._open()
        body = {"prompt": ids, "n_predict": n, "cache_prompt": False, "ignore_eos": True, "temperature": 0}
        times = self._post(self._timed, "/completion", body)["timings"]
        if (times["prompt_n"], times["predicted_n"]) != (len(ids), n):
            raise SenteiError(f"llama.cpp read {times['prompt_n']} and made {times['predicted_n']} tokens, not {n}")
        first = times["prompt_ms"] / 1000
        return Timing(first, first + times["predicted_ms"] / 1000)

    def close(self) -> None:
        """See `Session`."""
        self._asked = self._timed = self._head = self._file = None

    def _parity(self) -> Any:
        """The server that is asked: exact attention, embeddings of every token."""
        if self._asked is None:
            import xllamacpp

            single, plain = xllamacpp.ggml_type.GGML_TYPE_F32, xllamacpp.llama_flash_attn_type
            self._asked = self._open(
                cache_type_k=single,
                cache_type_v=single,
                flash_attn_type=plain.LLAMA_FLASH_ATTN_TYPE_DISABLED,
                n_batch=self._context,  # all of a prompt at once
                n_ubatch=self._context,
                embedding=True,
                pooling_type=xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_NONE,
                embd_normalize=-1,
            )
        return self._asked

    def _open(self, **settings: Any) -> Any:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(self._path)
        params.n_ctx = self._context
        params.n_parallel = 1
        params.verbosity = -1
        params.warmup = False
        params.api_keys, params.endpoint_slots, params.ui = [self._key], False, False
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = _threads()
        for name, value in settings.items():
            setattr(params, name, value)
        try:
            return xllamacpp.Server(params)
        except (RuntimeError, ValueError) as error:
            raise InputError(f"llama.cpp does not load {self._path}: {one_line(error)}") from error

    def _step(self, ids: list[int]) -> LogProbs:
        """Log-probabilities [V] of the token after `ids`, of which all but the last are in the cache."""
        words = int(self._head.shape[-1])
        body = {"prompt": ids, "n_predict": 1, "temperature": 0, "n_probs": words, "cache_prompt": True}
        body["logit_bias"] = [[self._word, 1e6]]  # decides the token, not the probabilities, which are told before it
        found = self._post(self._parity(), "/completion", body)
        read = found["timings"]["prompt_n"]
        if read != 1:
            raise SenteiError(f"llama.cpp read {read} tokens where it was to go on by one from its cache")
        row: NDArray[np.float32] = np.full(words, np.nan, dtype=np.float32)
        for word in found["completion_probabilities"][0]["top_logprobs"]:
            row[word["id"]] = word["logprob"]
        if np.isnan(row).any():
            raise SenteiError(f"llama.cpp told {words - int(np.isnan(row).sum())} of {words} log-probabilities")
        return row

    def _post(self, server: Any, path: str, body: dict[str, Any]) -> Any:
        connection = http.client.HTTPConnection(server.listening_address.removeprefix("http://"))
        try:
            headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"}
            connection.request("POST", path, json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        if answer.status != 200:
            raise SenteiError(f"llama.cpp answered {path} with {answer.status}: {text[:300].decode(errors='replace')}")
        return json.loads(text)

    def _check(self, ids: list[int], new: int) -> None:
        """The server wants room for the tokens that it answers with."""
        if len(ids) + new > self._context:
            raise InputError(f"{len(ids)} + {new} tokens exceed the context of {self._context} tokens; ask for fewer")


class LlamaCpp:
    """See `Engine`."""

    name = "llama.cpp"
    package = "xllamacpp"

    def installed(self) -> bool:
        """See `Engine`."""
        return importlib.util.find_spec("xllamacpp") is not None

    def version(self) -> str:
        """See `Engine`."""
        return importlib.metadata.version("xllamacpp")

    def open(self, export: Path) -> LlamaCppSession:
        """See `Engine`."""
        if not export.is_file():
            raise InputError(f"{export} is no file; llama.cpp reads one .gguf file")
        return LlamaCppSession(export)


def _plain_word(tokens: list[str], types: list[int]) -> int:
    """A token to answer with: one that ends the text, or is part of a letter, comes without probabilities."""
    return next(i for i, word in enumerate(tokens) if types[i] == _NORMAL and re.fullmatch(r"\w+", word, re.ASCII))


def _threads() -> int:
    """As many as torch would take."""
    return int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)


ENGINE = LlamaCpp()
