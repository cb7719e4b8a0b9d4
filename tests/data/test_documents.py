"""Documents: the names that fields go by, spans, text files, and what is said of a row at fault."""

import csv
import json
import os
import unicodedata
from pathlib import Path

import pytest

from mtl_re.config import ReadingConfig
from mtl_re.data.documents import Document, digest_of, parse_document, read_documents
from mtl_re.data.loading import cures
from mtl_re.data.validation import BadRow, Entity
from mtl_re.errors import MtlReError, RowError

TEXT = "한라희는 누리전자의 대표이다. 😀 강릉에 산다."
WORDS = [("한라희", 0, 2, "PER"), ("누리전자", 5, 8, "ORG")]
PERSON, COMPANY = Entity("한라희", 0, 2, "PER"), Entity("누리전자", 5, 8, "ORG")


@pytest.mark.parametrize(
    "fields",
    [
        {"id": "a", "text": TEXT, "entities": [{"start": 0, "end": 2, "type": "PER"}, [5, 8, "ORG"]]},
        {"guid": "a", "sentence": TEXT, "entity": [(0, 2, "PER"), {"begin": 5, "end": 8, "tag": "ORG"}]},
        {"guid": "a", "sentence": TEXT, "ents": [{"start": n, "end": m, "tag": t, "text": w} for w, n, m, t in WORDS]},
        {
            "doc_id": "a",
            "content": TEXT,
            "spans": [
                {"start_offset": 0, "end_idx": 2, "label": "PER", "id": 7},
                {"start_char": 5.0, "end_char": 8, "entity_group": "ORG", "score": 0.9, "text": "누리전자"},
            ],
        },
        {"id": "a", "text": TEXT, "entities": json.dumps([[0, 2, "PER"], [5, 8, "ORG"]])},  # a cell of a CSV
        {"id": "a", "text": TEXT, "entities": "[(0, 2, 'PER'), (5, 8, 'ORG'), (0, 2, 'PER')]"},  # one is listed twice
        {
            "guid": "a",
            "sentence": TEXT,
            "label": "no_relation",
            "subject_entity": {"word": "한라희", "start_idx": 0, "end_idx": 2, "type": "PER"},
            "object_entity": "{'word': '누리전자', 'start_idx': 5, 'end_idx': 8, 'type': 'ORG'}",
        },
    ],
)
def test_the_names_of_the_field(fields):
    assert parse_document(fields) == Document("a", TEXT, (PERSON, COMPANY))


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"entities": [{"start_offset": 0, "end_offset": 3, "label": "PER"}]}, r"entities\[0\]\.end_offset"),  # doccano
        ({"label": [[0, 3, "PER"], [5, 9, "ORG"]]}, r"entities\[0\]"),  # doccano's older form
        ({"labels": [[0, 3, "PER"]]}, r"entities\[0\]"),  # doccano's form for uploads
        ({"ents": [{"start": 0, "end": 3, "label": "PER"}]}, r"entities\[0\]\.end"),  # spaCy's Doc.to_json, displaCy
        ({"spans": [{"start": 0, "end": 3, "token_start": 0, "label": "PER"}]}, r"entities\[0\]\.end"),  # Prodigy
        ({"spans": "[[0, 3, 'PER']]"}, r"entities\[0\]"),
        ({"ents": [{"start_char": 0, "end_char": 3, "label": "PER"}]}, r"entities\[0\]\.end_char"),  # spaCy
    ],
)
def test_ends_that_tools_count_behind_the_entity_are_not_taken_for_inclusive(fields, field):
    """Nothing else tells: without a word the entity would be one character too long, in silence."""
    with pytest.raises(RowError, match=f"{field}: .*give --span_ends exclusive"):
        parse_document({"text": TEXT} | fields)
    found = parse_document({"text": TEXT} | fields, reading=ReadingConfig(span_ends="exclusive"))
    assert found.entities[0] == PERSON


def test_places_that_javascript_counts_are_named():
    """Behind an emoji they are one too far; without a word nothing tells, and the document says so."""
    place = TEXT.index("강릉")
    for end, reading in ((place + 2, ReadingConfig()), (place + 3, ReadingConfig(span_ends="exclusive"))):
        fields = {"text": TEXT, "entities": [{"start": place + 1, "end": end, "type": "LOC", "word": "강릉"}]}
        with pytest.raises(RowError, match=r"entities\[0\]\.word: .*right in UTF-16 units, as JavaScript counts"):
            parse_document(fields, reading=reading)
    for entity, unsure in (([place, place + 1, "LOC"], True), ([0, 2, "PER"], False)):
        assert parse_document({"text": TEXT, "entities": [entity]}).unsure is unsure
    named = {"start": place, "end": place + 1, "type": "LOC", "word": "강릉"}
    assert not parse_document({"text": TEXT, "entities": [named]}).unsure


def test_no_entities_and_none_given():
    assert parse_document({"text": TEXT}, 7) == Document("7", TEXT, None)
    assert parse_document({"text": TEXT, "entities": None}).entities is None
    assert parse_document({"text": TEXT, "entities": []}).entities == ()
    assert parse_document({"id": 12.0, "text": TEXT}).id == "12"


def test_blanks_at_the_ends_of_an_entity_are_left_out():
    fields = {"text": TEXT, "entities": [{"start": 4, "end": 8, "type": "ORG", "word": " 누리전자"}]}
    assert parse_document(fields).entities == (COMPANY,)


def test_other_readings():
    fields = {"text": TEXT, "entities": [{"start": 1, "end": 4, "type": "PER", "word": "한라희"}]}
    reading = ReadingConfig(span_ends="exclusive", first_character=1)
    assert parse_document(fields, reading=reading).entities == (PERSON,)
    apart = unicodedata.normalize("NFD", TEXT)
    fields = {"text": apart, "entities": [[0, len(unicodedata.normalize("NFD", "한라희")) - 1, "PER"]]}
    assert parse_document(fields, reading=ReadingConfig(normalise="nfc")) == Document("1", TEXT, (PERSON,))


@pytest.mark.parametrize(
    ("fields", "field", "reason"),
    [
        ({"id": "a"}, "text", "missing; the row has \\['id'\\], and expected is one of text, sentence"),
        ({"text": TEXT, "sentence": "x"}, "text", "stands under text and under sentence, with different values"),
        ({"text": " "}, "text", "is blank"),
        ({"text": TEXT, "entities": 3}, "entities", "expected a list"),
        ({"text": TEXT, "entities": [[0, 2]]}, "entities\\[0\\]", "expected an Entity"),
        ({"text": TEXT, "entities": [{"start": 0, "end": 2}]}, "entities\\[0\\].type", "missing; the entity has"),
        ({"text": TEXT, "entities": [[0, "x", "PER"]]}, "entities\\[0\\].end", "expected a whole number"),
        ({"text": TEXT, "entities": [[0, 2, "PER"], [0, 99, "PER"]]}, "entities\\[1\\]", "span 0..99 does not lie"),
        (
            {"text": TEXT, "entities": [{"start": 0, "end": 3, "type": "PER", "word": "한라희"}]},
            "word",
            "are '한라희는'",
        ),
        ({"text": "가" * (4 << 20) + "나"}, "text", "4,194,305 characters; at most 4,194,304"),
    ],
)
def test_faults(fields, field, reason):
    with pytest.raises(RowError, match=f"{field}: .*{reason}"):
        parse_document(fields)


def test_a_file_of_rows_and_its_bad_rows(tmp_path):
    path = tmp_path / "docs.jsonl"
    rows = [
        {"id": "a", "text": TEXT, "entities": [{"start": 0, "end": 3, "type": "PER", "word": "한라희"}]},
        {"id": "b", "text": TEXT, "entities": [{"start": 0, "end": 2, "type": "PER"}]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "x\n", encoding="utf-8")
    (_, bad), (_, good), (_, no_json) = read_documents(str(path))
    assert isinstance(bad, BadRow)
    assert bad.row == 1
    assert "--span_ends exclusive" in cures([bad], 1)[0]
    assert good == Document("b", TEXT, (PERSON,))
    assert isinstance(no_json, BadRow)
    assert "not JSON" in no_json.reason


def test_one_document_in_a_json_file(tmp_path):
    path = tmp_path / "docs.json"
    row = {"text": TEXT, "entities": [{"start": 0, "end": 2, "type": "PER"}]}
    for rows in (row, [row]):
        path.write_text(json.dumps(rows), encoding="utf-8")
        assert [document for _, document in read_documents(str(path))] == [Document("1", TEXT, (PERSON,))]


def test_a_table_of_texts(tmp_path):
    path = tmp_path / "docs.csv"
    path.write_text(f"id,text\na,{TEXT}\n", encoding="utf-8")
    assert [document for _, document in read_documents(str(path))] == [Document("a", TEXT, None)]


def text_files(folder: Path) -> Path:
    (folder / "news").mkdir(parents=True)
    (folder / "b.txt").write_text("나\r\n다", encoding="utf-8", newline="")
    (folder / "news" / "a.TXT").write_bytes("가나다라 마바사".encode("cp949"))
    (folder / "c.md").write_text("x", encoding="utf-8")
    return folder


def test_a_directory_of_text_files(tmp_path):
    folder = text_files(tmp_path / "docs")
    documents = [document for _, document in read_documents(str(folder))]
    assert documents == [Document("b.txt", "나\r\n다", None), Document("news/a.TXT", "가나다라 마바사", None)]
    assert list(read_documents(str(folder / "b.txt"))) == [(1, Document("b.txt", "나\r\n다", None))]
    before = digest_of(str(folder))
    assert digest_of(str(folder)) == before
    (folder / "b.txt").rename(folder / "bb.txt")
    assert digest_of(str(folder)) != before


def test_what_is_in_a_directory_of_text_files(tmp_path, capsys, monkeypatch):
    """Copies of editors are passed over, links followed but not round and round, other files told, faults raised."""
    folder = text_files(tmp_path / "docs")
    for name in (".ipynb_checkpoints/b-checkpoint.txt", "_old.txt", "d.txt.gz", "rows.jsonl"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x", encoding="utf-8")
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "e.txt").write_text("마", encoding="utf-8")
    (folder / "far").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "back").symlink_to(folder)
    assert [document.id for _, document in read_documents(str(folder))] == ["b.txt", "far/e.txt", "news/a.TXT"]
    assert capsys.readouterr().err.count("docs: 3 files that are no .txt are passed over, such as") == 1
    listed = os.listdir

    def refused(path):
        if str(path).endswith("news"):
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(os, "listdir", refused)
    with pytest.raises(MtlReError, match=r"docs/news: cannot be read \(Permission denied\)"):
        list(read_documents(str(folder)))


def test_text_files_at_fault(tmp_path):
    with pytest.raises(MtlReError, match=r"holds no \.txt file"):
        list(read_documents(str(tmp_path)))
    (tmp_path / "a.txt").write_bytes(b"\xff\x81ab")
    (tmp_path / "b.txt").write_text("", encoding="utf-8")
    bad = [str(row) for _, row in read_documents(str(tmp_path))]
    assert f"{tmp_path}:1: text: a.txt: byte 0 is not UTF-8" in bad[0]
    assert bad[1] == f"{tmp_path}:2: text: b.txt: is blank"
    with pytest.raises(MtlReError, match=r"gone\.txt: cannot be read"):
        list(read_documents(str(tmp_path / "gone.txt")))


def test_a_cell_may_list_a_thousand_entities(tmp_path):
    """44,000 characters: more than the text of one entity may have."""
    text = "가나 " * 4000
    given = json.dumps([{"start": 3 * n, "end": 3 * n + 1, "type": "PER"} for n in range(1000)])
    path = tmp_path / "docs.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["id", "text", "entities"], ["d", text, given]])
    ((_, found),) = read_documents(str(path))
    assert isinstance(found, Document), found
    assert len(found.entities) == 1000
