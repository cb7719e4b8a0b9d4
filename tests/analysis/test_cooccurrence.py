"""The co-occurrence rate: counted by hand on small predictions."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import sample_examples

from mtl_re import cli
from mtl_re.analysis.cooccurrence import cooccurrence, false_rate, render_cooccurrence
from mtl_re.config import CooccurrenceConfig
from mtl_re.errors import MtlReError
from mtl_re.predict.predictor import Predictor
from mtl_re.taxonomy import KLUE, NO_RELATION, Taxonomy


def written(tmp_path, rows):
    """Predictions from (gold, label, p(no_relation), p(per:title)); what is left goes to org:members."""
    lines = []
    for number, (gold, label, none, title) in enumerate(rows):
        probs = dict.fromkeys(KLUE, 0.0) | {NO_RELATION: none, "per:title": title, "org:members": 1 - none - title}
        lines.append(
            json.dumps({"id": str(number), "gold": gold, "label": label, "score": probs[label], "probs": probs})
        )
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


ROWS = [
    (NO_RELATION, NO_RELATION, 0.9, 0.05),
    (NO_RELATION, "per:title", 0.3, 0.6),
    (NO_RELATION, "per:title", 0.4, 0.45),
    (NO_RELATION, NO_RELATION, 0.45, 0.275),  # related at 0.5 on 1 - p(no_relation), though no_relation is predicted
    ("per:title", "per:title", 0.1, 0.8),
    ("per:title", NO_RELATION, 0.8, 0.1),
]


def test_the_rate_as_predicted(tmp_path):
    result = cooccurrence(written(tmp_path, ROWS), CooccurrenceConfig())
    assert (result["rate"], result["n"], result["related"], result["threshold"]) == (0.5, 4, 2, None)
    assert (result["recall"], result["rows"], result["by_types"]) == (0.5, 6, {})


def test_the_rate_at_thresholds(tmp_path):
    result = cooccurrence(written(tmp_path, ROWS), CooccurrenceConfig(threshold=0.5, thresholds=[0.5, 0.7, 0.0]))
    assert (result["rate"], result["threshold"]) == (0.75, 0.5)
    half, more, zero = result["thresholds"]
    assert (half["any_relation"]["rate"], half["any_relation"]["recall"]) == (0.75, 0.5)
    assert (half["one_relation"]["rate"], half["one_relation"]["recall"]) == (0.25, 0.5)
    assert more["any_relation"]["rate"] == 0.25  # 1 - 0.3 reaches 0.7
    assert zero["any_relation"]["rate"] == zero["one_relation"]["rate"] == 1


def test_a_threshold_counts_what_extract_gives(tmp_path):
    """The hard gate opens org (0.4 in all), but per:title (0.38) is the most probable relation by far."""
    taxonomy = Taxonomy.from_prefixes()
    orgs = [label for label in KLUE if label.startswith("org:")]
    probs = dict.fromkeys(KLUE, 0.0) | dict.fromkeys(orgs, 0.4 / len(orgs)) | {NO_RELATION: 0.22, "per:title": 0.38}
    row = {"id": "0", "gold": NO_RELATION, "label": orgs[0], "score": probs[orgs[0]], "probs": probs}
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")

    class Asked:
        """What `extract` asks: the same probabilities for every pair, decoded by the hard gate."""

        reading = SimpleNamespace(gate="hard")
        entity_types = ()

        def __init__(self):
            self.taxonomy = taxonomy

        def probabilities(self, rows):
            return np.array([[probs[label] for label in taxonomy.labels]] * len(rows))

    for at in cooccurrence(path, CooccurrenceConfig(thresholds=[0.03, 0.1, 0.38, 0.39]))["thresholds"]:
        triples = Predictor.extract(Asked(), "가 나", [(0, 0, "PER"), (2, 2, "LOC")], at["threshold"])
        assert [triple.relation for triple in triples] == ["per:title"] * int(at["one_relation"]["rate"]), at


def test_wilsons_interval():
    z, n, p = 1.959963984540054, 10, 0.3  # worked from the formula, not from the library
    middle, half = (p + z * z / (2 * n)), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    found = false_rate(np.array([True] * 3 + [False] * 7))
    assert found["low"] == pytest.approx((middle - half) / (1 + z * z / n), abs=1e-12)
    assert found["high"] == pytest.approx((middle + half) / (1 + z * z / n), abs=1e-12)
    assert false_rate(np.zeros(5, bool))["low"] == 0


def test_by_entity_types(tmp_path):
    examples = [row for row in sample_examples("train", 200) if row.label in (NO_RELATION, "per:title")][:40]
    rows = [(row.label, "per:title" if row.object.type == "ORG" else NO_RELATION, 0.5, 0.25) for row in examples]
    path = written(tmp_path, rows)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for line, row in zip(lines, examples, strict=True):
        line["id"] = row.id
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    data = tmp_path / "d.json"
    data.write_text(json.dumps([row.to_row() for row in examples], ensure_ascii=False), encoding="utf-8")
    parts = cooccurrence(path, CooccurrenceConfig(data=str(data)))["by_types"]
    unrelated = [row for row in examples if row.label == NO_RELATION]
    assert sum(part["n"] for part in parts.values()) == len(unrelated) > 10
    assert list(parts.values()) == sorted(parts.values(), key=lambda part: -part["n"])
    assert len(parts) > 2
    for name, part in parts.items():
        assert part["rate"] == (1.0 if name.endswith("→ORG") else 0.0), name


def test_data_are_read_as_the_options_say(tmp_path):
    """Spans whose ends lie behind the last character, as doccano writes them."""
    examples = sample_examples("train", 5)
    path = written(tmp_path, [(NO_RELATION, NO_RELATION, 0.9, 0.05) for _ in examples])
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [example.to_row() | {"label": NO_RELATION} for example in examples]
    for line, row in zip(lines, rows, strict=True):
        line["id"] = row["guid"]
        for entity in ("subject_entity", "object_entity"):
            row[entity]["end_idx"] += 1
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    data = tmp_path / "d.json"
    data.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    assert cooccurrence(path, CooccurrenceConfig(data=str(data), span_ends="exclusive"))["n"] == 5
    with pytest.raises(MtlReError, match="--span_ends exclusive"):
        cooccurrence(path, CooccurrenceConfig(data=str(data)))


@pytest.mark.parametrize(
    ("rows", "text"),
    [([("per:title", "per:title", 0.1, 0.8)], "no row has the gold label no_relation"), ([], "no rows")],
)
def test_nothing_to_measure(tmp_path, rows, text):
    with pytest.raises(MtlReError, match=text):
        cooccurrence(written(tmp_path, rows), CooccurrenceConfig())


def test_the_command_writes_what_the_model_card_takes(tmp_path, capsys):
    path, output = written(tmp_path, ROWS), tmp_path / "c.json"
    assert cli.main(["cooccurrence", str(path), "--output", str(output)]) == 0
    said = capsys.readouterr().out
    result = json.loads(output.read_text(encoding="utf-8"))
    assert {"rate", "low", "high", "n", "threshold"} <= set(result)
    assert 0 <= result["low"] < result["rate"] < result["high"] <= 1
    assert said == render_cooccurrence(result) + "\n"
    assert "as predicted: 50.0 % [15.0, 85.0] of 4" in said
    assert cli.main(["cooccurrence", str(path), "--threshold", "1.5"]) == 2
    assert cli.main(["cooccurrence", str(tmp_path / "none.jsonl")]) == 1
