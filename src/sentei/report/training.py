"""What the pages of a task say of training, and the commands that repeat it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sentei.report.words import count, known, number


def healing(report: Mapping[str, Any]) -> str:
    """How the cut models were trained, as a sentence; empty where they were not, or an old report does not say."""
    found = (report.get("made") or {}).get("healing")
    if not found:
        return ""
    return (
        f"Every cut model was healed: {found['adapter']} on {count(found['tokens'], 'token')} of the task's "
        "calibration rows; the dense model it is set beside was not trained on the task."
    )


def commands(report: Mapping[str, Any], plan: str, out: str) -> list[list[str]]:
    """What makes the model of a plan again, word by word: cut, and heal where it was healed.

    Args:
        report: of a frontier. Its `given` is the command line; without it, words in capitals stand for what is unknown.
        plan: path of the plan.
        out: where the model goes.
    """
    given = {"model": report["model"], "task": "TASK.yaml", "options": []} | report.get("given", {})
    made = report.get("made") or {}
    sizes = ["--tokens", str(made["calibration_tokens"]), "--window", str(made["length"])] if made else []
    options, found = [*given["options"]], made.get("healing")
    cut = ["sentei", "cut", given["model"], "--plan", plan, "--data", given["task"], *sizes, *options, "--out"]
    if not found:
        return [[*cut, out]]
    how = ["--adapter", found["adapter"], "--loss", found["loss"], "--learning-rate", f"{found['learning_rate']:g}"]
    how += ["--patience", str(found["patience"] or 0), "--tokens", str(found["tokens"])]
    tune = ["sentei", "tune", f"{out}-cut", "--data", given["task"], *how, *options, "--out", out]
    return [[*cut, f"{out}-cut"], tune]


def guessing(report: Mapping[str, Any], value: float | None) -> str:
    """Said of a perplexity that is above that of guessing among all tokens."""
    task = report["task"]
    vocab = task.get("vocab")
    if task["metric"] != "perplexity" or not vocab or (known(value) and value is not None and value <= vocab):
        return ""
    return f"A perplexity of {number(value)} is worse than guessing among the {vocab:,} tokens."
