"""Readers: every format gives the same rows, in constant memory, and every fault is one line that names the file."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import json
import shutil
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hostile import FILE_FAULTS, csv_text, klue_row, write_hostile

from mtl_re.data import json_rows, raw_rows
from mtl_re.data.readers import file_digest, read_rows
from mtl_re.errors import MtlReError

ROWS = [klue_row(number) for number in range(1, 6)]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    folder = tmp_path_factory.mktemp("hostile")
    yield write_hostile(folder)
    shutil.rmtree(folder)  # 100 MB


def fields_of(path: Path | str) -> list[dict[str, Any]]:
    return [row.fields for row in read_rows(str(path))]


# ---- faults ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILE_FAULTS)
def test_a_file_at_fault_gives_one_line_that_names_it(hostile: dict[str, Path], name: str) -> None:
    with pytest.raises(MtlReError) as caught:
        list(read_rows(str(hostile[name])))
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.startswith(str(hostile[name]).replace("\n", " ") + ": ")
    assert FILE_FAULTS[name] in message
    assert len(message) < len(str(hostile[name])) + 400


def test_no_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may open anything, so the refusal is played."""

    def deny(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.json").touch()
    monkeypatch.setattr("builtins.open", deny)
    with pytest.raises(MtlReError, match=r"a\.json: cannot be opened \(Permission denied\)"):
        list(read_rows(str(tmp_path / "a.json")))


@pytest.mark.parametrize("spec", ["", "a\0b.json", "no/such/file.json"])
def test_a_path_that_cannot_be(spec: str) -> None:
    with pytest.raises(MtlReError, match=r"no such file|cannot be opened"):
        list(read_rows(spec))


def test_rows_before_a_fault_are_given(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ROWS)[:-30], encoding="utf-8")
    rows = read_rows(str(path))
    assert [next(rows).fields for _ in ROWS[:-1]] == ROWS[:-1]
    with pytest.raises(MtlReError, match="row 5"):
        next(rows)


def test_an_element_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "CHUNK", 64)
    for module in (json_rows, raw_rows):
        monkeypatch.setattr(module, "MAX_ELEMENT", 4096)
    (tmp_path / "a.json").write_text('[{"sentence": "' + "x" * 10_000)
    (tmp_path / "a.jsonl").write_text('{"sentence": "' + "x" * 10_000)
    for name in ("a.json", "a.jsonl"):
        with pytest.raises(MtlReError, match="longer than 4,096 characters"):
            list(read_rows(str(tmp_path / name)))


def test_the_byte_that_is_not_utf8_is_counted_from_the_start(tmp_path: Path) -> None:
    content = "﻿".encode() + b"[" + b" " * 3_000_000 + b"\xff]"
    for name, data in (("a.json", content), ("a.json.gz", gzip.compress(content))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(MtlReError, match=f"byte {3_000_000 + 4} is not UTF-8"):
            list(read_rows(str(tmp_path / name)))


# ---- formats -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 20])
@pytest.mark.parametrize("indent", [None, 1])
def test_json_does_not_depend_on_the_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, indent: int | None
) -> None:
    monkeypatch.setattr(json_rows, "CHUNK", chunk)
    rows = [*ROWS, {"a": 12.5e-3, "b": [True, None, '\\"\u1234\U0001f600'], "c": -120, "d": "\\u00e9"}]
    path = tmp_path / "a.json"
    path.write_text(" \n" + json.dumps(rows, indent=indent) + "\n\n", encoding="utf-8")
    assert fields_of(path) == rows
    path.write_text("[1,23 ,456]", encoding="utf-8")
    assert ["found int" in str(row.fault) for row in read_rows(str(path))] == [True] * 3


def test_an_array_takes_the_values_that_a_line_takes(tmp_path: Path) -> None:
    """pandas writes NaN; an export cut inside a surrogate pair writes half of one. Neither is changed in silence."""
    row = (
        '{"label": NaN, "guid": 123456789012345678901234567890, "a": -Infinity, "b": 17.0, "c": 1e400, "d": "x\\ud800"}'
    )
    (tmp_path / "a.json").write_text(f"[{row}]")
    (tmp_path / "a.jsonl").write_text(row)
    (one,), (other,) = fields_of(tmp_path / "a.json"), fields_of(tmp_path / "a.jsonl")
    assert repr(one) == repr(other) == repr(json.loads(row))


def test_byte_order_mark_and_line_ends(tmp_path: Path) -> None:
    texts = {
        "a.json": json.dumps(ROWS, indent=1).replace("\n", "\r\n"),
        "a.jsonl": "\r\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\r\n\r\n",
        "a.csv": csv_text(ROWS, end="\r\n"),
    }
    for name, text in texts.items():
        (tmp_path / name).write_text("﻿" + text, encoding="utf-8", newline="")
        rows = fields_of(tmp_path / name)
        assert [row["sentence"] for row in rows] == [row["sentence"] for row in ROWS], name
        assert [row["source"] for row in rows] == ["made"] * 5, name


def test_names_are_read_without_regard_to_case(tmp_path: Path) -> None:
    (tmp_path / "A.JSON.GZ").write_bytes(gzip.compress(json.dumps(ROWS).encode()))
    assert fields_of(tmp_path / "A.JSON.GZ") == ROWS


def test_row_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}\n\n{}\n")
    assert [row.number for row in read_rows(str(tmp_path / "a.jsonl"))] == [1, 3]
    (tmp_path / "a.csv").write_text('sentence\n"a\nb"\n\nc\n')
    assert [(row.number, row.fields["sentence"]) for row in read_rows(str(tmp_path / "a.csv"))] == [
        (1, "a\nb"),
        (2, "c"),
    ]


def test_a_large_array_is_read_in_constant_memory(tmp_path: Path) -> None:
    """50 MB on a single line; the window is 1 MB."""
    path = tmp_path / "a.json"
    row = json.dumps(klue_row(1) | {"note": "x" * 5000})
    with path.open("w", encoding="ascii") as file:
        file.write("[" + row)
        for _ in range(50_000_000 // len(row)):
            file.write("," + row)
        file.write("]")
    assert path.stat().st_size > 49_000_000
    tracemalloc.start()
    try:
        count = sum(1 for _ in read_rows(str(path)))
        assert tracemalloc.get_traced_memory()[1] < 12_000_000
    finally:
        tracemalloc.stop()
    assert count == 50_000_000 // len(row) + 1


# ---- hub, sample, digest -----------------------------------------------------------------------------------------


def test_hub_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    def load_dataset(*names: str, split: str, streaming: bool) -> list[dict[str, Any]]:
        calls.append((*names, split, streaming))
        return ROWS

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert fields_of("hub:klue/re:train") == ROWS
    assert fields_of("hub:someone/klue/re:validation") == ROWS
    assert calls == [("klue", "re", "train", True), ("someone/klue", "re", "validation", True)]


def test_label_numbers_of_the_hub_get_the_names_that_the_data_set_gives_them(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    features = datasets.Features({"label": datasets.ClassLabel(names=["none", "gene:up", "gene:down"])})
    rows = datasets.Dataset.from_dict({"label": [2, 0, -1]}, features=features).to_iterable_dataset()
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    assert [row["label"] for row in fields_of("hub:someone/genes:train")] == ["gene:down", "none", None]


def test_hub_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: str, **__: object) -> object:
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(MtlReError, match=r"^hub:klue/re:train: .*ConnectionError: no route to the hub.*network$"):
        list(read_rows("hub:klue/re:train"))
    for spec in ("hub:", "hub:klue", "hub:klue/re", "hub:klue:train", "hub:/re:train", "hub:klue/re:"):
        with pytest.raises(MtlReError, match="expected hub:DATASET/CONFIG:SPLIT"):
            list(read_rows(spec))


def test_sample_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    made = SimpleNamespace(rows=lambda split, size, seed: [klue_row(1, source=f"{split} {size} {seed}")])
    monkeypatch.setattr("mtl_re.data.sample", made, raising=False)
    monkeypatch.setitem(sys.modules, "mtl_re.data.sample", made)
    assert [row["source"] for row in fields_of("sample:valid")] == ["valid 300 0"]
    with pytest.raises(MtlReError, match="unknown split 'dev'"):
        list(read_rows("sample:dev"))
    assert file_digest("sample:train") == file_digest("sample:train") != file_digest("sample:valid")


def test_digest_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"abc" * 1_000_000)
    assert file_digest(str(tmp_path / "a.bin")) == hashlib.sha256(b"abc" * 1_000_000).hexdigest()
    with pytest.raises(MtlReError, match="no such file"):
        file_digest(str(tmp_path / "b.bin"))


# ---- what other programs write -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "encoding", ["cp949", "utf-16", "utf-16-le-bom", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"]
)
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".tsv", ".csv.gz"])
def test_korean_encodings_are_read_with_a_note(tmp_path: Path, capsys, encoding: str, suffix: str) -> None:
    rows = [{"id": "a", "sentence": "김민아는 가나전자 대표이다.", "note": "é,\t;"}]
    text = json.dumps(rows, ensure_ascii=False)
    if suffix == ".jsonl":
        text = text[1:-1] + "\n"
    if ".json" not in suffix:
        cells = [list(rows[0]), list(rows[0].values())]
        text = "".join("\t".join(f'"{cell}"' for cell in line) + "\n" for line in cells)
    if encoding == "cp949":
        text = text.replace("é", "漢")
    raw = codecs.BOM_UTF16_LE + text.encode("utf-16-le") if encoding == "utf-16-le-bom" else text.encode(encoding)
    path = tmp_path / f"{encoding}{suffix}"
    path.write_bytes(gzip.compress(raw) if suffix.endswith(".gz") else raw)
    (row,) = read_rows(str(path))
    assert row.fields == rows[0] | {"note": rows[0]["note"].replace("é", "漢" if encoding == "cp949" else "é")}
    list(read_rows(str(path)))
    said = capsys.readouterr().err
    assert said.count("not UTF-8") == (encoding != "utf-8-sig")  # once for a file, however often it is read


@pytest.mark.parametrize("separator", [",", "\t", ";"])
def test_separators(tmp_path: Path, separator: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(separator.join(["id", "sentence"]) + f'\n1{separator}"가{separator} 나"\n', encoding="utf-8")
    assert [row.fields for row in read_rows(str(path))] == [{"id": "1", "sentence": f"가{separator} 나"}]


COLUMNS = {"guid": {"0": "a", "1": "b"}, "sentence": {"0": "가", "1": "나"}, "label": {"0": None, "1": "x"}}


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('{"version": 1, "data": [{"a": 1}, {"a": 2}], "more": {"x": []}}', [{"a": 1}, {"a": 2}]),
        ('{"sentence": "가", "a": [1]}', [{"sentence": "가", "a": [1]}]),
        ('{"a": 1}\n{"a": 2}\n', [{"a": 1}, {"a": 2}]),
        (
            json.dumps(COLUMNS),
            [{"guid": "a", "sentence": "가", "label": None}, {"guid": "b", "sentence": "나", "label": "x"}],
        ),
    ],
)
def test_json_that_is_no_array_of_rows(tmp_path: Path, text: str, rows: list) -> None:
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    assert fields_of(path) == rows


def test_a_hub_name_without_hub_is_told() -> None:
    with pytest.raises(MtlReError, match="for a data set of the hub write hub:klue/re:train"):
        list(read_rows("klue/re"))


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_a_row_with_a_list_of_anything_is_no_wrapper_of_rows(tmp_path: Path, suffix: str) -> None:
    """Relations of an annotation tool, which look like rows to whoever does not know their keys."""
    row = {"id": 1, "text": "가", "relations": [{"head": 0, "tail": 1, "type": "x"}], "more": [None, 1], "none": []}
    path = tmp_path / f"rows{suffix}"
    path.write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n", encoding="utf-8")
    assert [found.fields for found in read_rows(str(path))] == [row, row]


def test_rows_under_two_names_are_two_data_sets(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"train": [{"sentence": "가"}], "test": [{"sentence": "나"}]}', encoding="utf-8")
    with pytest.raises(MtlReError, match="rows under 'train' and under 'test'; give each its own file"):
        list(read_rows(str(path)))
