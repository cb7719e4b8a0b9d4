"""The exception that means "the input or the run is at fault, not the program", and notes for the user.

The command line prints its message as a single line and exits with 1; any other exception is a bug, whose traceback
`--debug` shows. A message says what was wrong, where (file, row, field), and what to do.
"""

from __future__ import annotations

import os
import sys
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
    """Return what `registry` holds under `name`, the value of `option`.

    Raises:
        MtlReError: the registry has no such name; the message lists those it has.
    """
    if name not in registry:
        raise MtlReError(f"{option}: {name!r}; expected one of {', '.join(registry)}")
    return registry[name]


def first_line(error: BaseException) -> str:
    """Return the text of an exception on one line, cut after 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + "..."


def is_first_process() -> bool:
    """Return whether this process prints: under a launcher only the first one does."""
    return os.environ.get("RANK", "0") == "0"


def tell(message: str) -> None:
    """Print a note or a warning on stderr, once for all processes of a launcher."""
    if is_first_process():
        print(message, file=sys.stderr)
