"""Files that a reader meets in the wild and must refuse in one line: `write_hostile(folder)` makes one of each.

`FILE_FAULTS` names the files that cannot be read at all (or not to their end) with a part of the message each must
give; `ROW_FAULTS` those with one bad row, with its number and the field to be named. All text is made up.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]

SENTENCE = "김하늘은 '새벽, 그리고' 별빛연구소의 대표이다."
"""Quotes and commas inside the object's word, as in the contest CSV."""


def entity(sentence: str, word: str, kind: str) -> Row:
    start = sentence.index(word)
    return {"word": word, "start_idx": start, "end_idx": start + len(word) - 1, "type": kind}


def klue_row(number: int = 1, label: Any = "per:employee_of", **changes: Any) -> Row:
    """A good row in KLUE's JSON form; `changes` replace fields."""
    sentence = f"{number}번 문장: {SENTENCE}"
    row = {
        "guid": f"made-{number}",
        "sentence": sentence,
        "subject_entity": entity(sentence, "김하늘", "PER"),
        "object_entity": entity(sentence, "'새벽, 그리고' 별빛연구소", "ORG"),
        "label": label,
        "source": "made",
    }
    return row | changes


def csv_text(rows: list[Row], end: str = "\n") -> str:
    """The contest's form: entity columns are Python dict strings, quotes doubled."""
    columns = ["id", "sentence", "subject_entity", "object_entity", "label", "source"]
    lines = [",".join(columns)]
    for row in rows:
        cells = [str(row.get(name, row.get("guid"))) for name in columns]
        lines.append(",".join('"' + cell.replace('"', '""') + '"' for cell in cells))
    return end.join(lines) + end


def _json(rows: list[Any]) -> bytes:
    return json.dumps(rows, ensure_ascii=False).encode()


def _changed(name: str, **changes: Any) -> Row:
    """A row whose entity `name` has some keys replaced; None removes one."""
    row = klue_row(2)
    row[name] = {key: value for key, value in (row[name] | changes).items() if value is not None}
    return row


def _renamed(name: str, other: str) -> Row:
    row = klue_row(2)
    row[other] = row.pop(name)
    return row


def _without(name: str) -> Row:
    return {key: value for key, value in klue_row(2).items() if key != name}


_ROW = klue_row(2)
_SUBJECT, _OBJECT = _ROW["subject_entity"], _ROW["object_entity"]
_CROSSING = _ROW["sentence"][_OBJECT["start_idx"] - 2 : _OBJECT["start_idx"] + 3]

BAD_ROWS: dict[str, tuple[Any, str]] = {
    "not_an_object": ("a sentence", "row"),
    "no_sentence": (_without("sentence"), "sentence"),
    "null_sentence": (klue_row(2, sentence=None), "sentence"),
    "number_sentence": (klue_row(2, sentence=7), "sentence"),
    "empty_sentence": (klue_row(2, sentence=""), "sentence"),
    "blank_sentence": (klue_row(2, sentence=" \n\t\u3000"), "sentence"),
    "long_sentence": (klue_row(2, sentence="가" * 20_001), "sentence"),
    "surrogate_sentence": (klue_row(2, sentence=_ROW["sentence"] + "\ud800"), "sentence"),
    "no_subject": (_without("subject_entity"), "subject_entity"),
    "list_subject": (klue_row(2, subject_entity=["김하늘", 0, 2, "PER"]), "subject_entity"),
    "code_subject": (klue_row(2, subject_entity="__import__('os').getcwd()"), "subject_entity"),
    "deep_subject": (klue_row(2, subject_entity="[" * 5000), "subject_entity"),
    "half_subject": (klue_row(2, subject_entity="{'word': '김하늘'"), "subject_entity"),
    "no_start": (_changed("subject_entity", start_idx=None), "subject_entity.start_idx"),
    "text_start": (_changed("subject_entity", start_idx=str(_SUBJECT["start_idx"])), "subject_entity.start_idx"),
    "float_start": (_changed("subject_entity", start_idx=_SUBJECT["start_idx"] + 0.5), "subject_entity.start_idx"),
    "bool_start": (_changed("subject_entity", start_idx=True), "subject_entity.start_idx"),
    "negative_start": (_changed("subject_entity", start_idx=-3), "subject_entity.start_idx"),
    "far_end": (_changed("object_entity", end_idx=10_000), "object_entity.end_idx"),
    "end_before_start": (_changed("object_entity", end_idx=_OBJECT["start_idx"] - 1), "object_entity.end_idx"),
    "exclusive_end": (_changed("object_entity", end_idx=_OBJECT["end_idx"] + 1), "object_entity.word"),
    "other_word": (_changed("object_entity", word="해님"), "object_entity.word"),
    "number_word": (_changed("object_entity", word=5), "object_entity.word"),
    "no_type": (_changed("object_entity", type=None), "object_entity.type"),
    "empty_type": (_changed("object_entity", type=""), "object_entity.type"),
    "blank_word": (_changed("object_entity", word=" ", start_idx=2 + 1, end_idx=2 + 1), "object_entity.word"),
    "same_entities": (klue_row(2, object_entity=_SUBJECT), "object_entity"),
    "crossing_entities": (_changed("subject_entity", **(entity(_ROW["sentence"], _CROSSING, "ORG"))), "object_entity"),
    "unknown_label": (klue_row(2, label="per:friend"), "label"),
    "digit_label": (klue_row(2, label="17"), "label"),
    "number_label": (klue_row(2, label=30), "label"),
    "negative_label": (klue_row(2, label=-1), "label"),
    "float_label": (klue_row(2, label=17.5), "label"),
    "other_label_name": (_renamed("label", "relation"), "label"),
    "bool_label": (klue_row(2, label=True), "label"),
    "list_label": (klue_row(2, label=["per:title"]), "label"),
    "list_id": (klue_row(2, guid=[1]), "guid"),
    "surrogate_id": (klue_row(2, guid="a\udfff"), "guid"),
    "number_source": (klue_row(2, source=3), "source"),
}
"""Name → a bad row and the field to be named. Each stands second of three in its file."""

_GOOD = csv_text([klue_row(1), klue_row(2), klue_row(3)])
_LINES = _GOOD.splitlines(keepends=True)
_GOOD_JSON = _json([klue_row(1), klue_row(2), klue_row(3)])
_GOOD_JSONL = b"".join(json.dumps(klue_row(number)).encode() + b"\n" for number in (1, 2, 3))

RAW_ROW_FAULTS: dict[str, tuple[bytes, int, str]] = {
    "few_columns.csv": ("".join([*_LINES[:2], "made-2,문장\n", _LINES[3]]).encode(), 2, "row"),
    "many_columns.csv": ("".join([*_LINES[:2], _LINES[2].strip() + ",x\n", _LINES[3]]).encode(), 2, "row"),
    "stray_quote.csv": ("".join([*_LINES[:2], '"made"-2,x\n', _LINES[3]]).encode(), 2, "row"),
    "open_quote.csv": ("".join([*_LINES[:3], 'made-3,"' + SENTENCE]).encode(), 3, "row"),
    "bad_entity.csv": (_GOOD.replace("'type': 'ORG'", "'type': ORG").encode(), 1, "object_entity"),
    "not_json.jsonl": (_GOOD_JSONL.replace(b'"made-2"', b"made-2"), 2, "row"),
    "cut.jsonl": (_GOOD_JSONL[:-20], 3, "row"),
    "array_line.jsonl": (_GOOD_JSONL + b"[1]\n", 4, "row"),
    "huge_integer.jsonl": (_GOOD_JSONL + b'{"guid": ' + b"9" * 5000 + b"}\n", 4, "row"),
    "deep.jsonl": (_GOOD_JSONL + b'{"guid": ' + b"[" * 100_000 + b"\n", 4, "row"),
}
"""File name → bytes, the first bad row and the field to be named."""

RAW_FILE_FAULTS: dict[str, tuple[bytes, str]] = {
    "empty.json": (b"", "empty"),
    "empty.jsonl": (b"", "no rows"),
    "empty.csv": (b"", "empty"),
    "empty.parquet": (b"", "Parquet"),
    "empty.json.gz": (b"", "empty"),
    "empty.jsonl.gz": (gzip.compress(b""), "no rows"),
    "blank.json": (b" \n\t ", "empty"),
    "no_rows.json": (b"[]", "no rows"),
    "no_rows.jsonl": (b"\n\n \n", "no rows"),
    "no_rows.csv": (_LINES[0].encode(), "no rows"),
    "extension.txt": (_GOOD_JSON, "unknown file type"),
    "extension": (_GOOD_JSON, "unknown file type"),
    "extension.gz": (gzip.compress(_GOOD_JSON), "unknown file type"),
    "extension.json.zip": (_GOOD_JSON, "unknown file type"),
    "not_gzip.json.gz": (_GOOD_JSON, "gzip"),
    "truncated.json.gz": (gzip.compress(_GOOD_JSON)[:-20], "cut short"),
    "truncated.jsonl.gz": (gzip.compress(os.urandom(64).hex().encode() + _GOOD_JSONL)[:-12], "cut short"),
    "truncated.csv.gz": (gzip.compress(_GOOD.encode())[:-20], "cut short"),
    "truncated.parquet.gz": (gzip.compress(_GOOD_JSON)[:-20], "cut short"),
    "corrupt.json.gz": (gzip.compress(_GOOD_JSON)[:40] + b"\xff" * 60, "damaged"),
    "late_byte.json": (_GOOD_JSON * 3 + b"\xff", "is not UTF-8"),
    "not_json.json": (b"id,sentence\n1,x\n", "line 1: not a JSON array"),
    "latin1.csv": (_LINES[0].encode() + "é,ä\n".encode("latin-1"), "is not UTF-8"),
    "shift_jis.csv": (_LINES[0].encode() + "日本語,テキスト\n".encode("shift_jis"), "Korean Windows writes CP949"),
    "cut_cp949.csv": (_GOOD.encode("cp949") + b"\xb0", "is not CP949"),
    "broken_cp949.csv": (_GOOD.encode("cp949") + b"4,\xff\n", "is not UTF-8"),
    "half_cp949.csv": (_GOOD.encode() + "4,가나\n".encode("cp949"), "is not UTF-8"),
    "cut_utf32.csv": (_GOOD.encode("utf-32")[:-1], "is not UTF-32"),
    "cut_utf16.csv": (_GOOD.encode("utf-16")[:-1], "is not UTF-16"),
    "row_of_rows.json": (b'{"rows": ' + _GOOD_JSON + b', "sentence": "a"}', "a row and holds rows"),
    "object_cut.json": (b'{"rows": [' + _GOOD_JSON[1:-1], "cut short"),
    "wrapped.jsonl": (b'{"data": ' + _GOOD_JSON + b"}", "rows under 'data'; rename it to .json"),
    "indented.jsonl": (b'{\n"data": ' + _GOOD_JSON + b"}", "over several lines; rename it to .json"),
    "array.jsonl": (_GOOD_JSON, "rename it to .json"),
    "cut.json": (_GOOD_JSON[:-40], "line 1, row 3"),
    "cut_between.json": (_GOOD_JSON[:-1], "line 1, row 3"),
    "no_comma.json": (_GOOD_JSON.replace(b"}, {", b"} {"), "line 1, row 1"),
    "trailing_comma.json": (_GOOD_JSON[:-1] + b",]", "line 1, row 4"),
    "trailing_text.json": (_GOOD_JSON + b"[]", "after the end"),
    "single_quotes.json": (b"[\n{'guid': 1}]", "line 2, row 1"),
    "deep.json": (b"[" * 100_000, "nested too deeply"),
    "huge_integer.json": (b"[{" + b'"guid": ' + b"9" * 5000 + b"}]", "row 1"),
    "no_header.csv": ("".join(_LINES[1:]).encode(), "must name the columns"),
    "twice.csv": (_GOOD.replace("source", "sentence", 1).encode(), "names a column twice"),
    "endless_cell.csv": (("".join(_LINES[:2]) + '"' + "가, 나\n" * 900_000).encode(), "line 3: a cell is longer"),
    "not.parquet": (_GOOD_JSON, "Parquet"),
    "cut.parquet": (b"PAR1" + b"\0" * 100, "Parquet"),
}
"""File name → bytes and a part of the message."""

_PLACES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing.json": (lambda path: None, "no such file"),
    "directory.json": (lambda path: path.mkdir(), "is a directory"),
    "dangling.json": (lambda path: path.symlink_to(path.with_name("nowhere.json")), "no such file"),
    "loop.json": (lambda path: path.symlink_to(path), "cannot be opened"),
    "pipe.json": (lambda path: os.mkfifo(path), "not a regular file"),
    "denied.json": (lambda path: path.touch(mode=0), ""),  # root may open it, and finds it empty
    "two\nlines.json": (lambda path: path.touch(), "empty"),
    "x" * 300 + ".json": (lambda path: None, "cannot be opened"),
}

FILE_FAULTS = {name: part for name, (_, part) in (RAW_FILE_FAULTS | _PLACES).items()}
ROW_FAULTS: dict[str, tuple[int, str]] = {
    **{f"{name}.json": (2, place) for name, (_, place) in BAD_ROWS.items()},
    **{name: (row, place) for name, (_, row, place) in RAW_ROW_FAULTS.items()},
    "line_of_5_mb.jsonl": (2, "sentence"),
    "row_of_5_mb.json": (2, "sentence"),
}


def write_hostile(folder: Path) -> dict[str, Path]:
    """Write every file of `FILE_FAULTS` and `ROW_FAULTS` under `folder`; name → path."""
    for name, (make, _) in _PLACES.items():
        make(folder / name)
    for name, (content, _) in RAW_FILE_FAULTS.items():
        (folder / name).write_bytes(content)
    for name, (content, _, _) in RAW_ROW_FAULTS.items():
        (folder / name).write_bytes(content)
    for name, (row, _) in BAD_ROWS.items():  # surrogates need the escapes of plain json
        (folder / f"{name}.json").write_text(json.dumps([klue_row(1), row, klue_row(3)]), encoding="ascii")
    large = json.dumps(klue_row(2, sentence="x" * 5_000_000))
    first = json.dumps(klue_row(1))
    (folder / "line_of_5_mb.jsonl").write_text(f"{first}\n{large}\n", encoding="ascii")
    (folder / "row_of_5_mb.json").write_text(f"[{first}, {large}]", encoding="ascii")
    return {name: folder / name for name in (*FILE_FAULTS, *ROW_FAULTS)}
