"""Rows in a file are the rows in a list: read, selected, split, guarded, and trained on."""

import gc
import json
from dataclasses import replace

import numpy as np
import pytest
from distributed_worker import assert_same_run, lines, make_config, rows_file, shrink

from mtl_re.data import sample, splits, spool
from mtl_re.data.validation import Entity, Example, parse_row
from mtl_re.errors import MtlReError
from mtl_re.taxonomy import Taxonomy
from mtl_re.training import setup as prepare
from mtl_re.training.train import train


@pytest.fixture
def rows():
    made = [parse_row(row, Taxonomy.from_prefixes(), n, "a.json") for n, row in enumerate(sample.rows("train", 300), 1)]
    odd = Example("1", "\u0000 \U0001f600 나는 너를", Entity("나", 4, 4, "PER"), Entity("너", 7, 7, "PER"), None, None)
    return [*made, odd]


@pytest.fixture
def spooled(rows, monkeypatch):
    monkeypatch.setattr(spool, "IN_MEMORY", 10)
    made = spool.collect(iter(rows))
    assert isinstance(made, spool.Spool)
    return made


def test_few_rows_are_a_list(rows):
    assert spool.collect(iter(rows)) == rows
    assert isinstance(spool.collect(iter(rows)), list)


def test_a_spool_is_the_same_sequence(rows, spooled):
    assert len(spooled) == len(rows)
    assert list(spooled) == rows
    assert [(row.file, row.row) for row in spooled] == [*(("a.json", n) for n in range(1, 301)), (None, None)]
    assert [spooled[index] for index in (0, 150, -1)] == [rows[index] for index in (0, 150, -1)]
    assert list(spooled[5:50:3]) == rows[5:50:3]
    chosen = np.array([7, 3, 3, 299])
    assert list(spooled.select(chosen)) == spool.select(rows, chosen) == [rows[index] for index in chosen]
    assert list(spooled.select(chosen).select(np.array([3, 0]))) == [rows[299], rows[7]]
    with pytest.raises(IndexError):
        spooled[len(rows)]


def test_splits_and_the_guard_do_not_know_where_rows_lie(rows, spooled):
    for seed in (0, 1):
        for one, other in zip(
            splits.split_by_sentence(rows, 0.2, seed), splits.split_by_sentence(spooled, 0.2, seed), strict=True
        ):
            assert list(other) == one
        for one, other in zip(
            splits.split_by_fold(rows, "2/3", seed), splits.split_by_fold(spooled, "2/3", seed), strict=True
        ):
            assert list(other) == one
    valid = [replace(row, id="v") for row in rows[:9]] + [replace(rows[0], sentence=f"{n} x") for n in range(300)]
    left, dropped = splits.drop_overlap(rows, valid)
    spooled_left, spooled_dropped = splits.drop_overlap(spooled, valid)
    assert (list(spooled_left), spooled_dropped) == (left, dropped)
    assert dropped >= 9


def test_the_file_has_no_name_and_goes_with_its_rows(rows, monkeypatch, tmp_path):
    monkeypatch.setattr(spool, "IN_MEMORY", 10)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def mapped():
        with open("/proc/self/maps") as file:
            return [line for line in file if str(tmp_path) in line]

    made = spool.collect(iter(rows))
    assert len(list(made)) == len(rows)
    assert not list(tmp_path.iterdir())
    assert len(mapped()) == 1
    del made
    gc.collect()
    assert not mapped()


def test_a_full_disk_is_named(rows, monkeypatch):
    def full(**named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spool, "IN_MEMORY", 10)
    monkeypatch.setattr(spool.tempfile, "TemporaryFile", full)
    with pytest.raises(MtlReError, match=r"No space left on device.*TMPDIR"):
        spool.collect(iter(rows))


@pytest.mark.parametrize("markers", ["typed_punct_ko", "entity_punct"])
def test_training_on_a_spool_is_the_same_training(tmp_path, monkeypatch, markers):
    shrink(monkeypatch)
    path = rows_file(tmp_path / "rows.json", 60)
    options = {"data.train": str(path), "data.markers": markers, "data.limit": 50}
    inside = train(make_config(options | {"train.run_dir": str(tmp_path / "list")}))
    monkeypatch.setattr(spool, "IN_MEMORY", 10)
    outside = train(make_config(options | {"train.run_dir": str(tmp_path / "spool")}))
    assert_same_run(inside, outside)
    assert lines(inside) == lines(outside)


def with_rows_that_do_not_fit(made, places):
    """Sample rows, some of whose subjects are longer than any input."""
    for place in places:
        sentence = f"{made[place]['subject_entity']['word']}{' '.join(['아주'] * 300)}나무"
        size = len(sentence)
        made[place] |= {
            "sentence": sentence,
            "subject_entity": {"word": sentence[:-2], "start_idx": 0, "end_idx": size - 3, "type": "PER"},
            "object_entity": {"word": "나무", "start_idx": size - 2, "end_idx": size - 1, "type": "POH"},
        }
    return made


def test_the_rows_that_a_run_held_out_can_be_had_again(tmp_path, monkeypatch):
    """Also those behind rows that could not be used, and behind blank lines."""
    shrink(monkeypatch)
    made = with_rows_that_do_not_fit(sample.rows("train", 60), range(0, 60, 4))
    path = tmp_path / "rows.jsonl"
    path.write_text("\n\n".join(["{}", *(json.dumps(row) for row in made)]), encoding="utf-8")
    config = make_config(
        {"data.train": str(path), "data.on_bad_row": "skip", "data.valid_fraction": 0.4, "train.max_steps": 1}
        | {"train.run_dir": str(tmp_path / "run")}
    )
    run_dir = train(config)
    split = splits.load_splits(config, Taxonomy.from_prefixes()).valid
    used = splits.without_rejected(split, run_dir)
    counts = json.loads((run_dir / "manifest.json").read_text())["data"]
    assert (len(used), counts["rejected"]) == (counts["valid"]["rows"], 16)
    assert len(split) > len(used) > 0
    assert list(used) == [row for row in split if len(row.subject.word) < 300]


def test_a_row_that_does_not_fit_is_the_one_left_out(tmp_path, monkeypatch):
    """A spool makes its rows anew: they are told apart by number, not by identity."""
    shrink(monkeypatch)
    monkeypatch.setattr(spool, "IN_MEMORY", 10)
    made = with_rows_that_do_not_fit(sample.rows("train", 40), (5, 17))
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")
    options = {"data.train": str(path), "data.on_bad_row": "skip", "data.valid_fraction": 0.0, "train.max_steps": 1}
    seen, real = [], prepare.write_training_records
    monkeypatch.setattr(
        "mtl_re.training.train.write_training_records",
        lambda run: (seen.append([r.id for r in run.rows.train]), real(run)),
    )
    train(make_config(options | {"train.run_dir": str(tmp_path / "run")}))
    expected = [row["guid"] for place, row in enumerate(made) if place not in (5, 17)]
    assert seen == [expected]
    rejected = [json.loads(line) for line in (tmp_path / "run" / "rejected.jsonl").read_text().splitlines()]
    assert [(bad["source"], bad["row"], bad["field"]) for bad in rejected] == [
        (str(path), 6, "sentence"),
        (str(path), 18, "sentence"),
    ]
