"""A vote over files is the weighted mean of their probabilities, whatever their formats; odd members are named."""

import csv
import json

import numpy as np
import pytest
from conftest import sample_examples

from mtl_re import cli
from mtl_re.config import VoteConfig
from mtl_re.errors import MtlReError
from mtl_re.predict.vote import vote_files, vote_shares
from mtl_re.scoring.prediction_files import prediction_rows
from mtl_re.scoring.writers import Prediction, write_predictions
from mtl_re.taxonomy import LABEL_ORDERS, Taxonomy

TAXONOMY = Taxonomy.from_option("hierarchical")
ROWS = 7


def drawn(seed: int) -> np.ndarray:
    """(rows, labels) probabilities."""
    return np.random.default_rng(seed).dirichlet(np.ones(len(TAXONOMY.labels)), ROWS)


@pytest.fixture
def members(tmp_path) -> tuple[list[str], list[np.ndarray]]:
    """One file of each kind, and their probabilities."""
    files, values = [], [drawn(seed) for seed in range(3)]
    for suffix, probs in zip((".csv", ".jsonl", ".parquet"), values, strict=True):
        gold = TAXONOMY.labels[3] if suffix == ".jsonl" else None
        rows = [Prediction.of(f"r{i}", row, int(row.argmax()), TAXONOMY, gold) for i, row in enumerate(probs)]
        write_predictions(rows, tmp_path / f"member{suffix}", TAXONOMY)
        files.append(str(tmp_path / f"member{suffix}"))
    return files, values


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_the_weighted_mean(tmp_path, members, suffix):
    files, values = members
    output = tmp_path / f"out{suffix}"
    assert vote_files(files, TAXONOMY, VoteConfig(str(output), weights="2,1,1")) == ROWS
    expected = np.average(values, axis=0, weights=[2, 1, 1])
    for number, (_, row) in enumerate(prediction_rows(output)):
        assert row["id"] == f"r{number}"
        assert [row["probs"][label] for label in TAXONOMY.labels] == pytest.approx(expected[number], abs=1e-9)
        assert row["label"] == TAXONOMY.labels[expected[number].argmax()]
        assert row.get("gold") == (None if suffix == ".csv" else TAXONOMY.labels[3])


def test_the_gate_picks_the_label(tmp_path, members):
    """Of one file the hard gate gives what `predict` gave under it; coarse classes are 50 and 50 %, nearly."""
    probs = np.full(30, 1e-3)
    probs[TAXONOMY.labels.index("no_relation")] = 0.4
    probs[[TAXONOMY.labels.index(label) for label in ("per:title", "per:spouse")]] = 0.3, 0.27
    probs /= probs.sum()
    write_predictions([Prediction.of("r", probs, 0, TAXONOMY, None)], tmp_path / "one.jsonl", TAXONOMY)
    labels = {}
    for gate in ("soft", "hard"):
        vote_files([str(tmp_path / "one.jsonl")], TAXONOMY, VoteConfig(str(tmp_path / f"{gate}.jsonl"), gate=gate))
        labels[gate] = next(prediction_rows(tmp_path / f"{gate}.jsonl"))[1]["label"]
    assert labels == {"soft": "no_relation", "hard": "per:title"}


def test_other_coarse_classes_than_those_of_heads_are_refused(tmp_path):
    row = {"id": "r", "label": TAXONOMY.labels[0], "score": 1 / 30, "coarse": {"no_relation": 0.5, "related": 0.5}}
    row["probs"] = dict.fromkeys(TAXONOMY.labels, 1 / 30)
    (tmp_path / "a.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    with pytest.raises(MtlReError, match="are no_relation, related, those of --heads no_relation, org, per"):
        vote_files([str(tmp_path / "a.jsonl")], TAXONOMY, VoteConfig(str(tmp_path / "out.jsonl")))


@pytest.mark.parametrize(
    ("gold", "fault"),
    [(TAXONOMY.labels[5], r"b\.jsonl:1: gold: .* but .*a\.jsonl:1 has"), (17, "17 is not one of the 30 labels")],
)
def test_files_that_disagree_on_gold_are_not_voted(tmp_path, gold, fault):
    probs = np.full(30, 1 / 30)
    for name, label in (("a", TAXONOMY.labels[3]), ("b", gold)):
        row = {"id": "r", "label": TAXONOMY.labels[0], "gold": label, "score": 1 / 30, "coarse": {}}
        row["probs"] = dict(zip(TAXONOMY.labels, probs.tolist(), strict=True))
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    files = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    with pytest.raises(MtlReError, match=fault):
        vote_files(files, TAXONOMY, VoteConfig(output=str(tmp_path / "out.jsonl")))


def test_the_command(tmp_path, members, capsys):
    output = tmp_path / "out.csv"
    files = members[0][:2]
    assert cli.main(["vote", *files, "--weights", "3,1", "--output", str(output)]) == 0
    assert f"{ROWS} predictions in" in capsys.readouterr().out
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = np.average(members[1][:2], axis=0, weights=[3, 1])
    columns = [TAXONOMY.labels.index(label) for label in LABEL_ORDERS["boostcamp"]]
    assert json.loads(rows[4]["probs"]) == pytest.approx(expected[4, columns], abs=1e-9)
    assert cli.main(["vote", *files, "--weights", "3", "--output", str(output)]) == 1
    assert "1 weight(s) for 2 members" in capsys.readouterr().err


def test_another_label_order_of_submissions(tmp_path, members):
    file = tmp_path / "klue.csv"
    rows = [Prediction.of(f"r{i}", row, 0, TAXONOMY, None) for i, row in enumerate(members[1][0])]
    write_predictions(rows, file, TAXONOMY, LABEL_ORDERS["klue"])
    vote_files([str(file)] * 2, TAXONOMY, VoteConfig(str(tmp_path / "out.jsonl"), label_order="klue"))
    _, row = next(prediction_rows(tmp_path / "out.jsonl"))
    assert [row["probs"][label] for label in TAXONOMY.labels] == pytest.approx(members[1][0][0], abs=1e-9)


def rewritten(tmp_path, members, change) -> list[str]:
    """The .csv member, and the .jsonl one after a change of its lines."""
    lines = (tmp_path / "member.jsonl").read_text().splitlines()
    (tmp_path / "changed.jsonl").write_text("\n".join(change(lines)) + "\n")
    return [members[0][0], str(tmp_path / "changed.jsonl")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:-1], r"member\.csv:7: id: 'r6' has no counterpart"),
        (lambda lines: [*lines, lines[0]], r"changed\.jsonl:8: id: 'r0' has no counterpart"),
        (lambda lines: lines[::-1], r"changed\.jsonl:1: id: 'r6', but .*member\.csv:1 has 'r0'"),
        (lambda lines: [line.replace("per:title", "per:job") for line in lines], r"2 label\(s\) differ .* 'per:job'"),
        (lambda lines: ["{", *lines], r"changed\.jsonl:1: not JSON"),
        (
            lambda lines: [line.replace('"no_relation": 0.', '"no_relation": 9.') for line in lines],
            "expected a probability",
        ),
    ],
)
def test_members_that_do_not_fit_are_named(tmp_path, members, change, message):
    output = tmp_path / "out.jsonl"
    with pytest.raises(MtlReError, match=message):
        vote_files(rewritten(tmp_path, members, change), TAXONOMY, VoteConfig(str(output)))
    assert not output.exists()


@pytest.mark.parametrize("weights", ["1", "1,0", "1,-2", "1,nan", "1,inf", "1,x", ""])
def test_weights_at_fault(weights):
    with pytest.raises(MtlReError, match="--weights"):
        vote_shares(weights, 2)


# ---- submissions whose probabilities are not what they seem ----------------------------------------------------------


def submission(path, order, probs=None) -> str:
    """Rows whose pred_label is the most probable label, probabilities in an order."""
    values = drawn(5) if probs is None else probs
    rows = [Prediction.of(f"r{i}", row, int(row.argmax()), TAXONOMY, None) for i, row in enumerate(values)]
    write_predictions(rows, path, TAXONOMY, LABEL_ORDERS[order])
    return str(path)


def test_probabilities_in_another_order_are_noticed(tmp_path):
    file = submission(tmp_path / "klue.csv", "klue")
    given = {"output": str(tmp_path / "out.csv")}
    with pytest.raises(MtlReError, match=r"in the order `klue` in 100 %; give --label_order klue"):
        vote_files([file, file], TAXONOMY, VoteConfig(**given))
    assert vote_files([file, file], TAXONOMY, VoteConfig(**given, label_order="klue")) == ROWS


def test_compare_takes_the_order_of_a_submission(tmp_path, capsys):
    file = submission(tmp_path / "klue.csv", "klue")
    rows = [row.to_row() | {"guid": f"r{i}"} for i, row in enumerate(sample_examples("valid", ROWS))]
    (tmp_path / "gold.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    words = ["compare", file, file, "--data", str(tmp_path / "gold.json"), "--resamples", "10"]
    assert cli.main(words) == 1
    assert "give --label_order klue" in capsys.readouterr().err
    assert cli.main([*words, "--label_order", "klue"]) == 0


@pytest.mark.parametrize("value", [0.5, 0.0])
def test_rows_that_do_not_add_up_to_one_are_no_probabilities(tmp_path, value):
    file, labels = str(tmp_path / "flat.csv"), len(TAXONOMY.labels)
    (tmp_path / "flat.csv").write_text(f'id,pred_label,probs\nr0,no_relation,"{[value] * labels}"\n', encoding="utf-8")
    with pytest.raises(MtlReError, match=rf"flat\.csv:1: probs: they add up to {30 * value:g}; expected"):
        vote_files([file, file], TAXONOMY, VoteConfig(output=str(tmp_path / "out.csv")))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_predictions_that_another_program_has_saved_again(tmp_path, encoding):
    for name in ("a.csv", "a.jsonl"):
        path = tmp_path / name
        submission(path, "boostcamp") if name == "a.csv" else write_predictions(
            [Prediction.of(f"r{i}", row, int(row.argmax()), TAXONOMY, None) for i, row in enumerate(drawn(5))],
            path,
            TAXONOMY,
        )
        path.write_text(path.read_text(encoding="utf-8"), encoding=encoding)
    files = [str(tmp_path / name) for name in ("a.csv", "a.jsonl")]
    assert vote_files(files, TAXONOMY, VoteConfig(output=str(tmp_path / "out.csv"))) == ROWS


def test_submissions_of_another_label_set(tmp_path):
    heads = tmp_path / "heads.yaml"
    heads.write_text("groups: {no_relation: [no_relation], a: [a:x, a:y]}  # 지도\n", encoding="utf-16")
    taxonomy = Taxonomy.from_option(str(heads))
    probs = np.random.default_rng(0).dirichlet(np.ones(3), ROWS)
    rows = [Prediction.of(f"r{i}", row, int(row.argmax()), taxonomy, None) for i, row in enumerate(probs)]
    write_predictions(rows, tmp_path / "a.csv", taxonomy)
    made = [row.to_row() | {"guid": f"r{i}", "label": "a:x"} for i, row in enumerate(sample_examples("valid", ROWS))]
    (tmp_path / "gold.json").write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")
    words = [str(tmp_path / "a.csv")] * 2 + ["--data", str(tmp_path / "gold.json"), "--heads", str(heads)]
    assert cli.main(["compare", *words, "--resamples", "10"]) == 0
    assert cli.main(["errors", words[0], *words[2:], "--output", str(tmp_path / "errors"), "--resamples", "0"]) == 0
