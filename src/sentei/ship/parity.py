"""Parity: does an engine give the log-probabilities that our torch model gives, for every word at every position?"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sentei.data.tokens import tokenise
from sentei.errors import InputError, unknown
from sentei.models.identity import difference
from sentei.progress import Progress, shown
from sentei.ship import ROUTES
from sentei.ship.compared import Compared
from sentei.ship.engines import ENGINES, Engine, LogProbs, Session, Timing
from sentei.ship.facts import read_facts
from sentei.ship.likeness import Judge, Likeness
from sentei.ship.rounding import rounds

if TYPE_CHECKING:
    import torch

    from sentei.models.load import Loaded

__all__ = ["ENGINES", "Compared", "Engine", "LogProbs", "Parity", "Session", "Timing", "engine_for", "parity"]

LENGTHS = (16, 128, 512)
TOKENS = 2000
DECODED = 16  # tokens of a window that are fed one by one: each is a whole vocabulary of JSON in llama.cpp
# Largest |Δ log p| that is rounding: twice what was measured on SmolLM2-135M (docs/export.md). By what the engine
# computes in, and by what the export rounded the weights to where that loses something; both add up. Where something is
# rounded that finds what is grossly wrong only, and `Judge` decides.
COMPUTED = {"F32": 1e-3, "F16": 0.25, "BF16": 4.0, "Q8_0": 4.0, "INT8": 4.0}
ROUNDED = {"F16": 0.025, "BF16": 0.25, "Q8_0": 4.0, "INT8": 4.0}


@dataclass(frozen=True)
class Parity:
    """The outcome. `texts`: whose they were; `decode` fed the end of every window token by token.

    `likeness`: where something is rounded; None where nothing is, or where a tolerance was given.
    """

    engine: str
    version: str
    texts: str
    windows: list[int]
    vocabulary: int
    dtype: str
    tolerance: float
    prefill: Compared
    decode: Compared
    likeness: Likeness | None = None

    @property
    def delta(self) -> float:
        """The larger of both deviations."""
        return max(self.prefill.delta, self.decode.delta)

    @property
    def passed(self) -> bool:
        """Within the tolerance, like the rounded model, and the same likeliest word wherever there is no tie."""
        alike = self.likeness is None or self.likeness.passed
        return alike and self.delta <= self.tolerance and not self.prefill.flips and not self.decode.flips

    def facts(self) -> dict[str, Any]:
        """For export.json."""
        values = asdict(self)
        for name in ("prefill", "decode"):
            if values[name]["delta"] == np.inf:
                values[name]["delta"] = None  # JSON has no infinity
        if self.likeness is not None:
            found = asdict(self.likeness)
            values["likeness"] = {key: value if np.isfinite(value) else None for key, value in found.items()}
        return values | {"passed": self.passed}

    def verdict(self) -> str:
        """One line."""
        positions = f"{self.prefill.positions:,} tokens × {self.vocabulary:,} words"
        line = f"max |Δ log p| {self.delta:.1e} over {positions}, {self.engine} {self.version}"
        line += f"; {self.likeness}" if self.likeness else ""
        if self.passed:
            return f"parity: passed, {line}"
        name, worse = max((("prefill", self.prefill), ("decode", self.decode)), key=lambda pair: pair[1].delta)
        where = f"worst at text {worse.worst['text']}, token {worse.worst['token_index']}, word {worse.worst['token']}"
        flips = self.prefill.flips + self.decode.flips
        return (
            f"parity: FAILED, {line}; tolerance {self.tolerance:.0e}; {where} ({name}); {flips} likeliest words differ"
        )


def engine_for(facts: dict[str, Any], name: str | None = None) -> Engine:
    """The engine that reads an export: the named one, else the first that is installed.

    Raises:
        InputError: unknown, not one that reads this export, or not installed (with the command that installs it).
    """
    reads = [e for e in ROUTES[facts["route"]].engines if e in ENGINES and e not in facts["unreachable"]]
    if name is not None and name not in reads:
        raise unknown("engine for this export", name, reads)
    engines = [ENGINES[e] for e in ([name] if name else reads)]
    if not engines:
        reasons = "; ".join(f"{e} {why}" for e, why in facts["unreachable"].items())
        raise InputError(f"no engine that runs here reads this {facts['route']} export: {reasons or 'none is known'}")
    found = next((engine for engine in engines if engine.installed()), None)
    if found is None:
        raise InputError(
            f"{engines[0].name} is not installed, and it reads this export: pip install {engines[0].package}"
        )
    return found


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
        tolerance: largest |Δ log p|; default: by precision (`COMPUTED`, `ROUNDED`).
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
    prefill, decode = Compared(), Compared()
    with opened(runner, Path(export)) as session:
        precision = session.dtype
        limit = tolerance if tolerance is not None else _tolerance(precision, facts)
        rounding = tolerance is None and rounds(facts, precision)
        judge = Judge(reference, facts, precision, reference_rows) if rounding else None
        with shown(progress).stage(f"parity, {runner.name}", total=tokens, unit="tokens") as bar:
            for text, ids in windows:
                wanted, start = reference_rows(reference, ids), max(len(ids) // 2, len(ids) - DECODED)
                said, close = judge.said(ids, wanted) if judge else (wanted, limit)
                got, slowly = session.log_probs(ids), session.decode(ids, start)
                prefill.add(said, got, text=text, first=0, tolerance=close)
                decode.add(said[start:], slowly, text=text, first=start, tolerance=close)
                if judge:
                    judge.add(said, got)
                    judge.add(said[start:], slowly)
                bar.advance(len(ids))
    return Parity(
        engine=runner.name,
        version=runner.version(),
        texts=source,
        windows=[len(ids) for _, ids in windows],
        vocabulary=wanted.shape[1],
        dtype=precision,
        tolerance=limit,
        prefill=prefill,
        decode=decode,
        likeness=judge.likeness() if judge else None,
    )


@contextlib.contextmanager
def opened(engine: Engine, export: Path) -> Iterator[Session]:
    """A session that is closed whatever happens."""
    session = engine.open(export)
    try:
        yield session
    finally:
        session.close()


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


def _tolerance(computed: str, facts: dict[str, Any]) -> float:
    """What rounding explains, in the engine and in the weights of the file.

    Raises:
        InputError: a format for which no such figure is known.
    """
    if computed not in COMPUTED or not (facts["lossless"] or facts["dtype"] in ROUNDED):
        raise InputError(
            f"what {facts['dtype']} rounds away is no question of parity; compare quality with sentei eval, or pass "
            "--tolerance (largest |Δ log p|)"
        )
    return COMPUTED[computed] + (0.0 if facts["lossless"] else ROUNDED[facts["dtype"]])
