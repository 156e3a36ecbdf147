"""What `tune` made: the adapted model, how to save it, and what its recovery curve says."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sentei.files import write_json
from sentei.outputs import atomic_dir
from sentei.recover.tune.guard import History
from sentei.scratch import temporary_dir

FEW = 5  # held-out rows below which nothing is said about a gain
GOOD_ENOUGH = 0.95  # share of the whole gain at which the curve recommends to stop


@dataclass
class Tuned:
    """What `tune` made.

    Attributes:
        adapted: the model with its adapter, not yet merged; the model itself after full tuning.
        tokenizer: of the model.
        record: JSON: settings, sizes, the recovery curve, the recommendation, what it cost.
    """

    adapted: Any
    tokenizer: Any
    record: dict[str, Any]

    def save(self, directory: str | Path, *, overwrite: bool = False) -> Path:
        """Writes the merged model, which loads like the one that was tuned; `adapter/` and `tune.json` beside it.

        The adapter is merged into the model: afterwards `adapted` is the plain model.

        Raises:
            InputError: the directory is not empty, or cannot be written.
        """
        from peft import PeftModel

        from sentei.models.save import save
        from sentei.plan import Plan
        from sentei.recover.tune.adapters.files import merge, save_adapter

        with atomic_dir(Path(directory), overwrite=overwrite) as scratch, temporary_dir("adapter") as aside:
            if isinstance(self.adapted, PeftModel):
                save_adapter(self.adapted, aside / "adapter")
            self.adapted = merge(self.adapted)
            source = Path(self.adapted.name_or_path or ".")
            plan = Plan.load(source / "plan.json") if (source / "plan.json").is_file() else None
            save(self.adapted, scratch, tokenizer=self.tokenizer, plan=plan)
            if (aside / "adapter").exists():
                shutil.copytree(aside / "adapter", scratch / "adapter")
            write_json(scratch / "tune.json", self.record)
        return Path(directory)


def recommend(history: History, rows: int) -> str:
    """When to stop, from the recovery curve: where nearly all of the gain was reached, and what the end still gave.

    Args:
        history: of the training.
        rows: held out, on which the curve rests.
    """
    curve = history.curve
    first, best = curve[0]["heldout"], history.best["heldout"]
    gain = first - best
    few = f"{rows} held-out {'row is' if rows == 1 else 'rows are'} too few to say what training gave: give more data"
    if gain <= 0:
        why = few if rows < FEW else f"training did not lower the held-out loss of {first:.3f}"
        return f"{why}; the model is as it was"
    if rows < FEW:
        return few
    enough = next(point for point in curve if first - point["heldout"] >= GOOD_ENOUGH * gain)
    text = (
        f"the held-out loss fell from {first:.3f} to {best:.3f}; {GOOD_ENOUGH:.0%} of that was reached after "
        f"{enough['tokens']:,.0f} tokens"
    )
    if history.stopped == "finished" and enough is curve[-1] and len(curve) > 2:
        text += ", the last ones"
        if not _forgets(curve[0], history.best):
            text += ": more tokens would still help"
    return text + _forgotten(curve[0], history.best)


def _forgets(first: dict[str, float], kept: dict[str, float]) -> bool:
    """Whether text of another kind was watched and is worse than before."""
    return kept.get("other_perplexity", 0.0) > first.get("other_perplexity", 0.0)


def _forgotten(first: dict[str, float], kept: dict[str, float]) -> str:
    """What happened to the text of another kind, where one was watched."""
    if "other_perplexity" not in kept:
        return ""
    before, after = first["other_perplexity"], kept["other_perplexity"]
    text = f"; the perplexity of the other text went from {before:.2f} to {after:.2f}"
    return text if after <= before else f"{text}: it forgets; lower --learning-rate or --tokens, or mix in such rows"
