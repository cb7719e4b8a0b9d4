"""`mtl-re convert`: a relation or annotation file of another tool → a file of rows in KLUE-RE's JSON form.

Enters: a file and the name of its format (`tool_records.FORMATS`). Leaves: rows as JSON lines, and a report of the
records and annotations that could not be carried over: why, how many, and where the first one stands.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtl_re.config import ConvertConfig
from mtl_re.data.raw_rows import one_line
from mtl_re.data.readers import read_rows
from mtl_re.data.tool_records import FORMATS, Columns, Conversion, Dropped, Format, Record, Row
from mtl_re.encodings import file_encoding
from mtl_re.errors import MtlReError, RowError
from mtl_re.files import whole_file

# ---- a whole file ----------------------------------------------------------------------------------------------------


def semeval_records(lines: Iterable[str]) -> Iterator[Record]:
    """Records of SemEval's text file: `1<TAB>"sentence"`, the label on the next line, a comment, a blank line."""
    waiting: dict[str, Any] | None = None
    for line in (line.rstrip("\r\n") for line in lines):
        number, tab, sentence = line.partition("\t")
        if tab and number.strip().isdecimal():
            if waiting is not None:
                yield waiting
            waiting = {"id": number.strip(), "text": sentence.strip().removeprefix('"').removesuffix('"')}
        elif waiting is not None and line.strip() and not line.startswith("Comment") and "relation" not in waiting:
            waiting["relation"] = line.strip()
    if waiting is not None:
        yield waiting


@dataclass
class Report:
    """What became of a file's records.

    Attributes:
        records: read. rows: written. dropped: what could not be carried over → how often. first: and where first.
        labels: of the rows that have one.
    """

    records: int = 0
    rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    labels: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        lines = [f"{self.records:,} records, {self.rows:,} rows, {len(self.labels)} labels"]
        if without := self.rows - self.labels.total():
            lines.append(f"without a label: {without:,} rows")
        lines += [
            f"not carried over: {count:,} × {what} (first: {self.first[what]})"
            for what, count in self.dropped.most_common()
        ]
        return "\n".join(lines)


def converted(
    records: Iterable[tuple[int, Record | RowError]], name: str, options: Conversion, report: Report
) -> Iterator[Row]:
    """Rows of numbered records, or of what kept one from being read; what is not carried over is counted in `report`.

    Args:
        name: a key of `FORMATS`.

    Raises:
        MtlReError: there is no such format.
    """
    if name not in FORMATS:
        raise MtlReError(f"convert: --from {name!r}; expected one of {', '.join(FORMATS)}")
    for number, record in records:
        report.records += 1
        for made in _safely(FORMATS[name], record, options):
            if isinstance(made, Dropped):
                report.dropped[made.what] += 1
                where = one_line(f"record {number}{': ' if made.where else ''}{made.where}")
                report.first.setdefault(made.what, where)
                continue
            if made["guid"] is None:
                made["guid"] = str(number)
            report.rows += 1
            if made["label"] is not None:
                report.labels[made["label"]] += 1
            yield made


def _safely(convert: Format, record: Record | RowError, options: Conversion) -> Iterator[Row | Dropped]:
    """A record that cannot be read, or of another shape than its format's, is dropped, and named."""
    if isinstance(record, RowError):
        yield Dropped("a record that cannot be read", record.reason)
        return
    try:
        yield from convert(record, options)
    except KeyError as error:
        yield Dropped(f"a record without {error}", f"it has {', '.join(map(str, record))[:80]}")
    except RowError as error:
        yield Dropped("a record of another shape", str(error)[:120])
    except (TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        yield Dropped("a record of another shape", f"{type(error).__name__}: {' '.join(str(error).split())[:80]}")


def json_line(row: Row) -> str:
    """A row as a line of a .jsonl file."""
    return json.dumps(row, ensure_ascii=False) + "\n"


# ---- the command -----------------------------------------------------------------------------------------------------


def convert(file: str, name: str, options: ConvertConfig) -> Report:
    """Convert a file and write its rows as .jsonl (`mtl-re convert`).

    Args:
        file: in the format `name`, a key of `FORMATS`.

    Raises:
        MtlReError: the file cannot be read, the format or an option is unknown, or no record could be converted.
    """
    if (suffix := Path(options.output).suffix.lower()) in (".csv", ".tsv", ".parquet", ".gz"):
        what = f"rows are written as JSON lines, which nothing would read from a {suffix} file"
        raise MtlReError(f"--output {options.output}: {what}; name a .jsonl file")
    columns = None if options.columns is None else Columns.from_yaml(Path(options.columns))
    none = [label.strip() for label in options.no_relation.split(",")]
    made = Conversion(_types(options.types), none, options.pairs, columns)
    report = Report()
    records: Iterable[tuple[int, Record | RowError]]
    if name == "semeval":
        with _lines_of(file) as lines:
            records = list(enumerate(semeval_records(lines), start=1))
    else:
        rows = read_rows(file, ".jsonl" if file.endswith(".txt") else None, any_columns=True)
        records = ((row.number, row.fields if row.fault is None else row.fault) for row in rows)
    with whole_file(Path(options.output)) as partial, partial.open("w", encoding="utf-8") as output:
        for row in converted(records, name, made, report):
            output.write(json_line(row))
        if not report.rows:
            raise MtlReError(f"{file}: no record could be converted from {name}; {report}".replace("\n", "; "))
    return report


@contextmanager
def _lines_of(file: str) -> Iterator[Iterable[str]]:
    try:
        with open(file, encoding=file_encoding(Path(file))) as lines:
            yield lines
    except (OSError, UnicodeDecodeError) as error:
        raise MtlReError(f"{file}: cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8'})") from error


def _types(given: str) -> dict[str, str]:
    """Parse `PERSON=PER,ORGANIZATION=ORG`."""
    pairs = [[word.strip() for word in part.partition("=")] for part in given.split(",") if part.strip()]
    if odd := [name for name, equals, kind in pairs if not (name and equals and kind)]:
        raise MtlReError(f"--types: {odd[0]!r}; expected NAME=TYPE,... such as PERSON=PER,ORGANIZATION=ORG")
    return {name: kind for name, _, kind in pairs}
