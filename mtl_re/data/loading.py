"""DATA → validated examples, and the rows that cannot be used.

Enters: a DATA argument. Leaves: `Example`s that know their file and row number, one at a time or as a sequence, and a
`BadRow` for each row at fault. A bad row stops the loading or is reported to the caller: none is lost in silence.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from mtl_re.config import ReadingConfig
from mtl_re.data import spool
from mtl_re.data.format_signs import format_of
from mtl_re.data.raw_rows import one_line
from mtl_re.data.readers import read_rows
from mtl_re.data.unicode_form import is_decomposed
from mtl_re.data.validation import AS_KLUE, READINGS, BadRow, Example, fitting_readings, parse_row, shown
from mtl_re.encodings import note
from mtl_re.errors import MtlReError, RowError
from mtl_re.taxonomy import Taxonomy


def parsed(spec: str, taxonomy: Taxonomy, reading: ReadingConfig = AS_KLUE) -> Iterator[tuple[int, Example | BadRow]]:
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
            yield raw.number, parse_row(raw.fields, taxonomy, raw.number, spec, reading)
        except RowError as error:
            spans = "_entity" in error.field and raw.fault is None
            fits = fitting_readings(partial(parse_row, raw.fields, taxonomy), reading) if spans else ()
            yield raw.number, BadRow(raw.source, raw.number, error.field, one_line(error.reason), fits)


def read_examples(
    spec: str,
    taxonomy: Taxonomy,
    rejected: Callable[[BadRow], object] | None = None,
    reading: ReadingConfig = AS_KLUE,
) -> Iterator[Example]:
    """Yield the examples of DATA.

    Args:
        rejected: Takes the bad rows (None: the first of them stops the reading).

    Raises:
        MtlReError: DATA cannot be read, or a row is bad and nothing takes it.
    """
    for _, row in parsed(spec, taxonomy, reading):
        if isinstance(row, Example):
            yield row
        elif rejected is not None:
            rejected(row)
        else:
            raise MtlReError(f"{row} (on_bad_row skip leaves such rows out)")


def load_examples(
    spec: str,
    taxonomy: Taxonomy,
    on_bad_row: Literal["error", "skip"] = "error",
    reading: ReadingConfig = AS_KLUE,
) -> tuple[Sequence[Example], list[BadRow]]:
    """Return all examples of DATA (many are kept in a file, see `spool`) and the rows left out (none under `error`).

    Raises:
        MtlReError: DATA cannot be read, a row is bad under `error` (the first is named, the others are counted), or
            no row is good.
    """
    bad: list[BadRow] = []
    good = spool.collect(read_examples(spec, taxonomy, bad.append, reading))
    if bad and (on_bad_row == "error" or not good):
        cure = cures(bad, len(good) + len(bad))
        end = "on_bad_row skip leaves such rows out" if good else f"none of the {len(bad):,} rows can be used"
        more = f"; {len(bad) - 1:,} more bad row(s)" if len(bad) > 1 else ""
        raise MtlReError(f"{bad[0]}{more}; {'; '.join(cure)}" if cure else f"{bad[0]}{more} ({end})")
    tell_decomposed(spec, sum(is_decomposed(example.sentence) for example in good), len(good))
    return good, bad


def cures(bad: Sequence[BadRow], rows: int) -> list[str]:
    """Return what to do about faults that many of a file's rows have in common; empty where they have none.

    Args:
        rows: of the file, good or bad.
    """
    found = []
    labels = Counter(match[1] for row in bad if (match := _UNKNOWN_LABEL.match(row.reason)) and row.field == "label")
    if labels.total() > rows / 2:
        names = ", ".join(f"{name} ({count:,})" for name, count in labels.most_common(10))
        more = f" and {len(labels) - 10:,} others" if len(labels) > 10 else ""
        command = f"`mtl-re heads {bad[0].source} --output heads.yaml` writes a map of a file's own labels"
        found.append(
            f"{labels.total():,} rows have {len(labels):,} labels of another set: {names}{more}; {command}, which "
            "--heads and model.heads take"
        )
    fits = Counter(reading for row in bad for reading in row.fits)
    if fits and fits.most_common(1)[0][1] > rows / 2:
        number, count = fits.most_common(1)[0]
        reading = READINGS[number]
        options = [f"--span_ends {reading.span_ends}"] * (reading.span_ends != "inclusive")
        options += [f"--first_character {reading.first_character}"] * (reading.first_character != 0)
        names = " ".join(options)
        trained = names.replace("--", "--data.")
        what = f"{count:,} of {rows:,} rows spell their words if spans are read with {names}"
        found.append(f"{what} (mtl-re train: {trained})")
    return found


_UNKNOWN_LABEL = re.compile(r"'(.*)' is not one of the \d+ labels")


def tell_decomposed(spec: str, count: int, rows: int) -> None:
    """Print the share of rows with decomposed characters, if there are any; once for a source."""
    if count:
        note(
            spec,
            f"{100 * count / rows:.1f} % of the rows hold characters written in parts (NFD, as macOS does); most "
            "vocabularies do not know these: --normalise nfc (mtl-re train: --data.normalise nfc) composes them",
        )


def write_rejected(path: Path, bad_rows: Iterable[BadRow]) -> None:
    """Write bad rows as JSON, one a line.

    Raises:
        MtlReError: The file cannot be written.
    """
    from mtl_re.files import whole_file  # not where exported code runs, which has numpy alone

    with whole_file(path) as partial, partial.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for bad in bad_rows:
            file.write(json.dumps(bad.record(), ensure_ascii=False) + "\n")
