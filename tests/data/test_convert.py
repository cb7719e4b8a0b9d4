"""Every format's records become rows that read back as what the record says; what cannot be carried over is counted."""

import json

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mtl_re.config import ConvertConfig
from mtl_re.data import convert, format_signs
from mtl_re.data.tool_records import FORMATS, NO_LIST, UNTYPED, Columns, Conversion, EntityColumns
from mtl_re.data.validation import parse_row
from mtl_re.errors import MtlReError
from mtl_re.taxonomy import Taxonomy

TEXT = "김민아는 가나전자 대표이다."
LABELS = Taxonomy.from_prefixes(("no_relation", "per:employee_of", "org:founded", "Cause-Effect(e2,e1)"))


def rows_of(name, *records, **options):
    report = convert.Report()
    made = list(convert.converted(enumerate(records, start=1), name, Conversion(**options), report))
    return made, report


def spelled(row):
    """The row as `check` and `train` read it: sentence, the two words, their types, the label."""
    example = parse_row(row, LABELS)
    return (example.sentence, example.subject.word, example.object.word, example.label)


TACRED = {
    "id": "t1", "relation": "per:employee_of", "token": ["Kim", "leads", "-LRB-", "Gana", "Corp", "-RRB-", "."],
    "subj_start": 0, "subj_end": 0, "obj_start": 3, "obj_end": 4, "subj_type": "PERSON", "obj_type": "ORGANIZATION",
}  # fmt: skip
OPENNRE = {
    "text": TEXT,
    "h": {"name": "김민아", "pos": [0, 3]},
    "t": {"pos": [5, 9]},
    "relation": "NA",
}
DOCCANO = {
    "id": 7,
    "text": TEXT,
    "entities": [
        {"id": 1, "label": "PER", "start_offset": 0, "end_offset": 3},
        {"id": 2, "label": "ORG", "start_offset": 5, "end_offset": 9},
    ],
    "relations": [{"id": 1, "from_id": 1, "to_id": 2, "type": "per:employee_of"}],
}
KORRE = {
    "sentence": TEXT, "subj_name": "김민아", "subj_start_pos": "0", "subj_end_pos": "3", "subj_type": "PER",
    "obj_name": "가나전자", "obj_start_pos": "5", "obj_end_pos": "9", "obj_type": "ORG", "relation": "per:employee_of",
}  # fmt: skip
BOOSTCAMP = {
    "id": "0",
    "sentence": TEXT,
    "subject_entity": "{'word': '김민아', 'start_idx': 0, 'end_idx': 2, 'entity_type': 'PER'}",
    "object_entity": "{'word': '가나전자', 'start_idx': 5, 'end_idx': 8, 'entity_type': 'ORG'}",
    "label": "per:employee_of",
}


def label_studio(text=TEXT, spans=((0, 3, "PER"), (5, 9, "ORG")), direction="right", labels=("per:employee_of",)):
    results = [
        {"id": str(n), "type": "labels", "value": {"start": start, "end": end, "labels": [kind]}}
        for n, (start, end, kind) in enumerate(spans)
    ]
    relation = {"type": "relation", "from_id": "0", "to_id": "1", "labels": list(labels), "direction": direction}
    return {"id": 1, "data": {"text": text}, "annotations": [{"result": [*results, relation]}]}


@pytest.mark.parametrize(
    ("name", "record", "expected"),
    [
        ("tacred", TACRED, ("Kim leads ( Gana Corp ) .", "Kim", "Gana Corp", "per:employee_of")),
        ("opennre", OPENNRE, (TEXT, "김민아", "가나전자", "no_relation")),
        ("opennre", {**OPENNRE, "token": ["가", "나다", "라"], "h": {"pos": [1, 2]}, "t": {"pos": [2, 3]}},
         ("가 나다 라", "나다", "라", "no_relation")),
        ("doccano", DOCCANO, (TEXT, "김민아", "가나전자", "per:employee_of")),
        ("label-studio", label_studio(), (TEXT, "김민아", "가나전자", "per:employee_of")),
        ("label-studio", label_studio(direction="left"), (TEXT, "가나전자", "김민아", "per:employee_of")),
        ("korre", KORRE, (TEXT, "김민아", "가나전자", "per:employee_of")),
        ("boostcamp", BOOSTCAMP, (TEXT, "김민아", "가나전자", "per:employee_of")),
    ],
)  # fmt: skip
def test_a_record_becomes_a_row(name, record, expected):
    rows, report = rows_of(name, record)
    assert [spelled(row) for row in rows] == [expected]
    assert (report.records, report.rows) == (1, 1)
    if name in format_signs._SIGNS or name == "boostcamp":
        assert format_signs.format_of(record) == name


def test_every_format_is_named_in_the_help_of_an_unknown_one():
    with pytest.raises(MtlReError, match="expected one of tacred, semeval, opennre, label-studio, doccano, korre"):
        rows_of("conll", {})


def test_semeval_lines():
    lines = ['8\t"The <e1>fire</e1> came from a <e2>spark</e2>."', "Cause-Effect(e2,e1)", "Comment: none", ""]
    lines += ['9\t"A <e1>b</e1> <e2>c</e2>"', "Other", "Comment:"]
    records = list(convert.semeval_records(lines))
    rows, _ = rows_of("semeval", *records)
    assert spelled(rows[0]) == ("The fire came from a spark.", "fire", "spark", "Cause-Effect(e2,e1)")
    assert spelled(rows[1]) == ("A b c", "b", "c", "no_relation")
    assert [row["guid"] for row in rows] == ["8", "9"]


def test_positions_of_a_browser_count_utf16_units():
    text = "😀 김민아는 가나전자 대표이다."
    rows, _ = rows_of("label-studio", label_studio(text, ((3, 6, "PER"), (8, 12, "ORG"))))
    assert spelled(rows[0])[1:3] == ("김민아", "가나전자")


def test_columns_of_one_s_own(tmp_path):
    path = tmp_path / "columns.yaml"
    path.write_text(
        "sentence: text\nlabel: rel\nid: null\nends: inclusive\nfirst: 1\n"
        "subject: {start: s.from, end: s.to, type: s.kind, word: s.text}\n"
        "object: {start: o.from, end: o.to}\n"
    )
    record = {"text": TEXT, "rel": "per:employee_of", "s": {"from": 1, "to": 3, "kind": "PER", "text": "김민아"}}
    record["o"] = {"from": 6, "to": 9}
    rows, _ = rows_of("columns", record, columns=Columns.from_yaml(path))
    assert spelled(rows[0]) == (TEXT, "김민아", "가나전자", "per:employee_of")
    assert rows[0]["object_entity"]["type"] == UNTYPED


@pytest.mark.parametrize(
    ("text", "fault"),
    [("subject: {start: a, end: b}", "'object' is missing"), ("a: 1\nsubject: {start: a}\nobject: {}", "missing"),
     ("ends: half\nsubject: {start: a, end: b}\nobject: {start: a, end: b}", "inclusive or exclusive")],
)  # fmt: skip
def test_a_columns_file_at_fault(tmp_path, text, fault):
    path = tmp_path / "columns.yaml"
    path.write_text(text)
    with pytest.raises(MtlReError, match=fault):
        Columns.from_yaml(path)


def test_what_is_not_carried_over_is_counted_and_named():
    cancelled = label_studio()
    cancelled["annotations"][0]["was_cancelled"] = True
    rows, report = rows_of(
        "label-studio", label_studio(labels=()), cancelled, {"id": 3}, label_studio(spans=((0, 3, "PER"),))
    )
    assert not rows
    assert report.dropped["a relation without a label"] == 1
    assert report.dropped["a cancelled annotation"] == 1
    assert report.dropped["a record without 'data'"] == 1
    assert report.dropped["a relation of an entity that is not there"] == 1
    assert report.first["a record without 'data'"] == "record 3: it has id"
    assert "not carried over: 1 × a cancelled annotation (first: record 2)" in str(report)


def test_a_shifted_span_is_no_row():
    rows, report = rows_of("korre", {**KORRE, "subj_start_pos": 1, "subj_end_pos": 4}, {**KORRE, "subj_end_pos": "x"})
    assert not rows
    assert len(report.dropped) == 2
    assert any("is not the text of its span" in what for what in report.dropped)


def test_pairs_without_a_relation():
    rows, report = rows_of("doccano", DOCCANO)
    assert len(rows) == 1
    assert sum(report.dropped.values()) == 1
    rows, report = rows_of("doccano", DOCCANO, pairs="all")
    assert [row["label"] for row in rows] == ["per:employee_of", "no_relation"]
    assert not report.dropped


def test_types_are_renamed():
    rows, _ = rows_of("tacred", TACRED, types={"PERSON": "PER"})
    assert rows[0]["subject_entity"]["type"] == "PER"
    assert rows[0]["object_entity"]["type"] == "ORGANIZATION"


def test_lines_read_back():
    rows, _ = rows_of("korre", KORRE)
    assert json.loads(convert.json_line(rows[0])) == rows[0]


# ---- round trips: each format's inverse, written here, and any row through both -------------------------------------


def as_tacred(row):
    tokens, sentence = row["sentence"].split(" "), row["sentence"]
    record = {"id": row["guid"], "relation": row["label"], "token": tokens, "docid": row["source"]}
    for name, key in (("subj", "subject_entity"), ("obj", "object_entity")):
        entity = row[key]
        first = sentence[: entity["start_idx"]].count(" ")
        record |= {f"{name}_start": first, f"{name}_end": first + entity["word"].count(" ")}
        record[f"{name}_type"] = entity["type"]
    return record


def as_semeval(row):
    marks = []
    for name, key in (("e1", "subject_entity"), ("e2", "object_entity")):
        entity = row[key]
        start, end = entity["start_idx"], entity["end_idx"] + 1
        # Where two tags stand at one place, ends come first, then the longer entity's start.
        marks += [(start, 1, start - end, f"<{name}>"), (end, 0, start - end, f"</{name}>")]
    starts = {mark[3]: mark for mark in marks}
    text = row["sentence"]
    inner_first = sorted(marks, key=lambda mark: (mark[0], mark[1], mark[2] if mark[1] else -mark[2]))
    assert len(starts) == 4
    for place, _, _, tag in reversed(inner_first):
        text = text[:place] + tag + text[place:]
    return next(convert.semeval_records([f'{row["guid"]}\t"{text}"\n', row["label"] + "\n", "Comment:\n", "\n"]))


def as_opennre(row):
    record = {"id": row["guid"], "text": row["sentence"], "relation": row["label"]}
    for name, key in (("h", "subject_entity"), ("t", "object_entity")):
        entity = row[key]
        record[name] = {"name": entity["word"], "pos": [entity["start_idx"], entity["end_idx"] + 1]}
        record[name]["type"] = entity["type"]
    return record


def as_label_studio(row):
    def units(place):
        return len(row["sentence"][:place].encode("utf-16-le")) // 2

    entities = [row["subject_entity"], row["object_entity"]]
    spans = [(units(one["start_idx"]), units(one["end_idx"] + 1), one["type"]) for one in entities]
    return label_studio(row["sentence"], spans, labels=[row["label"]]) | {"id": row["guid"]}


def as_doccano(row):
    entities = [
        {"id": number, "label": one["type"], "start_offset": one["start_idx"], "end_offset": one["end_idx"] + 1}
        for number, one in enumerate((row["subject_entity"], row["object_entity"]))
    ]
    relations = [{"id": 9, "from_id": 0, "to_id": 1, "type": row["label"]}]
    return {"id": row["guid"], "text": row["sentence"], "entities": entities, "relations": relations}


def as_korre(row):
    record = {"id": row["guid"], "sentence": row["sentence"], "relation": row["label"]}
    for name, key in (("subj", "subject_entity"), ("obj", "object_entity")):
        one = row[key]
        record |= {f"{name}_name": one["word"], f"{name}_start_pos": str(one["start_idx"])}
        record |= {f"{name}_end_pos": str(one["end_idx"] + 1), f"{name}_type": one["type"]}
    return record


def as_boostcamp(row):
    record = {"id": row["guid"], "sentence": row["sentence"], "label": row["label"]}
    for key in ("subject_entity", "object_entity"):
        parts = {"entity_type" if name == "type" else name: value for name, value in row[key].items()}
        record[key] = str(parts)
    return record


def as_columns(row):
    record = {"text": row["sentence"], "rel": row["label"], "no": row["guid"], "from": row["source"]}
    for name, key in (("s", "subject_entity"), ("o", "object_entity")):
        one = row[key]
        record[name] = {"a": one["start_idx"] + 1, "b": one["end_idx"] + 1, "kind": one["type"], "text": one["word"]}
    return record


OWN = Columns(
    subject=EntityColumns("s.a", "s.b", "s.kind", "s.text"),
    object=EntityColumns("o.a", "o.b", "o.kind", "o.text"),
    sentence="text",
    label="rel",
    id="no",
    source="from",
    first=1,
)
INVERSES = {
    "tacred": as_tacred,
    "semeval": as_semeval,
    "opennre": as_opennre,
    "label-studio": as_label_studio,
    "doccano": as_doccano,
    "korre": as_korre,
    "boostcamp": as_boostcamp,
    "columns": as_columns,
}
LOST = {"semeval": {"type", "source"}, "tacred": set(), "columns": set()}
"""What a format cannot hold (the others: where the sentence comes from)."""


@st.composite
def klue_rows(draw):
    """Rows in KLUE's form: words with single spaces, entities of whole words that lie apart or one inside the other."""
    letters = st.text("가나다김민aZ1😀é.,()@#*'\"\\&;%", min_size=1, max_size=5)
    words = draw(st.lists(letters, min_size=2, max_size=8))
    places = st.integers(0, len(words) - 1)
    spans = [tuple(sorted((draw(places), draw(places)))) for _ in range(2)]
    (first, last), (other_first, other_last) = sorted(spans)
    assume(spans[0] != spans[1] and not first < other_first <= last < other_last)
    row = {"guid": str(draw(st.integers(0, 99))), "sentence": " ".join(words)}
    for key, (start, end) in zip(("subject_entity", "object_entity"), spans, strict=True):
        word, begin = " ".join(words[start : end + 1]), sum(len(word) + 1 for word in words[:start])
        kind = draw(st.sampled_from(["PER", "ORG", "POH"]))
        row[key] = {"word": word, "start_idx": begin, "end_idx": begin + len(word) - 1, "type": kind}
    source = draw(st.sampled_from(["wikipedia", "위키트리"]))
    return row | {"label": draw(st.sampled_from(["no_relation", "per:employee_of", "org:founded"])), "source": source}


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=25, deadline=None)
@given(row=klue_rows())
def test_a_row_survives_the_way_there_and_back(name, row):
    (back,), report = rows_of(name, INVERSES[name](row), columns=OWN)
    lost = LOST.get(name, {"source"})
    expected = row | ({"source": None} if "source" in lost else {})
    for key in ("subject_entity", "object_entity"):
        if "type" in lost:
            expected[key] = row[key] | {"type": UNTYPED}
    if name in ("label-studio", "doccano"):  # one text may hold several pairs
        expected["guid"] += "-1"
    assert back == expected
    assert set(report.dropped) <= {"a pair without an annotated relation (--pairs all makes it no_relation)"}


# ---- found by a stranger's files ------------------------------------------------------------------------------------


def test_the_annotated_text_is_the_one_that_has_the_words():
    record = label_studio()
    record["data"] = {"url": "https://example.org/a/long/address", "sentence": TEXT}
    rows, report = rows_of("label-studio", record)
    assert not rows  # nothing says which of the two was annotated
    assert report.dropped["a record of which no text holds the annotated words"] == 1
    for result, word in zip(record["annotations"][0]["result"], ("김민아", "가나전자"), strict=False):
        result["value"]["text"] = word
    rows, _ = rows_of("label-studio", record)
    assert spelled(rows[0]) == (TEXT, "김민아", "가나전자", "per:employee_of")
    record["data"]["sentence"] = "그는\r\n" + TEXT  # the browser counts the line end as one character
    for result in record["annotations"][0]["result"][:2]:
        result["value"] |= {"start": result["value"]["start"] + 3, "end": result["value"]["end"] + 3}
    rows, _ = rows_of("label-studio", record)
    assert spelled(rows[0])[1:3] == ("김민아", "가나전자")
    record["annotations"][0]["result"][0]["value"]["start"] += 1
    assert not rows_of("label-studio", record)[0]


def test_tokens_as_text():
    rows, _ = rows_of("tacred", {**TACRED, "token": str(TACRED["token"])})
    assert spelled(rows[0])[1:3] == ("Kim", "Gana Corp")
    for name, record in (("tacred", TACRED), ("opennre", OPENNRE)):
        rows, report = rows_of(name, {**record, "token": "Kim leads Gana"})
        assert not rows
        assert report.dropped[NO_LIST] == 1


def test_a_name_that_is_not_its_span_is_no_row():
    inclusive = {**OPENNRE, "h": {"name": "김민아", "pos": [0, 2]}}
    rows, report = rows_of("opennre", inclusive)
    assert not rows
    assert report.first["a name that is not the text of its span (`pos` ends behind it)"].endswith(
        "'김민아', not '김민'"
    )
    wiki = {"token": ["TJQ", "flight", "Tanjung", "Pandan"], "relation": "r", "h": {"name": "tjq", "pos": [0, 1]}}
    assert rows_of("opennre", {**wiki, "t": {"name": "tanjung pandan", "pos": [2, 4]}})[1].rows == 1


def test_cells_of_pandas():
    record = {**KORRE, "subj_start_pos": 0.0, "subj_end_pos": "3.0", "relation": float("nan"), "obj_type": None}
    rows, _ = rows_of("korre", record)
    assert (rows[0]["label"], rows[0]["object_entity"]["type"]) == (None, UNTYPED)
    assert rows[0]["subject_entity"]["end_idx"] == 2


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".txt"])
@pytest.mark.parametrize(
    ("name", "record"),
    [("doccano", DOCCANO), ("tacred", TACRED), ("label-studio", label_studio()),
     ("opennre", {**OPENNRE, "token": ["가", "나다"], "h": {"pos": [0, 1]}, "t": {"pos": [1, 2]}})],
)  # fmt: skip
def test_one_record_a_line(tmp_path, name, record, suffix):
    path = tmp_path / f"rows{suffix}"
    path.write_text("\n".join([json.dumps(record, ensure_ascii=False)] * 2) + "\n", encoding="utf-8")
    report = convert.convert(str(path), name, ConvertConfig(output=str(tmp_path / "out.jsonl")))
    assert (report.records, report.rows) == (2, 2)


def test_semeval_s_text_in_korean_windows(tmp_path):
    path = tmp_path / "rows.txt"
    path.write_bytes('1\t"<e1>김민아</e1>는 <e2>가나전자</e2> 대표이다."\r\nOther\r\n'.encode("cp949"))
    assert convert.convert(str(path), "semeval", ConvertConfig(output=str(tmp_path / "out.jsonl"))).rows == 1


TABLE = {"문장": TEXT, "s1": 0, "s2": 3, "o1": 5, "o2": 9, "관계": "per:employee_of"}
ENTITIES = "subject: {start: s1, end: s2}\nobject: {start: o1, end: o2}\nends: exclusive\nsentence: 문장\n"


def table(tmp_path, columns, *records, suffix=".csv"):
    """Convert records through files, and return the report."""
    (tmp_path / "columns.yaml").write_text(ENTITIES + columns, encoding="utf-8")
    lines = [",".join(records[0]), *(",".join(map(str, record.values())) for record in records)]
    if suffix == ".jsonl":
        lines = [json.dumps(record, ensure_ascii=False) for record in records]
    (tmp_path / f"table{suffix}").write_text("\n".join(lines), encoding="utf-8")
    options = ConvertConfig(str(tmp_path / "rows.jsonl"), columns=str(tmp_path / "columns.yaml"))
    return convert.convert(str(tmp_path / f"table{suffix}"), "columns", options)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_the_columns_of_a_table_may_have_any_names(tmp_path, suffix):
    assert str(table(tmp_path, "label: 관계\n", TABLE, suffix=suffix)) == "1 records, 1 rows, 1 labels"
    [row] = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert spelled(row) == (TEXT, "김민아", "가나전자", "per:employee_of")


@pytest.mark.parametrize(
    ("columns", "missing"), [("", "'label'"), ("label: 관게\n", "'관게'"), ("label: 관계\nid: no\n", "'no'")]
)
def test_a_column_that_is_not_there_is_no_empty_one(tmp_path, columns, missing):
    with pytest.raises(MtlReError, match=f"a record without {missing}"):
        table(tmp_path, columns.replace("id: no", 'id: "no"'), TABLE)


def test_rows_without_a_label_are_counted(tmp_path):
    assert str(table(tmp_path, "label: null\n", TABLE)) == "1 records, 1 rows, 0 labels\nwithout a label: 1 rows"


def test_a_line_that_cannot_be_read_is_named_as_such(tmp_path):
    (tmp_path / "rows.txt").write_text(json.dumps(TACRED) + "\n{oops\n")
    report = convert.convert(str(tmp_path / "rows.txt"), "tacred", ConvertConfig(str(tmp_path / "out.jsonl")))
    assert (report.records, report.rows) == (2, 1)
    assert "a record that cannot be read" in str(report)


def test_options_are_read_without_the_blanks_behind_commas(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({**TACRED, "relation": "None"}))
    options = ConvertConfig(str(tmp_path / "out.jsonl"), types="PERSON=PER, ORGANIZATION=ORG", no_relation="NA, None")
    convert.convert(str(tmp_path / "rows.jsonl"), "tacred", options)
    row = json.loads((tmp_path / "out.jsonl").read_text())
    assert (row["label"], row["object_entity"]["type"]) == ("no_relation", "ORG")


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet", "rows.jsonl.gz"])
def test_rows_are_written_as_json_lines_only(tmp_path, name):
    with pytest.raises(MtlReError, match=r"name a \.jsonl file"):
        convert.convert("rows.jsonl", "tacred", ConvertConfig(str(tmp_path / name)))
