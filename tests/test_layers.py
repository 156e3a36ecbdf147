"""The layout that docs/architecture.md draws is the one that the imports have."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "sentei"
FILES = {".".join(("sentei", *path.relative_to(SOURCE).with_suffix("").parts)): path for path in SOURCE.rglob("*.py")}
OUTSIDE = {"__init__", "__main__", "version"}  # the door: it names what is behind it


def layers() -> list[set[str]]:
    """The lines of the drawing, each the names of its files and folders."""
    page = (ROOT / "docs/architecture.md").read_text()
    drawing = page.split("src/sentei/\n", 1)[1].split("```", 1)[0]
    named = [re.split(r"\s{2,}", line.strip())[0] for line in drawing.splitlines()]
    return [{re.split(r"[./]", name)[0] for name in names.split()} for names in named]


def imports(path: Path) -> Iterator[str]:
    """Modules of sentei that a file imports, within functions too; not those that only types need."""
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("sentei"))
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("sentei"):
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                yield module if module in FILES else node.module
        waiting += ast.iter_child_nodes(node)


def test_imports_point_up_the_drawing() -> None:
    order = layers()
    level = {name: at for at, names in enumerate(order) for name in names}
    there = {path.stem if path.is_file() else path.name for path in SOURCE.iterdir() if path.suffix in ("", ".py")}
    assert set(level) == there - OUTSIDE - {"__pycache__"}, "docs/architecture.md names what is there"
    wrong = [
        f"{module} imports {other}"
        for module, path in FILES.items()
        if (here := module.split(".")[1]) not in OUTSIDE
        for other in imports(path)
        if other.count(".") and level[other.split(".")[1]] > level[here]
    ]
    assert not wrong, "\n".join(wrong)


def test_no_two_modules_import_each_other() -> None:
    graph = {module: {other for other in imports(path) if other in FILES} - {module} for module, path in FILES.items()}
    TopologicalSorter(graph).prepare()  # raises a CycleError that names the cycle


def test_the_reader_of_imports_sees_them(tmp_path: Path) -> None:
    file = tmp_path / "it.py"
    file.write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from sentei.cli import app\n"
        "def later():\n    from sentei.prune import cut\n    import sentei.errors\n"
    )
    assert sorted(imports(file)) == ["sentei.errors", "sentei.prune.cut"]
