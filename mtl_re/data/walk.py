"""The files of a folder, by one rule for every command that takes a folder.

Names that begin with `.` or `_` are passed over, as readers of such folders do: copies that editors and notebooks make,
marks of finished work. Links are followed, but not back into a folder that is being read. A folder that cannot be read
is a fault, and how many files are of another kind is told.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from mtl_re.data.raw_rows import one_line
from mtl_re.encodings import note
from mtl_re.errors import MtlReError

_HIDDEN = (".", "_")


def files_of(folder: str, takes: Callable[[str], bool], kind: str, hidden: bool = False) -> list[tuple[str, str]]:
    """Return (path in the folder, path) of every file that is taken, in the order of their paths.

    Args:
        takes: Says of a file's name, in lower case, whether it is taken.
        kind: What it is then, for the note on the others, which is printed once.
        hidden: Take files and folders whose names begin with `.` or `_` too.

    Raises:
        MtlReError: The folder, or one in it, cannot be read.
    """
    found: list[tuple[str, str]] = []
    others: list[str] = []
    for path in _walk(folder, hidden, frozenset()):
        if takes(os.path.basename(path).lower()):
            found.append((os.path.relpath(path, folder), path))
        else:
            others.append(path)
    if others:
        note(folder, f"{len(others):,} files that are no {kind} are passed over, such as {others[0]}")
    return found


def _walk(folder: str, hidden: bool, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    """Yield the files of a folder and those below it; `above` are the device and inode of those that it lies in."""
    try:
        own = os.stat(folder)
        names = sorted(name for name in os.listdir(folder) if hidden or not name.startswith(_HIDDEN))
    except OSError as error:
        raise MtlReError(one_line(f"{folder}: cannot be read ({error.strerror}); allow it, or move it away")) from error
    if (key := (own.st_dev, own.st_ino)) in above:
        return
    for path in (os.path.join(folder, name) for name in names):
        if os.path.isdir(path):
            yield from _walk(path, hidden, above | {key})
        else:
            yield path
