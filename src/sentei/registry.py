"""One lazy registry for everything that has names: families, scores, allocations, compensations, stages.

An entry is a `"module:attribute"` path, imported on first use, so that `import sentei` stays quick and a new method is
one new file plus one line.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from sentei.errors import unknown

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Maps a name to the object at a `"module:attribute"` path.

    Raises:
        InputError: for an unknown name, with the nearest one and all that are known.
    """

    def __init__(self, kind: str, entries: dict[str, str]) -> None:
        self.kind = kind
        self._paths = dict(entries)

    def register(self, name: str, path: str) -> None:
        """Adds an entry; a name that is taken is an error, not an override."""
        if name in self._paths:
            raise ValueError(f"{self.kind} {name!r} is registered already, as {self._paths[name]}")
        self._paths[name] = path

    def __getitem__(self, name: str) -> T:
        if name not in self._paths:
            raise unknown(self.kind, name, sorted(self._paths))
        module, _, attribute = self._paths[name].partition(":")
        found: T = getattr(importlib.import_module(module), attribute)
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._paths

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)
