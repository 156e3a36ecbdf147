"""What the pages of a task say of training, deadlines and guessing."""

from __future__ import annotations

from typing import Any

import pytest

from report import task_example as example
from sentei.report import fit, frontier
from sentei.report.frontier import command
from sentei.report.verdict import summary, title

HEALING = {"tokens": 24_000, "adapter": "lora", "loss": "sft", "learning_rate": 5e-4, "patience": None}
MADE: dict[str, Any] = {"calibration_tokens": 4096, "length": 512, "healing": HEALING}
WORDS = "Every cut model was healed: lora on 24,000 tokens of the task's calibration rows; the dense model it is set "
WORDS += "beside was not trained on the task."


def test_a_fit_says_what_was_trained_and_what_was_not() -> None:
    report = example.fit(dense_trained={"confirm": 0.71, "test": 0.702}) | {"made": MADE}
    line = summary(report).split("\n")[1]
    alike = "Trained alike, the dense model has acc 0.710 on the confirmation rows and 0.702 on the test rows."
    assert line == f"{WORDS} {alike}"
    assert WORDS in fit.render(report).replace("&#x27;", "'")
    assert "healed" not in summary(example.fit() | {"made": MADE | {"healing": None}})


@pytest.mark.parametrize("changes", [{"stopped": "deadline"}, {"cuts_ended": "deadline"}])
def test_the_headline_says_that_time_ran_out(changes: dict[str, str]) -> None:
    assert title(example.fit(**changes)).endswith("44.0 % removed, search ended by the deadline")
    assert "search ended by the deadline</h1>" in fit.render(example.fit(**changes))
    assert "ended" not in title(example.fit(cuts_ended="resolution"))


def test_a_frontier_says_it_and_shows_the_dense_model_trained_alike() -> None:
    report = example.frontier() | {"made": MADE}
    report["dense_trained"] = {"value": 0.7, "change": 0.129, "interval": [0.05, 0.2]}
    said = frontier.summary(report).split("\n")[1]
    assert said == f"{WORDS} Trained alike, the dense model has 0.700 (+12.9 %, 95 % interval +5.0 % … +20.0 %)."
    assert "<tr><td>dense, trained alike</td><td>0.700</td><td>+12.9 %</td>" in frontier.render(report)


def test_the_command_makes_the_model_that_was_measured() -> None:
    report = example.frontier() | {"made": MADE}
    report["given"] = {"model": "m/tiny", "task": "t.yaml", "out": "run", "options": ["--dtype", "float32"]}
    assert command(report, report["points"][3]).split(" && ") == [
        "sentei cut m/tiny --plan run/plans/03.json --data t.yaml --tokens 4096 --window 512 --dtype float32 "
        "--out tiny-30-cut",
        "sentei tune tiny-30-cut --data t.yaml --adapter lora --loss sft --learning-rate 0.0005 --patience 0 "
        "--tokens 24000 --dtype float32 --out tiny-30",
    ]


def test_a_perplexity_above_that_of_guessing_is_told() -> None:
    worse = "A perplexity of 600.00 is worse than guessing among the 512 tokens."
    report = example.fit(confirmed=600.0) | {"task": example.task(metric="perplexity", higher=False, vocab=512)}
    assert worse in summary(report)
    report["fit"]["confirmed"] = 500.0
    assert "guessing among" not in summary(report)
