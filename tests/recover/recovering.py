"""What the tests of recovery share: pools of two topics with words of their own, models, and a fake embedder."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch

from sentei.data.chat import Sample
from sentei.models.load import Loaded, digest
from tiny import tiny_model, tiny_tokenizer

TOPICS = {"a": range(3, 64), "b": range(64, 128)}


def loaded(model: Any, name: str = "tiny", tokenizer: Any = None) -> Loaded:
    return Loaded(model, tokenizer or tiny_tokenizer(), name, digest(model))


def words(rng: np.random.Generator, topic: str, count: int) -> str:
    return " ".join(f"w{word}" for word in rng.choice(TOPICS[topic], count))


def pool(rows: int = 40, seed: int = 0) -> list[dict[str, Any]]:
    """Topics a and b in turn; every row says in its id which it is."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(rows):
        topic = "ab"[i % 2]
        prompt, completion = words(rng, topic, int(rng.integers(2, 8))), words(rng, topic, int(rng.integers(3, 20)))
        made.append({"prompt": prompt, "completion": completion, "id": f"{topic}{i}"})
    return made


def by_topic(texts: Any, embedder: Any = None, progress: Any = None, device: Any = None) -> np.ndarray:
    """Unit vectors: one direction per topic, and a little of the text's own."""
    vectors = []
    for text in texts:
        numbers = [int(word[1:]) for word in text.split() if word.startswith("w")]
        own = np.random.default_rng(sum(numbers)).normal(size=6) * 0.1
        vectors.append([float(np.mean([n < 64 for n in numbers] or [0.5])), *own])
        vectors[-1].append(1 - vectors[-1][0])
    made = np.array(vectors, np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def damaged(dense: Any, topic: str = "b", noise: float = 1.0) -> Any:
    """The dense model, which no longer knows what the words of a topic mean; all others it reads as before."""
    model = copy.deepcopy(dense)
    rows = torch.tensor(list(TOPICS[topic]))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        weight = model.get_input_embeddings().weight
        weight[rows] += noise * torch.randn(len(rows), weight.shape[1], generator=generator)
    return model


def shaken(dense: Any, noise: float = 0.05) -> Any:
    """The dense model with noise on the linears of its blocks."""
    model = copy.deepcopy(dense)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if ".layers." in name and value.ndim == 2:
                value += noise * torch.randn(value.shape, generator=generator)
    return model


def small_model(variant: str = "llama", **sizes: Any) -> Any:
    return tiny_model(variant, **{"num_hidden_layers": 2, **sizes})


def sample(ids: list[int], start: int) -> Sample:
    """Token ids of which those from `start` on are the answer."""
    return Sample(np.array(ids, np.int32), np.arange(len(ids)) >= start, truncated=False)


def random_samples(lengths: list[int], seed: int = 0) -> list[Sample]:
    rng = np.random.default_rng(seed)
    return [sample(rng.integers(3, 128, n).tolist(), int(rng.integers(1, n))) for n in lengths]
