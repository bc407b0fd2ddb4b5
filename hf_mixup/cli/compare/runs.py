"""The folder of a comparison: what was asked for, and the runs that are finished. Imports no torch."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

# How the files begin that lock a comparison, a part of it, what all parts write, or a run.
LOCK = ".lock"
ASKED, RESULT, PREDICTIONS = "comparison.yaml", "result.json", "predictions.npz"
# The baseline with a temperature fitted on development data: a method without runs of its own.
DERIVED = "temperature_scaling"
# Missing runs that are named.
SHOWN = 3


@dataclass(frozen=True)
class Cell:
    """One run of the grid.

    Args:
        method (`str`): its name in `Comparison.methods`.
        train_size (`int`): see `Comparison.train_sizes`.
        label_noise (`float`): share of the training labels that are replaced by another one.
        seed (`int`): of the training rows, the new head, dropout, the order of batches, and mixup.
    """

    method: str
    train_size: int
    label_noise: float
    seed: int

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.method}-size{self.train_size}-noise{self.label_noise:g}-seed{self.seed}"


def files_of_all(folder: str | Path) -> FileLock:
    """A lock on the files that all parts of a comparison write, for the moment in which one reads and writes them."""
    return FileLock(Path(folder) / f"{LOCK}-files")


def read_asked(folder: str | Path) -> dict[str, Any]:
    """What was asked for: the fields in `comparison.yaml`.

    Args:
        folder (`str` or `Path`): the output folder of a comparison.

    Raises:
        FileNotFoundError: if the folder holds no comparison.
    """
    path = Path(folder) / ASKED
    if not path.is_file():
        raise FileNotFoundError(f"{str(folder)!r} holds no comparison: there is no {ASKED} in it.")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def asked_cells(asked: dict[str, Any]) -> list[Cell]:
    """Every run that was asked for, finished or not; the methods in their order."""
    grid = itertools.product(asked["methods"], asked["train_sizes"], asked["label_noise"], asked["seeds"])
    return [Cell(*values) for values in grid]


def load_runs(folder: str | Path) -> list[dict[str, Any]]:
    """The results of the finished runs. Argument and errors as for `read_asked`.

    Returns:
        `list[dict]`: what the runs wrote into `result.json`, by method, size, label noise and seed as they were asked
            for. Missing and unfinished runs are absent, and so are runs that are not asked for any more.
    """
    runs = (read_run(Path(folder), cell) for cell in asked_cells(read_asked(folder)))
    return [run for run in runs if run is not None]


def read_run(folder: Path, cell: Cell) -> dict[str, Any] | None:
    """The result of a run; `None` if it is not finished."""
    path = folder / "runs" / cell.name / RESULT
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def missing_runs(folder: str | Path) -> str:
    """Which runs are not finished, in a line; empty if all are. Argument and errors as for `read_asked`."""
    cells = asked_cells(read_asked(folder))
    names = [cell.name for cell in cells if read_run(Path(folder), cell) is None]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)} of {len(cells)} runs are missing: {', '.join(names[:SHOWN])}{more}" if names else ""
