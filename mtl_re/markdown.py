"""Markdown: tables, escaped text, and notes on names that pictures cannot show.

Enters: numbers and names. Leaves: lines of markdown. Names come from data, so they may hold markup.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path

from mtl_re.figures import drawable
from mtl_re.files import write_text
from mtl_re.outputs import WRITTEN_BY

MARKUP = re.compile(r"[\\`*_\[\]~$|!]|:(?=//)")
"""What can start markup inside a line; `&`, `<` and `>` are left to HTML's own escapes."""


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Return the lines of a table and a blank line; columns of numbers are aligned to the right."""
    columns = list(zip(*rows, strict=True)) or [()] * len(header)
    numeric = (all(re.fullmatch(r"[\d.,–-]*", str(cell)) for cell in column) for column in columns)
    rule = "| " + " | ".join("--:" if right else ":--" for right in numeric) + " |"
    lines = ("| " + " | ".join(escape(str(cell)) for cell in row) + " |" for row in (header, *rows))
    head, *body = lines
    return [head, rule, *body, ""]


def escape(text: str) -> str:
    """Return text for a table or a heading, on one line, in which nothing ends a table's cell or starts markup."""
    for character in "\\`*|<[":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())


def escape_inline(text: str) -> str:
    """Return text for the inside of a line, not of a table, that no renderer of markdown or HTML takes for markup."""
    printable = "".join(character if character.isprintable() else " " for character in text)
    return MARKUP.sub(r"\\\g<0>", html.escape(printable, quote=False))


def write_markdown(path: Path, lines: Sequence[str]) -> None:
    """Write lines to a file, and behind them a line by which `outputs` knows it.

    Raises:
        MtlReError: the file cannot be written.
    """
    write_text(path, "\n".join(lines).rstrip("\n") + f"\n\n{WRITTEN_BY}\n")


def undrawn(what: str, names: Sequence[str]) -> list[str]:
    """Return a paragraph that says which names pictures show as numbers; empty if there are none.

    Args:
        what: the kind of names, in the plural.
    """
    pairs = zip(drawable(names), names, strict=True)
    numbered = [f"{drawn} = {escape(name)}" for drawn, name in pairs if drawn.startswith("#") and drawn != name]
    if not numbered:
        return []
    return [f"No installed font can draw these {what}, so pictures number them: {', '.join(numbered)}.", ""]
