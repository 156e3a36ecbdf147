"""The shell and the tables of the pages: one file each, no network."""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterable


def page(title: str, body: str, *sheets: str, script: str = "") -> str:
    """A whole page.

    Args:
        title: escaped already, as `body` is.
        body: HTML.
        sheets: style sheets of this package beside `page.css`.
        script: a script of this package, which runs after the body is there; a page must be of use without it.
    """
    folder = importlib.resources.files("sentei.report")
    style = "".join((folder / name).read_text(encoding="utf-8") for name in ("page.css", *sheets))
    code = f"<script>{(folder / script).read_text(encoding='utf-8')}</script>" if script else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title} · sentei</title><style>{style}</style></head><body><main>{body}</main>{code}</body></html>\n"
    )


def drawn(svg: str) -> str:
    """A picture that scrolls where the page is too narrow for its labels."""
    return f'<div class="scroll picture">{svg}</div>'


def scrolled(head: Iterable[str], body: str) -> str:
    """A table that scrolls where it is wider than the page; `body` is its rows, as HTML."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
