"""Data: every fault of a row is named, formats agree, splits keep sentences apart, the guard holds, check reports."""

from __future__ import annotations

import gzip
import json
import math
import random
import shutil
import subprocess
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import sample_examples
from hostile import BAD_ROWS, ROW_FAULTS, csv_text, entity, klue_row, write_hostile
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_re.config import ReadingConfig
from mtl_re.data.check import SHOWN, check_files, render_check
from mtl_re.data.loading import load_examples, read_examples, write_rejected
from mtl_re.data.splits import drop_overlap, split_by_fold, split_by_sentence
from mtl_re.data.validation import BadRow, Entity, Example, parse_row
from mtl_re.errors import MtlReError, RowError
from mtl_re.taxonomy import BOOSTCAMP, KLUE, Taxonomy

TAXONOMY = Taxonomy.from_prefixes()
KLUE_RE = Path(__file__).parents[3] / "shared" / "klue-re"
TRAIN, DEV = KLUE_RE / "klue-re-v1.1_train.json.gz", KLUE_RE / "klue-re-v1.1_dev-open.json.gz"
needs_klue = pytest.mark.skipif(not TRAIN.is_file() or not DEV.is_file(), reason=f"no KLUE-RE under {KLUE_RE}")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    folder = tmp_path_factory.mktemp("hostile")
    yield write_hostile(folder)
    shutil.rmtree(folder)  # 10 MB


def parse(**changes: Any) -> Example:
    return parse_row(klue_row(1, **changes), TAXONOMY)


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return str(path)


# ---- one row -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROW_FAULTS)
def test_a_bad_row_is_named_or_counted(hostile: dict[str, Path], name: str) -> None:
    path, (number, place) = str(hostile[name]), ROW_FAULTS[name]
    with pytest.raises(MtlReError) as caught:
        load_examples(path, TAXONOMY)
    message = str(caught.value)
    assert message.startswith(f"{path}:{number}: {place}: ")
    assert len(message.splitlines()) == 1
    assert len(message) < len(path) + 300
    with pytest.raises(MtlReError) as streamed:
        list(read_examples(path, TAXONOMY))
    assert str(streamed.value).startswith(f"{path}:{number}: {place}: ")
    rejected: list[BadRow] = []
    good = list(read_examples(path, TAXONOMY, rejected.append))
    assert (rejected[0].source, rejected[0].row, rejected[0].field) == (path, number, place)
    report = check_files([path], TAXONOMY)
    assert report.has_errors
    assert (report.files[0].good, report.files[0].bad) == (len(good), len(rejected))
    if name.removesuffix(".json") in BAD_ROWS:
        assert (len(good), len(rejected)) == (2, 1)


def test_reasons_say_what_was_found() -> None:
    for name, part in {
        "exclusive_end": "of the sentence are",
        "far_end": "does not lie in the sentence (0..",
        "digit_label": "a number as text has no known order",
        "no_sentence": "missing; the row has ['guid'",
        "surrogate_sentence": "half a surrogate pair at character",
    }.items():
        with pytest.raises(RowError) as caught:
            parse_row(BAD_ROWS[name][0], TAXONOMY)
        assert part in caught.value.reason


@pytest.mark.parametrize("label", [None, "", math.nan, 100, "100"])
def test_unlabelled(label: Any) -> None:
    assert parse(label=label).label is None


def test_a_row_without_a_label_field() -> None:
    row = klue_row(1)
    del row["label"]
    assert parse_row(row, TAXONOMY).label is None


def test_hub_integers_are_in_klue_order_whatever_the_taxonomy() -> None:
    for taxonomy in (TAXONOMY, Taxonomy.from_prefixes(BOOSTCAMP), Taxonomy.from_prefixes(layout="flat")):
        assert [parse_row(klue_row(1, label=n), taxonomy).label for n in range(30)] == list(KLUE)


@pytest.mark.parametrize("labels", [["no_relation", "gene:up", "gene:down"], [*KLUE, "per:nickname"]])
def test_numbers_under_other_labels_are_refused(labels: list[str]) -> None:
    """A heads file lists labels by frequency: read in that order, every label would be another one."""
    other = Taxonomy.from_prefixes(labels)
    with pytest.raises(RowError, match="a number has no known order; write the name"):
        parse_row(klue_row(1, label=2), other)
    assert parse_row(klue_row(1, label=100), other).label is None


def test_ids() -> None:
    row = klue_row(1)
    del row["guid"]
    assert parse_row(row, TAXONOMY, 7).id == "7"
    assert parse_row(row | {"id": 0}, TAXONOMY, 7).id == "0"
    assert parse_row(row | {"id": "a"}, TAXONOMY, 7).id == "a"
    assert parse(guid=None).id == "1"


def test_source_may_be_absent() -> None:
    assert [parse(source=value).source for value in (None, "", math.nan)] == [None] * 3


def test_odd_but_sound_sentences() -> None:
    """Characters beyond the basic plane count as one; line breaks, NUL and combining marks are text."""
    for sentence in ("😀가나 다라", "가나\n다라", "\0가나\u0301 다라", "\ufeff가나 다라"):
        row = klue_row(
            1,
            sentence=sentence,
            subject_entity=entity(sentence, "가나", "A"),
            object_entity=entity(sentence, "다라", "B"),
        )
        example = parse_row(row, TAXONOMY)
        assert sentence[example.object.start : example.object.end + 1] == "다라"


def test_round_trip() -> None:
    for row in (klue_row(1), klue_row(1, label=None), klue_row(1, source=None)):
        assert parse_row(row, TAXONOMY).to_row() == row
        assert parse_row(json.loads(json.dumps(row)), TAXONOMY) == parse_row(row, TAXONOMY)


def test_an_escape_in_a_dict_string_does_not_warn() -> None:
    sentence = "가나\\d 다라"
    text = "{'word': '가나\\d', 'start_idx': 0, 'end_idx': 3, 'type': 'PER'}"
    row = klue_row(1, sentence=sentence, subject_entity=text, object_entity=entity(sentence, "다라", "ORG"))
    assert parse_row(row, TAXONOMY).subject.word == "가나\\d"


# ---- sources -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "parquet", "parquet_text"])
def test_all_formats_give_the_same_examples(tmp_path: Path, kind: str, zipped: bool) -> None:
    labels = ["per:title", "no_relation", None, "org:members", "per:spouse"]
    rows = [klue_row(number, label=label) for number, label in enumerate(labels, start=1)]
    path = tmp_path / f"rows.{kind.removesuffix('_text')}"
    if kind.startswith("parquet"):
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        if kind == "parquet_text":
            names = ("subject_entity", "object_entity")
            rows_out = [row | {name: str(row[name]) for name in names} for row in rows]
        else:
            rows_out = rows
        parquet.write_table(pyarrow.Table.from_pylist(rows_out), path)
    else:
        contest = [row | {"label": "100" if row["label"] is None else row["label"]} for row in rows]
        lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        path.write_text({"json": json.dumps(rows), "jsonl": lines, "csv": csv_text(contest)}[kind], encoding="utf-8")
    if zipped:
        (tmp_path / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path = tmp_path / f"{path.name}.gz"
    assert load_examples(str(path), TAXONOMY) == ([parse_row(row, TAXONOMY) for row in rows], [])


def test_several_bad_rows_are_one_line(tmp_path: Path) -> None:
    rows = [klue_row(1), klue_row(2, label="x"), klue_row(3, sentence=""), klue_row(4, sentence=5)]
    path = write(tmp_path / "a.json", rows)
    with pytest.raises(MtlReError, match=r"a\.json:2: label: 'x' is not .*; 2 more bad row\(s\) \(on_bad_row skip"):
        load_examples(path, TAXONOMY)
    good, bad = load_examples(path, TAXONOMY, "skip")
    assert [example.id for example in good] == ["made-1"]
    assert [(row.row, row.field) for row in bad] == [(2, "label"), (3, "sentence"), (4, "sentence")]
    write_rejected(tmp_path / "rejected.jsonl", bad)
    lines = (tmp_path / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    assert [BadRow(**json.loads(line)) for line in lines] == bad
    with pytest.raises(MtlReError, match="cannot be written"):
        write_rejected(tmp_path / "a.json" / "rejected.jsonl", bad)


def test_no_good_row_is_an_error_under_skip_too(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", [{"text": "x"}, {"text": "y"}])
    with pytest.raises(MtlReError, match="none of the 2 rows can be used"):
        load_examples(path, TAXONOMY, "skip")


def test_no_heavy_import() -> None:
    heavy = {"torch", "datasets", "pyarrow", "pandas", "numpy"}
    code = f"import mtl_re.data.loading, sys; print({heavy} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


# ---- splitting and guarding --------------------------------------------------------------------------------------


def example(number: int, sentence: int, label: str | None = "no_relation") -> Example:
    text = f"{sentence} " + "가" * 200
    spot = 10 + number % 90
    return Example(str(number), text, Entity("가", spot, spot, "PER"), Entity("가", spot + 95, spot + 95, "ORG"), label)


def label_counts(rows: Sequence[Example]) -> dict[str | None, int]:
    return dict(Counter(row.label for row in rows).most_common())


row_lists = st.lists(
    st.tuples(st.integers(0, 40), st.sampled_from([None, *KLUE[:4]])), min_size=2, max_size=120
).filter(lambda pairs: len({sentence for sentence, _ in pairs}) > 1)


@settings(deadline=None, max_examples=150)
@given(row_lists, st.floats(0.01, 0.9), st.integers(0, 5), st.randoms())
def test_split_keeps_sentences_apart(
    pairs: list[tuple[int, str | None]], fraction: float, seed: int, shuffler: random.Random
) -> None:
    rows = [example(number, sentence, label) for number, (sentence, label) in enumerate(pairs)]
    train, valid = split_by_sentence(rows, fraction, seed)
    assert train
    assert valid
    assert not {row.sentence for row in train} & {row.sentence for row in valid}
    assert sorted(row.id for row in train + valid) == sorted(row.id for row in rows)
    largest = max(Counter(row.sentence for row in rows).values())
    assert abs(len(valid) - fraction * len(rows)) <= largest
    shuffled = shuffler.sample(rows, len(rows))
    assert {row.id for row in split_by_sentence(shuffled, fraction, seed)[1]} == {row.id for row in valid}


def test_split_keeps_order_shares_and_depends_on_the_seed() -> None:
    labels = [KLUE[0]] * 600 + [KLUE[1]] * 300 + [KLUE[2]] * 100
    rows = [example(number, number, label) for number, label in enumerate(labels)]
    train, valid = split_by_sentence(rows, 0.2, 0)
    assert [int(row.id) for row in valid] == sorted(int(row.id) for row in valid)
    assert label_counts(valid) == {KLUE[0]: 120, KLUE[1]: 60, KLUE[2]: 20}
    assert list(label_counts(train)) == [KLUE[0], KLUE[1], KLUE[2]]
    assert split_by_sentence(rows, 0.2, 1)[1] != valid
    assert split_by_sentence(rows, 0, 1) == (rows, [])


@settings(deadline=None, max_examples=100)
@given(row_lists, st.integers(2, 6), st.integers(0, 5), st.randoms())
def test_folds_hold_every_row_once_and_no_sentence_twice(
    pairs: list[tuple[int, str | None]], folds: int, seed: int, shuffler: random.Random
) -> None:
    rows = [example(number, sentence, label) for number, (sentence, label) in enumerate(pairs)]
    sizes = Counter(row.sentence for row in rows)
    if len(sizes) < folds:
        with pytest.raises(MtlReError, match=rf"data.fold: {len(sizes)} sentence\(s\) cannot be split into {folds}"):
            split_by_fold(rows, f"1/{folds}", seed)
        return
    held = []
    for number in range(1, folds + 1):
        train, valid = split_by_fold(rows, f"{number}/{folds}", seed)
        assert valid
        assert not {row.sentence for row in train} & {row.sentence for row in valid}
        assert sorted(row.id for row in train + valid) == sorted(row.id for row in rows)
        shuffled = shuffler.sample(rows, len(rows))
        assert {row.id for row in split_by_fold(shuffled, f"{number}/{folds}", seed)[1]} == {row.id for row in valid}
        held.append(len(valid))
    assert sum(held) == len(rows)
    assert max(held) - min(held) <= max(sizes.values())


def test_folds_are_alike_in_labels() -> None:
    labels = [KLUE[0]] * 600 + [KLUE[1]] * 300 + [KLUE[2]] * 100
    rows = [example(number, number, label) for number, label in enumerate(labels)]
    for number in range(1, 6):
        _, valid = split_by_fold(rows, f"{number}/5", 0)
        assert label_counts(valid) == {KLUE[0]: 120, KLUE[1]: 60, KLUE[2]: 20}


def test_one_sentence_cannot_be_split() -> None:
    with pytest.raises(MtlReError, match=r"2 row\(s\) over 1 sentence\(s\) cannot be split"):
        split_by_sentence([example(0, 0), example(1, 0)], 0.5, 0)


def test_overlap_is_dropped_or_refused() -> None:
    train, valid = [example(n, n) for n in range(20)], [example(n, n) for n in range(18, 28)]
    kept, dropped = drop_overlap(train, valid)
    assert (len(kept), dropped) == (18, 2)
    assert not {row.key for row in kept} & {row.key for row in valid}
    with pytest.raises(
        MtlReError, match=r"2 training row\(s\) are validation rows too, the first is row 18.*on_overlap"
    ):
        drop_overlap(train, valid, "error")
    same_sentence = [example(40, 0)]
    assert drop_overlap(train, same_sentence) == (train, 0)


def test_training_on_the_evaluation_rows_is_refused() -> None:
    valid = [example(n, n) for n in range(10)]
    for train in (
        valid,
        [example(n, n, "per:title") for n in range(5, 200)],  # half of the validation rows, labelled otherwise
        [example(n, n) for n in (0, 1, 90, 91)],  # half of the training rows
    ):
        with pytest.raises(MtlReError, match="training on the evaluation rows"):
            drop_overlap(train, valid)
        with pytest.raises(MtlReError, match="training on the evaluation rows"):
            drop_overlap(train, valid, "error")


# ---- check -------------------------------------------------------------------------------------------------------


def test_check_names_everything_and_reads_on_after_a_fault(tmp_path: Path) -> None:
    first = [klue_row(1), klue_row(1, "no_relation"), klue_row(2), klue_row(2, guid="b"), klue_row(3, None)]
    a = write(tmp_path / "a.json", first)
    b = write(tmp_path / "b.json", [klue_row(2), klue_row(9)] + [klue_row(5, guid=[1])] * (SHOWN + 3))
    report = check_files([a, str(tmp_path / "none.json"), b], TAXONOMY)
    assert report.has_errors
    assert [file.fault is None for file in report.files] == [True, False, True]
    text = render_check(report)
    for part in (
        f"{a}: 5 rows, 5 good, 0 bad, 1 unlabelled, 3 distinct sentences",
        "per:employee_of                                 3   75.0 %",
        f"warning: {a}: 2 row(s) repeat the sentence and spans of an earlier row",
        f"warning: {a}: 1 group(s) of such rows have contradictory labels",
        "  row 1 per:employee_of, row 2 no_relation",
        f"warning: {a}: 1 id(s) occur more than once, first 'made-1'",
        f"error: {tmp_path / 'none.json'}: no such file",
        f"error: {b}:3: guid: expected text",
        f"error: {b}: 3 more bad row(s)",
        f"warning: {a} and {b} share 1 distinct sentence(s), 1 of them with the same two spans",
        "53 bad row(s), 1 unreadable file(s)",
    ):
        assert part in text
    assert text.count("error: ") == 1 + SHOWN + 1
    clean = check_files([a], TAXONOMY)
    assert not clean.has_errors
    assert render_check(clean).endswith("no errors")


def test_check_counts_rows_before_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([klue_row(1), klue_row(2)])[:-9], encoding="utf-8")
    file = check_files([str(path)], TAXONOMY).files[0]
    assert (file.good, file.bad) == (1, 0)
    assert "row 2" in str(file.fault)


@needs_klue
def test_klue_re_has_the_published_figures() -> None:
    report = check_files([str(TRAIN), str(DEV)], TAXONOMY)
    train, dev = report.files
    assert not report.has_errors
    assert (train.good, len(train.sentences), train.repeated_keys, len(train.contradictions)) == (32_470, 28_803, 47, 5)
    assert (train.labels["no_relation"], train.labels["per:place_of_death"], train.unlabelled) == (9_534, 40, 0)
    assert (dev.good, dev.labels["no_relation"], train.repeated_ids) == (3_882, 2_315, [])


@needs_klue
def test_klue_re_splits_by_label_and_round_trips() -> None:
    rows, _ = load_examples(str(TRAIN), TAXONOMY)
    train, valid = split_by_sentence(rows, 0.1, 42)
    assert abs(len(valid) - 3_247) <= 3
    all_counts, valid_counts = label_counts(rows), label_counts(valid)
    assert all(abs(valid_counts[name] - count / 10) <= 3 + count / 100 for name, count in all_counts.items())
    assert not {row.sentence for row in train} & {row.sentence for row in valid}
    assert all(parse_row(row.to_row(), TAXONOMY) == row for row in valid)


# ---- cells as pandas, NumPy, Excel and contest code leave them ----------------------------------------------------


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"label": 17.0}, ("label", KLUE[17])),
        ({"label": 100.0}, ("label", None)),
        ({"label": "100.0"}, ("label", None)),
        ({"label": np.int64(17)}, ("label", KLUE[17])),
        ({"source": " "}, ("source", None)),
        ({"source": float("nan")}, ("source", None)),
        ({"guid": np.int64(7)}, ("id", "7")),
        ({"guid": 7.0}, ("id", "7")),
    ],
)
def test_cells_whose_meaning_is_certain(change: dict, expected: tuple) -> None:
    assert getattr(parse_row(klue_row(1) | change, TAXONOMY), expected[0]) == expected[1]


@pytest.mark.parametrize(
    "spell",
    [
        lambda entity: entity | {"start_idx": float(entity["start_idx"]), "end_idx": np.int32(entity["end_idx"])},
        lambda entity: repr(
            entity | {"start_idx": np.int64(entity["start_idx"]), "end_idx": np.int64(entity["end_idx"])}
        ),
        lambda entity: json.dumps(entity | {"note": None, "sure": True}, ensure_ascii=False),
        lambda entity: repr(entity).replace(", '", "\t '"),
    ],
)
def test_entities_as_other_programs_write_them(spell) -> None:
    row = klue_row(1)
    assert parse_row(row | {"subject_entity": spell(row["subject_entity"])}, TAXONOMY) == parse_row(row, TAXONOMY)


def test_a_relation_column_is_no_unlabelled_row() -> None:
    row = klue_row(1)
    row["relation"] = row.pop("label")
    with pytest.raises(RowError, match="missing, but there is 'relation'"):
        parse_row(row, TAXONOMY)


def test_copies_in_decomposed_form_are_the_same_rows() -> None:
    row = parse_row(klue_row(1), TAXONOMY)
    parts = [unicodedata.normalize("NFD", row.sentence[: entity.start]) for entity in (row.subject, row.object)]
    spans = [
        (len(part), unicodedata.normalize("NFD", entity.word))
        for part, entity in zip(parts, (row.subject, row.object), strict=True)
    ]
    entities = [Entity(word, start, start + len(word) - 1, "PER") for start, word in spans]
    apart = Example("other", unicodedata.normalize("NFD", row.sentence), *entities, row.label)
    assert parse_row(apart.to_row(), TAXONOMY).sentence != row.sentence
    assert apart.key == row.key
    with pytest.raises(MtlReError, match="training on the evaluation rows"):
        drop_overlap([row], [apart])
    wrong = klue_row(1)
    wrong["subject_entity"] |= {"word": unicodedata.normalize("NFD", row.subject.word)}
    with pytest.raises(RowError, match="look the same, but the first is written in decomposed"):
        parse_row(wrong, TAXONOMY)


# ---- faults that the rows of a file share ------------------------------------------------------------------------


def shifted(row: dict, first: int, ends: int) -> dict:
    """A row whose spans are counted from `first`, with `ends` added to their ends."""
    for name in ("subject_entity", "object_entity"):
        row[name] = row[name] | {
            "start_idx": row[name]["start_idx"] + first,
            "end_idx": row[name]["end_idx"] + first + ends,
        }
    return row


@pytest.mark.parametrize(
    ("first", "ends", "options"),
    [
        (0, 1, "--span_ends exclusive"),
        (1, 0, "--first_character 1"),
        (1, 1, "--span_ends exclusive --first_character 1"),
    ],
)
def test_a_shift_of_all_spans_is_said_once_with_its_option(tmp_path: Path, first: int, ends: int, options: str) -> None:
    path = write(tmp_path / "a.json", [shifted(klue_row(number), first, ends) for number in range(20)])
    text = render_check(check_files([path], TAXONOMY))
    assert text.count(f"20 of 20 rows spell their words if spans are read with {options} (mtl-re train: ") == 1
    assert len(text.splitlines()) < 10
    with pytest.raises(MtlReError, match=rf"spans are read with {options} "):
        load_examples(path, TAXONOMY)
    reading = ReadingConfig(span_ends="exclusive" if ends else "inclusive", first_character=first)
    assert load_examples(path, TAXONOMY, "error", reading)[0] == [parse_row(klue_row(n), TAXONOMY) for n in range(20)]
    assert not check_files([path], TAXONOMY, reading).has_errors


def test_labels_of_another_set_are_listed_once(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", [klue_row(n, f"genre:{'ab'[n % 2]}") for n in range(60)])
    text = render_check(check_files([path], TAXONOMY))
    assert f"60 rows have 2 labels of another set: genre:a (30), genre:b (30); `mtl-re heads {path} --output" in text
    assert len(text.splitlines()) < 10
    with pytest.raises(MtlReError, match=r"which --heads and model\.heads take"):
        load_examples(path, TAXONOMY)


def misread(rows: list[dict], fault: str | None) -> None:
    """Swap subject and object, or read the contest's label numbers as KLUE's."""
    for row in rows:
        if fault == "swapped":
            row["subject_entity"], row["object_entity"] = row["object_entity"], row["subject_entity"]
        if fault == "other order":
            row["label"] = KLUE[BOOSTCAMP.index(row["label"])]


@pytest.mark.parametrize("fault", ["swapped", "other order", None])
def test_types_that_contradict_labels_are_one_figure(tmp_path: Path, fault: str | None) -> None:
    rows = [row.to_row() for row in sample_examples("train", 300)]
    misread(rows, fault)
    report = check_files([write(tmp_path / "a.json", rows)], TAXONOMY)
    assert ("are subject and object swapped, or the labels numbered in another order?" in render_check(report)) is bool(
        fault
    )
    assert report.files[0].subjects.related > 100


@needs_klue
@pytest.mark.parametrize(("fault", "contrary"), [(None, 9), ("other order", 672), ("swapped", 1_243)])
def test_types_that_contradict_labels_on_klue_re(tmp_path: Path, fault: str | None, contrary: int) -> None:
    rows = [row.to_row() for row in load_examples(str(DEV), TAXONOMY)[0]]
    misread(rows, fault)
    report = check_files([write(tmp_path / "a.json", rows)], TAXONOMY)
    file = report.files[0]
    related = len(rows) - file.labels["no_relation"]
    assert (file.subjects.contrary.total(), related) == (contrary, 1_567)
    warned = (
        f"in {contrary:,} of {file.subjects.related:,} related rows the subject's type contradicts"
        in render_check(report)
    )
    assert warned is (fault is not None)


def test_types_of_other_names_are_named(tmp_path: Path) -> None:
    rows = [row.to_row() for row in sample_examples("train", 60)]
    for row in rows:
        row["subject_entity"]["type"] = row["subject_entity"]["type"].lower()
    said = render_check(check_files([write(tmp_path / "a.json", rows)], TAXONOMY))
    assert "no subject of a relation has a type that relations take (" in said
    assert "per (" in said


@pytest.mark.parametrize("name", ["Label", "RELATION", "relation_type"])
def test_a_column_of_labels_by_another_name_is_not_unlabelled(name: str) -> None:
    row = klue_row(1)
    row[name] = row.pop("label")
    with pytest.raises(RowError, match=f"missing, but there is '{name}'"):
        parse_row(row, TAXONOMY)


def test_decomposed_rows_are_counted_and_composed_on_request(tmp_path: Path, capsys) -> None:
    rows = []
    for number in range(4):
        row = parse_row(klue_row(number), TAXONOMY)
        sentence, entities = row.sentence, []
        if number:
            entities = [unicodedata.normalize("NFD", entity.word) for entity in (row.subject, row.object)]
            sentence = unicodedata.normalize("NFD", sentence)
            spans = [(sentence.index(word), sentence.index(word) + len(word) - 1, word) for word in entities]
            made = [Entity(word, start, end, "PER") for start, end, word in spans]
            row = Example(row.id, sentence, *made, row.label)
        rows.append(row.to_row())
    path = write(tmp_path / "a.json", rows)
    assert "75.0 % of the rows hold characters written in parts (NFD)" in render_check(check_files([path], TAXONOMY))
    load_examples(path, TAXONOMY)
    assert "75.0 % of the rows hold characters written in parts" in capsys.readouterr().err
    composed, _ = load_examples(path, TAXONOMY, "error", ReadingConfig(normalise="nfc"))
    assert [row.sentence for row in composed] == [klue_row(number)["sentence"] for number in range(4)]
    assert [row.subject.word for row in composed] == [klue_row(number)["subject_entity"]["word"] for number in range(4)]
