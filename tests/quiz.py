"""Random questions in simple words."""

from __future__ import annotations

import random
from typing import Any

from sentei.data.tasks import TaskSet

WORDS = ["the", "cat", "sat", "on", "a", "big", "red", "ball", "and", "was", "very", "happy", "to", "see", "her", "dog"]


def say(rng: random.Random, low: int, high: int) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(low, high)))


def choices(n: int, seed: int = 0, start: str = "") -> TaskSet:
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for _ in range(n):
        options = [say(rng, 1, 9) for _ in range(rng.randint(2, 5))]
        rows.append({"context": start + say(rng, 3, 30), "choices": options, "label": rng.randrange(len(options))})
    return TaskSet("choices", rows)


def partial(n: int) -> TaskSet:
    rng = random.Random(1)
    rows: list[dict[str, Any]] = []
    for _ in range(n):
        contexts = [say(rng, 3, 12), say(rng, 3, 12)]
        rows.append({"contexts": contexts, "continuation": say(rng, 2, 8), "label": rng.randrange(2)})
    return TaskSet("partial", rows)
