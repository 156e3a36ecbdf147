"""What sentei wrote, so that `--overwrite` replaces that and nothing else.

Every output directory holds `.sentei.json`, which lists its files; one that grows lists patterns. Results of sentei up
to 0.1 have no mark: they are known by a file that only sentei writes, and hold no names but those that it gave.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from sentei.errors import InputError
from sentei.files import read_json, write_json

MARK = ".sentei.json"
_SIGNS = ("profile.json", "selection.json", "run.json", "export.json", "tune.json", "plan.json", "sentei_adapter.json")
_NAMES = (
    *_SIGNS,
    *("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json"),
    *("tokenizer*", "vocab.*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template.*"),
    *("modeling_*.py", "configuration_*.py", "README.md", "LICEN[CS]E*", "NOTICE*", "USE_POLICY*", "model", "adapter"),
    *("adapter_config.json", "*.onnx", "*.onnx_data", "openvino_*", "profile", "plans", "report.*", "frontier.*"),
    *("splits.json", "evolve*.jsonl", "path*.jsonl", "genetic*.jsonl", "uniform*.jsonl", "latency-*.json"),
    *("selection.html", "summary.json", "selected.jsonl", "manifest.jsonl", "pool.jsonl.gz"),
    *("rejections.json", "scores"),
)


def write_mark(directory: Path, patterns: Iterable[str] | None = None) -> None:
    """Marks a directory as written by sentei.

    Args:
        directory: a result.
        patterns: of the paths in it that are ours, as of fnmatch; default: exactly the files that are there.
    """
    import sentei

    files = [glob.escape(name) for name in _files(directory)] if patterns is None else list(patterns)
    write_json(directory / MARK, {"schema_version": 1, "sentei": sentei.__version__, "files": files})


def replaceable(path: Path) -> None:
    """Passes a directory that sentei wrote, with nothing else in it.

    Raises:
        InputError: it is something else.
    """
    mark = _object(path / MARK)
    if isinstance(mark.get("files"), list):
        patterns = [str(pattern) for pattern in mark["files"]]
        strange = [name for name in _files(path) if not any(fnmatchcase(name, pattern) for pattern in patterns)]
    elif path.is_dir() and _signed(path):
        names = sorted(entry.name for entry in path.iterdir())
        strange = [name for name in names if not any(fnmatchcase(name, pattern) for pattern in _NAMES)]
    else:
        raise InputError(
            f"{path} was not written by sentei, and --overwrite replaces nothing else; move it away or choose another "
            "--out"
        )
    if strange:
        raise InputError(
            f"{path} holds {strange[0]}, which sentei did not write, and --overwrite would remove it; move it away or "
            "choose another --out"
        )


def _files(directory: Path) -> list[str]:
    """Paths of all files in it, the marks and locks left out."""
    files = (file.relative_to(directory) for file in directory.rglob("*") if file.is_symlink() or not file.is_dir())
    return sorted(file.as_posix() for file in files if file.name not in (MARK, ".lock"))


def _signed(directory: Path) -> bool:
    """Whether a result without a mark is one of ours."""
    found = {name for name in _SIGNS if "schema_version" in _object(directory / name)}
    if found == {"plan.json"}:  # may lie beside a model that it is for
        return "prune_provenance" in _object(directory / "config.json")
    return bool(found)


def _object(path: Path) -> dict[str, Any]:
    """A JSON file's object; nothing where there is none, since any file may be there."""
    try:
        value = read_json(path) if path.is_file() else None
    except (InputError, OSError, RecursionError, json.JSONDecodeError):
        return {}
    return value if isinstance(value, dict) else {}
