"""`hf-mixup compare`: every run of a grid, several at a time, each once; what is finished stays finished."""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
import time
import traceback
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import datasets
import torch
import yaml
from tqdm.auto import tqdm
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from hf_mixup.comparison.cell import RESULT, check_runs, run_cell
from hf_mixup.comparison.grid import Cell, Comparison

ASKED = "comparison.yaml"
# What may differ when a comparison goes on: more of the grid, and how it is run.
MAY_GROW = ("methods", "seeds", "train_sizes", "label_noise", "workers", "output_dir")
MOST_WORKERS = 8


def compare(comparison: Comparison) -> list[Cell]:
    """Run what is not there yet.

    Args:
        comparison (`Comparison`): what is compared. Its folder may hold a part of the same comparison: finished runs
            stay, the others are run.

    Returns:
        `list[Cell]`: the runs that failed; each left its error in `error.txt` in its folder.

    Raises:
        ValueError: for something that cannot work, before the first run; for a folder that holds another comparison.
    """
    folder = Path(comparison.output_dir)
    missing = [cell for cell in comparison.cells() if not (folder / "runs" / cell.name / RESULT).is_file()]
    check_folder(comparison, folder)
    if missing:
        check_runs(comparison)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ASKED).write_text(yaml.safe_dump(comparison.to_dict(), sort_keys=False), encoding="utf-8")
    return run_missing(comparison, missing, folder)


def check_folder(comparison: Comparison, folder: Path) -> None:
    """Raise `ValueError` for an output folder that holds something else than a part of this comparison."""
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / ASKED).is_file():
        raise ValueError(f"output_dir={str(folder)!r} is not empty and holds no comparison; choose another.")
    before, now = yaml.safe_load((folder / ASKED).read_text(encoding="utf-8")), comparison.to_dict()
    methods = {name: made_of for name, made_of in now["methods"].items() if name in before["methods"]}
    changed = [name for name in now if name not in (*MAY_GROW, "run") and now[name] != before.get(name)]
    names = {**before["run"], **now["run"]}
    changed += [f"run: {name}" for name in names if now["run"].get(name) != before["run"].get(name)]
    changed += [f"methods: {name}" for name, made_of in methods.items() if made_of != before["methods"][name]]
    if changed:
        raise ValueError(
            f"output_dir={str(folder)!r} holds a comparison with another {', '.join(changed)}; choose another folder. "
            f"Only {', '.join(MAY_GROW[:-1])} may change where it goes on."
        )


def run_missing(comparison: Comparison, missing: list[Cell], folder: Path) -> list[Cell]:
    """Run the cells in processes of their own, and say how far it is."""
    gpus = torch.cuda.device_count()
    workers = min(comparison.workers or min(gpus or os.cpu_count() or 1, MOST_WORKERS), max(len(missing), 1))
    context, failed = multiprocessing.get_context("spawn"), []
    numbers = context.Queue()
    for number in range(workers):
        numbers.put(number)
    threads = max(1, (os.cpu_count() or 1) // workers)
    total = len(comparison.cells())
    with (
        ProcessPoolExecutor(workers, context, start_worker, (numbers, gpus, threads, os.getpid())) as pool,
        tqdm(total=total, initial=total - len(missing), unit="run", smoothing=0.1) as progress,
    ):
        runs: dict[Future[None], Cell] = {
            pool.submit(run_one, comparison, cell, folder / "runs" / cell.name): cell for cell in missing
        }
        try:
            for run in as_completed(runs):
                progress.update()
                if run.exception() is not None:
                    failed.append(runs[run])
                    progress.write(f"{runs[run].name} failed: {run.exception()}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failed


def start_worker(numbers: Any, gpus: int, threads: int, parent: int) -> None:
    """Give a worker its GPU or its share of the cores, and end it where the comparison was killed."""
    number = numbers.get()
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(number % gpus)
    torch.set_num_threads(threads)
    quiet()
    # What is said of the data was said once, by the comparison.
    logging.getLogger("hf_mixup").setLevel(logging.ERROR)
    threading.Thread(target=end_with, args=(parent,), daemon=True).start()


def end_with(parent: int) -> None:
    """End this process when its parent is gone, so that nothing runs twice when the comparison is started again."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def run_one(comparison: Comparison, cell: Cell, folder: Path) -> None:
    """One cell; what goes wrong is written beside it."""
    error = folder / "error.txt"
    try:
        run_cell(comparison, cell, folder)
        error.unlink(missing_ok=True)
    except Exception:
        folder.mkdir(parents=True, exist_ok=True)
        error.write_text(traceback.format_exc(), encoding="utf-8")
        raise


def quiet() -> None:
    """Progress bars and notes of the libraries would drown those of the comparison."""
    datasets.disable_progress_bars()
    set_verbosity_error()
    disable_progress_bar()
