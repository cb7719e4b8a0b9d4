"""The encoding of a text file, judged by its first bytes: UTF-8, UTF-16, UTF-32, or CP949 as Korean Windows writes it.

Imports only the standard library and `errors`, because exports carry this module.
"""

from __future__ import annotations

import codecs
from functools import cache
from pathlib import Path

from mtl_re.errors import tell

SNIFFED = 1 << 16
"""Bytes of a file's beginning that are looked at."""
_ZEROS = {"x0x0": "utf-16-le", "0x0x": "utf-16-be", "x000": "utf-32-le", "000x": "utf-32-be"}


def encoding_of(start: bytes) -> str:
    """Return the encoding of a text by its beginning: a signature, or where zeros stand among its first four bytes.

    Formats of rows and options begin with two ASCII characters, so zeros tell the widths apart (RFC 4627, section 3).
    CP949 has no signature: it is taken for what is not UTF-8 but decodes as CP949 into text that is Hangul for the most
    part of what is not ASCII.
    """
    if start.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if encoding := _ZEROS.get("".join("0" if byte == 0 else "x" for byte in start[:4])):
        return encoding
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        try:
            decoded = codecs.getincrementaldecoder("cp949")().decode(start)
        except UnicodeDecodeError:
            return "utf-8-sig"
        foreign = [character for character in decoded if not character.isascii()]
        if sum("가" <= character <= "힣" for character in foreign) > 0.5 * len(foreign):
            return "cp949"
    return "utf-8-sig"


def file_encoding(path: Path) -> str:
    """Return the encoding of a file, and say which it is if it is not UTF-8.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        encoding = encoding_of(file.read(SNIFFED))
    tell_encoding(str(path), encoding)
    return encoding


def tell_encoding(source: str, encoding: str) -> None:
    """Print, once for a source, that it is not UTF-8."""
    if encoding != "utf-8-sig":
        origin = {"cp949": " (Excel's `CSV`)", "utf-16": " (Excel's `Unicode text`)"}
        name = encoding.upper() + origin.get(encoding, "")
        note(source, f"is {name}, not UTF-8; it is read as such (Excel writes UTF-8 as `CSV UTF-8`)")


@cache
def note(source: str, text: str) -> None:
    """Print something about a source, once."""
    tell(" ".join(f"{source}: {text}".splitlines()))
