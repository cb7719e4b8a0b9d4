"""From a design to its answer: the report of its surface, the moving weightings, and the confirmation of its optimum.

Trainings are played by `fake_launch`, whose selection score is highest at unit weights; logits are made up likewise.
"""

import csv
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml
from fake_launch import Played

from mtl_re.cli import main
from mtl_re.config import AblateConfig
from mtl_re.data import sample
from mtl_re.errors import MtlReError
from mtl_re.scoring.summary import NONE
from mtl_re.study import cell_process, confirmation, scored_arms, surface_report, workers
from mtl_re.study.arm_statistics import Difference
from mtl_re.study.cell_logits import CellLogits
from mtl_re.study.confirmation import begin_confirmation, stored_confirmation
from mtl_re.study.mixture_runs import arms_beside, mean_weights, run_table
from mtl_re.study.optimum import find_optimum
from mtl_re.study.scored_arms import ScoredArm, score_arms
from mtl_re.study.study import Study, shares_of
from mtl_re.study.study_file import load_study
from mtl_re.study.workers import ablate
from mtl_re.taxonomy import Taxonomy

FAKE = Path(__file__).parents[1].joinpath("fake_launch.py")
TAXONOMY = Taxonomy.from_prefixes()
BASE = {"data": {"train": "sample:train", "limit": 100}, "model": {"encoder": "scratch:tiny"}}
STUDY = {
    "name": "mix",
    "base": "base.yaml",
    "design": {
        "kind": "simplex-lattice",
        "runs": 20,
        "bounds": {head: [0.1, 0.8] for head in ("coarse", "org", "per")},
    },
    "arms": {"famo": {"loss.weighting": "famo"}, "other-rate": {"optim.lr": 0.02}},
    "seeds": [1, 2],
    "readings": {"hard": {}, "soft": {"gate": "soft"}},
    "confirm": {"overrides": {"train.epochs": 5}, "test": "sample:test"},
}


def made_up(study, cell) -> CellLogits:
    """Logits whose skill falls with the distance from unit weights."""
    labels = [row["label"] for row in sample.rows("test", 120, 0)]
    targets = np.array([list(TAXONOMY.targets(label).values()) for label in labels])
    shares = shares_of(study, cell.settings) or dict.fromkeys(("coarse", "org", "per"), 1 / 3)
    skill = 3 - 4 * sum((share - 1 / 3) ** 2 for share in shares.values())
    generator = np.random.default_rng(cell.seed)
    parts = {}
    for column, head in enumerate(TAXONOMY.heads):
        values = generator.normal(size=(len(labels), len(head.classes))).astype(np.float32)
        known = np.flatnonzero(targets[:, column] >= 0)
        values[known, targets[known, column]] += skill
        parts[head.name] = values
    gold = np.array([TAXONOMY.labels.index(label) for label in labels])
    return CellLogits(parts, gold, ["PER"] * len(gold), TAXONOMY, (0.3, 0.3, 0.4), "test rows")


@pytest.fixture
def study(tmp_path, monkeypatch):
    """study(**keys) → path of a study file, and the launcher of its trainings."""
    monkeypatch.setattr(cell_process, "start_process", Played)
    monkeypatch.setattr(workers, "POLL", 0.2)
    monkeypatch.setattr(cell_process, "TICK", 0.02)
    monkeypatch.setattr(scored_arms, "cell_logits", made_up)
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(BASE))
    path = tmp_path / "study.yaml"

    def make(**keys):
        path.write_text(yaml.safe_dump(STUDY | {"output": str(tmp_path / "out")} | keys, sort_keys=False))
        return path, f"{sys.executable} {FAKE} quick {tmp_path / 'log'}"

    return make


@pytest.fixture
def finished(study):
    """The study whose cells have all run, and its report."""
    path, launch = study()
    return path, launch, ablate(path, AblateConfig(launch=launch, resamples=20))


def trained(tmp_path) -> list[str]:
    return [line.split()[1] for line in (tmp_path / "log").read_text().splitlines() if line.startswith("begin")]


@pytest.mark.slow
def test_a_design_runs_reports_and_is_confirmed(finished, tmp_path, capsys):
    path, launch, report = finished
    assert len(trained(tmp_path)) == 20 + 4
    text = report.read_text()
    assert "24 of 24 cells are finished; the design's runs have seeds of their own, the other arms seeds 1, 2." in text
    assert "**Weights matter** for the selection score: the quadratic surface against a constant, F(5, 14)" in text
    assert "The surface is highest at coarse 33" in text
    assert "Unit weights are not shown to be worse." in text
    assert "### Tests" in text
    assert "| coarse × org |" in text
    folder = report.parent
    assert (folder / "surface-selection.png").stat().st_size > 20_000
    assert not (folder / "ternary.png").exists()  # of arms; the surface's map is the design's
    with (folder / "runs.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20
    assert set(rows[0]) == {"coarse", "org", "per", "seed", "selection", "micro_f1", "auprc", "gate_f1"}
    with (folder / "surfaces.csv").open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 4 * 3
    differences = text[text.index("## Differences") :]
    assert "coarse=33.33" not in differences.split("## Kinds of errors")[0]  # points of a design are no pairs

    assert main(["ablate", str(path), "--confirm", "3", "--launch", launch, "--resamples", "20"]) == 0
    confirmed = tmp_path / "out" / "confirm" / "report" / "report.md"
    assert capsys.readouterr().out.strip() == str(confirmed)
    assert trained(tmp_path)[24:] == [f"{arm}-s1000{n}" for n in (1, 2, 3) for arm in ("optimum", "baseline")]
    cell = yaml.safe_load((tmp_path / "out" / "confirm" / "cells" / "optimum-s10001" / "cell.yaml").read_text())
    assert cell["train"] == {"epochs": 5, "seed": 10001}
    text = confirmed.read_text()
    assert "## Does the optimum hold?" in text
    line = next(line for line in text.splitlines() if line.startswith("| micro-F1 | micro-F1 | 3 |"))
    assert line.split("|")[-3].strip() == "yes"
    assert "no difference shown" in line
    assert "`sample:test`" in text


@pytest.mark.slow
def test_what_the_surface_predicts_is_written_once(finished, tmp_path):
    loaded = load_study(finished[0])
    first = begin_confirmation(loaded, 2)
    kept = tmp_path / "out" / "confirm" / "prediction.json"
    prediction = json.loads(kept.read_text())
    assert set(prediction["differences"]) == {"selection", "micro_f1", "auprc", "gate_f1"}
    assert sum(prediction["optimum"].values()) == pytest.approx(3, abs=0.001)
    kept.write_text(json.dumps(prediction | {"optimum": {"coarse": 2, "org": 0.5, "per": 0.5}}))
    later = begin_confirmation(loaded, 3)
    assert later.arms["optimum"]["loss.weights"] == {"coarse": 2, "org": 0.5, "per": 0.5}
    assert (first.seeds, later.seeds) == ((10001, 10002), (10001, 10002, 10003))
    assert stored_confirmation(loaded, 3).cells() == later.cells()
    assert prediction["baseline_tried"] is True
    other = replace(loaded, confirmation=replace(loaded.confirmation, baseline={"coarse": 5, "org": 1, "per": 1}))
    with pytest.raises(MtlReError, match="was written for another baseline than the study file names now"):
        begin_confirmation(other, 3)
    assert set(confirmation._predicted(other)["differences"]) == set(prediction["differences"])  # whole numbers
    extreme = replace(loaded.confirmation, baseline={"coarse": 100.0, "org": 1.0, "per": 1.0})
    assert confirmation._predicted(replace(loaded, confirmation=extreme))["baseline_tried"] is False


def test_a_prediction_beyond_what_was_tried_says_so():
    scores = {seed: {"micro_f1": 50.0 + seed} for seed in (1, 2, 3)}
    arms = [ScoredArm(arm, "hard", {}, scores) for arm in ("optimum", "baseline")]
    about = {"response": "micro_f1", "model": "quadratic", "optimum": {"coarse": 2.0, "org": 0.5, "per": 0.5}}
    about["differences"] = {"micro_f1": {"difference": 1.0, "low": 0.0, "high": 2.0, "sd": 1.0, "t": 2.1}}
    texts = {}
    for tried in (True, False):
        study = Study("made", {}, (1, 2, 3), {}, prediction=about | {"baseline_tried": tried})
        texts[tried] = "\n".join(confirmation.confirmation_section(study, arms, []))
    assert "what the surface predicts is extrapolated" in texts[False]
    assert "extrapolated" not in texts[True]
    assert "not adjusted for the number of scores: the one that counts is of the micro-F1" in texts[True]


def test_an_optimum_is_better_where_rows_and_seeds_show_it():
    """Seeds that agree do not make up for test rows on which the difference may be chance."""
    values = {"optimum": (52.0, 52.1, 51.9), "baseline": (50.0, 50.2, 49.9)}
    arms = [
        ScoredArm(arm, "hard", {}, {seed: {"micro_f1": f1, "gate_f1": f1} for seed, f1 in enumerate(by_seed, start=1)})
        for arm, by_seed in values.items()
    ]
    surface = {"difference": 1.0, "low": 0.0, "high": 2.0, "sd": 1.0, "t": 2.1}
    predicted = {"micro_f1": surface, "gate_f1": surface}
    about = {"response": "micro_f1", "model": "quadratic", "optimum": {"coarse": 1.5, "org": 0.5, "per": 1.0}}
    study = Study("made", {}, (1, 2, 3), {}, prediction=about | {"differences": predicted})
    over_rows = Difference(
        "optimum", "hard", "baseline", "micro_f1", 3, 1.97, (-0.4, 4.3), 0.11, (1.82, 2.11), 0.06, 0.0003, 0.25, 0.25
    )

    def verdicts(difference):
        lines = confirmation.confirmation_section(study, arms, [difference])
        return {line.split(" | ")[0]: line.split(" | ")[-1] for line in lines if line.startswith("| ")}

    assert verdicts(over_rows)["| micro-F1"] == "no difference shown |"
    assert verdicts(replace(over_rows, rows_ci=(0.4, 3.5), rows_p=0.01))["| micro-F1"] == "optimum better |"
    assert verdicts(over_rows)["| gate F1"] == "optimum better |"


def test_confirming_waits_for_the_designs_runs(study):
    path, _ = study()
    with pytest.raises(MtlReError, match=r"--confirm: 20 of the design's 20 runs are not finished \(the first: coarse"):
        ablate(path, AblateConfig(confirm=2))


@pytest.mark.slow
def test_a_confirmation_without_validation_rows_confirms_the_selection_score_by_f1(study):
    overrides = {"data.valid_fraction": 0, "eval.target_prior": None}
    base = {"eval.target_prior": [0.6, 0.17, 0.23]}
    path, launch = study(overrides=base, confirm={"overrides": overrides, "test": "sample:test"})
    ablate(path, AblateConfig(launch=launch, resamples=20))
    selected = begin_confirmation(load_study(path), 2)
    assert selected.cells()[0].config["data"]["valid_fraction"] == 0
    report = ablate(path, AblateConfig(launch=launch, resamples=20, confirm=2)).read_text()
    assert "| selection score | " in report
    assert (
        load_study(path).output.joinpath("confirm", "prediction.json").read_text().count('"selected_by": "micro_f1"')
        == 1
    )


@pytest.mark.slow
def test_unfinished_runs_are_named_and_the_surface_stands_on_the_others(finished):
    path, _, report = finished
    loaded = load_study(path)
    for cell in loaded.cells()[:3]:
        (loaded.run_dir(cell) / "report" / "report.md").unlink()
    ablate(path, AblateConfig(report=True, resamples=20))
    text = report.read_text()
    assert "**3 of the design's 20 runs are not finished**; the surface stands on the others." in text
    assert "17 runs" in text
    for cell in loaded.cells()[3:16]:
        (loaded.run_dir(cell) / "report" / "report.md").unlink()
    ablate(path, AblateConfig(report=True, resamples=20))
    assert "There is no surface yet: surface: 4 runs at" in report.read_text()


@pytest.mark.slow
def test_arms_beside_the_surface_are_those_that_differ_in_their_weights_alone(finished):
    loaded = load_study(finished[0])
    done = {(cell.arm, cell.seed): cell for cell in loaded.cells()}
    entries = score_arms(loaded, done)
    (famo,) = arms_beside(loaded, entries)
    assert (famo.name, famo.moves, famo.seeds.tolist()) == ("famo", True, [1, 2])
    # one step of (1.5, 1, 0.5) and two of (0.9, 1.6, 0.5)
    assert famo.points[0].tolist() == pytest.approx([3.3 / 9, 4.2 / 9, 1.5 / 9])
    heads = loaded.design.region.names
    first = loaded.cells()[0]
    assert mean_weights(loaded, first, heads) == pytest.approx(loaded.design.points[0], abs=1e-4)
    table = run_table(loaded, entries)
    assert np.array_equal(table.points, loaded.design.points)
    text = finished[2].read_text()
    line = next(line for line in text.splitlines() if line.startswith("| famo | move | 2 | 37 % | 47 % | 17 % |"))
    assert line.endswith("no difference shown |") or "than the surface there" in line
    assert NONE not in line


@pytest.mark.slow
def test_blocks_of_seeds_are_in_the_surface(study):
    path, launch = study(design=STUDY["design"] | {"blocks": 2})
    text = ablate(path, AblateConfig(launch=launch, resamples=20)).read_text()
    assert "the design's blocks have seeds 1, 2." in text
    assert "against a constant with blocks of seeds, F(5, 13)" in text


@pytest.mark.usefixtures("undrawn")
def test_the_old_screen_is_read_from_its_published_scores(tmp_path, monkeypatch, shared):
    """The figure that the issue of this analysis names: F(5, 22) = 2.9, p = 0.04, SD 4.8 over 30 runs."""
    monkeypatch.setattr(surface_report, "find_optimum", partial(find_optimum, resamples=100))
    experiments = Path(__file__).parents[2] / "experiments"
    monkeypatch.syspath_prepend(str(experiments.parent))
    (tmp_path / "shared").symlink_to(shared)
    (tmp_path / "checkout").mkdir()
    monkeypatch.chdir(tmp_path / "checkout")
    from experiments import surface_of_scores

    scores = experiments / "results" / "2026-11-24_weights-screen" / "scores.csv"
    surface_of_scores.main([str(experiments / "ablations" / "weights-screen.yaml"), str(scores), str(tmp_path / "out")])
    with (tmp_path / "out" / "surfaces.csv").open(encoding="utf-8") as file:
        row = next(row for row in csv.DictReader(file) if (row["score"], row["surface"]) == ("selection", "quadratic"))
    assert (row["runs"], row["weights_df"]) == ("30", "5/22")
    found = [float(row[name]) for name in ("weights_f", "weights_p", "sd")]
    assert found == pytest.approx([2.884, 0.0377, 4.764], abs=0.001)
    assert float(row["prediction_r2"]) == pytest.approx(-9.18, abs=0.005)  # of whole points; of single runs +0.12
    text = (tmp_path / "out" / "surface.md").read_text()
    assert "Do not rely on this surface" in text
    assert "extrapolated: org (at most 67 %), per (at most 67 %)" in text
