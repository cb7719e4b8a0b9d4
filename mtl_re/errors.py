"""The one exception that means "the input or the run is at fault, not the program".

The command line prints its text as a single line and exits with 1; everything else is a bug and keeps its
traceback under `--debug`. A message says what was wrong, where (file, row, field), and what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


class MtlReError(Exception):
    """A fault of the input, the configuration or the machine; `str(error)` is meant for the user."""


class RowError(MtlReError):
    """One row cannot be used.

    Attributes:
        field: the field at fault, as named in the file (`subject_entity.start_idx`).
        reason: what is wrong with it and what was expected.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


def entry(option: str, name: str, registry: Mapping[str, T]) -> T:
    """What a registry holds under a name that came from an option.

    Raises:
        MtlReError: nothing; the text lists what it holds.
    """
    if name not in registry:
        raise MtlReError(f"{option}: {name!r}; expected one of {', '.join(registry)}")
    return registry[name]


def first_line(error: BaseException) -> str:
    """An exception's text, on one line and not too long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + "..."
