"""`Profile`: what each part of a model does for some data. Every score and allocation is a function of it.

Saved as `profile.json` and `profile.safetensors`; symmetric matrices are stored as their lower triangle.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sentei.errors import InputError, one_line
from sentei.files import hash_json, read_json, write_json
from sentei.measure.stored import Head, check_tensors
from sentei.outputs import atomic_dir
from sentei.plan import ModelShape
from sentei.schema import parse

PROFILE_VERSION = 2


@dataclass
class PartStats:
    """Statistics of one attention or FFN part, on the CPU; `n` counts the inputs of its row-pruned matrix (o, down).

    Attributes:
        weight: `[hidden, n]` of the row-pruned matrix, as in the model.
        gram: `[n, n]` mean over tokens of `x xᵀ`, x the matrix's inputs.
        mean: `[n]` mean over tokens of x.
        norm: `[n]` sum of squared weights of each input's group: its rows and columns in all matrices of the part.
        energy: mean over tokens of the squared norm of the residual stream behind the part.
        input_gram: `[hidden, hidden]` mean of `x xᵀ` of the part's first linears (q, k, v; gate, up).
        output_grad: `[hidden, hidden]` mean of `g gᵀ`, g the gradient of a token's loss at the part's output; or None.
        taylor: `[n]` sum of `|weight · gradient|` over each input's group: an order, no growth of a loss; or None.
        ranks: by matrix, `[K + 1]` growth of the loss (nats per token) when it keeps rank 0 … K; empty without
            gradients.
    """

    weight: Tensor
    gram: Tensor
    mean: Tensor
    norm: Tensor
    energy: float
    input_gram: Tensor
    output_grad: Tensor | None = None
    taylor: Tensor | None = None
    ranks: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class BlockStats:
    """Statistics of one block; `angle` is the mean cosine between its input and its output."""

    attention: PartStats | None
    ffn: PartStats | None
    angle: float

    def part(self, name: str) -> PartStats:
        """Statistics of the "attention" or the "ffn" part, which has to be there."""
        stats = self.attention if name == "attention" else self.ffn
        assert stats is not None  # a part with linears was measured
        return stats


@dataclass
class Profile:
    """All statistics of one model on one data set; they are on the CPU, wherever the model is.

    Attributes:
        shape: sizes of the model.
        model_digest: its identity; see `sentei.models.identity`.
        data_digest: hash of the calibration tokens.
        tokens: how many tokens were read; `window` how many at a time.
        gradient_tokens: how many of them the gradient pass read; 0 without it.
        blocks: in order.
        info: names and settings, for reports.
        curves: removal curves by score, comparison and seed, for which another budget is solved at once; not saved.
    """

    shape: ModelShape
    model_digest: str
    data_digest: str
    tokens: int
    window: int
    gradient_tokens: int
    blocks: list[BlockStats]
    info: dict[str, Any] = field(default_factory=dict)
    curves: dict[tuple[Any, ...], Any] = field(default_factory=dict, repr=False, compare=False)

    def _head(self) -> dict[str, Any]:
        return {
            "schema_version": PROFILE_VERSION,
            "shape": self.shape.model_dump(mode="json"),
            "model_digest": self.model_digest,
            "data_digest": self.data_digest,
            "tokens": self.tokens,
            "window": self.window,
            "gradient_tokens": self.gradient_tokens,
            "blocks": [
                {
                    "angle": block.angle,
                    "attention_energy": block.attention.energy if block.attention else None,
                    "ffn_energy": block.ffn.energy if block.ffn else None,
                }
                for block in self.blocks
            ],
            "info": self.info,
        }

    def digest(self) -> str:
        """Identifies the profile: the model, the data and how they were read."""
        keys = ("model_digest", "data_digest", "tokens", "window", "gradient_tokens")
        return hash_json({key: self._head()[key] for key in keys})

    def save(self, path: Path, *, overwrite: bool = False) -> None:
        """Writes the profile to a new directory."""
        tensors: dict[str, Tensor] = {}
        for i, block in enumerate(self.blocks):
            for name, part in (("attention", block.attention), ("ffn", block.ffn)):
                if part is not None:
                    tensors |= {f"{i}.{name}.{key}": value for key, value in _pack(part).items()}
        with atomic_dir(Path(path), overwrite=overwrite) as scratch:
            write_json(scratch / "profile.json", self._head())
            save_file(tensors, scratch / "profile.safetensors")

    @classmethod
    def load(cls, path: Path) -> Profile:
        """Reads a profile.

        Raises:
            InputError: no profile there, another version, or a damaged file.
        """
        path = Path(path)
        if not (path / "profile.json").is_file():
            raise InputError(f"{path} holds no profile (profile.json is missing); make one with `sentei measure`")
        value = read_json(path / "profile.json")
        if isinstance(value, dict) and value.get("schema_version", PROFILE_VERSION) != PROFILE_VERSION:
            raise InputError(
                f"{path} is a profile of version {value['schema_version']!r:.80}, this sentei reads {PROFILE_VERSION}"
            )
        head = parse(Head, value, str(path / "profile.json"), "measure again")
        file = path / "profile.safetensors"
        try:
            tensors = load_file(file)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{file} cannot be read ({one_line(error)}); measure again") from error
        check_tensors(tensors, head, file)
        blocks = []
        for i, row in enumerate(head.blocks):
            parts: dict[str, PartStats | None] = {}
            for name, energy in (("attention", row.attention_energy), ("ffn", row.ffn_energy)):
                prefix = f"{i}.{name}."
                own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
                parts[name] = None if energy is None else _unpack(own, energy)
            blocks.append(BlockStats(angle=row.angle, **parts))
        keys = ("shape", "model_digest", "data_digest", "tokens", "window", "gradient_tokens", "info")
        return cls(blocks=blocks, **{key: getattr(head, key) for key in keys})


SYMMETRIC = ("gram", "input_gram", "output_grad")


def _pack(part: PartStats) -> dict[str, Tensor]:
    """Tensors to store: weights in bf16 (they only rank), symmetric matrices as triangles."""
    packed = {"weight": part.weight.bfloat16().cpu().contiguous()}
    for key in ("mean", "norm", "taylor"):
        if (vector := getattr(part, key)) is not None:
            packed[key] = vector.float().cpu().contiguous()
    for key in SYMMETRIC:
        if (matrix := getattr(part, key)) is not None:
            rows, columns = torch.tril_indices(*matrix.shape)
            packed[key] = matrix.float().cpu()[rows, columns].contiguous()
    return packed | {f"rank.{name}": losses.float().cpu().contiguous() for name, losses in part.ranks.items()}


def _unpack(stored: dict[str, Tensor], energy: float) -> PartStats:
    for key in SYMMETRIC:
        if key in stored:
            packed = stored[key]
            size = int((2 * packed.numel()) ** 0.5)  # n (n + 1) / 2 numbers
            matrix = torch.zeros(size, size)
            rows, columns = torch.tril_indices(size, size)
            matrix[rows, columns] = packed
            stored[key] = matrix + matrix.tril(-1).T
    stored["weight"] = stored["weight"].float()
    ranks = {key.removeprefix("rank."): stored.pop(key) for key in list(stored) if key.startswith("rank.")}
    return PartStats(energy=energy, ranks=ranks, **stored)
