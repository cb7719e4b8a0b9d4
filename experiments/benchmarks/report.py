"""Measurements → table (markdown, CSV) and picture.

Medians over the repeats with the spread (lowest to highest). A ratio is taken within each repeat, where both sides ran
close together in time, and its median is shown. Rates come from wall time and from CPU time: on a machine that does
other work too only the latter mean something.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from experiments.benchmarks.setting import NAMES
from mtl_re import figures, markdown

Record = dict[str, Any]
"""One measurement: `setting` and `figures` as plain values."""
Group = dict[int, Record]
"""Measurements of one contender on one encoder, by repeat."""

FP32_PEERS = ("pipeline", "cross_encoder", "onnxruntime", "openvino")

GOALS: tuple[tuple[str, tuple[str, ...], tuple[str, ...], float], ...] = (
    ("train", ("ours",), ("limit",), 1.0),
    ("train", ("ours",), ("trainer_grouped", "trainer_dynamic", "cross_encoder"), 1.3),
    ("train", ("ours",), ("trainer_padded",), 4.0),
    ("predict", ("ours",), ("limit",), 0.95),
    ("predict", ("ours", "ours_onnx"), FP32_PEERS, 1.0),
    ("predict", ("ours",), ("three_networks",), 2.7),
    ("predict", ("ours_bf16", "ours_onnx", "ours_int8"), FP32_PEERS, 2.5),
)
"""Part, ours (the fastest of these), over what (the fastest of these), the ratio aimed at."""


NOTES = (
    "* median [lowest–highest] over the repeats; ratios are taken within each repeat",
    "* every measurement is a process of its own",
    "* peak MB: resident memory at most while it was measured; loading left out",
    "* training: all but the CrossEncoder, which tokenises in its loop, start from token ids; set-up, evaluation and "
    "checkpoints left out",
    "* prediction: from sentences in memory to labels, tokenising counted, but for the limit, which reads token ids",
    "* OpenVINO always runs under its own and the system's allocator: it crashes where jemalloc is preloaded",
    "* growth: commands from file to file, everything counted; both take prediction's rows a pass and its precision",
)


def rate(record: Record, seconds: str, rows: bool = False) -> float:
    """Real tokens a second, or rows of average length, by `wall_s` or `cpu_s`."""
    found = record["figures"]
    return float(found["tokens"] / found[seconds] / (found["mean_tokens"] if rows else 1))


def padding(record: Record) -> float:
    """Share of the tokens read that are padding, %."""
    found = record["figures"]
    return 100 * (1 - float(found["tokens"]) / found["padded_tokens"])


COLUMNS: dict[str, Callable[[Record], float]] = {
    "rows/s": lambda record: rate(record, "wall_s", rows=True),
    "tokens/s": lambda record: rate(record, "wall_s"),
    "tokens/CPU-s": lambda record: rate(record, "cpu_s"),
    "padding %": padding,
    "passes/step": lambda record: record["figures"]["passes"] / record["figures"]["steps"],
    "CPU s": lambda record: float(record["figures"]["cpu_s"]),
    "peak MB": lambda record: float(record["figures"]["peak_mb"]),
}


def grouped(records: Sequence[Record]) -> dict[tuple[str, str, str], Group]:
    """By part, encoder and contender, then by repeat."""
    found: dict[tuple[str, str, str], Group] = {}
    for record in records:
        setting = record["setting"]
        key = (setting["part"], setting["encoder"], setting["contender"])
        found.setdefault(key, {})[setting["repeat"]] = record
    return found


def ratios(first: Group, second: Group, seconds: str) -> list[float]:
    """How many times as fast the first is, repeat by repeat."""
    return [rate(first[turn], seconds) / rate(second[turn], seconds) for turn in sorted(set(first) & set(second))]


def spread(values: Sequence[float]) -> str:
    """Median and range as text."""
    if not values:
        return "–"
    middle = median(values)
    digits = 0 if middle >= 1000 else 1 if middle >= 10 else 2
    if len(values) == 1:
        return f"{middle:,.{digits}f}"
    return f"{middle:,.{digits}f} [{min(values):,.{digits}f}–{max(values):,.{digits}f}]"


def write(folder: Path, records: Sequence[Record], head: dict[str, Any]) -> None:
    """README.md, table.csv and bench.png.

    Args:
        folder: they are written there.
        records: what was measured. head: machine, versions, skipped {what: reason}, int8 {name: costs}, options.
    """
    groups = grouped(records)
    lines = ["# Benchmark", "", *_about(head)]
    for part, encoder in dict.fromkeys(key[:2] for key in groups):
        chosen = {key[2]: group for key, group in groups.items() if key[:2] == (part, encoder)}
        lines += [f"## {part}, {encoder}", ""]
        lines += {"growth": _growth, "sweep": _sweep}.get(part, _speeds)(part, chosen)
    lines += [line for name, cost in head["int8"].items() if cost for line in _int8(name, cost)]
    markdown.write_markdown(folder / "README.md", lines)
    _csv(folder / "table.csv", groups)
    _picture(folder / "bench.png", groups)


def _about(head: dict[str, Any]) -> list[str]:
    lines = [f"* {name}: {value}" for name, value in head["about"].items()]
    lines += [f"* left out: {what} ({why})" for what, why in head["skipped"].items()]
    return [*lines, *NOTES, ""]


def _speeds(part: str, chosen: dict[str, Group]) -> list[str]:
    limit = chosen.get("limit", {})
    rows = []
    for contender, name in NAMES[part].items():
        if group := chosen.get(contender):
            values = [spread([column(record) for record in group.values()]) for column in COLUMNS.values()]
            shares = [spread(ratios(group, limit, seconds)) for seconds in ("wall_s", "cpu_s")]
            precision = next(iter(group.values()))["figures"]["precision"]
            rows.append([name, precision, *values, *shares])
    header = ["", "precision", *COLUMNS, "of the limit", "of the limit (CPU time)"]
    return [*markdown.table(header, rows), *_goals(part, chosen)]


def _goals(part: str, chosen: dict[str, Group]) -> list[str]:
    rows = []
    for goal_part, ours, others, aim in GOALS:
        first, second = _fastest(ours, chosen), _fastest(others, chosen)
        if goal_part == part and first and second:
            wall, cpu = (ratios(chosen[first], chosen[second], seconds) for seconds in ("wall_s", "cpu_s"))
            named = f"{NAMES[part][first]} ÷ {NAMES[part][second]}"
            reached = "yes" if wall and median(wall) >= aim else "no"
            rows.append([named, spread(wall), spread(cpu), f"{aim:g}", reached])
    return markdown.table(["tokens/s", "by wall time", "by CPU time", "aim", "reached"], rows) if rows else []


def _fastest(names: Sequence[str], chosen: dict[str, Group]) -> str | None:
    there = [name for name in names if name in chosen]
    return max(there, key=lambda name: median(rate(x, "wall_s") for x in chosen[name].values()), default=None)


def _growth(part: str, chosen: dict[str, Group]) -> list[str]:
    rows = []
    for contender, group in chosen.items():
        found = [record["figures"] for record in group.values()]
        wall, cpu, peak, own = (spread([one[x] for one in found]) for x in ("wall_s", "cpu_s", "peak_mb", "own_mb"))
        speed = spread([one["rows"] / one["wall_s"] for one in found])
        rows.append([contender, f"{found[0]['rows']:,}", wall, cpu, speed, peak, own])
    header = ["of dev-open", "rows", "seconds", "CPU s", "rows/s", "peak MB", "without mapped files"]
    return [*markdown.table(header, rows), *_slopes(chosen)]


def _slopes(chosen: dict[str, Group]) -> list[str]:
    """How seconds and memory grow with the rows: the exponent between the two largest amounts (1: in proportion)."""
    groups = sorted(
        ([record["figures"] for record in group.values()] for group in chosen.values()),
        key=lambda found: found[0]["rows"],
    )
    if len(groups) < 2:
        return []
    smaller, larger = groups[-2:]
    times = math.log(larger[0]["rows"] / smaller[0]["rows"])
    grown = {
        name: math.log(median(one[name] for one in larger) / median(one[name] for one in smaller)) / times
        for name in ("wall_s", "own_mb")
    }
    numbers = f"{smaller[0]['rows']:,} to {larger[0]['rows']:,} rows"
    return [f"From {numbers}, seconds grow as rows^{grown['wall_s']:.2f} and memory as rows^{grown['own_mb']:.2f}.", ""]


def _sweep(part: str, chosen: dict[str, Group]) -> list[str]:
    names = ("tokens/CPU-s", "tokens/s", "passes/step", "padding %")
    rows = []
    for contender, group in chosen.items():
        records = list(group.values())
        grown = [record["figures"]["peak_mb"] - record["figures"]["start_mb"] for record in records]
        values = [spread([COLUMNS[name](record) for record in records]) for name in names]
        rows.append((median(rate(record, "cpu_s") for record in records), [contender, *values, spread(grown)]))
    rows.sort(key=lambda row: -row[0])
    return markdown.table(["pass cost, length step", *names, "growth MB"], [row for _, row in rows])


def _int8(name: str, cost: dict[str, Any]) -> list[str]:
    kept = cost["tried"][cost["recipe"]]
    losses = [
        f"{score} {kept[score]['before']:.2f} → {kept[score]['after']:.2f} "
        f"({kept[score]['difference']:+.2f}, 95 % {kept[score]['ci'][0]:+.2f} to {kept[score]['ci'][1]:+.2f})"
        for score in ("micro_f1", "auprc")
    ]
    changed = f"{kept['changed_labels']:.2f} % of the labels changed"
    return [f"int8 of {name} (`{cost['recipe']}`, {cost['rows']:,} rows): {', '.join(losses)}; {changed}.", ""]


def _csv(path: Path, groups: dict[tuple[str, str, str], Group]) -> None:
    """Every measurement on a line."""
    records = [record for group in groups.values() for record in group.values()]
    identity = ("part", "encoder", "contender", "repeat", "pass_cost", "length_step", "batch_size", "threads")
    measured = list(dict.fromkeys(name for record in records for name in record["figures"]))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*identity, *measured])
        for record in records:
            found = [record["figures"].get(name, "") for name in measured]
            writer.writerow([*(record["setting"][name] for name in identity), *found])


# ---- picture -----------------------------------------------------------------------------------------------------


def _picture(path: Path, groups: dict[tuple[str, str, str], Group]) -> None:
    panels = [pair for pair in dict.fromkeys(key[:2] for key in groups) if pair[0] != "sweep"]
    if not panels:
        return
    with figures.picture(path, 9.5, 0.4 + 2.5 * len(panels)) as figure:
        grid = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
        for axes, (part, encoder) in zip(grid, panels, strict=True):
            chosen = {key[2]: group for key, group in groups.items() if key[:2] == (part, encoder)}
            (_draw_growth if part == "growth" else _draw_speeds)(axes, part, chosen)
            axes.set_title(f"{part}, {encoder}")


def _draw_speeds(axes: Any, part: str, chosen: dict[str, Group]) -> None:
    names = [name for name in NAMES[part] if name in chosen]
    rates = [[rate(record, "wall_s") for record in chosen[name].values()] for name in names]
    middles = [median(values) for values in rates]
    limit = chosen.get("limit", {})
    shares = [ratios(chosen[name], limit, "wall_s") for name in names]
    texts = [
        f"  {middle:,.0f}{f' ({100 * median(share):.0f} % of the limit)' if share else ''}"
        for middle, share in zip(middles, shares, strict=True)
    ]
    colors = [figures.COLORS[0] if name.startswith("ours") else figures.GREY for name in names]
    figures.bars(
        axes, [NAMES[part][name] for name in names], {"tokens": middles}, {"tokens": [""] * len(names)}, colors
    )
    for place, (values, text) in enumerate(zip(rates, texts, strict=True)):
        axes.text(max(values), place, text, va="center", fontsize=8, color="#333333")  # right of the whisker
    reach = [[m - min(v) for m, v in zip(middles, rates, strict=True)]]
    reach += [[max(v) - m for m, v in zip(middles, rates, strict=True)]]
    axes.errorbar(middles, range(len(names)), xerr=reach, fmt="none", ecolor="#333333", elinewidth=1, capsize=2)
    axes.set_xlim(0, 1.35 * max(max(values) for values in rates))
    axes.set_xlabel("real tokens a second (median; whiskers: lowest and highest)")


def _draw_growth(axes: Any, part: str, chosen: dict[str, Group]) -> None:
    found = [[record["figures"] for record in group.values()] for group in chosen.values()]
    rows = [values[0]["rows"] for values in found]
    seconds = [median(one["wall_s"] for one in values) for values in found]
    peaks = [median(one["own_mb"] for one in values) for values in found]
    axes.loglog(rows, seconds, marker="o", color=figures.COLORS[0], label="seconds")
    axes.loglog(rows, peaks, marker="s", color=figures.COLORS[1], label="peak memory, MB, without mapped files")
    for axis in (axes.xaxis, axes.yaxis):  # the project's style draws no mathematics, such as 10²
        axis.set_major_formatter("{x:,.10g}")
        axis.set_minor_formatter("")
    axes.set_xticks(rows, minor=False)
    axes.set_xlabel("rows of a call, from file to file")
    axes.grid(True, axis="both")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
