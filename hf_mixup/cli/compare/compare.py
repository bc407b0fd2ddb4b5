"""`hf-mixup compare`: every run of a grid, several at a time, each once; what is finished stays finished."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import torch
import yaml
from filelock import FileLock, Timeout
from tqdm import std
from tqdm.auto import tqdm
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from hf_mixup.cli.compare.cell import check_runs, run_cell
from hf_mixup.cli.compare.grid import Comparison, of_the_run
from hf_mixup.cli.compare.rows import digest
from hf_mixup.cli.compare.runs import ASKED, RESULT, Cell, read_asked, read_run
from hf_mixup.cli.train.arguments import parse_fields
from hf_mixup.config.files import write_whole
from hf_mixup.config.mixup_config import MixupConfig
from hf_mixup.config.recipes import resolve_config
from hf_mixup.config.setting import changed_fields

LOCK = ".lock"
# What may differ when a comparison resumes: more of the grid, and how it is run.
MAY_GROW = ("methods", "seeds", "train_sizes", "label_noise", "workers", "output_dir")
MOST_WORKERS = 8
SET_BY_RUNS = ("class_counts", "check_rows")


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
    before = read_before(folder)
    asked = asdict(comparison) if before is None else widened(before, asdict(comparison), folder)
    missing = [cell for cell in comparison.cells() if read_run(folder, cell) is None]
    if missing:
        asked["data"] = digest(check_runs(comparison))
        if before is not None and before.get("data", asked["data"]) != asked["data"]:
            raise ValueError(
                f"output_dir={str(folder)!r} holds a comparison of other data: texts or labels have changed since it "
                "was started, so its runs were trained and tested on other rows; choose another output_dir."
            )
    check_recipes(comparison, folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK, timeout=0):
            with write_whole(folder / ASKED) as part:
                part.write_text(yaml.safe_dump(asked, sort_keys=False), encoding="utf-8")
            return run_missing(comparison, missing, folder)
    except Timeout as error:
        raise ValueError(f"output_dir={str(folder)!r}: another comparison is running in it.") from error


def read_before(folder: Path) -> dict[str, Any] | None:
    """What was compared in the folder before. Raises `ValueError` if it holds something else."""
    if not folder.exists() or all(entry.name == LOCK for entry in folder.iterdir()):
        return None
    if not (folder / ASKED).is_file():
        raise ValueError(f"output_dir={str(folder)!r} is not empty and holds no comparison; choose another.")
    return read_asked(folder)


def widened(before: dict[str, Any], now: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Both comparisons in one. Raises `ValueError` if they differ in more than their size."""
    # A field that is newer than the folder had its default.
    before = {"balanced": True} | before
    changed = [name for name in now if name not in (*MAY_GROW, "run") and now[name] != before.get(name)]
    names = {**before["run"], **now["run"]}
    changed += [f"run: {name}" for name in names if now["run"].get(name) != before["run"].get(name)]
    both = set(now["methods"]) & set(before["methods"])
    changed += [f"methods: {name}" for name in both if now["methods"][name] != before["methods"][name]]
    if next(iter(now["methods"])) != next(iter(before["methods"])):
        changed.append("baseline")
    if changed:
        raise ValueError(
            f"output_dir={str(folder)!r} holds a comparison that differs in {', '.join(changed)}; choose another. "
            f"When it resumes, {', '.join(MAY_GROW[:-1])} may be added and nothing else may change."
        )
    lists = {name: [*dict.fromkeys(before[name] + now[name])] for name in ("seeds", "train_sizes", "label_noise")}
    return before | now | lists | {"methods": {**before["methods"], **now["methods"]}}


def check_recipes(comparison: Comparison, folder: Path) -> None:
    """Raise `ValueError` if a run that is finished was made with a recipe that has changed since."""
    for cell in comparison.cells():
        result = read_run(folder, cell)
        if result is None:
            continue
        # Read back from JSON, in which the points of a schedule are strings.
        if result["variant"] not in json.loads(json.dumps(comparison.methods[cell.method])):
            raise ValueError(f"methods: {cell.method}: {folder / 'runs' / cell.name} was made of {result['variant']}.")
        now = resolved(comparison, result["variant"])
        # A field that is newer than the run had its default.
        then = MixupConfig.from_dict(result["mixup"]) if result["mixup"] else None
        differ = changed_fields(then, now) if then and now else []
        # Set in each run, if nobody has said them.
        differ = [name for name in differ if name not in SET_BY_RUNS or getattr(now, name) is not None]
        if differ or (then is None) != (now is None):
            raise ValueError(
                f"methods: {cell.method}: its recipe has changed since {folder / 'runs' / cell.name} was run "
                f"({', '.join(differ) or 'mixup'}); choose another output_dir."
            )


def resolved(comparison: Comparison, variant: dict[str, Any]) -> MixupConfig | None:
    """The mixup that a variant means."""
    fields = comparison.run | of_the_run(variant) | {"output_dir": comparison.output_dir}
    return resolve_config(parse_fields(fields)[0].mixup)


def run_missing(comparison: Comparison, missing: list[Cell], folder: Path) -> list[Cell]:
    """Run the cells in processes of their own, and say how far it is."""
    gpus = [] if comparison.run.get("use_cpu") else visible_gpus()
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    workers = min(comparison.workers or min(len(gpus) or cores, MOST_WORKERS), max(len(missing), 1))
    total, failed = len(comparison.cells()), []
    with tqdm(total=total, initial=total - len(missing), unit="run", smoothing=0.1) as progress:
        while missing:
            failed += run_pool(comparison, missing, folder, workers, (gpus, max(1, cores // workers)), progress)
            left = [cell for cell in missing if cell not in failed and read_run(folder, cell) is None]
            # A worker that dies takes the others with it; what it was running is tried again until nothing is gained.
            if len(left) == len(missing):
                failed += left
                left = []
            missing = left
    return failed


def run_pool(
    comparison: Comparison,
    missing: list[Cell],
    folder: Path,
    workers: int,
    share: tuple[list[str], int],
    progress: tqdm,
) -> list[Cell]:
    """Run cells until all are done or a worker dies; those that failed are returned."""
    context, failed = multiprocessing.get_context("spawn"), []
    numbers = context.Queue()
    for number in range(workers):
        numbers.put(number)
    pool = ProcessPoolExecutor(workers, context, start_worker, (numbers, *share, os.getpid()))
    with interrupts_ignored():
        runs: dict[Future[None], Cell] = {
            pool.submit(run_one, comparison, cell, folder / "runs" / cell.name): cell for cell in missing
        }
    try:
        for run in as_completed(runs):
            error = run.exception()
            if isinstance(error, BrokenProcessPool):
                progress.write("A worker was killed, perhaps for want of memory; what is missing is run again.")
                break
            progress.update()
            if error is not None:
                failed.append(runs[run])
                progress.write(f"{runs[run].name} failed: {error}")
    except BaseException:
        for worker in multiprocessing.active_children():
            worker.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    return failed


@contextmanager
def interrupts_ignored() -> Iterator[None]:
    """Start processes that Ctrl-C, which goes to all of a terminal, leaves to this one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def visible_gpus() -> list[str]:
    """The GPUs of this process, as `CUDA_VISIBLE_DEVICES` names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]


def start_worker(numbers: Any, gpus: list[str], threads: int, parent: int) -> None:
    """Give a worker its GPU or its share of the cores, and end it if the comparison was killed."""
    number = numbers.get()
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
    torch.set_num_threads(threads)
    # Its own lock between processes would be left over if the worker is ended.
    std.tqdm.set_lock(threading.RLock())
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
    if (folder / RESULT).is_file():
        return
    error = folder / "error.txt"
    try:
        run_cell(comparison, cell, folder)
        error.unlink(missing_ok=True)
    except Exception as reason:
        folder.mkdir(parents=True, exist_ok=True)
        error.write_text(traceback.format_exc(), encoding="utf-8")
        # Not every exception survives the way to another process.
        raise RuntimeError(f"{type(reason).__name__}: {reason}") from None


def quiet() -> None:
    """Progress bars and notes of the libraries would drown those of the comparison."""
    datasets.disable_progress_bars()
    set_verbosity_error()
    disable_progress_bar()
