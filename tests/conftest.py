"""Fixtures for all tests: tiny models of every family, a tiny tokenizer, and the data folder."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported: tests never use the network
os.environ.setdefault("OMP_NUM_THREADS", "1")  # also in what the tests start: tiny models lose on two threads

import pytest
import torch

from sentei.models.load import Loaded, digest, load
from sentei.plan import Plan
from tiny import GROUPED, PLAIN, VARIANTS, make_plan, tiny_model, tiny_tokenizer

ALL_THREADS = os.cpu_count() or 1
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` ignores it, and what the tests start would too


@pytest.fixture(autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests marked `slow` get all threads."""
    if request.node.get_closest_marker("slow"):
        torch.set_num_threads(ALL_THREADS)
    yield
    torch.set_num_threads(1)


@pytest.fixture(params=sorted(VARIANTS))
def tiny(request: pytest.FixtureRequest) -> Any:
    """One tiny model after the other: every family, with and without biases, ties and windows."""
    return tiny_model(request.param)


@pytest.fixture(params=PLAIN)
def plain(request: pytest.FixtureRequest) -> Any:
    """The same of those without experts."""
    return tiny_model(request.param)


@pytest.fixture(params=GROUPED)
def grouped(request: pytest.FixtureRequest) -> Any:
    """Those whose query heads can be thinned within a KV group."""
    return tiny_model(request.param)


@pytest.fixture
def tiny_models() -> dict[str, Any]:
    """A tiny random model per variant; `tiny_models["llama"]` and so on."""
    return {name: tiny_model(name) for name in VARIANTS}


@pytest.fixture
def tokenizer() -> Any:
    """A word-level tokenizer for the vocabulary of the tiny models."""
    return tiny_tokenizer()


@pytest.fixture
def planned() -> Callable[..., Plan]:
    """`planned(model, blocks, compensation)`: a plan in one line."""
    return make_plan


@pytest.fixture
def ids() -> torch.Tensor:
    """Token ids [2, 12], longer than the windows of the tiny models."""
    return torch.randint(3, 128, (2, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The shared data folder: `$SENTEI_DATA`, else ../shared/data beside the checkout; skips where there is none."""
    found = Path(os.environ.get("SENTEI_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not found.is_dir():
        pytest.skip(f"needs the data folder (looked for {found}; set SENTEI_DATA)")
    return found


@pytest.fixture(scope="session")
def stories_dir(data_dir: Path) -> Path:
    """Directory of stories260K, a real Llama with 260,032 parameters and grouped-query attention."""
    found = data_dir / "models" / "stories260k"
    if not found.is_dir():
        pytest.skip(f"needs {found}")
    return found


@pytest.fixture(scope="session")
def stories(stories_dir: Path) -> Iterator[Loaded]:
    """stories260K in fp32. Shared by all tests: do not change it."""
    loaded = load(stories_dir, dtype="float32", device="cpu")
    before = loaded.digest
    yield loaded
    assert digest(loaded.model, loaded.tokenizer) == before, "a test changed the shared model"
