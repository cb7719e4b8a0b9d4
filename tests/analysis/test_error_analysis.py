"""Error analysis: figures counted by hand, hostile text that stays text, files that do not belong together."""

import json
import re

import numpy as np
import pytest

from mtl_re import cli
from mtl_re.analysis import error_analysis, joined_rows
from mtl_re.config import ErrorsConfig
from mtl_re.data import sample
from mtl_re.data.validation import Entity, Example
from mtl_re.errors import MtlReError
from mtl_re.scoring import metrics
from mtl_re.taxonomy import Taxonomy

PNG = b"\x89PNG\r\n\x1a\n"
HEADS = """
groups: {no_relation: [no_relation], org: [org:a, org:b], per: [per:a]}
labels: [no_relation, org:a, org:b, per:a]
"""
LABELS = ["no_relation", "org:a", "org:b", "per:a"]
# gold, predicted, probabilities in LABELS order
MADE = [
    ("no_relation", "no_relation", [0.9, 0.1, 0.0, 0.0]),
    ("no_relation", "org:a", [0.3, 0.6, 0.1, 0.0]),  # false alarm
    ("no_relation", "per:a", [0.1, 0.1, 0.0, 0.8]),  # false alarm, the most confident
    ("org:a", "org:a", [0.2, 0.7, 0.1, 0.0]),
    ("org:a", "org:b", [0.2, 0.2, 0.6, 0.0]),  # wrong label
    ("org:b", "no_relation", [0.6, 0.0, 0.4, 0.0]),  # missed
    ("per:a", "org:a", [0.1, 0.5, 0.0, 0.4]),  # wrong branch
    ("per:a", "per:a", [0.2, 0.0, 0.0, 0.8]),
]
HOSTILE = (
    "a|b <script>alert(1)</script>\n# 머리 **굵게** [x](javascript:1) ![i](http://e.vil) `c` _d_ &lt;b&gt; \u202e$1$"
)


def predictions(made=MADE, labels=LABELS, **changes):
    """Lines of predictions .jsonl; a change of None takes the key out."""
    lines = []
    for number, (gold, label, probs) in enumerate(made):
        line = {"id": f"row-{number}", "label": label, "gold": gold, "probs": dict(zip(labels, probs, strict=True))}
        lines.append({key: value for key, value in (line | changes).items() if value is not None})
    return lines


def klue_rows(made=MADE, sentences=None, types=("ORG", "PER")):
    """Rows of DATA in KLUE's form that belong to `predictions`: the object stands before the subject."""
    rows = []
    for number, (gold, _, _) in enumerate(made):
        before, after = ("", "가 만났다.") if sentences is None else sentences[number]
        sentence = f"{before}객체와 주체{after}"
        at = len(before)
        rows.append(
            {
                "guid": f"row-{number}",
                "sentence": sentence,
                "subject_entity": {"word": "주체", "start_idx": at + 4, "end_idx": at + 5, "type": types[0]},
                "object_entity": {"word": "객체", "start_idx": at, "end_idx": at + 1, "type": types[1]},
                "label": gold,
            }
        )
    return rows


@pytest.fixture
def analyse(tmp_path):
    """Write the files, run the analysis, give its markdown."""

    def run(lines, rows=None, heads=HEADS, **options):
        (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        if rows is not None:
            (tmp_path / "d.json").write_text(json.dumps(rows), encoding="utf-8")
            options["data"] = str(tmp_path / "d.json")
        if heads is not None:
            (tmp_path / "heads.yaml").write_text(heads)
            options["heads"] = str(tmp_path / "heads.yaml")
        made = ErrorsConfig(output=str(tmp_path / "out"), **({"resamples": 20} | options))
        path = error_analysis.write_errors(tmp_path / "p.jsonl", made)
        assert path == tmp_path / "out" / "errors.md"
        return path.read_text(encoding="utf-8")

    return run


def section(markdown, title):
    return markdown.split(f"\n## {title}\n")[1].split("\n## ")[0]


def cells(markdown, first):
    """The cells after `first` of the table row that begins with it."""
    line = next(line for line in markdown.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[2:-1]]


# ---- figures -----------------------------------------------------------------------------------------------------


def test_figures_equal_those_counted_by_hand(analyse, undrawn):
    text = analyse(predictions(), klue_rows())
    assert cells(text, "micro-F1")[0] == "36.36"  # 2 hits, 6 relations predicted, 5 gold: 2·2 / (6 + 5)
    kinds = section(text, "Kinds of errors")
    assert cells(kinds, "missed: a relation predicted as none") == ["1", "12.50", "20.00"]
    assert cells(kinds, "false alarm: none predicted as a relation") == ["2", "25.00", "40.00"]
    assert cells(kinds, "wrong branch: another coarse class") == ["1", "12.50", "20.00"]
    assert cells(kinds, "wrong label: another label of the class") == ["1", "12.50", "20.00"]
    assert cells(section(text, "Labels"), "org:a")[:4] == ["2", "33.33", "50.00", "40.00"]
    confused = section(text, "Confused labels")
    assert "The 5 most frequent of 5 pairs hold 5 of 5 errors." in confused
    assert cells(confused, "no_relation") == ["org:a", "1", "33.3"]
    alarms = section(text, "False alarms: unrelated rows that are predicted as related")
    assert cells(alarms, "all")[:3] == cells(alarms, "ORG→PER")[:3] == ["3", "2", "66.67"]
    assert cells(section(text, "F1 by sentence length"), "0 to 49")[:3] == ["8", "5", "36.36"]
    assert cells(section(text, "F1 by entity types"), "ORG→PER")[:3] == ["8", "5", "36.36"]


def test_gate_curve_by_hand():
    related = np.array([True, False, True, False, True])
    scores = np.array([0.9, 0.8, 0.8, 0.3, 0.1])
    threshold, precision, recall, f1 = error_analysis.gate_curve(related, scores)
    assert threshold.tolist() == [0.9, 0.8, 0.3, 0.1]  # equal scores pass together
    assert precision == pytest.approx([100, 200 / 3, 50, 60])
    assert recall == pytest.approx([100 / 3, 200 / 3, 200 / 3, 100])
    assert f1 == pytest.approx([50, 200 / 3, 400 / 7, 75])


def test_gate_curve_is_what_each_threshold_counts():
    rng = np.random.default_rng(0)
    related, scores = rng.random(300) < 0.4, rng.integers(0, 40, 300) / 40
    curve = error_analysis.gate_curve(related, scores)
    assert curve[0].tolist() == sorted(set(scores), reverse=True)
    for threshold, *found in curve.T:
        passed = scores >= threshold
        hits = (passed & related).sum()
        precision, recall = 100 * hits / passed.sum(), 100 * hits / related.sum()
        f1 = 2 * precision * recall / (precision + recall) if hits else 0
        assert found == pytest.approx([precision, recall, f1])


def test_gate_table_has_the_operating_point(analyse, undrawn):
    gate = section(analyse(predictions()), "Gate: has a relation")
    assert cells(gate, "as predicted") == ["66.67", "80.00", "72.73"]  # 6 called related, 4 of the 5 that are
    # 1 - p(no_relation): related .8 .8 .4 .9 .8, not .1 .7 .9
    assert cells(gate, "0.8") == ["80.00", "80.00", "80.00"]
    assert cells(gate, r"0.400 (best F1 here)") == ["71.43", "100.00", "83.33"]
    assert cells(gate, "0.9") == ["50.00", "20.00", "28.57"]
    assert "a threshold of 0.700 would let as many through" in gate


def test_a_threshold_that_nothing_reaches_has_no_precision(analyse, undrawn):
    made = [("org:a", "org:a", [0.4, 0.6, 0.0, 0.0]), ("no_relation", "no_relation", [0.9, 0.1, 0.0, 0.0])]
    assert cells(section(analyse(predictions(made)), "Gate: has a relation"), "0.9") == ["–", "0.00", "–"]


def test_rare_labels_and_what_they_carry(analyse, undrawn):
    sure = {label: [1.0 if other == label else 0.0 for other in LABELS] for label in LABELS}
    counts = {"no_relation": 20, "org:a": 14, "org:b": 13, "per:a": 0}
    made = [(label, label, sure[label]) for label, count in counts.items() for _ in range(count)]
    text = analyse(predictions(made))
    rare = section(text, "Rare labels")
    assert "1 of 4 labels have 1 to 13 rows, 13 together (27.7 % of all)" in rare
    assert "these decide 25.0 of its 100 points; they give 25.00 of 87.50" in rare  # per:a has no row: 50
    assert cells(rare, "org:b") == ["13", "100.00", "100.00", "100.00", "100.00"]
    assert "| org:a |" not in rare
    assert cells(section(text, "Labels"), "per:a") == ["0", "–", "–", "–", "–"]
    assert "No row is wrong." in text


def test_error_kinds_are_those_that_metrics_counts():
    taxonomy = Taxonomy.from_prefixes()
    rng = np.random.default_rng(0)
    gold, pred = rng.integers(0, 30, (2, 500))
    probs = rng.dirichlet(np.ones(30), 500)
    kinds = error_analysis.error_kinds(joined_rows.Rows([], gold, pred, probs, None, taxonomy, 0))
    expected = metrics.all_metrics(gold, probs, pred, pred, "hard", taxonomy, resamples=0)["errors"]
    assert {kind: int((kinds == kind).sum()) for kind in expected} == expected
    assert min(expected.values()) > 0
    assert ((kinds == "") == (gold == pred)).all()


def test_lengths_and_types_part_the_rows(analyse, undrawn):
    sentences = [("가" * length, "") for length in (0, 43, 44, 94, 144, 194, 300, 10)]  # six characters more each
    rows = klue_rows(sentences=sentences)
    for row in rows[:3]:
        row["subject_entity"]["type"] = "LOC"
    text = analyse(predictions(), rows, resamples=0)
    lengths = section(text, "F1 by sentence length")
    starts = {"0 to 49": "3", "50 to 99": "1", "100 to 149": "1", "150 to 199": "1", "200 or more": "2"}
    assert {name: cells(lengths, name)[0] for name in starts} == starts
    assert cells(lengths, "150 to 199") == ["1", "1", "0.00", "–"]  # the missed row; no resamples, no interval
    types = section(text, "F1 by entity types")
    assert cells(types, "LOC→PER")[:2] == ["3", "0"]
    assert types.index("ORG→PER |") < types.index("LOC→PER |")
    alarms = section(text, "False alarms: unrelated rows that are predicted as related")
    assert cells(alarms, "LOC→PER")[:3] == ["3", "2", "66.67"]
    assert "| ORG→PER |" not in alarms  # no row of no relation


def test_many_type_pairs_share_the_last_part():
    def example(kind):
        return Example("1", "가나", Entity("가", 0, 0, kind), Entity("나", 1, 1, "X"))

    masks = error_analysis.type_pairs([example(f"T{number}") for number in range(25)] + [example("T3")])
    assert len(masks) == 20
    assert next(iter(masks)) == "T3→X"
    assert masks["other"].sum() == 6
    assert (np.sum(list(masks.values()), axis=0) == 1).all()


# ---- examples and their text -------------------------------------------------------------------------------------


def test_examples_are_the_most_confident_errors(analyse, undrawn):
    kinds = section(analyse(predictions(), klue_rows(), examples=1), "Kinds of errors")
    alarm = kinds.split("### False alarm\n")[1].split("###")[0]
    assert "The most confident 1 of 2:" in alarm
    assert alarm.count("\n- ") == 1
    assert r"gold no\_relation (0.100), predicted per:a, score 0.800" in alarm
    assert r"coarse: no\_relation 0.100, org 0.100, per 0.800; row row-2, ORG→PER" in alarm
    assert "“<b>[object: 객체]</b>와 <b>[subject: 주체]</b>가 만났다.”" in alarm
    assert "### " not in section(analyse(predictions(), examples=0), "Kinds of errors")


def test_hostile_text_stays_text(analyse, undrawn):
    lines = predictions()
    rows = klue_rows(sentences=[(HOSTILE, HOSTILE)] * len(MADE), types=("<i>[t](u)|\n", "P" * 100))
    for place, (line, row) in enumerate(zip(lines, rows, strict=True)):
        line["id"] = row["guid"] = f"<img src=x>|{place}\n# id"
    text = analyse(lines, rows)
    assert not set(re.findall(r"<[^>]*>", text)) - {"<b>", "</b>"}
    assert r"a\|b &lt;script&gt;alert(1)&lt;/script&gt; # 머리 \*\*굵게\*\* \[x\](javascript:1)" in text
    assert r"\!\[i\](http\://e.vil) \`c\` \_d\_ &amp;lt;b&amp;gt;  \$1\$" in text
    assert "\u202e" not in text
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert all(re.fullmatch(r"#+ [\w .:,]+", line) for line in headings)
    assert not re.search(r"(?<!\\)\[(?!subject: 주체\]<|object: 객체\]<|Gate\]|F1 by|False alarms)", text)
    table_rows = [line for line in text.splitlines() if line.startswith("| ?i?")]
    assert len(table_rows) == 2
    assert {len(re.split(r"(?<!\\)\|", line)) for line in table_rows} == {7}


def test_marking_keeps_every_character_of_a_plain_sentence():
    example = Example("1", "그는  서울에 산다", Entity("그", 0, 0, "PER"), Entity("서울", 4, 5, "LOC"))
    assert error_analysis.marked(example) == "<b>[subject: 그]</b>는  <b>[object: 서울]</b>에 산다"


# ---- what may be missing or wrong --------------------------------------------------------------------------------


def test_without_data_there_are_no_sentences(analyse, undrawn, tmp_path):
    text = analyse(predictions())
    assert "no data: no sentences, lengths or entity types" in text
    assert "row row-2\n" in text
    assert "F1 by" not in text
    assert "[subject" not in text
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"gate.png", "false_alarms.png"}


def test_gold_may_come_from_the_data(analyse, undrawn):
    with_gold = analyse(predictions(), klue_rows())
    assert analyse(predictions(gold=None), klue_rows()) == with_gold
    with pytest.raises(MtlReError, match=r"p\.jsonl:1: gold: missing; .* --data"):
        analyse(predictions(gold=None))


def test_a_null_gold_is_a_missing_one(analyse, undrawn):
    lines = [line | {"gold": None} for line in predictions()]
    assert analyse(lines, klue_rows()) == analyse(predictions(), klue_rows())


def test_predictions_and_data_must_be_the_same_rows(analyse):
    lines, rows = predictions(), klue_rows()
    swapped = [rows[1], rows[0], *rows[2:]]
    with pytest.raises(
        MtlReError, match=r"p\.jsonl:1: id: 'row-0', but .*d\.json:1 \(row-1\) has 'row-1'; .* same order"
    ):
        analyse(lines, swapped)
    with pytest.raises(MtlReError, match=r"p\.jsonl:8: the file ends after 8 row\(s\); .*d\.json:9 \(more\)"):
        analyse(lines, [*rows, rows[0] | {"guid": "more"}])
    with pytest.raises(MtlReError, match=r"p\.jsonl:8: id: 'row-7' has no row; .*d\.json ends after 7 row"):
        analyse(lines, rows[:-1])
    with pytest.raises(MtlReError, match=r"p\.jsonl:2: gold: 'no_relation', but .*d\.json:2 \(row-1\) has 'org:b'"):
        analyse(lines, [rows[0], rows[1] | {"label": "org:b"}, *rows[2:]])


def test_bad_rows_of_the_data_are_left_out_and_counted(analyse, undrawn):
    rows = [klue_rows()[0] | {"sentence": ""}, *klue_rows()]
    with pytest.raises(MtlReError, match=r"d\.json:1: sentence"):
        analyse(predictions(), rows)
    assert ", 1 bad row(s) left out." in analyse(predictions(), rows, on_bad_row="skip")


def test_rows_that_prediction_left_out_are_passed_over(analyse, undrawn, capsys):
    """Whether a row fits into the model's length is not seen from DATA."""
    rows = klue_rows()
    rows[3:3] = [rows[0] | {"guid": "too-long"}]
    with pytest.raises(MtlReError, match="both must hold the same rows"):
        analyse(predictions(), rows)
    assert ", 1 bad row(s) left out." in analyse(predictions(), rows, on_bad_row="skip")
    assert "1 of 9 rows have no prediction and are left out" in capsys.readouterr().err


def test_a_row_left_out_whose_id_another_row_has(analyse):
    """Which of the two has the prediction cannot be told."""
    rows = klue_rows()
    rows[3:3] = [rows[3] | {"sentence": rows[3]["sentence"] + " 너무 긴 문장."}]
    with pytest.raises(MtlReError, match=r"d\.json:5 \(row-3\): id 'row-3' stands in several rows"):
        analyse(predictions(), rows, on_bad_row="skip")


def test_other_labels_than_those_of_heads(analyse):
    with pytest.raises(
        MtlReError, match=r"p\.jsonl:1: probs: 32 label\(s\) differ from those of --heads, first 'org:a'"
    ):
        analyse(predictions(), heads=None)
    with pytest.raises(MtlReError, match=r"p\.jsonl: no rows"):
        analyse([])


def test_label_order_does_not_matter(analyse, undrawn):
    turned = [line | {"probs": dict(reversed(line["probs"].items()))} for line in predictions()]
    assert analyse(turned) == analyse(predictions())


@pytest.mark.parametrize("label", LABELS)
def test_a_file_of_one_label(analyse, undrawn, label):
    """No relation at all, or nothing but relations; every row wrong, or none."""
    made = [(label, other, [0.25] * 4) for other in LABELS]
    for part in (made, [row for row in made if row[0] == row[1]]):
        text = analyse(predictions(part), klue_rows(part))
        related = label != "no_relation"
        assert ("No row is unrelated." in text) == related
        assert ("gate.png" in text) == related


def test_a_label_set_without_no_relation(analyse, undrawn):
    made = [("rise", "fall", [0.4, 0.1, 0.5]), ("fall", "fall", [0.2, 0.2, 0.6]), ("jump", "rise", [0.6, 0.3, 0.1])]
    lines = predictions(made, ["rise", "jump", "fall"])
    text = analyse(lines, klue_rows(made), heads="groups: {up: [rise, jump], down: [fall]}")
    assert "No curve" in text
    assert cells(text, "wrong branch: another coarse class")[0] == "1"
    assert cells(text, "wrong label: another label of the class")[0] == "1"


def test_the_command_writes_pictures(tmp_path, capsys):
    rng = np.random.default_rng(0)
    klue = Taxonomy.from_prefixes().labels
    rows = sample.rows("test", 60)
    probs = rng.dirichlet(np.full(30, 0.1), len(rows))
    lines = [
        {"id": row["guid"], "label": klue[int(p.argmax())], "probs": dict(zip(klue, map(float, p), strict=True))}
        for row, p in zip(rows, probs, strict=True)
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "d.json").write_text(json.dumps(rows))
    given = ["errors", tmp_path / "p.jsonl", "--data", tmp_path / "d.json", "--output", tmp_path / "out"]
    assert cli.main([*map(str, given), "--resamples", "20"]) == 0
    text = (tmp_path / "out" / "errors.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / "errors.md")
    pictures = set(re.findall(r"\]\((\w+\.png)\)", text))
    assert pictures == {"gate.png", "lengths.png", "types.png", "false_alarms.png"}
    assert all((tmp_path / "out" / name).read_bytes().startswith(PNG) for name in pictures)
    assert cli.main(["errors", str(tmp_path / "no.jsonl"), "--output", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no.jsonl: cannot be read" in error
    assert cli.main(["errors", "p.jsonl", "--output", "x", "--examples", "-1"]) == 2
