"""`Profile`: what each part of a model does for some data. Every score and allocation is a function of it.

Saved as `profile.json` and one file per block; a profile larger than `KEPT` is read a block at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sentei.errors import InputError
from sentei.files import hash_json, read_json, write_json
from sentei.measure.blocks import BLOCKS, StoredBlocks, head_of
from sentei.measure.statistics import BlockStats, PartStats
from sentei.measure.stored import BlockHead, Head
from sentei.outputs import atomic_dir
from sentei.plan import ModelShape
from sentei.schema import parse

__all__ = ["BlockStats", "PartStats", "Profile"]

PROFILE_VERSION = 3
KEPT = 1 << 30  # bytes of statistics that are read at once


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
    blocks: Sequence[BlockStats]
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
            "blocks": [row.model_dump() for row in self._rows()],
            "info": self.info,
        }

    def _rows(self) -> list[BlockHead]:
        if isinstance(self.blocks, StoredBlocks):
            return self.blocks.rows
        return [head_of(block) for block in self.blocks]

    @property
    def angles(self) -> list[float]:
        """The angle of each block; see `BlockStats`."""
        return [row.angle for row in self._rows()]

    def digest(self) -> str:
        """Identifies the profile: the model, the data and how they were read."""
        keys = ("model_digest", "data_digest", "tokens", "window", "gradient_tokens")
        return hash_json({key: self._head()[key] for key in keys})

    def save(self, path: Path, *, overwrite: bool = False) -> None:
        """Writes the profile to a new directory."""
        with atomic_dir(Path(path), overwrite=overwrite) as scratch:
            self.write(scratch)

    def write(self, directory: Path) -> None:
        """Writes the profile into a directory that is there, but for statistics that are in it already."""
        target = StoredBlocks(directory / BLOCKS)
        if not (isinstance(self.blocks, StoredBlocks) and self.blocks.directory == target.directory):
            for block in self.blocks:
                target.append(block)
        write_json(directory / "profile.json", self._head())

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
                f"{path} is a profile of version {value['schema_version']!r:.80}, this sentei reads {PROFILE_VERSION}; "
                "make it again with `sentei measure`"
            )
        head = parse(Head, value, str(path / "profile.json"), "measure again")
        stored = StoredBlocks(path / BLOCKS, head)
        blocks = list(stored) if stored.nbytes() <= KEPT else stored
        keys = ("shape", "model_digest", "data_digest", "tokens", "window", "gradient_tokens", "info")
        return cls(blocks=blocks, **{key: getattr(head, key) for key in keys})
