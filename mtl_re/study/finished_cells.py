"""Which cells of a study are finished, as its file describes them now.

A run directory is known by its name. What it was trained with stands in its `cell.yaml`: a cell that the study file
gives other options since is another cell, whose scores must not appear under the new description.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mtl_re.errors import MtlReError
from mtl_re.files import read_yaml
from mtl_re.study.cell_process import finished
from mtl_re.study.study import Cell, Study, checked_config


def finished_cells(study: Study, cells: Iterable[Cell]) -> dict[tuple[str, int], Cell]:
    """Return the cells that are finished, by arm and seed.

    Raises:
        MtlReError: One was trained with other options than the study gives it now.
    """
    done = {(cell.arm, cell.seed): cell for cell in cells if finished(study.run_dir(cell))}
    for cell in done.values():
        check_options(study.run_dir(cell), cell)
    return done


def check_options(run_dir: Path, cell: Cell) -> None:
    """Raise MtlReError if a run directory holds a run with other options than a cell's."""
    path = run_dir / "cell.yaml"
    if not path.is_file() or (stored := read_yaml(path)) == cell.config:
        return
    try:
        same = checked_config(stored).to_dict() == cell.options.to_dict()
    except MtlReError:  # an option that this version does not know
        same = False
    if not same:
        what = f"{run_dir}: holds a run with other options than the study file gives {cell.key} now"
        raise MtlReError(f"{what}; put the file back, remove the run, or give the study another output")
