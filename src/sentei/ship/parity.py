"""Parity: does an engine give the log-probabilities that our torch model gives, for every word at every position?"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentei.data.tokens import tokenise
from sentei.errors import InputError
from sentei.models.identity import difference
from sentei.progress import Progress, shown
from sentei.ship.compared import Comparison, Parity, rounding_tolerance
from sentei.ship.engines import LogProbs, engine_for
from sentei.ship.facts import read_facts
from sentei.ship.likeness import Judge
from sentei.ship.rounding import rounds

if TYPE_CHECKING:
    import torch

    from sentei.models.load import Loaded

LENGTHS = (16, 128, 512)
TOKENS = 2000
DECODED = 16  # tokens of a window that are fed one by one: each is a whole vocabulary of JSON in llama.cpp


def parity(
    model: Loaded | str | Path,
    export: str | Path,
    *,
    engine: str | None = None,
    texts: Sequence[str] | None = None,
    source: str = "demo",
    lengths: Sequence[int] = LENGTHS,
    tokens: int = TOKENS,
    tolerance: float | None = None,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> Parity:
    """Runs an export in its engine and compares every log-probability with our torch model in fp32.

    Args:
        model: that the export was made from.
        export: a file or directory of `sentei export`.
        engine: a name of `ENGINES`; default: the first installed one that reads the export.
        texts: real text; default: the demo text's test half.
        source: what to call the texts in the record.
        lengths: tokens of the windows, in turns; cut to the model's context.
        tokens: of all windows together.
        tolerance: largest |Δ log p|; default: by precision, see `rounding_tolerance`.
        device: that the torch model is loaded on; one in memory stays where it is.
        progress: told about every window.

    Raises:
        InputError: the export is of another model, its engine is not installed, or there is not enough text.
    """
    from sentei.models.load import as_loaded, context_length, load

    facts = read_facts(Path(export))
    runner = engine_for(facts, engine)
    loaded = (
        as_loaded(model) if not isinstance(model, (str, Path)) else load(model, dtype=facts["loaded"], device=device)
    )
    if different := difference(loaded, facts["digest"]):
        raise InputError(
            f"{export} was made from another model (other {different} than {loaded.name}); name the model that it was "
            "exported from, or export again"
        )
    if texts is None:
        from sentei.data.demo import demo_texts

        texts = demo_texts("test")
    sizes = [min(length, context_length(loaded.model) - 1) for length in lengths]  # llama.cpp keeps room for an answer
    windows = text_windows(texts, loaded.tokenizer, sizes, tokens)
    reference = loaded.model if str(loaded.model.dtype) == "torch.float32" else copy.deepcopy(loaded.model).float()
    with contextlib.closing(runner.open(Path(export))) as session:
        precision = session.dtype
        limit = tolerance if tolerance is not None else rounding_tolerance(precision, facts)
        rounding = tolerance is None and rounds(facts, precision)
        comparison = Comparison(limit, Judge(reference, facts, precision, reference_rows) if rounding else None)
        with shown(progress).stage(f"parity, {runner.name}", total=tokens, unit="tokens") as bar:
            for text, ids in windows:
                start = max(len(ids) // 2, len(ids) - DECODED)
                got, slowly = session.log_probs(ids), session.decode(ids, start)
                comparison.add(text, ids, start, wanted=reference_rows(reference, ids), prefill=got, decode=slowly)
                bar.advance(len(ids))
    return comparison.parity(
        engine=runner.name,
        version=runner.version(),
        texts=source,
        windows=[len(ids) for _, ids in windows],
        dtype=precision,
    )


def text_windows(
    texts: Sequence[str], tokenizer: Any, lengths: Sequence[int], tokens: int
) -> list[tuple[int, list[int]]]:
    """Windows of the given lengths in turns, `tokens` in all: the number of the text that it begins with, and its ids.

    A window begins with a text and goes on with the next ones where that is too short. No special tokens.

    Raises:
        InputError: no tokenizer, a window shorter than two tokens, or too little text.
    """
    if tokenizer is None:
        raise InputError("parity reads real text, and the model has no tokenizer; put its files into the directory")
    if min(*lengths, tokens) < 2:
        raise InputError(f"parity needs windows of at least 2 tokens; got lengths {list(lengths)}, {tokens} tokens")
    windows: list[tuple[int, list[int]]] = []
    at, left = 0, tokens
    for wanted in itertools.cycle(lengths):
        length = min(wanted, left)
        if length < 2:
            return windows
        first, ids = at, list[int]()
        while len(ids) < length:
            if at == len(texts):
                raise InputError(
                    f"the text ends after {tokens - left + len(ids)} tokens, parity wants {tokens}; ask for less"
                )
            ids += tokenise(tokenizer, [texts[at]], add_special_tokens=False)["input_ids"][0]
            at += 1
        windows.append((first, ids[:length]))
        left -= length
    raise AssertionError  # a cycle of at least one length has no end


def reference_rows(model: Any, ids: list[int]) -> LogProbs:
    """Log-probabilities [T, V] of our own model."""
    import torch

    from sentei.inference.forward import evaluating, final_hidden, logits

    with evaluating(model):
        hidden, _ = final_hidden(model, torch.tensor([ids], device=model.device))
        rows: LogProbs = logits(model, hidden[0]).log_softmax(-1).cpu().numpy()
    return rows
