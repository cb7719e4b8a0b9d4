"""Prediction does not depend on how it is done; files of predictions are whole, checked, or not there."""

import ast
import csv
import json
import os
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import sample_examples, tiny_model

from mtl_re.config import EvaluateConfig, PredictConfig
from mtl_re.data.validation import Example
from mtl_re.errors import MtlReError
from mtl_re.predict.predict import predict
from mtl_re.predict.predictor import Predictor
from mtl_re.scoring import composed, evaluation, gating, writers
from mtl_re.scoring.composed import ComposedModel
from mtl_re.scoring.decoding import Decoding
from mtl_re.scoring.writers import Prediction, check_file, label_order, write_predictions
from mtl_re.taxonomy import BOOSTCAMP, KLUE, Taxonomy

PRIOR = [0.3, 0.3, 0.4]


@pytest.fixture(scope="module")
def ckpts(tokenizer, tmp_path_factory):
    """Two checkpoint directories with different weights."""
    paths = []
    for seed in (0, 1):
        path = tmp_path_factory.mktemp("ckpt")
        torch.manual_seed(seed)
        model = tiny_model(tokenizer, seed, training_prior=PRIOR)
        with torch.no_grad():  # untrained heads hardly tell labels apart
            for head in model.heads.values():
                head.weight.mul_(40)
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
        paths.append(str(path))
    return paths


@pytest.fixture(scope="module")
def few():
    return sample_examples("valid", 23)


@pytest.fixture(scope="module")
def expected(ckpts, few):
    return Predictor.from_pretrained(ckpts[0]).predict(few)


def write_rows(path, examples, **changes):
    path.write_text(json.dumps([e.to_row() | changes for e in examples], ensure_ascii=False), encoding="utf-8")
    return path


def assert_same(found, wanted, tolerance=1e-5):
    assert [p.id for p in found] == [p.id for p in wanted]
    for a, b in zip(found, wanted, strict=True):
        assert a.label == b.label
        assert np.allclose(list(a.probs.values()), list(b.probs.values()), atol=tolerance)


# ---- Predictor -----------------------------------------------------------------------------------------------------


def test_predictions_are_distributions(expected, few):
    assert [p.id for p in expected] == [e.id for e in few]
    assert len({p.label for p in expected}) > 1
    for p in expected:
        assert list(p.probs) == list(KLUE)
        assert sum(p.probs.values()) == pytest.approx(1, abs=1e-9)
        assert sum(p.coarse.values()) == pytest.approx(1, abs=1e-9)
        assert p.coarse["org"] == pytest.approx(sum(v for label, v in p.probs.items() if label.startswith("org:")))
        assert p.score == p.probs[p.label]


@pytest.mark.parametrize("batch_size", [1, 5, 64])
@pytest.mark.parametrize("window", [1, 7, 1000])
def test_windows_and_batches_change_nothing(ckpts, few, expected, batch_size, window):
    predictor = Predictor.from_pretrained(ckpts[0], batch_size=batch_size)
    assert_same(list(predictor.predict_stream(iter(few), window)), expected)


def test_row_order_changes_nothing(ckpts, few, expected):
    assert_same(Predictor.from_pretrained(ckpts[0]).predict(few[::-1])[::-1], expected)


def test_stream_reads_one_window_ahead_at_most(ckpts, few):
    read = []

    def rows():
        for example in few:
            read.append(example)
            yield example

    stream = Predictor.from_pretrained(ckpts[0]).predict_stream(rows(), 4)
    next(stream)
    assert len(read) == 4


def test_logits_that_are_not_finite_are_told(tokenizer, few):
    """`extract` would leave the pairs out: a score that is no number reaches no threshold."""
    model = tiny_model(tokenizer)
    with torch.no_grad():
        next(model.heads.parameters()).fill_(float("nan"))
    predictor = Predictor([ComposedModel.of(model, tokenizer)])
    with pytest.raises(MtlReError, match="window: 0; expected 1 or more"):
        list(predictor.predict_stream([], window=0))
    with pytest.raises(MtlReError, match="batch_size: -1; expected 1 or more"):
        Predictor([ComposedModel.of(model, tokenizer)], batch_size=-1)
    with pytest.raises(MtlReError, match=r"\d+ of \d+ rows have logits that are not finite"):
        predictor.predict(few)


def test_a_prior_needs_members_with_the_same_coarse_classes(tokenizer):
    other = {"no_relation": "no_relation", "groups": {}}
    groups = Taxonomy.from_prefixes().groups
    other["groups"] = {name: list(groups[name]) for name in reversed(groups)}
    models = [tiny_model(tokenizer, training_prior=PRIOR) for _ in range(2)]
    models[1] = tiny_model(tokenizer, training_prior=PRIOR, taxonomy=Taxonomy.from_dict(other).to_dict())
    members = [ComposedModel.of(model, tokenizer) for model in models]
    Predictor(members)
    with pytest.raises(MtlReError, match="--prior: these checkpoints divide the labels into coarse classes, or order"):
        Predictor(members, Decoding(prior="0.6,0.2,0.2"))


def test_rows_may_be_maps_in_klues_form(ckpts, few):
    predictor = Predictor.from_pretrained(ckpts[0])
    maps = [example.to_row() for example in few]
    assert predictor.predict(maps) == list(predictor.predict_stream(iter(maps))) == predictor.predict(few)


def test_a_map_that_is_no_row_is_named(ckpts, few):
    maps = [example.to_row() for example in few]
    del maps[6]["object_entity"]
    predictor = Predictor.from_pretrained(ckpts[0])
    for answers in (predictor.predict, lambda rows: list(predictor.predict_stream(rows, 4))):
        with pytest.raises(MtlReError, match=r"^row 7: object_entity: "):
            answers(maps)


def test_no_rows(ckpts):
    predictor = Predictor.from_pretrained(ckpts[0])
    assert predictor.predict([]) == []
    assert list(predictor.predict_stream(iter([]))) == []
    assert predictor.probabilities([]).shape == (0, 30)


def test_unlabelled_rows(ckpts, few, expected):
    bare = [Example(e.id, e.sentence, e.subject, e.object) for e in few]
    found = Predictor.from_pretrained(ckpts[0]).predict(bare)
    assert_same(found, expected)
    assert all(p.gold is None and "gold" not in p.record() for p in found)
    assert [p.gold for p in expected] == [e.label for e in few]


def test_soft_vote_is_the_mean(ckpts, few):
    each = [Predictor.from_pretrained(ckpt).probabilities(few) for ckpt in ckpts]
    both = Predictor.from_pretrained(*ckpts)
    assert np.allclose(both.probabilities(few), (each[0] + each[1]) / 2, atol=1e-12)
    assert not np.allclose(each[0], each[1])
    hard = gating.labels(torch.from_numpy((each[0] + each[1]) / 2), both.taxonomy, "hard")
    assert [p.label for p in both.predict(few)] == [KLUE[i] for i in hard]


def test_voters_of_another_label_order_are_aligned(ckpts, few, tokenizer):
    flat = tiny_model(tokenizer, 3, taxonomy=Taxonomy.from_prefixes(BOOSTCAMP).to_dict())
    one = Predictor.from_pretrained(ckpts[0]).members[0].root
    both = Predictor([ComposedModel.of(one, tokenizer), ComposedModel.of(flat, tokenizer)])
    alone = [Predictor([ComposedModel.of(model, tokenizer)]).predict(few) for model in (one, flat)]
    for p, a, b in zip(both.predict(few), *alone, strict=True):
        for label in KLUE:
            assert p.probs[label] == pytest.approx((a.probs[label] + b.probs[label]) / 2, abs=1e-12)


def test_voters_of_other_labels_are_refused(ckpts, tokenizer):
    other = tiny_model(tokenizer, taxonomy=Taxonomy.from_prefixes(("no_relation", "a:x", "a:y")).to_dict())
    one = Predictor.from_pretrained(ckpts[0]).members[0].root
    with pytest.raises(MtlReError, match="different labels"):
        Predictor([ComposedModel.of(one, tokenizer), ComposedModel.of(other, tokenizer)])


def test_gate_and_prior(ckpts, few):
    plain = Predictor.from_pretrained(ckpts[0])
    assert plain.decoding.gate == "hard"
    soft = Predictor.from_pretrained(ckpts[0], gate="soft").predict(few)
    assert all(p.label == max(p.probs, key=p.probs.get) for p in soft)
    shifted = Predictor.from_pretrained(ckpts[0], prior="0.9,0.05,0.05").predict(few)
    for a, b in zip(plain.predict(few), shifted, strict=True):
        assert b.coarse["no_relation"] > a.coarse["no_relation"] or a.coarse["no_relation"] > 0.999
        assert sum(b.probs.values()) == pytest.approx(1)
    same = Predictor.from_pretrained(ckpts[0], prior=",".join(map(str, PRIOR))).predict(few)
    assert_same(same, plain.predict(few), 1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prior": "em"}, "--prior em"),
        ({"precision": "fp16"}, "CUDA"),
        ({"prior": "0.5,0.5"}, "3 coarse classes"),
        ({"prior": "a,b,c"}, "expected none, em or shares"),
        ({"prior": "0.5,0.6,0.7"}, "sum to 1"),
        ({"prior": "nan,0.5,0.5"}, "positive shares"),
        ({"prior": "0,0.5,0.5"}, "positive shares"),
    ],
)
def test_faulty_options(ckpts, few, options, message):
    with pytest.raises(MtlReError, match=message):
        Predictor.from_pretrained(ckpts[0], **options).predict(few)


# ---- mtl-re predict ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_predict_writes_every_row_in_order(ckpts, few, expected, tmp_path, suffix):
    data = write_rows(tmp_path / "data.json", few)
    out = tmp_path / "new" / f"out{suffix}"
    assert predict(ckpts[:1], PredictConfig(data=str(data), output=str(out), window=5, batch_size=4)) == len(few)
    rows = read_back(out)
    assert [row["id"] for row in rows] == [e.id for e in few]
    assert [row.get("pred_label", row.get("label")) for row in rows] == [p.label for p in expected]
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def read_back(path):
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_predictions_are_those_of_evaluate(ckpts, few, tmp_path):
    data = write_rows(tmp_path / "data.json", few)
    evaluation.evaluate(ckpts[0], EvaluateConfig(data=str(data), predictions=str(tmp_path / "a.jsonl"), resamples=0))
    predict(ckpts[:1], PredictConfig(data=str(data), output=str(tmp_path / "b.jsonl"), window=4, batch_size=3))
    a, b = read_back(tmp_path / "a.jsonl"), read_back(tmp_path / "b.jsonl")
    assert len(a) == len(b) == len(few)
    for left, right in zip(a, b, strict=True):
        assert list(left) == list(right) == ["id", "label", "gold", "score", "coarse", "probs"]
        assert (left["id"], left["label"], left["gold"]) == (right["id"], right["label"], right["gold"])
        assert left["probs"] == pytest.approx(right["probs"], abs=1e-5)


def spoiled(few):
    rows = [e.to_row() for e in few]
    rows[2] = rows[2] | {"subject_entity": rows[2]["subject_entity"] | {"end_idx": 10_000}}
    return rows


def test_bad_row_ends_predict_and_leaves_no_file(ckpts, few, tmp_path):
    (tmp_path / "data.json").write_text(json.dumps(spoiled(few)))
    out = tmp_path / "out.jsonl"
    out.write_text("old")
    options = {"data": str(tmp_path / "data.json"), "output": str(out), "window": 1}
    with pytest.raises(MtlReError, match=r"data\.json:3: subject_entity\.end_idx"):
        predict(ckpts[:1], PredictConfig(**options))
    assert out.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.json", "out.jsonl"]


def test_bad_row_can_be_left_out(ckpts, few, tmp_path, capsys):
    (tmp_path / "data.json").write_text(json.dumps(spoiled(few)))
    out = tmp_path / "out.csv"
    options = PredictConfig(data=str(tmp_path / "data.json"), output=str(out), on_bad_row="skip")
    assert predict(ckpts[:1], options) == len(few) - 1
    assert [row["id"] for row in read_back(out)] == [e.id for i, e in enumerate(few) if i != 2]
    assert "1 bad rows left out" in capsys.readouterr().err


def unfit(few):
    """Rows that are well formed, but whose subject type no training row had."""
    rows = [e.to_row() for e in few]
    rows[2]["subject_entity"] = rows[2]["subject_entity"] | {"type": "ZZZ"}
    return rows


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_row_the_model_cannot_take_is_a_bad_row_too(ckpts, few, tmp_path, capsys, command):
    data = tmp_path / "data.json"
    data.write_text(json.dumps(unfit(few)))

    def run(on_bad_row):
        if command == "evaluate":
            return evaluation.evaluate(ckpts[0], EvaluateConfig(data=str(data), on_bad_row=on_bad_row, resamples=0))[
                "n"
            ]
        options = PredictConfig(data=str(data), output=str(tmp_path / "out.jsonl"), on_bad_row=on_bad_row)
        return predict(ckpts[:1], options)

    with pytest.raises(MtlReError, match="'ZZZ' is unknown to this model"):
        run("error")
    assert run("skip") == len(few) - 1
    assert "1 bad rows left out" in capsys.readouterr().err


def test_output_of_an_unknown_kind_is_refused_before_the_work(ckpts, few, tmp_path, monkeypatch):
    data = write_rows(tmp_path / "data.json", few)
    monkeypatch.setattr(composed, "all_logits", lambda *rest, **named: pytest.fail("worked first"))
    with pytest.raises(MtlReError, match="unknown kind of output"):
        predict(ckpts[:1], PredictConfig(data=str(data), output=str(tmp_path / "out.txt")))
    with pytest.raises(MtlReError, match="unknown kind of output"):
        evaluation.evaluate(ckpts[0], EvaluateConfig(data=str(data), predictions=str(tmp_path / "out.txt")))


# ---- writers -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def taxonomy():
    return Taxonomy.from_prefixes()


def made(count, taxonomy, gold=None, seed=0):
    generator = np.random.default_rng(seed)
    probs = generator.dirichlet(np.ones(30), count)
    return [Prediction.of(f"번호,{i}", row, int(row.argmax()), taxonomy, gold) for i, row in enumerate(probs)]


@pytest.mark.parametrize(("option", "order"), [(None, BOOSTCAMP), ("boostcamp", BOOSTCAMP), ("klue", KLUE)])
def test_submission(taxonomy, tmp_path, option, order):
    predictions, path = made(9, taxonomy), tmp_path / "s.csv"
    assert write_predictions(iter(predictions), path, taxonomy, label_order(option, taxonomy, ".csv")) == 9
    assert path.read_text(encoding="utf-8").splitlines()[0] == "id,pred_label,probs"
    for row, p in zip(read_back(path), predictions, strict=True):
        probs = ast.literal_eval(row["probs"])
        assert (row["id"], row["pred_label"]) == (p.id, p.label)
        assert probs == [p.probs[label] for label in order]
        assert sum(probs) == pytest.approx(1)
        assert order[int(np.argmax(probs))] == p.label


def test_label_orders(taxonomy):
    assert label_order(None, taxonomy, ".csv") == BOOSTCAMP
    assert label_order(None, taxonomy, ".jsonl") == KLUE
    other = Taxonomy.from_prefixes(("no_relation", "a:x", "a:y"))
    assert label_order(None, other, ".csv") == other.labels
    with pytest.raises(MtlReError, match="--label-order boostcamp"):
        label_order("boostcamp", other, ".csv")


@pytest.mark.parametrize("gold", [None, "per:title"])
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_records_read_back_equal(taxonomy, tmp_path, monkeypatch, suffix, gold):
    monkeypatch.setattr(writers, "_GROUP", 4)
    predictions, path = made(10, taxonomy, gold), tmp_path / f"p{suffix}"
    write_predictions(predictions, path, taxonomy)
    for row, p in zip(read_back(path), predictions, strict=True):
        if suffix == ".parquet" and gold is None:
            assert row.pop("gold") is None
        assert row == p.record()
        assert list(row["probs"]) == list(KLUE)


def test_parquet_of_rows_that_are_labelled_late(taxonomy, tmp_path, monkeypatch):
    """The first row group has no gold label at all, the second has."""
    monkeypatch.setattr(writers, "_GROUP", 4)
    predictions = made(4, taxonomy) + made(4, taxonomy, "per:title")
    write_predictions(predictions, tmp_path / "p.parquet", taxonomy)
    assert [row["gold"] for row in read_back(tmp_path / "p.parquet")] == [None] * 4 + ["per:title"] * 4


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_stream_that_fails_leaves_the_old_file(taxonomy, tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(writers, "_GROUP", 2)
    path = tmp_path / f"p{suffix}"

    def stream():
        yield from made(5, taxonomy)
        raise MtlReError("row 6 is bad")

    with pytest.raises(MtlReError, match="row 6"):
        write_predictions(stream(), path, taxonomy)
    assert not list(tmp_path.iterdir())
    path.write_text("old")
    with pytest.raises(MtlReError, match="row 6"):
        write_predictions(stream(), path, taxonomy)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_disk_that_fails_leaves_the_old_file(taxonomy, tmp_path, monkeypatch, call):
    path = tmp_path / "p.jsonl"
    path.write_text("old")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(MtlReError, match=r"p\.jsonl: cannot be written \(No space left"):
        write_predictions(made(3, taxonomy), path, taxonomy)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["p.jsonl"]


@pytest.mark.parametrize("name", ["p.txt", "p", "p.json", "p.csv.gz"])
def test_unknown_kind_of_output(taxonomy, tmp_path, name):
    with pytest.raises(MtlReError, match=r"expected one of \.csv, \.jsonl, \.parquet"):
        write_predictions(made(1, taxonomy), tmp_path / name, taxonomy)


def test_place_that_cannot_be_written(taxonomy, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MtlReError, match="cannot be written"):
        write_predictions(made(1, taxonomy), tmp_path / "file" / "p.csv", taxonomy)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(MtlReError, match="cannot be written"):
        write_predictions(made(1, taxonomy), tmp_path / "folder.csv", taxonomy)


# ---- check_file ----------------------------------------------------------------------------------------------------


def submission(tmp_path, taxonomy, change=lambda lines: lines, count=5):
    """A sound submission after `change` of its lines, with what `check_file` compares it with."""
    path = tmp_path / "s.csv"
    digest = writers.IdDigest()
    predictions = made(count, taxonomy)
    write_predictions(predictions, path, taxonomy)
    for p in predictions:
        digest.add(p.id)
    path.write_text("\n".join(change(path.read_text(encoding="utf-8").splitlines())) + "\n", encoding="utf-8")
    return path, ".csv", BOOSTCAMP, [(count, digest.hexdigest())]


def test_sound_submission_passes(tmp_path, taxonomy):
    check_file(*submission(tmp_path, taxonomy))


def swapped(lines):
    return [*lines[:1], lines[2], lines[1], *lines[3:]]


def with_probs(change):
    def act(lines):
        head, _, rest = lines[2].partition('"[')
        probs = [float(text) for text in rest.rstrip(']"').split(", ")]
        return [*lines[:2], f'{head}"{change(probs)}"', *lines[3:]]

    return act


FAULTS = {
    "row missing": (lambda lines: lines[:-1], "4 rows were written for 5"),
    "row twice": (lambda lines: [*lines, lines[-1]], "6 rows were written for 5"),
    "ids swapped": (swapped, "ids are out of order"),
    "id changed": (lambda lines: [*lines[:2], lines[2].replace("번호", "번오"), *lines[3:]], "out of order"),
    "nan": (with_probs(lambda p: [float("nan"), *p[1:]]), r"s\.csv:2: probs: expected 30 finite"),
    "infinite": (with_probs(lambda p: [float("inf"), *p[1:]]), r"s\.csv:2: probs"),
    "negative": (with_probs(lambda p: [-p[0], *p[1:]]), r"s\.csv:2: probs: expected 30 finite"),
    "above one": (with_probs(lambda p: [1.5, *p[1:]]), r"s\.csv:2: probs"),
    "29 of them": (with_probs(lambda p: p[1:]), r"s\.csv:2: probs: expected 30"),
    "sum": (with_probs(lambda p: [p[0] / 2, *p[1:]]), r"s\.csv:2: probs: they sum to"),
    "not a list": (with_probs(lambda p: 3), r"s\.csv:2: probs"),
    "not python": (with_probs(lambda p: "[0.1, 0.2"), r"s\.csv:2: probs"),
    "words": (with_probs(lambda p: ["a"] * 30), r"s\.csv:2: probs"),
    "cut short": (lambda lines: [*lines[:2], lines[2].split(',"[')[0], *lines[3:]], r"s\.csv:2: "),
    "label": (
        lambda lines: [
            *lines[:2],
            lines[2].replace(lines[2].split('"')[2].strip(",").split(",")[0], "per:friend"),
            *lines[3:],
        ],
        r"s\.csv:2: pred_label: 'per:friend' is not one of the 30 labels",
    ),
    "header": (lambda lines: ["id,label,probs", *lines[1:]], "header is"),
    "no header": (lambda lines: lines[1:], "header is"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_submission_is_caught(tmp_path, taxonomy, fault):
    change, message = FAULTS[fault]
    with pytest.raises(MtlReError, match=message):
        check_file(*submission(tmp_path, taxonomy, change))


def test_faulty_predictions_never_become_a_submission(tmp_path, taxonomy):
    """A model gone wrong: the file is refused and the old one stays."""
    path = tmp_path / "s.csv"
    path.write_text("old")
    bad = made(3, taxonomy)
    bad[1].probs["per:title"] = float("nan")
    with pytest.raises(MtlReError, match="row 번호,1: probs: expected 30 finite"):
        write_predictions(bad, path, taxonomy)
    assert path.read_text() == "old"


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("fault", ["row missing", "row twice", "ids swapped", "sum"])
def test_every_kind_of_file_is_read_back_before_it_appears(tmp_path, taxonomy, monkeypatch, suffix, fault):
    """Rows spoiled on their way to the disk."""
    real = writers.encode_rows

    def encode_rows(predictions, suffix, order):
        lines = real(predictions, suffix, order).splitlines(keepends=True)
        match fault:
            case "row missing":
                del lines[3]
            case "row twice":
                lines.insert(3, lines[3])
            case "ids swapped":
                lines[2:4] = lines[3:1:-1]
            case "sum":
                lines[4] = re.sub(rb"0\.\d+([\]}]+\"?\n)", rb"0.99\1", lines[4])
        return b"".join(lines)

    monkeypatch.setattr(writers, "encode_rows", encode_rows)
    path = tmp_path / f"p{suffix}"
    path.write_text("old")
    expected = {"row missing": "8 rows were written for 9", "row twice": "10 rows were written for 9"}
    expected |= {"ids swapped": "ids are out of order", "sum": rf"p{suffix}:5: probs: they sum to"}
    with pytest.raises(MtlReError, match=expected[fault]):
        write_predictions(made(9, taxonomy), path, taxonomy)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_checking_a_submission_leaves_the_csv_reader_alone(tmp_path, taxonomy):
    """The limit on a cell belongs to the whole process, and the reader of input files relies on its own."""
    before = csv.field_size_limit(4_000_000)
    try:
        check_file(*submission(tmp_path, taxonomy))
        assert csv.field_size_limit() == 4_000_000
    finally:
        csv.field_size_limit(before)
