"""The part of a study's report that answers "which loss weights?": surface, optimum, uncertainty, moving weightings.

Enters: the scored arms of a study with a design. Leaves: lines of markdown, surface-RESPONSE.png, and the tables
runs.csv, surfaces.csv and coefficients.csv. The response and the model that answer were named in the study file; the
others are looked at beside them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mtl_re.errors import MtlReError
from mtl_re.files import write_csv
from mtl_re.markdown import table
from mtl_re.scoring.significance import LEVEL
from mtl_re.scoring.summary import NONE, percent
from mtl_re.study import surface_pictures
from mtl_re.study.arm_statistics import UNSHOWN
from mtl_re.study.design import DesignOptions
from mtl_re.study.mixture import MODELS, Model, point_text, term_names
from mtl_re.study.mixture_runs import RESPONSES, ArmBeside, RunTable, arms_beside, run_table
from mtl_re.study.optimum import Optimum, find_optimum
from mtl_re.study.scored_arms import ScoredArm
from mtl_re.study.study import Study
from mtl_re.study.surface import FTest, Surface
from mtl_re.study.surface_pictures import rounded


@dataclass(frozen=True)
class Beside:
    """An arm beside the surface of one response.

    Attributes:
        runs: Number of its runs that are compared.
        point: (q,) their mean proportions.
        measured: Their mean score.
        fitted: The surface's score at its weights (and in its blocks).
        interval: 95 % interval of the difference between them, for all arms at once (Bonferroni); None where no seed is
            a block of the design.
        inside: Whether its weights lie between those of the runs.
        left_out: Seeds of its runs that lie in no block, beside others that do.
    """

    name: str
    moves: bool
    runs: int
    point: np.ndarray
    measured: float
    fitted: float
    interval: tuple[float, float] | None
    inside: bool
    left_out: tuple[int, ...] = ()

    @property
    def verdict(self) -> str:
        """What the interval says."""
        if not self.inside:
            return "outside what was tried: the surface says nothing"
        if self.interval is None:
            return "not compared: none of its seeds is a block of the design"
        if self.interval[0] <= 0 <= self.interval[1]:
            return UNSHOWN
        return "better than the surface there" if self.interval[0] > 0 else "worse than the surface there"


def surface_section(study: Study, entries: Sequence[ScoredArm], folder: Path) -> list[str]:
    """Write the tables and pictures of a design's surface and return its lines; none for a study without a design."""
    if study.design is None:
        return []
    runs, options = run_table(study, entries), study.design.options
    lines = ["## The surface of the loss weights", ""]
    if not len(runs.points):
        return [*lines, "There is no surface yet: no run of the design is finished.", ""]
    missing = len(study.runs) - len(runs.points)
    if missing:
        lines += [
            f"**{missing} of the design's {len(study.runs)} runs are not finished**; the surface stands on the others.",
            "",
        ]
    try:
        return [*lines, *surface_lines(runs, options, arms_beside(study, entries), folder)]
    except MtlReError as error:
        return [*lines, f"There is no surface yet: {error}.", ""]


def surface_lines(runs: RunTable, options: DesignOptions, beside: Sequence[ArmBeside], folder: Path) -> list[str]:
    """Write tables and pictures of the surfaces of all responses; return the lines of the section.

    Raises:
        MtlReError: The runs are too few for the model that was named, or nothing differs.
    """
    answered = options.response
    responses = [name for name in RESPONSES if name in runs.scores and not runs.flat(name)]
    if answered not in responses:
        raise MtlReError(f"{RESPONSES[answered]} is missing, or the same in all runs")
    surfaces = {name: fitted_models(runs, name) for name in responses}
    chosen = runs.surface(answered, options.model)
    optimum = find_optimum(chosen)
    scored = [arm for arm in beside if answered in arm.scores]
    compared = [compare_beside(chosen, arm, answered, len(scored)) for arm in scored]
    _write_tables(folder, runs, surfaces)
    same = [RESPONSES[name] for name in runs.scores if runs.flat(name)]
    picture = f"surface-{answered}.png"
    surface_pictures.draw(optimum, [(one.name, one.point) for one in compared], RESPONSES[answered], folder / picture)
    return [
        *_answer(chosen, optimum, RESPONSES[answered]),
        f"![Surface of the {RESPONSES[answered]}]({picture})",
        "",
        *([f"Without a surface, for it is the same in all runs: {', '.join(same)}.", ""] if same else []),
        *_tests(surfaces),
        *_coefficients({name: models[options.model] for name, models in surfaces.items() if options.model in models}),
        *_beside(runs.region.names, compared, RESPONSES[answered]),
    ]


def fitted_models(runs: RunTable, response: str) -> dict[Model, Surface]:
    """Fit each model that the runs can tell."""
    found: dict[Model, Surface] = {}
    for model in MODELS:
        try:
            found[model] = runs.surface(response, model)
        except MtlReError:  # of a design that is not finished, or was not made for so rich a model
            continue
    return found


# ---- arms beside the surface -----------------------------------------------------------------------------------------


def compare_beside(surface: Surface, arm: ArmBeside, response: str, arms: int) -> Beside:
    """Compare an arm's mean score with what the surface predicts for runs at its weights.

    The interval is the prediction interval of a mean of so many new runs (Draper & Smith, Applied Regression Analysis,
    3rd ed. 1998, ch. 3); its level is shared by all arms. Of a design in blocks, the runs that share a block's seed are
    compared, with the block's effect: how far another seed lies from these is not in the surface's SD.

    Args:
        arms: Number of arms that are compared.
    """
    from scipy.stats import t

    known = np.ones(len(arm.seeds), bool) if surface.blocks is None else np.isin(arm.seeds, surface.blocks)
    kept = known if known.any() else ~known
    points, scores = arm.points[kept], arm.scores[response][kept]
    columns = surface.run_columns(points, arm.seeds[kept]).mean(axis=0)
    fitted, measured, point = float(columns @ surface.fit.params), float(scores.mean()), points.mean(axis=0)
    interval = None
    if known.any():
        variance = float(columns @ surface.fit.cov_params() @ columns) + surface.sd**2 / len(scores)
        half = float(t.ppf(1 - LEVEL / 2 / arms, surface.degrees)) * math.sqrt(variance)
        interval = (measured - fitted - half, measured - fitted + half)
    inside, left_out = bool(surface.tried(point[None])[0]), tuple(arm.seeds[~kept].tolist())
    return Beside(arm.name, arm.moves, len(scores), point, measured, fitted, interval, inside, left_out)


# ---- lines -----------------------------------------------------------------------------------------------------------


def _answer(surface: Surface, optimum: Optimum, what: str) -> list[str]:
    """Say in words whether weights matter, where the best ones lie, and what they gain over unit weights."""
    region, test = surface.region, surface.weights_matter
    unit = np.full(len(region.names), 1 / len(region.names))
    grid = surface.grid()
    shown = test.p is not None and test.p < LEVEL
    undefined = f"F({test.degrees[0]}, {test.degrees[1]}) undefined, for nothing is left over"
    lines = [
        f"**{'Weights matter' if shown else 'It is not shown that weights matter'}** for the {what}: the "
        f"{surface.model} surface against a constant{'' if surface.blocks is None else ' with blocks of seeds'}, "
        f"{_short(test, undefined)}, {len(surface.values)} runs, SD of a run around the surface "
        f"{surface.sd:.2f} points.",
        "",
        f"The surface is highest at {point_text(region.names, optimum.point)} of the weights "
        f"({_weights(region.names, optimum.point)}): {optimum.value:.2f} "
        f"[{_interval(optimum.value, surface.band_factor * surface.standard_error(optimum.point)[0])}] (95 % band).",
    ]
    if surface.tried(unit[None])[0]:
        gain, error = (float(part[0]) for part in surface.difference(optimum.point[None], unit))
        lines[-1] += (
            f" Over unit weights that is {gain:+.2f} points [{_interval(gain, surface.contrast_factor * error, '+')}] "
            "(Scheffé's S-method, which pays for the choice)."
        )
        among = "are not shown to be worse" if optimum.not_worse(unit[None])[0] else "are shown to be worse"
        lines[-1] += f" Unit weights {among}."
    shares = [100 * float(part(grid).mean()) for part in (optimum.region, optimum.not_worse)]
    lines += [
        *_caution(surface),
        "",
        f"The true optimum lies, with confidence 95 %, in {rounded(shares[0])} of the weights that were tried "
        f"({_ranges(region.names, grid[optimum.region(grid)])}). {rounded(shares[1])} of them are not shown to be "
        "worse than the best found.",
        "",
    ]
    return lines


def _caution(surface: Surface) -> list[str]:
    """Say that the map should not be believed, where the runs themselves speak against it."""
    reasons = []
    prediction, lack = surface.prediction_r_squared, surface.lack_of_fit
    if prediction is not None and prediction <= 0:
        reasons.append(f"weights left out are predicted no better than by the mean (prediction R² {prediction:.2f})")
    if lack is not None and lack.p is not None and lack.p < LEVEL:
        reasons.append(f"its form does not fit (lack of fit {_short(lack)})")
    if not reasons:
        return []
    return [
        "",
        f"**Do not rely on this surface**: {' and '.join(reasons)}. What follows holds only if its form is right.",
    ]


def _weights(names: Sequence[str], point: np.ndarray) -> str:
    return ", ".join(f"{name}: {len(names) * part:.2f}" for name, part in zip(names, point, strict=True))


def _ranges(names: Sequence[str], points: np.ndarray) -> str:
    if not len(points):
        return "none of the grid's points"
    ends = zip(names, 100 * points.min(axis=0), 100 * points.max(axis=0), strict=True)
    return ", ".join(f"{name} {low:.0f} to {high:.0f} %" for name, low, high in ends)


def _interval(value: float, half: float, sign: str = "") -> str:
    return f"{value - half:{sign}.2f}, {value + half:{sign}.2f}"


def _p(p: float) -> str:
    return f"= {p:.3f}" if p >= 0.001 else "< 0.001"


def _tests(surfaces: Mapping[str, Mapping[Model, Surface]]) -> list[str]:
    rows = []
    for name, models in surfaces.items():
        simpler: Surface | None = None
        for model, surface in models.items():
            lack = surface.lack_of_fit
            rows.append(
                [
                    RESPONSES[name],
                    model,
                    _short(surface.weights_matter),
                    NONE if simpler is None else _short(surface.beyond(simpler)),
                    f"{surface.sd:.2f}",
                    percent(surface.r_squared),
                    percent(surface.prediction_r_squared),
                    NONE if lack is None else _short(lack),
                    NONE if surface.pure_error is None else f"{surface.pure_error:.2f}",
                ]
            )
            simpler = surface
    header = ["score", "surface", "weights matter", "terms added to the simpler surface", "SD of a run", "R²"]
    return [
        "### Tests",
        "",
        *table([*header, "prediction R²", "lack of fit", "SD of replicates"], rows),
        "Weights matter: F test against a constant (with block effects where runs share seeds), from which R² is "
        "measured too. Lack of fit: what the surface leaves over, against the spread of runs at the same weights; a "
        "small p says that the surface has the wrong form. Prediction R²: the runs at each point predicted by those at "
        "the other points, 1 − their sum of squares by the surface / by the mean (of each block); below 0 the mean "
        "predicts better. p-values are not adjusted for the number of scores and surfaces: the one that answers was "
        "named beforehand.",
        "",
    ]


def _short(test: FTest, undefined: str = NONE) -> str:
    if test.f is None or test.p is None:
        return undefined
    return f"F({test.degrees[0]}, {test.degrees[1]}) = {test.f:.2f}, p {_p(test.p)}"


def _coefficients(surfaces: Mapping[str, Surface]) -> list[str]:
    first = next(iter(surfaces.values()))
    columns = {
        name: [f"{c.value:.1f} [{c.low:.1f}, {c.high:.1f}]" for c in surface.coefficients]
        for name, surface in surfaces.items()
    }
    names = term_names(first.region.names, first.model)
    rows = [[term, *(column[index] for column in columns.values())] for index, term in enumerate(names)]
    return [
        f"### Coefficients of the {first.model} surface",
        "",
        *table(["term", *(RESPONSES[name] for name in columns)], rows),
        f"With 95 % intervals (Student's t). Of a head: {_corners(first)}. Of a pair: four times what the middle "
        "between two corners lies above (below: −) the line that joins them.",
        "",
    ]


def _corners(surface: Surface) -> str:
    """Say at which weights the coefficients of the heads are scores, and which of these corners no run came near."""
    names, corners = surface.region.names, surface.region.actual(np.eye(len(surface.region.names)))
    if not any(part > 0 for part in surface.region.low):
        text = "the score with all weight on it"
    else:
        shares = ", ".join(f"{name} {rounded(100 * corners[i, i])}" for i, name in enumerate(names))
        text = f"the score at its corner, where the other heads have their least shares ({shares})"
    most = surface.points.max(axis=0)
    outside = [
        f"{name} (at most {rounded(100 * most[i])})" for i, name in enumerate(names) if not surface.tried(corners)[i]
    ]
    if outside:
        text += (
            f"; the corner lies outside what was tried, so that the score there is extrapolated: {', '.join(outside)}"
        )
    return text


def _beside(heads: Sequence[str], compared: Sequence[Beside], what: str) -> list[str]:
    if not compared:
        return []
    rows = [
        [
            one.name,
            "move" if one.moves else "stay",
            str(one.runs),
            *(f"{100 * part:.0f} %" for part in one.point),
            f"{one.measured:.2f}",
            f"{one.fitted:.2f}",
            f"{one.measured - one.fitted:+.2f}"
            + ("" if one.interval is None else f" [{one.interval[0]:+.2f}, {one.interval[1]:+.2f}]"),
            one.verdict,
        ]
        for one in compared
    ]
    left_out = [f"{one.name} {', '.join(map(str, one.left_out))}" for one in compared if one.left_out]
    return [
        "### Other weightings beside the surface",
        "",
        *table(["arm", "weights", "runs", *heads, what, "surface there", "difference", "verdict"], rows),
        "The weights are means over the steps of all runs. The interval is for the mean of so many new runs, 95 % for "
        "all arms at once (Bonferroni)."
        + (f" Seeds that are no blocks of the design are left out: {'; '.join(left_out)}." if left_out else ""),
        "",
    ]


# ---- tables ----------------------------------------------------------------------------------------------------------


def _write_tables(folder: Path, runs: RunTable, surfaces: Mapping[str, Mapping[Model, Surface]]) -> None:
    names = runs.region.names
    write_csv(
        folder / "runs.csv",
        [
            {name: round(float(part), 4) for name, part in zip(names, point, strict=True)}
            | {"seed": int(runs.seeds[index])}
            | {name: float(values[index]) for name, values in runs.scores.items()}
            for index, point in enumerate(runs.points)
        ],
    )
    each = [(name, model, surface) for name, models in surfaces.items() for model, surface in models.items()]
    write_csv(folder / "surfaces.csv", [surface_row(name, model, surface) for name, model, surface in each])
    write_csv(
        folder / "coefficients.csv",
        [
            {"score": name, "surface": model, "term": c.name, "value": c.value, "low": c.low, "high": c.high}
            for name, model, surface in each
            for c in surface.coefficients
        ],
    )


def surface_row(name: str, model: Model, surface: Surface) -> dict[str, Any]:
    """Return the tests of a surface as one row of surfaces.csv."""
    row: dict[str, Any] = {"score": name, "surface": model, "runs": len(surface.values), "sd": surface.sd}
    for column, test in (("weights", surface.weights_matter), ("lack_of_fit", surface.lack_of_fit)):
        if test is not None:
            row |= {f"{column}_f": test.f, f"{column}_p": test.p, f"{column}_df": "/".join(map(str, test.degrees))}
    shares = {"r2": surface.r_squared, "prediction_r2": surface.prediction_r_squared}
    return row | shares | {"pure_error": surface.pure_error}
