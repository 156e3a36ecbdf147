"""`Profile`: what each part of a model does for some data. Every score and allocation is a function of it.

Saved as `profile.json` and a file per block, which is read when it is asked for; where Gram matrices were kept, they
are in files of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from sentei.errors import InputError, for_shell
from sentei.files import hash_json, read_json, write_json
from sentei.measure.blocks import StoredBlocks
from sentei.measure.reading import keep_own_text, read_own_text
from sentei.measure.statistics import NO_GRAMS, BlockStats, PartStats
from sentei.measure.stored import Contents, Head
from sentei.outputs import atomic_dir
from sentei.plan import ModelShape
from sentei.schema import parse

__all__ = ["BlockStats", "PartStats", "Profile"]

PROFILE_VERSION = 4


@dataclass
class Profile:
    """The statistics of one model on one data set; they are on the CPU, wherever the model is.

    Attributes:
        shape: sizes of the model.
        model_digest: its identity; see `sentei.models.identity`.
        data_digest: hash of the calibration tokens.
        tokens: how many tokens were read; `window` how many at a time.
        gradient_tokens: how many of them the gradient pass read; 0 without it.
        blocks: in order.
        own_text: of these tokens, the windows that the model wrote itself; None: none.
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
    own_text: Tensor | None = field(default=None, repr=False, compare=False)
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
            "own_tokens": self.own_tokens,
            "scores": list(self.contents.scores),
            "grams": self.contents.grams,
            "ranks": self.contents.ranks,
            "info": self.info,
        }

    @property
    def own_tokens(self) -> int:
        """Tokens that the model wrote itself."""
        return 0 if self.own_text is None else self.own_text.numel()

    @property
    def contents(self) -> Contents:
        """What there is of each block."""
        if isinstance(self.blocks, StoredBlocks):
            return self.blocks.contents
        parts = [part for block in self.blocks for part in (block.attention, block.ffn) if part is not None]
        grams = all(part.matrices is not None for part in parts)
        ranks = self.gradient_tokens == 0 or any(part.ranks for part in parts)
        return Contents(self.shape, self.gradient_tokens > 0, tuple(self.blocks[0].curves), grams, ranks)

    @property
    def angles(self) -> list[float]:
        """The angle of each block; see `BlockStats`."""
        return [block.angle for block in self.blocks]

    def check_grams(self) -> None:
        """Refuses a profile without Gram matrices.

        Raises:
            InputError: it has none.
        """
        if not self.contents.grams:
            raise InputError(NO_GRAMS)

    def digest(self) -> str:
        """Identifies the profile: the model, the data and how they were read."""
        keys = ("model_digest", "data_digest", "tokens", "window", "gradient_tokens")
        return hash_json({key: self._head()[key] for key in keys})

    def save(self, path: Path, *, overwrite: bool = False) -> None:
        """Writes the profile to a new directory."""
        with atomic_dir(Path(path), overwrite=overwrite) as scratch:
            self.write(scratch)

    def write(self, directory: Path) -> None:
        """Writes the profile into a directory that is there."""
        if isinstance(self.blocks, StoredBlocks):
            self.blocks.copy(directory)
        else:
            target = StoredBlocks(directory, self.contents)
            for index, block in enumerate(self.blocks):
                target.write(index, block)
        if self.own_text is not None:
            keep_own_text(self.own_text, directory)
        write_json(directory / "profile.json", self._head())

    @classmethod
    def readable(cls, path: Path, *, grams: bool = False) -> bool:
        """Whether a profile of this version is there, with Gram matrices if they are wanted.

        Raises:
            InputError: its profile.json is damaged.
        """
        file = Path(path) / "profile.json"
        value = read_json(file) if file.is_file() else None
        if not isinstance(value, dict) or value.get("schema_version") != PROFILE_VERSION:
            return False
        return not grams or cls.load(path).contents.grams

    @classmethod
    def load(cls, path: Path) -> Profile:
        """Opens a profile; its blocks are read when they are asked for.

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
                f"{_measure_again(path, value)}"
            )
        head = parse(Head, value, str(path / "profile.json"), "measure again")
        contents = Contents(head.shape, head.gradient_tokens > 0, tuple(head.scores), head.grams, head.ranks)
        keys = ("shape", "model_digest", "data_digest", "tokens", "window", "gradient_tokens", "info")
        own = read_own_text(path) if head.own_tokens else None
        return cls(blocks=StoredBlocks(path, contents), own_text=own, **{key: getattr(head, key) for key in keys})


def _measure_again(path: Path, head: dict[str, Any]) -> str:
    """The command that makes a profile of an older version anew, as far as it is known."""
    info = head.get("info")
    names = [info.get(key) if isinstance(info, dict) else None for key in ("model", "data")]
    model, data = (
        for_shell(name) if isinstance(name, str) else key for name, key in zip(names, ("MODEL", "DATA"), strict=True)
    )
    return f"measure again: sentei measure {model} --data {data} --out {for_shell(path)} --overwrite"
