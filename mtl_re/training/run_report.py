"""A run directory → its `report/`: markdown and pictures.

Enters: the files of a run: metrics.jsonl, valid_metrics.json (evaluate's JSON), manifest.json, config.yaml and the
taxonomy in model/config.json. Leaves: markdown and pictures. Nothing is computed from rows: every number is taken from
one of those files, and if a file is missing, so is its section.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtl_re.config import GROUPS
from mtl_re.figures import COLORS, bars, beside, confusion_heat_map, drawable, legend_below, picture
from mtl_re.files import read_json, read_yaml
from mtl_re.markdown import escape, table, undrawn, write_markdown
from mtl_re.scoring.summary import ERROR_NAMES, NONE, RARE, SCORE_NAMES, interval, label_rows, notes, percent
from mtl_re.taxonomy import Taxonomy
from mtl_re.training.learning_curves import draw_learning_curves
from mtl_re.training.metrics_log import Line, read_log

HIGHLIGHTS: dict[str, Sequence[str]] = {
    "data": ("train", "valid", "valid_fraction", "fold", "max_length", "markers", "query", "limit"),
    "model": ("encoder", "heads", "pooling", "dropout"),
    "loss": ("kind", "reduction", "weighting", "weights", "label_smoothing"),
    "optim": ("lr", "head_lr", "weight_decay", "warmup", "schedule", "layer_decay", "max_grad_norm"),
    "train": ("epochs", "max_steps", "batch_size", "accumulate", "precision", "seed", "early_stop"),
    "eval": ("every", "gate", "metric", "target_prior"),
}


def write_run_report(run_dir: Path) -> Path:
    """Write `report/report.md` and its pictures from the files of a run.

    Returns:
        The path of `report.md`.

    Raises:
        MtlReError: a file of the run cannot be read, or `report/` cannot be written.
    """
    folder = run_dir / "report"
    lines = read_log(run_dir / "metrics.jsonl")
    manifest, result = (_read_optional(run_dir / name) for name in ("manifest.json", "valid_metrics.json"))
    sections = [[f"# Run {escape(run_dir.resolve().name)}", ""]]
    sections.append(_scores(result) if result else ["No validation rows: there are no scores, only curves.", ""])
    sections.append(_curves(lines, folder))
    if result:
        groups = _groups(run_dir, result)
        trained = manifest.get("data", {}).get("train", {}).get("labels")
        sections += [_confusion(result, folder), _errors(result, folder), _labels(result, folder, groups, trained)]
        sections.append(_rare(result, trained))
    sections += [_configuration(run_dir / "config.yaml"), _data(manifest), _machine(manifest)]
    path = folder / "report.md"
    write_markdown(path, [line for section in sections for line in section])
    return path


def _scores(result: Mapping[str, Any]) -> list[str]:
    gate, intervals = result["gate"], result.get("ci") or {}
    step = f", the best model (step {result['step']:,})" if "step" in result else ""
    how = f"{result['n']:,} validation rows{step}; gate {result['gate_mode']}, prior {escape(result['prior'])}."
    rows = [[name, percent(result[key]), interval(intervals.get(key))] for key, name in SCORE_NAMES.items()]
    rows.append(["coarse accuracy", percent(result["coarse"]["accuracy"]), NONE])
    rows += [[f"gate {key} (has a relation)", percent(gate[key]), NONE] for key in ("precision", "recall", "f1")]
    rows += [[f"accuracy inside {name}", percent(value), NONE] for name, value in result["fine"].items()]
    rows.append(["hard and soft gate differ", percent(result["disagreement"]), NONE])
    remarks = [part for note in notes(result) for part in (f"{escape(note)}.", "")]
    resampled = "Intervals: 95 % bootstrap over rows, for this one model; the training seed is not in them."
    return ["## Scores", "", how, "", *table(["score, %", "value", "95 % interval"], rows), resampled, "", *remarks]


def _groups(run_dir: Path, result: Mapping[str, Any]) -> dict[str, str]:
    """Label → coarse class; empty where the run has no model to say it."""
    taxonomy = _read_optional(run_dir / "model" / "config.json").get("taxonomy")
    known = None if taxonomy is None else Taxonomy.from_dict(taxonomy)
    labels = result["per_label"]
    return {label: known.coarse_of(label) for label in labels} if known and set(labels) <= set(known.labels) else {}


def _curves(lines: Sequence[Line], folder: Path) -> list[str]:
    if not lines:
        return []
    draw_learning_curves(lines, folder / "curves.png")
    text = "Loss: of each head, unweighted; the mean over the rows that the head has a label for."
    heads = next((list(line["loss"]) for line in lines if line["kind"] == "train"), [])
    return ["## Learning curves", "", "![Learning curves](curves.png)", "", *undrawn("heads", heads), text, ""]


# ---- where the errors lie ----------------------------------------------------------------------------------------


def _confusion(result: Mapping[str, Any], folder: Path) -> list[str]:
    confusion = result["coarse"]["confusion"]
    names = list(confusion)
    counts = np.array([[confusion[gold][predicted] for predicted in names] for gold in names])
    with picture(folder / "confusion.png", 2.6 + 1.25 * len(names), 1.5 + 0.75 * len(names)) as figure:
        confusion_heat_map(figure.add_subplot(), counts, names, "Coarse classes")
    rows = [[name, *(f"{n:,}" for n in (*line, line.sum()))] for name, line in zip(names, counts, strict=True)]
    lines = ["## Coarse classes", "", "![Coarse confusion](confusion.png)", "", *undrawn("classes", names)]
    return [*lines, *table(["gold / predicted", *names, "all"], rows)]


def _errors(result: Mapping[str, Any], folder: Path) -> list[str]:
    errors, rows = result["errors"], result["n"]
    wrong = sum(errors.values())
    names = [": ".join(ERROR_NAMES.get(key, (key,))) for key in errors]
    with picture(folder / "errors.png", 8.5, 2.6) as figure:
        axes = figure.add_subplot()
        texts = [f"{count:,}  ({100 * count / rows:.1f} % of rows)" for count in errors.values()]
        bars(axes, names, {"rows": list(errors.values())}, {"rows": texts})
        axes.set_xlim(0, 1.35 * max(*errors.values(), 1))
        axes.set_title(f"Kinds of errors: {wrong:,} of {rows:,} rows are wrong")
        axes.set_xlabel("rows")
    cells = [
        [name, f"{count:,}", f"{100 * count / rows:.2f}", f"{100 * count / max(wrong, 1):.1f}"]
        for name, count in zip(names, errors.values(), strict=True)
    ]
    header = ["kind", "rows", "% of rows", "% of errors"]
    return ["## Kinds of errors", "", "![Kinds of errors](errors.png)", "", *table(header, cells)]


def _labels(
    result: Mapping[str, Any], folder: Path, groups: Mapping[str, str], trained: Mapping[str, int] | None
) -> list[str]:
    """F1 and AUPRC of every label, the most frequent first."""
    per_label = result["per_label"]
    labels = sorted(per_label, key=lambda label: -per_label[label]["support"])
    known = list(dict.fromkeys(groups[label] for label in per_label)) if groups else []
    colors = [COLORS[known.index(groups[label]) % len(COLORS)] if groups else COLORS[0] for label in labels]
    with picture(folder / "labels.png", 8.5, 1.8 + 0.26 * len(labels)) as figure:
        axes = figure.add_subplot()
        scores = [per_label[label] for label in labels]
        bars(axes, labels, {"F1": [s["f1"] for s in scores]}, {"F1": [""] * len(labels)}, colors)
        beside(axes, [f"F1 {s['f1']:.1f}, n = {s['support']:,}" if s["support"] else "no gold row" for s in scores])
        dots = [(s["auprc"], place) for place, s in enumerate(scores) if s["auprc"] is not None]
        axes.plot(*zip(*dots, strict=True), "D", color="#222222", markersize=3.5, clip_on=False)
        axes.set_xlim(0, 100)
        axes.set_title(f"F1 (bars) and AUPRC (diamonds) of each label, by support (n = {result['n']:,})")
        axes.set_xlabel("%")
        if len(known) > 1:
            for place, name in enumerate(drawable(known)):
                axes.barh(0, 0, color=COLORS[place % len(COLORS)], label=name)
            legend_below(axes)
    lines = ["## Labels", "", "![F1 of each label](labels.png)", "", *undrawn("labels", labels)]
    return [*lines, *_label_table(labels, per_label, trained)]


def _label_table(labels: Sequence[str], per_label: Mapping[str, Any], trained: Mapping[str, int] | None) -> list[str]:
    counts = [NONE if trained is None else f"{trained.get(label, 0):,}" for label in labels]
    rows = [[cells[0], count, *cells[1:]] for count, cells in zip(counts, label_rows(labels, per_label), strict=True)]
    return table(["label", "train rows", "validation rows", "precision", "recall", "F1", "AUPRC"], rows) if rows else []


def _rare(result: Mapping[str, Any], trained: Mapping[str, int] | None) -> list[str]:
    """The labels whose scores a few rows decide, and what they weigh in the mean."""
    per_label = result["per_label"]
    support = {label: scores["support"] for label, scores in per_label.items() if scores["support"]}
    rare = sorted((label for label in support if support[label] <= RARE), key=lambda label: (support[label], label))
    others = [label for label in support if label not in rare]
    means = [
        f"{name} {np.mean([per_label[label]['auprc'] for label in part]):.2f} over {len(part)} label(s)"
        for name, part in (("rare", rare), ("others", others))
        if part
    ]
    rows = sum(support[label] for label in rare)
    share = f"{100 * len(rare) / len(per_label):.0f} % of the classes that AUPRC averages over"
    weight = f"{len(rare)} of {len(per_label)} labels have 1 to {RARE} validation rows ({rows:,} together): {share}."
    said = f"Mean AUPRC: {', '.join(means)}."
    return ["## Rare labels", "", weight, "", said, "", *_label_table(rare, per_label, trained)]


# ---- how it was made ---------------------------------------------------------------------------------------------


def _configuration(path: Path) -> list[str]:
    if not path.exists():
        return []
    options = read_yaml(path)
    groups = {name: group for name in HIGHLIGHTS if isinstance(group := options.get(name), dict)}
    rows = [
        [name, ", ".join(f"{key} {_shown(group[key])}" for key in _told(name, group))] for name, group in groups.items()
    ]
    return ["## Configuration", "", "All options: `../config.yaml`.", "", *table(["group", "options"], rows)]


def _told(name: str, group: Mapping[str, Any]) -> list[str]:
    """Options of a group worth a word, in its order: the usual ones, and all that are not at their defaults."""
    default = vars(GROUPS[name]())
    told = [key for key, value in group.items() if key in HIGHLIGHTS[name] or value != default.get(key, value)]
    return [key for key in told if key not in ("run_dir", "resume")]


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_shown(part)}" for key, part in value.items()) + "}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _data(manifest: Mapping[str, Any]) -> list[str]:
    data = manifest.get("data", {})
    parts = {name: data[name] for name in ("train", "valid") if isinstance(data.get(name), dict)}
    if not parts:
        return []
    rows = []
    for name, part in parts.items():
        labels = part.get("labels", {})
        most = next(iter(labels), None)
        share = NONE if most is None else f"{most} ({100 * labels[most] / max(part['rows'], 1):.1f} %)"
        digest = (part.get("sha256") or NONE)[:12]
        rows.append([name, f"{part['rows']:,}", str(len(labels)), share, digest, str(part.get("source", NONE))])
    header = ["part", "rows", "labels that occur", "most frequent", "sha256", "source"]
    shared, bad = data.get("dropped_overlap", 0), data.get("rejected", 0)
    left = f"Left out: {bad:,} bad row(s), {shared:,} training row(s) that are also validation rows."
    return ["## Data", "", *table(header, rows), left, ""]


def _machine(manifest: Mapping[str, Any]) -> list[str]:
    if not manifest:
        return []
    hardware, versions, git = (manifest.get(name) or {} for name in ("hardware", "versions", "git"))
    commit = f"{git['commit'][:12]}{' with uncommitted changes' if git.get('dirty') else ''}" if git else NONE
    rows = [
        ["seed", _shown(manifest.get("seed"))],
        ["commit", commit],
        ["hardware", ", ".join(f"{key} {_shown(value)}" for key, value in hardware.items())],
        ["versions", ", ".join(f"{key} {_shown(value)}" for key, value in versions.items())],
    ]
    return ["## Made with", "", *table(["", ""], rows)]


def _read_optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}
