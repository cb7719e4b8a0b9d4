"""Tables of a study's report as CSV files."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtl_re.files import whole_file


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of named values; a row may lack some.

    Raises:
        MtlReError: The file cannot be written.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with whole_file(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
