"""`mtl-re errors`: where the errors of one predictions file lie, with the rows to look at.

Enters: predictions .jsonl with gold labels, and the rows they were made of (DATA, optional), joined by id and order.
Leaves: a folder with `errors.md` and its pictures. Scores are `metrics`' own; here rows are put into parts (by kind of
error, length, entity types) and the most confident errors are quoted. Sentences are strangers' text: none unescaped.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mtl_re.analysis.explore import OTHER, PAIRS_SHOWN
from mtl_re.config import ErrorsConfig
from mtl_re.data.loading import load_examples
from mtl_re.data.validation import Example
from mtl_re.errors import MtlReError
from mtl_re.figures import COLORS, LONGEST, bars, beside, legend_below, picture, table, undrawn, write_markdown
from mtl_re.scoring import metrics, significance
from mtl_re.scoring.metrics import Floats, Indices
from mtl_re.taxonomy import Taxonomy
from mtl_re.training.report import ERRORS, NONE, RARE, SCORES, notes

Mask = npt.NDArray[np.bool_]

LENGTHS = (50, 100, 150, 200)
"""Characters at which a bucket of sentence lengths begins; fixed, so that two reports can be laid side by side."""
CONFUSIONS_SHOWN = 20
THRESHOLDS = tuple(number / 10 for number in range(1, 10))  # of the gate, with a row in the table
MARKUP = re.compile(r"[\\`*_\[\]~$|!]|:(?=//)")
"""What can start markup inside a line of markdown; `&`, `<` and `>` are left to HTML's own escapes."""
ODD = re.compile(r"[^\w /.→-]")
INTERVALS = """Intervals, here and below: over rows, this one model fixed; bootstrap, for shares Wilson's. One without
width means few rows, all right or all wrong, not certainty."""
F1, ALARMS = ("related", "micro-F1, %"), ("come out related", "false alarms, %")
"""For a part of the rows: what is counted in it, and its score."""


@dataclass(frozen=True)
class Rows:
    """Predictions joined with their rows.

    Attributes:
        gold, pred: (N,) indices into `taxonomy.labels`. probs: (N, L).
        examples: (N,) the rows themselves; None where no DATA was given. left_out: bad rows of DATA.
    """

    ids: Sequence[str]
    gold: Indices
    pred: Indices
    probs: Floats
    examples: Sequence[Example] | None
    taxonomy: Taxonomy
    left_out: int

    def related(self) -> tuple[Mask, Mask]:
        """Rows whose gold label is a relation, rows whose predicted one is. Shape: (N,), (N,)."""
        relation = np.array([label != self.taxonomy.no_relation for label in self.taxonomy.labels])
        return relation[self.gold], relation[self.pred]


class Part(NamedTuple):
    """A part of the rows and its score: `counted` of its `rows` are what the score is about; None: undefined."""

    name: str
    rows: int
    counted: int
    score: float | None
    interval: Sequence[float] | None


def write_errors(predictions: Path, options: ErrorsConfig) -> Path:
    """Write `errors.md` and its pictures, and return its path.

    Raises:
        MtlReError: a file cannot be read or written, a row is malformed, or predictions and DATA are not the same
            rows in the same order (file:line).
    """
    rows = read_joined(predictions, options)
    folder = Path(options.output)
    # A predictions file holds one label a row, so both gates are that label; what compares gates is not shown.
    labels = (rows.gold, rows.probs, rows.pred, rows.pred)
    result = metrics.report(*labels, "hard", rows.taxonomy, resamples=options.resamples)
    sections = [_overview(predictions, options, rows, result), _kinds(rows, result, options.examples)]
    sections += [_labels(result), _confused(rows), _gate(rows, result, folder)]
    if rows.examples is not None:
        lengths = _f1_parts(rows, length_buckets(rows.examples), options.resamples)
        types = _f1_parts(rows, type_pairs(rows.examples), options.resamples)
        sections.append(_section("F1 by sentence length", folder / "lengths.png", "characters", *F1, lengths))
        sections.append(_section("F1 by entity types", folder / "types.png", "subject→object", *F1, types))
    sections.append(_false_alarms(rows, folder))
    write_markdown(folder / "errors.md", [line for section in sections for line in section])
    return folder / "errors.md"


def read_joined(path: Path, options: ErrorsConfig) -> Rows:
    """Read predictions, and the row of DATA that each was made of.

    Raises:
        MtlReError: see `write_errors`.
    """
    taxonomy = Taxonomy.from_option(options.heads)
    loaded = None if options.data is None else load_examples(options.data, taxonomy, options.on_bad_row)
    examples, bad = loaded or (None, [])
    index = {label: position for position, label in enumerate(taxonomy.labels)}
    ids, labels, probs = [], [], []
    for place, (where, row) in enumerate(significance.prediction_rows(path)):
        if place == 0 and isinstance(given := row.get("probs"), dict) and (odd := sorted(given.keys() ^ index.keys())):
            raise MtlReError(f"{where}: probs: {len(odd)} label(s) differ from those of --heads, first {odd[0]!r}")
        row = row if examples is None else _joined(where, row, place, examples, str(options.data))
        if row.get("gold") is None:
            raise MtlReError(f"{where}: gold: missing; predict labelled rows, or give them with --data")
        name, gold, pred, values = significance.parsed_row((where, row), index)
        ids.append(str(name))
        labels.append((gold, pred))
        probs.append(values)
    if not labels:
        raise MtlReError(f"{path}: no rows")
    if examples is not None and len(examples) > len(ids):
        what = f"{examples[len(ids)].where} has no prediction"
        raise MtlReError(f"{where}: the file ends after {len(ids):,} row(s); {what}")
    columns = np.array(labels).T
    return Rows(ids, columns[0], columns[1], np.stack(probs), examples, taxonomy, len(bad))


def _joined(where: str, row: Mapping[str, Any], place: int, examples: Sequence[Example], data: str) -> dict[str, Any]:
    """The prediction with a gold label, which is the row's own where the prediction has none."""
    if place >= len(examples):
        raise MtlReError(f"{where}: id: {row.get('id')!r} has no row; {data} ends after {len(examples):,} row(s)")
    example = examples[place]
    gold = example.label if row.get("gold") is None else row["gold"]
    differs = {"id": (str(row.get("id")), example.id), "gold": (gold, example.label or gold)}
    for key, (found, expected) in differs.items():
        if found != expected:
            what = f"{found!r}, but {example.where} has {expected!r}"
            raise MtlReError(f"{where}: {key}: {what}; both must hold the same rows in the same order")
    return {**row, "gold": gold}


# ---- the scores, the kinds of errors and their examples ----------------------------------------------------------


def _overview(path: Path, options: ErrorsConfig, rows: Rows, result: Mapping[str, Any]) -> list[str]:
    said = f"{result['n']:,} rows, no data: no sentences, lengths or entity types."
    if options.data is not None:
        left = f", {rows.left_out:,} bad row(s) left out" if rows.left_out else ""
        said = f"{result['n']:,} rows of {plain(options.data)}{left}. Sentences are quoted: mind the data's licence."
    cells = [[name, _percent(result[key]), _interval(result["ci"].get(key))] for key, name in SCORES.items()]
    lines = [f"# Errors of {plain(path.name)}", "", said, "", *table(["score, %", "value", "95 % interval"], cells)]
    return [*lines, INTERVALS, "", *[part for note in notes(result) for part in (f"{plain(note)}.", "")]]


def error_kinds(rows: Rows) -> npt.NDArray[np.str_]:
    """(N,) the kind of each row's error, as `metrics` counts them; empty text for a right row."""
    found, size = np.full(len(rows.gold), "", dtype="<U16"), len(rows.taxonomy.labels)
    cells = rows.gold * size + rows.pred
    for cell in np.unique(cells[rows.gold != rows.pred]):
        counts = np.bincount([cell], minlength=size**2).reshape(size, size).astype(float)
        kinds = metrics.error_counts(counts, rows.taxonomy)
        found[cells == cell] = max(kinds, key=kinds.__getitem__)
    return found


def _kinds(rows: Rows, result: Mapping[str, Any], shown: int) -> list[str]:
    errors, kinds = result["errors"], error_kinds(rows)
    parts = (result["n"], max(sum(errors.values()), 1))
    cells = [
        [": ".join(ERRORS[kind]), f"{count:,}", *[_percent(100 * count / whole) for whole in parts]]
        for kind, count in errors.items()
    ]
    lines = ["## Kinds of errors", "", *table(["kind", "rows", "% of rows", "% of errors"], cells)]
    scores = rows.probs[np.arange(len(rows.pred)), rows.pred]
    for kind in errors:
        places = np.flatnonzero(kinds == kind)
        if chosen := places[np.argsort(-scores[places], kind="stable")][:shown].tolist():
            said = f"The most confident {len(chosen)} of {len(places):,}:"
            quoted = [line for place in chosen for line in _quoted(rows, place)]
            lines += [f"### {ERRORS[kind][0].capitalize()}", "", said, "", *quoted, ""]
    return lines


def _quoted(rows: Rows, place: int) -> list[str]:
    """One error as an item of a list: the labels and probabilities, then the sentence."""
    labels, probs = rows.taxonomy.labels, rows.probs[place]
    coarse = np.bincount(rows.taxonomy.group_of_label, weights=probs, minlength=len(rows.taxonomy.groups))
    shares = ", ".join(f"{plain(name)} {share:.3f}" for name, share in zip(rows.taxonomy.groups, coarse, strict=True))
    gold, pred = rows.gold[place], rows.pred[place]
    said = f"gold {plain(labels[gold])} ({probs[gold]:.3f}), predicted {plain(labels[pred])}, score {probs[pred]:.3f}"
    item = f"- {said}; coarse: {shares}; row {plain(rows.ids[place])}"
    if rows.examples is None:
        return [item]
    example = rows.examples[place]
    return [f"{item}, {plain(type_pair(example))}  ", f"  “{marked(example)}”"]


def marked(example: Example) -> str:
    """The sentence as markdown with both entities in bold brackets, its own text escaped.

    Bold is HTML: markdown's `**` does not close between a bracket and a Korean particle.
    """
    text, end, found = example.sentence, 0, []
    entities = (("subject", example.subject), ("object", example.object))
    for name, entity in sorted(entities, key=lambda pair: pair[1].start):
        found.append(plain(text[end : entity.start]))
        found.append(f"<b>[{name}: {plain(entity.word)}]</b>")
        end = entity.end + 1
    return "".join([*found, plain(text[end:])])


def plain(text: str) -> str:
    """Text on one line that no renderer of markdown or HTML reads as markup; the inside of a line, not a cell."""
    printable = "".join(character if character.isprintable() else " " for character in text)
    return MARKUP.sub(r"\\\g<0>", html.escape(printable, quote=False))


def _labels(result: Mapping[str, Any]) -> list[str]:
    """All labels, then the rare ones and what they weigh in AUPRC, which is a plain mean over labels."""
    per_label, classes = result["per_label"], len(result["per_label"])
    order = sorted(per_label, key=lambda label: -per_label[label]["support"])
    lines = ["## Labels", "", *_label_table(order, per_label), "## Rare labels", ""]
    rare = [label for label in order if 0 < per_label[label]["support"] <= RARE]
    if not rare:
        return [*lines, f"No label has 1 to {RARE} rows.", ""]
    support, given = (sum(per_label[label][key] for label in rare) for key in ("support", "auprc"))
    said = (
        f"{len(rare)} of {classes} labels have 1 to {RARE} rows, {support:,} together "
        f"({100 * support / result['n']:.1f} % of all). AUPRC is the mean over labels, so these decide "
        f"{100 * len(rare) / classes:.1f} of its 100 points; they give {given / classes:.2f} of {result['auprc']:.2f}."
    )
    return [*lines, said, "", *_label_table(rare, per_label)]


def _label_table(labels: Sequence[str], per_label: Mapping[str, Any]) -> list[str]:
    keys = ("precision", "recall", "f1", "auprc")
    cells = [
        [label, f"{scores['support']:,}", *[_percent(scores[key] if scores["support"] else None) for key in keys]]
        for label, scores in ((label, per_label[label]) for label in labels)
    ]
    return table(["label", "rows", "precision", "recall", "F1", "AUPRC"], cells)


def _confused(rows: Rows) -> list[str]:
    labels = rows.taxonomy.labels
    counts = metrics.confusion(rows.gold, rows.pred, len(labels)).astype(int)
    support = counts.sum(axis=1)
    np.fill_diagonal(counts, 0)
    ranked = [divmod(int(cell), len(labels)) for cell in np.argsort(-counts, axis=None, kind="stable")]
    pairs = [pair for pair in ranked[:CONFUSIONS_SHOWN] if counts[pair]]
    cells = [
        [labels[gold], labels[pred], f"{counts[gold, pred]:,}", f"{100 * counts[gold, pred] / support[gold]:.1f}"]
        for gold, pred in pairs
    ]
    held = f"{sum(counts[pair] for pair in pairs):,} of {counts.sum():,} errors"
    said = f"The {len(pairs)} most frequent of {np.count_nonzero(counts)} pairs hold {held}."
    body = [said, "", *table(["gold", "predicted", "rows", "% of the gold label's rows"], cells)]
    return ["## Confused labels", "", *(body if pairs else ["No row is wrong.", ""])]


def gate_curve(related: Mask, scores: Floats) -> Floats:
    """(4, T): thresholds falling over every distinct score, and precision, recall and F1 (%) of "has a relation" there.

    Shape: related (N,), whether the row has a relation, one at least does; scores (N,), its 1 - p(no_relation).
    """
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # equal scores pass together
    hits, passed, positives = np.cumsum(related[order])[last], last + 1, related.sum()
    rates = (hits / passed, hits / positives, 2 * hits / (passed + positives))
    return np.stack([scores[order][last], *(100 * rate for rate in rates)])


def _gate(rows: Rows, result: Mapping[str, Any], folder: Path) -> list[str]:
    lines, name = ["## Gate: has a relation", ""], rows.taxonomy.no_relation
    gold, predicted = rows.related()
    if name is None or not gold.any():
        return [*lines, "No curve: it needs a no\\_relation label and a row with a relation.", ""]
    scores, passed = 1 - rows.probs[:, rows.taxonomy.labels.index(name)], int(predicted.sum())
    curve = gate_curve(gold, scores)
    equal = float(np.sort(scores)[-passed]) if passed else None  # lets as many rows through as the labels do
    best = int(curve[3].argmax())
    _draw_gate(curve, result["gate"], equal, folder / "gate.png")
    cells = [["as predicted", *[_percent(result["gate"][key]) for key in ("precision", "recall", "f1")]]]
    cells.append([f"{curve[0, best]:.3f} (best F1 here)", *map(_percent, curve[1:, best])])
    for threshold in THRESHOLDS:
        reached = np.flatnonzero(curve[0] >= threshold)
        values = map(_percent, curve[1:, reached[-1]]) if len(reached) else (NONE, "0.00", NONE)
        cells.append([f"{threshold:.1f}", *values])
    same = "" if equal is None else f"; a threshold of {equal:.3f} would let as many through"
    said = (
        f"A row passes a threshold if 1 - p(no\\_relation) reaches it. The labels as predicted call {passed:,} of "
        f"{len(gold):,} rows related ({gold.sum():,} are){same}. The best F1 is chosen on these very rows, so a "
        "bound and not a setting (`mtl-re calibrate` fits one on other rows)."
    )
    return [*lines, "![Gate](gate.png)", "", said, "", *table(["threshold", "precision", "recall", "F1"], cells)]


def _draw_gate(curve: Floats, point: Mapping[str, float], equal: float | None, path: Path) -> None:
    with picture(path, 9, 4.3) as figure:
        left, right = figure.subplots(1, 2)
        for color, name, values in zip(COLORS, ("precision", "recall", "F1"), curve[1:], strict=False):
            left.step(curve[0], values, where="post", color=color, label=name)
        if equal is not None:
            left.axvline(equal, color="#222222", linestyle="--", linewidth=1, label="passes as many rows as predicted")
        left.plot([], [], "o", color=COLORS[5], label=f"as predicted: F1 {point['f1']:.1f}")
        left.set_title("Over the threshold on 1 - p(no_relation)")
        left.set(xlim=(0, 1), ylim=(0, 102), xlabel="threshold", ylabel="%")
        left.grid(True, axis="both")
        right.plot(curve[2], curve[1], color=COLORS[0])
        right.plot(point["recall"], point["precision"], "o", color=COLORS[5], clip_on=False)
        right.set_title("Precision over recall")
        right.set(xlim=(0, 102), ylim=(0, 102), xlabel="recall, %", ylabel="precision, %")
        right.grid(True, axis="both")
        legend_below(left)


# ---- parts of the rows -------------------------------------------------------------------------------------------


def length_buckets(examples: Sequence[Example]) -> dict[str, Mask]:
    """The rows of each bucket of sentence lengths that has any."""
    names = [*(f"{low} to {high - 1}" for low, high in pairwise((0, *LENGTHS))), f"{LENGTHS[-1]} or more"]
    place = np.digitize([len(example.sentence) for example in examples], LENGTHS)
    return {names[number]: place == number for number in np.unique(place)}


def _f1_parts(rows: Rows, masks: Mapping[str, Mask], resamples: int) -> list[Part]:
    """Micro-F1 of each part; undefined where it has no relation, neither gold nor predicted."""
    gold, predicted = rows.related()
    found = []
    for name, mask in masks.items():
        score, interval, part = None, None, (rows.gold[mask], rows.pred[mask])
        if (gold | predicted)[mask].any():
            score = metrics.micro_f1(*part, rows.taxonomy)
            interval = metrics.bootstrap_intervals(*part, rows.probs[mask], rows.taxonomy, resamples)["micro_f1"]
        found.append(Part(name, int(mask.sum()), int(gold[mask].sum()), score, interval))
    return found


def type_pair(example: Example) -> str:
    """The entity types as they are shown; a type is any text, so what is not a plain word's becomes `?`."""
    return ODD.sub("?", f"{example.subject.type}→{example.object.type}")[:LONGEST]


def type_pairs(examples: Sequence[Example]) -> dict[str, Mask]:
    """The rows of each pair of entity types, the most frequent first; the rare ones of a long tail share the last."""
    pairs = np.array([type_pair(example) for example in examples])
    counts = Counter(pairs.tolist())
    ranked = sorted(counts, key=lambda pair: (-counts[pair], pair))
    own = ranked if len(ranked) <= PAIRS_SHOWN else ranked[: PAIRS_SHOWN - 1]
    masks = {pair: pairs == pair for pair in own}
    return masks if own is ranked else masks | {OTHER: ~np.isin(pairs, own)}


def _false_alarms(rows: Rows, folder: Path) -> list[str]:
    """How often two entities that merely stand in one sentence come out related."""
    from scipy.stats import binomtest

    title, (gold, predicted) = "False alarms: rows of no relation that come out related", rows.related()
    if gold.all():
        return [f"## {title}", "", "No row is of no relation.", ""]
    masks = {"all": np.ones(len(gold), dtype=bool)} | ({} if rows.examples is None else type_pairs(rows.examples))
    parts = []
    for name, mask in masks.items():
        if count := int((mask & ~gold).sum()):
            alarms = int((mask & ~gold & predicted).sum())
            low, high = binomtest(alarms, count).proportion_ci(0.95, method="wilson")
            parts.append(Part(name, count, alarms, 100 * alarms / count, [100 * float(low), 100 * float(high)]))
    return _section(title, folder / "false_alarms.png", "subject→object", *ALARMS, parts)


def _section(title: str, image: Path, what: str, counted: str, score: str, parts: Sequence[Part]) -> list[str]:
    """Bars with their intervals, and the same as a table."""
    names = [part.name for part in parts]
    with picture(image, 8.5, 1.4 + 0.3 * len(parts)) as figure:
        axes = figure.add_subplot()
        bars(axes, names, {score: [part.score or 0 for part in parts]}, {score: [""] * len(parts)})
        for place, part in enumerate(parts):
            if part.interval is not None:
                axes.plot(part.interval, [place, place], color="#222222", linewidth=1.2, clip_on=False)
        beside(axes, [f"{_percent(p.score)}   n = {p.rows:,}, {p.counted:,} {counted}" for p in parts])
        axes.set_title(f"{title} (lines: 95 %)")
        axes.set(xlim=(0, 100), xlabel=score, ylabel=what)
    cells = [[p.name, f"{p.rows:,}", f"{p.counted:,}", _percent(p.score), _interval(p.interval)] for p in parts]
    lines = [f"## {title}", "", f"![{title}]({image.name})", "", *undrawn("names", names)]
    return [*lines, *table([what, "rows", counted, score, "95 % interval"], cells)]


def _percent(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


def _interval(bounds: Sequence[float] | None) -> str:
    return NONE if bounds is None else f"{bounds[0]:.2f}–{bounds[1]:.2f}"
