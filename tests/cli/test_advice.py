"""Commands that messages and docs tell people to type: the verb is there, and so is every option."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

import sentei
from sentei.cli.app import VERBS, app

SOURCES = sorted(Path(sentei.__file__).parent.rglob("*.py"))
ROOT = Path(__file__).parents[2]
PAGES = [path for pattern in ("*.md", "docs/*.md", "recipes/*.yaml", "examples/*.py") for path in ROOT.glob(pattern)]
OPTIONS = {
    verb: {o for p in command.params for o in [*p.opts, *p.secondary_opts]}
    for verb, command in typer.main.get_command(app).commands.items()
}
# Up to what ends a command in prose and in code; a line that ends in a backslash goes on.
COMMAND = re.compile(r"\bsentei (?P<verb>[a-z]+)(?P<rest>(?:\\\n|[^`\n;)#|,])*)")


def texts(path: Path) -> Iterator[str]:
    """What a file says: of Python its strings, an f-string's values as X."""
    if path.suffix != ".py":
        yield path.read_text(encoding="utf-8")
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.value


def wrong(text: str) -> list[str]:
    """Commands in a text that nobody can type."""
    found = []
    for match in COMMAND.finditer(text):
        verb, given = match["verb"], re.findall(r"(?<![\w-])--[a-z][a-z-]*", match["rest"])
        quoted = text[: match.start()].endswith("`") or bool(given)
        if verb not in VERBS:
            found += [match[0]] if quoted else []
        else:
            found += [
                f"{match[0]}: {option}" for option in given if option not in OPTIONS[verb] | {"--help", "--debug"}
            ]
    return found


@pytest.mark.parametrize("path", [*SOURCES, *PAGES], ids=lambda path: path.name)
def test_advice_can_be_followed(path: Path) -> None:
    assert not [command for text in texts(path) for command in wrong(text)]


def test_what_is_wrong_is_found() -> None:
    assert wrong("tune the model (sentei tune --task)") == ["sentei tune --task: --task"]
    assert wrong("`sentei prune`, then") == ["sentei prune"]
    assert not wrong("`sentei fit MODEL --task T \\\n --minutes 3`; sentei knows nothing")
