"""DATA → validated examples, and the rows that cannot be used.

Enters: a DATA argument. Leaves: `Example`s that know their file and row number, one at a time or as a sequence, and a
`BadRow` for each row at fault. A bad row stops the loading or is reported to the caller: none is lost in silence.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from mtl_re.data import spool
from mtl_re.data.convert import format_of
from mtl_re.data.readers import one_line, read_rows
from mtl_re.data.validation import BadRow, Example, parse_row, shown
from mtl_re.errors import MtlReError, RowError
from mtl_re.taxonomy import Taxonomy


def parsed(spec: str, taxonomy: Taxonomy) -> Iterator[tuple[int, Example | BadRow]]:
    """Yield every row of DATA with its number: the example, or what is wrong with it.

    Raises:
        MtlReError: DATA cannot be read, or its first row has the shape of another tool's format.
    """
    for count, raw in enumerate(read_rows(spec)):
        if count == 0 and (name := format_of(raw.fields)) is not None:
            where = " --columns FILE.yaml" if name == "columns" else ""
            what = f"looks like {name} data, not like KLUE-RE's" if where == "" else "has other columns than KLUE-RE's"
            hint = f"`mtl-re convert {spec} --from {name}{where} --output rows.jsonl` makes rows of it"
            raise MtlReError(f"{spec}: {what} (the first row has {shown(list(raw.fields))}); {hint}")
        try:
            if raw.fault is not None:
                raise raw.fault
            yield raw.number, parse_row(raw.fields, taxonomy, raw.number, spec)
        except RowError as error:
            yield raw.number, BadRow(raw.source, raw.number, error.field, one_line(error.reason))


def read_examples(
    spec: str,
    taxonomy: Taxonomy,
    on_bad_row: Literal["error", "skip"] = "error",
    rejected: Callable[[BadRow], object] | None = None,
) -> Iterator[Example]:
    """Yield the examples of DATA.

    Args:
        on_bad_row: `error` stops at the first bad row; `skip` hands each to `rejected` and continues.

    Raises:
        MtlReError: DATA cannot be read, or a row is bad and `on_bad_row` is `error`.
    """
    if on_bad_row == "skip" and rejected is None:
        raise ValueError("on_bad_row='skip' needs `rejected`, so that no row is lost in silence")
    for _, row in parsed(spec, taxonomy):
        if isinstance(row, Example):
            yield row
        elif on_bad_row == "skip" and rejected is not None:
            rejected(row)
        else:
            raise MtlReError(f"{row} (on_bad_row skip leaves such rows out)")


def load_examples(
    spec: str, taxonomy: Taxonomy, on_bad_row: Literal["error", "skip"] = "error"
) -> tuple[Sequence[Example], list[BadRow]]:
    """Return all examples of DATA (many are kept in a file, see `spool`) and the rows left out (none under `error`).

    Raises:
        MtlReError: DATA cannot be read, a row is bad under `error` (the first is named, the others are counted), or
            no row is good.
    """
    bad: list[BadRow] = []
    good = spool.collect(read_examples(spec, taxonomy, "skip", bad.append))
    if bad and on_bad_row == "error":
        more = f"; {len(bad) - 1:,} more bad row(s)" if len(bad) > 1 else ""
        raise MtlReError(f"{bad[0]}{more} (on_bad_row skip leaves such rows out)")
    if bad and not good:
        raise MtlReError(f"{bad[0]}; none of the {len(bad):,} rows can be used")
    return good, bad


def write_rejected(path: Path, bad_rows: Iterable[BadRow]) -> None:
    """Write bad rows as JSON, one a line.

    Raises:
        MtlReError: The file cannot be written.
    """
    from mtl_re.files import whole_file  # not where exported code runs, which has numpy alone

    with whole_file(path) as partial, partial.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for bad in bad_rows:
            file.write(json.dumps(asdict(bad), ensure_ascii=False) + "\n")
