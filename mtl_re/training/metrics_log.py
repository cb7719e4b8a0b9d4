"""metrics.jsonl: a run's record, one object a line, written as it goes and read by its report.

Losses are raw and unweighted, so that curves of different weights can be compared. A line that a kill cut short is
dropped by whoever goes on, and left out by whoever reads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mtl_re.errors import MtlReError
from mtl_re.files import unwritable, whole_file

Line = Mapping[str, Any]
"""One object of metrics.jsonl."""


class MetricsLog:
    """Appends lines to metrics.jsonl; after a resume it first drops the lines behind the resumed step.

    Raises:
        MtlReError: The file cannot be read or written.
    """

    def __init__(self, path: Path, resumed_step: int) -> None:
        self.path = path
        self.forget(resumed_step)

    def forget(self, step: int) -> None:
        """Drop the lines behind a step, and any that a kill or a full disk cut short."""
        with self._faults():
            text = self.path.read_bytes() if self.path.exists() else b""
            kept = [line + b"\n" for line in text.split(b"\n") if _step(line) <= step] if step else []
            with whole_file(self.path) as partial:
                partial.write_bytes(b"".join(kept))

    def write(self, values: Mapping[str, Any]) -> None:
        """Append one object."""
        with self._faults(), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values, ensure_ascii=False) + "\n")

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except (OSError, MtlReError) as error:
            what = unwritable(self.path, error) if isinstance(error, OSError) else error
            raise MtlReError(f"{what}; mend that and go on with --train.resume auto") from error


def _step(line: bytes) -> float:
    """Return the step of a line; a line cut short by a kill is behind every step."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def read_log(path: Path) -> list[Line]:
    """Return the objects of metrics.jsonl; a last line that a kill cut short is left out.

    Raises:
        MtlReError: the file cannot be read, or another line is not such an object.
    """
    try:
        texts = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise MtlReError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8'})") from error
    lines: list[Line] = []
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
        except ValueError as error:
            if number == len(texts):
                break
            raise MtlReError(f"{path}:{number}: not JSON ({error})") from error
        if not isinstance(line, dict) or not {"kind", "step"} <= line.keys():
            raise MtlReError(f"{path}:{number}: expected an object with 'kind' and 'step'")
        lines.append(line)
    return lines
