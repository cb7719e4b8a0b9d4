"""`mtl-re errors`: the errors of one predictions file by kind, label, length and entity types, with quoted rows.

Enters: predictions .jsonl with gold labels, and optionally the rows they were made of (DATA). Leaves: a directory with
`errors.md` and its pictures. Scores are computed by `metrics`; this module groups rows and quotes the most confident
errors. Sentences are third-party text: none is written unescaped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mtl_re.analysis.cooccurrence import false_rate
from mtl_re.analysis.explore import OTHER, PAIRS_SHOWN
from mtl_re.analysis.joined_rows import Mask, Rows, read_joined, type_pair
from mtl_re.config import ErrorsConfig
from mtl_re.data.validation import Example
from mtl_re.figures import COLORS, bars, beside, legend_below, picture
from mtl_re.markdown import escape_inline, table, undrawn, write_markdown
from mtl_re.scoring import metrics
from mtl_re.scoring.metrics import Floats
from mtl_re.scoring.summary import ERROR_NAMES, NONE, RARE, SCORE_NAMES, interval, label_rows, notes, percent

LENGTHS = (50, 100, 150, 200)
"""Lengths in characters at which the buckets begin; fixed, so that two reports can be compared."""
CONFUSIONS_SHOWN = 20
THRESHOLDS = tuple(number / 10 for number in range(1, 10))  # on 1 - p(no_relation), with a row in the table
INTERVALS = """Intervals, here and below: over rows, for this one model; bootstrap, and Wilson's for shares. An interval
without width means that the few rows were all right or all wrong, not certainty."""
F1, ALARMS = ("related", "micro-F1, %"), ("predicted as related", "false alarms, %")
"""What is counted in a part of the rows, and the score of the part."""


class Part(NamedTuple):
    """A part of the rows and its score, which is about `counted` of its `rows` (None: undefined)."""

    name: str
    rows: int
    counted: int
    score: float | None
    interval: Sequence[float] | None


def write_errors(predictions: Path, options: ErrorsConfig) -> Path:
    """Write `errors.md` and its pictures, and return its path.

    Raises:
        MtlReError: a file cannot be read or written, a row is malformed, or predictions and DATA do not hold the same
            rows in the same order (names file and line).
    """
    rows = read_joined(predictions, options)
    folder = Path(options.output)
    # A predictions file holds one label for each row, so it stands for both gates; what compares gates is not shown.
    labels = (rows.gold, rows.probs, rows.pred, rows.pred)
    result = metrics.all_metrics(*labels, "hard", rows.taxonomy, resamples=options.resamples)
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


# ---- the scores, the kinds of errors and their examples ----------------------------------------------------------


def _overview(path: Path, options: ErrorsConfig, rows: Rows, result: Mapping[str, Any]) -> list[str]:
    said = f"{result['n']:,} rows, no data: no sentences, lengths or entity types."
    if options.data is not None:
        left = f", {rows.left_out:,} bad row(s) left out" if rows.left_out else ""
        licence = "Sentences are quoted: mind the data's licence."
        said = f"{result['n']:,} rows of {escape_inline(options.data)}{left}. {licence}"
    cells = [[name, percent(result[key]), interval(result["ci"].get(key))] for key, name in SCORE_NAMES.items()]
    lines = [
        f"# Errors of {escape_inline(path.name)}",
        "",
        said,
        "",
        *table(["score, %", "value", "95 % interval"], cells),
    ]
    return [*lines, INTERVALS, "", *[part for note in notes(result) for part in (f"{escape_inline(note)}.", "")]]


def error_kinds(rows: Rows) -> npt.NDArray[np.str_]:
    """Return the kind of each row's error as `metrics` counts them, an empty text for a correct row. Shape: (N,)."""
    kinds_of_rows, size = np.full(len(rows.gold), "", dtype="<U16"), len(rows.taxonomy.labels)
    cells = rows.gold * size + rows.pred
    for cell in np.unique(cells[rows.gold != rows.pred]):
        counts = np.bincount([cell], minlength=size**2).reshape(size, size).astype(float)
        kinds = metrics.error_counts(counts, rows.taxonomy)
        kinds_of_rows[cells == cell] = max(kinds, key=kinds.__getitem__)
    return kinds_of_rows


def _kinds(rows: Rows, result: Mapping[str, Any], shown: int) -> list[str]:
    errors, kinds = result["errors"], error_kinds(rows)
    parts = (result["n"], max(sum(errors.values()), 1))
    cells = [
        [": ".join(ERROR_NAMES[kind]), f"{count:,}", *[percent(100 * count / whole) for whole in parts]]
        for kind, count in errors.items()
    ]
    lines = ["## Kinds of errors", "", *table(["kind", "rows", "% of rows", "% of errors"], cells)]
    scores = rows.probs[np.arange(len(rows.pred)), rows.pred]
    for kind in errors:
        wrong = np.flatnonzero(kinds == kind)
        if chosen := wrong[np.argsort(-scores[wrong], kind="stable")][:shown].tolist():
            said = f"The most confident {len(chosen)} of {len(wrong):,}:"
            quoted = [line for row in chosen for line in _quoted(rows, row)]
            lines += [f"### {ERROR_NAMES[kind][0].capitalize()}", "", said, "", *quoted, ""]
    return lines


def _quoted(rows: Rows, row: int) -> list[str]:
    """Return one error as a list item: labels and probabilities, then the sentence."""
    groups, probs, gold, pred = rows.taxonomy.groups, rows.probs[row], rows.gold[row], rows.pred[row]
    coarse = np.bincount(rows.taxonomy.group_of_label, weights=probs, minlength=len(groups))
    shares = ", ".join(f"{escape_inline(name)} {share:.3f}" for name, share in zip(groups, coarse, strict=True))
    gold_label, label = (escape_inline(rows.taxonomy.labels[index]) for index in (gold, pred))
    said = f"gold {gold_label} ({probs[gold]:.3f}), predicted {label}, score {probs[pred]:.3f}"
    item = f"- {said}; coarse: {shares}; row {escape_inline(rows.ids[row])}"
    if rows.examples is None:
        return [item]
    example = rows.examples[row]
    return [f"{item}, {escape_inline(type_pair(example))}  ", f"  “{marked(example)}”"]


def marked(example: Example) -> str:
    """Return the sentence as markdown with both entities in bold brackets and all of its text escaped.

    The bold tags are HTML, because markdown's `**` does not close between a bracket and a Korean particle.
    """
    opening, closing = dict[int, list[str]](), dict[int, list[str]]()
    entities = (("subject", example.subject), ("object", example.object))
    for name, entity in sorted(entities, key=lambda pair: (pair[1].start, -pair[1].end)):  # the outer of two first
        opening.setdefault(entity.start, []).append(f"<b>[{name}: ")
        closing.setdefault(entity.end + 1, []).append("]</b>")
    text, places, parts = example.sentence, sorted({0, *opening, *closing, len(example.sentence)}), []
    for start, stop in pairwise([*places, len(text)]):
        parts += [*closing.get(start, ()), *opening.get(start, ()), escape_inline(text[start:stop])]
    return "".join(parts)


def _labels(result: Mapping[str, Any]) -> list[str]:
    """Show all labels, then the rare ones and their weight in AUPRC, which is a plain mean over labels."""
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
    return table(["label", "rows", "precision", "recall", "F1", "AUPRC"], label_rows(labels, per_label))


def _confused(rows: Rows) -> list[str]:
    labels = rows.taxonomy.labels
    counts = metrics.confusion_counts(rows.gold, rows.pred, len(labels)).astype(int)
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
    """Return precision, recall and F1 of "has a relation" at every threshold that makes a difference.

    Args:
        related: (N,), whether each row has a relation; at least one has.
        scores: (N,), 1 - p(no_relation) of each row.

    Returns:
        (4, T): thresholds, falling; precision, recall and F1 in %.
    """
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # rows of equal score pass together
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
    equal = float(np.sort(scores)[-passed]) if passed else None  # passes as many rows as the predicted labels do
    best = int(curve[3].argmax())
    _draw_gate(curve, result["gate"], equal, folder / "gate.png")
    cells = [["as predicted", *[percent(result["gate"][key]) for key in ("precision", "recall", "f1")]]]
    cells.append([f"{curve[0, best]:.3f} (best F1 here)", *map(percent, curve[1:, best])])
    for threshold in THRESHOLDS:
        reached = np.flatnonzero(curve[0] >= threshold)
        values = map(percent, curve[1:, reached[-1]]) if len(reached) else (NONE, "0.00", NONE)
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
    """Return the rows of each non-empty bucket of sentence lengths."""
    names = [*(f"{low} to {high - 1}" for low, high in pairwise((0, *LENGTHS))), f"{LENGTHS[-1]} or more"]
    bucket = np.digitize([len(example.sentence) for example in examples], LENGTHS)
    return {names[number]: bucket == number for number in np.unique(bucket)}


def _f1_parts(rows: Rows, masks: Mapping[str, Mask], resamples: int) -> list[Part]:
    """Score each part by micro-F1, which is undefined without any gold or predicted relation."""
    gold, predicted = rows.related()
    parts = []
    for name, mask in masks.items():
        score, bounds, labels = None, None, (rows.gold[mask], rows.pred[mask])
        if (gold | predicted)[mask].any():
            score = metrics.micro_f1(*labels, rows.taxonomy)
            bounds = metrics.bootstrap_intervals(*labels, rows.probs[mask], rows.taxonomy, resamples)["micro_f1"]
        parts.append(Part(name, int(mask.sum()), int(gold[mask].sum()), score, bounds))
    return parts


def type_pairs(examples: Sequence[Example]) -> dict[str, Mask]:
    """Return the rows of each pair of entity types, the most frequent first; the rarest of many share the last."""
    pairs = np.array([type_pair(example) for example in examples])
    counts = Counter(pairs.tolist())
    ranked = sorted(counts, key=lambda pair: (-counts[pair], pair))
    own = ranked if len(ranked) <= PAIRS_SHOWN else ranked[: PAIRS_SHOWN - 1]
    masks = {pair: pairs == pair for pair in own}
    return masks if own is ranked else masks | {OTHER: ~np.isin(pairs, own)}


def _false_alarms(rows: Rows, folder: Path) -> list[str]:
    """Show how often unrelated entities of one sentence are predicted as related."""
    title, (gold, predicted) = "False alarms: unrelated rows that are predicted as related", rows.related()
    if gold.all():
        return [f"## {title}", "", "No row is unrelated.", ""]
    masks = {"all": np.ones(len(gold), dtype=bool)} | ({} if rows.examples is None else type_pairs(rows.examples))
    parts = []
    for name, mask in masks.items():
        if (unrelated := mask & ~gold).any():
            rate = false_rate(predicted[unrelated])
            score, *bounds = (100 * rate[key] for key in ("rate", "low", "high"))
            parts.append(Part(name, rate["n"], rate["related"], score, bounds))
    return _section(title, folder / "false_alarms.png", "subject→object", *ALARMS, parts)


def _section(title: str, image: Path, what: str, counted: str, score: str, parts: Sequence[Part]) -> list[str]:
    """Show the parts as bars with their intervals, and as a table."""
    names = [part.name for part in parts]
    with picture(image, 8.5, 1.4 + 0.3 * len(parts)) as figure:
        axes = figure.add_subplot()
        bars(axes, names, {score: [part.score or 0 for part in parts]}, {score: [""] * len(parts)})
        for row, part in enumerate(parts):
            if part.interval is not None:
                axes.plot(part.interval, [row, row], color="#222222", linewidth=1.2, clip_on=False)
        beside(axes, [f"{percent(p.score)}   n = {p.rows:,}, {p.counted:,} {counted}" for p in parts])
        axes.set_title(f"{title} (lines: 95 %)")
        axes.set(xlim=(0, 100), xlabel=score, ylabel=what)
    cells = [[p.name, f"{p.rows:,}", f"{p.counted:,}", percent(p.score), interval(p.interval)] for p in parts]
    lines = [f"## {title}", "", f"![{title}]({image.name})", "", *undrawn("names", names)]
    return [*lines, *table([what, "rows", counted, score, "95 % interval"], cells)]
