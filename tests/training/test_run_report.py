"""Reports of made-up runs: the files stand, the figures are evaluate's, and no name breaks a table or a picture."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import yaml

from mtl_re import figures
from mtl_re.errors import MtlReError
from mtl_re.files import read_json
from mtl_re.scoring import metrics
from mtl_re.scoring.summary import evaluation_summary
from mtl_re.taxonomy import Taxonomy
from mtl_re.training import learning_curves, run_report
from mtl_re.training.metrics_log import read_log

TAXONOMY = Taxonomy.from_prefixes()
PNG = b"\x89PNG\r\n\x1a\n"


def result_of(taxonomy=TAXONOMY, rows=400, present=None, resamples=20):
    """evaluate's JSON of random predictions; only the first `present` labels have gold rows."""
    rng = np.random.default_rng(0)
    classes = len(taxonomy.labels)
    gold = rng.integers(0, present or classes, rows)
    probs = rng.dirichlet(np.ones(classes), rows)
    probs[np.arange(rows), gold] += 0.2
    probs /= probs.sum(axis=1, keepdims=True)
    labels = probs.argmax(axis=1)
    return metrics.all_metrics(gold, probs, labels, labels, "hard", taxonomy, resamples=resamples)


def log_lines(result, steps=4, valid=True, heads=("coarse", "org", "per")):
    lines = []
    for step in range(1, steps + 1):
        values = {head: 2.0 / step + place for place, head in enumerate(heads)}
        rows = {head: 0 if place and step == 2 else 32 for place, head in enumerate(heads)}
        weights = dict.fromkeys(heads, 1.0)
        lines.append({"kind": "train", "step": step, "loss": values, "labelled_rows": rows, "weights": weights})
        if valid:
            kept = {key: result[key] for key in ("n", "micro_f1", "auprc")}
            lines.append({"kind": "valid", "step": step, "selection": step, "best": step < 3, **kept})
    return lines


def make_run(folder, result, lines, taxonomy=TAXONOMY):
    """A run directory as `train` leaves it, as far as the report reads it."""
    (folder / "model").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    options = {"loss": {"kind": "focal", "weights": {"org": 2.0}, "rdrop": 1.0, "focal_gamma": 2.0}}
    (folder / "config.yaml").write_text(yaml.safe_dump(options, sort_keys=False))
    part = {"source": "a|b.json", "sha256": None, "rows": 7, "labels": {taxonomy.labels[0]: 5, taxonomy.labels[1]: 2}}
    manifest = {"data": {"train": part, "valid": part, "rejected": 3, "dropped_overlap": 1234}, "seed": 11, "git": None}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "model" / "config.json").write_text(json.dumps({"taxonomy": taxonomy.to_dict()}))
    if result is not None:
        (folder / "valid_metrics.json").write_text(json.dumps({**result, "step": 2}))
    return folder


def cells(markdown, first):
    """The cells of the first table row that begins with `first`."""
    line = next(line for line in markdown.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def pictures(folder):
    found = {path.name: path.read_bytes() for path in folder.glob("*.png")}
    assert all(data.startswith(PNG) and len(data) > 5000 for data in found.values())
    return found


def test_report_holds_the_run(tmp_path):
    result = result_of()
    path = run_report.write_run_report(make_run(tmp_path / "run", result, log_lines(result)))
    text = path.read_text(encoding="utf-8")
    assert path == tmp_path / "run" / "report" / "report.md"
    assert set(pictures(path.parent)) == {"curves.png", "confusion.png", "errors.png", "labels.png"}
    assert re.findall(r"\]\((.*?\.png)\)", text) == ["curves.png", "confusion.png", "errors.png", "labels.png"]
    low, high = result["ci"]["auprc"]
    assert cells(text, "AUPRC") == ["AUPRC", f"{result['auprc']:.2f}", f"{low:.2f}–{high:.2f}"]
    assert cells(text, "macro-F1") == ["macro-F1", f"{result['macro_f1']:.2f}", "–"]
    label, scores = "org:founded", result["per_label"]["org:founded"]
    values = [f"{scores[key]:.2f}" for key in ("precision", "recall", "f1", "auprc")]
    assert cells(text, label) == [label, "0", str(scores["support"]), *values]
    gold = result["coarse"]["confusion"]["per"]
    assert cells(text, "per") == ["per", *map(str, gold.values()), str(sum(gold.values()))]
    assert cells(text, "missed: a relation predicted as none")[1] == str(result["errors"]["missed"])
    assert cells(text, "loss") == ["loss", "kind focal, weights {org: 2.0}, rdrop 1.0"]
    assert "400 validation rows, the best model (step 2)" in text
    assert "3 bad row(s), 1,234 training row(s)" in text
    assert r"a\|b.json" in text


@pytest.mark.usefixtures("undrawn")
def test_rare_labels_are_those_of_few_rows(tmp_path):
    result = result_of(rows=300, present=20)
    run = make_run(tmp_path / "run", result, log_lines(result))
    text = run_report.write_run_report(run).read_text(encoding="utf-8").split("## Rare labels")[1].split("##")[0]
    rare = {k: v for k, v in result["per_label"].items() if 0 < v["support"] <= run_report.RARE}
    assert 0 < len(rare) < 20
    assert text.count("\n| ") == len(rare) + 2
    rows = sum(v["support"] for v in rare.values())
    mean = np.mean([v["auprc"] for v in rare.values()])
    assert f"{len(rare)} of 30 labels have 1 to {run_report.RARE} validation rows ({rows} together)" in text
    assert f"rare {mean:.2f} over {len(rare)} label(s)" in text


@pytest.mark.slow
def test_same_input_same_bytes(tmp_path):
    result = result_of()
    folders = [make_run(tmp_path / name / "run", result, log_lines(result)) for name in "ab"]
    first, second = (run_report.write_run_report(folder).parent for folder in folders)
    assert pictures(first) == pictures(second)
    assert (first / "report.md").read_bytes() == (second / "report.md").read_bytes()


def test_run_without_validation_has_curves_only(tmp_path):
    run = make_run(tmp_path / "run", None, log_lines(None, valid=False))
    path = run_report.write_run_report(run)
    assert set(pictures(path.parent)) == {"curves.png"}
    text = path.read_text(encoding="utf-8")
    assert "there are no scores" in text
    assert "## Labels" not in text


def test_long_log_with_changing_weights_and_an_empty_head(tmp_path):
    lines = log_lines(result_of(resamples=0), steps=learning_curves.SMOOTHED_FROM + 5)
    for line in lines:
        if line["kind"] == "train":
            line["weights"]["org"] = 1 + line["step"] / 100
            line["labelled_rows"]["per"] = 0
    learning_curves.draw_learning_curves(lines, tmp_path / "curves.png")
    assert set(pictures(tmp_path)) == {"curves.png"}


@pytest.mark.parametrize("layout", ["hierarchical", pytest.param("flat", marks=pytest.mark.slow)])
def test_any_taxonomy_and_any_name(tmp_path, layout):
    """Names that hold markup, mathematics or Hangul; no `no_relation`; one label alone."""
    names = ("a|b*c", "$x_1$", "설립일", "l" * 300, "<b>`")
    taxonomy = Taxonomy(names, {"첫째": names[:2], "둘째 묶음": names[2:4], names[4]: names[4:]}, layout, None)
    result = result_of(taxonomy, resamples=0)
    lines = log_lines(result, heads=[head.name for head in taxonomy.heads])
    path = run_report.write_run_report(make_run(tmp_path / "run", result, lines, taxonomy))
    assert len(pictures(path.parent)) == 4
    text = path.read_text(encoding="utf-8")
    assert cells(text, r"a\|b\*c")[2] == str(result["per_label"]["a|b*c"]["support"])
    assert ("#2 = 설립일" in text) == (figures.drawable(["설립일"]) == ["#1"])
    assert cells(text, "gate f1 (has a relation)")[1] == "–"
    assert f"{'gate F1':<13}{'–':>8}" in evaluation_summary(result)


def test_log_cut_short_is_read_up_to_there(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "train", "step": 1}\n{"kind": "tr')
    assert read_log(path) == [{"kind": "train", "step": 1}]


@pytest.mark.parametrize(
    ("text", "reason"),
    [("{\n{}\n", ":1: not JSON"), ("[1]\n", ":1: expected an object with"), ('{"kind": "train"}\n', ":1: expected")],
)
def test_damaged_log_is_named(tmp_path, text, reason):
    path = tmp_path / "metrics.jsonl"
    path.write_text(text)
    with pytest.raises(MtlReError, match=f"metrics.jsonl{reason}"):
        read_log(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"{", "not JSON"), (b"[]", "a JSON object, found list"), (b"\xff", "not UTF-8"), (None, "cannot")],
)
def test_read_json_names_the_fault(tmp_path, content, reason):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MtlReError, match=reason):
        read_json(path)


def test_unwritable_report_is_named(tmp_path):
    run = make_run(tmp_path / "run", None, log_lines(None, valid=False))
    (run / "report").write_text("in the way")
    with pytest.raises(MtlReError, match=r"report.*cannot be written"):
        run_report.write_run_report(run)


def test_text_needs_no_matplotlib():
    modules = "mtl_re.scoring.summary, mtl_re.training.run_report, mtl_re.analysis.explore"
    code = f"import sys, {modules}; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
