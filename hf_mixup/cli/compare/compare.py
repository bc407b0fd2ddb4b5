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
from hf_mixup.cli.compare.runs import ASKED, LOCK, RESULT, Cell, files_of_all, read_asked, read_run
from hf_mixup.cli.train.arguments import parse_fields
from hf_mixup.cli.train.run_fields import TOKENS
from hf_mixup.config.files import write_whole
from hf_mixup.config.mixup_config import MixupConfig
from hf_mixup.config.recipes import config_to_mix, resolve_config
from hf_mixup.config.setting import changed_fields

# What may differ when a comparison resumes: more of the grid, and how it is run.
MAY_GROW = ("methods", "seeds", "train_sizes", "label_noise", "workers", "output_dir")
MOST_WORKERS = 8
SET_BY_RUNS = ("class_counts", "check_rows")


def compare(comparison: Comparison, part: int = 1, parts: int = 1) -> list[Cell]:
    """Run what is not there yet, or a part of it.

    Parts may run at the same time, on machines that share the folder. No run is made twice at once.

    Args:
        comparison (`Comparison`): what is compared. Its folder may hold a part of the same comparison: finished runs
            stay, the others are run.
        part (`int`, defaults to 1): which part is run, from 1 to `parts`. Its runs do not depend on what is finished.
        parts (`int`, defaults to 1): how many there are.

    Returns:
        `list[Cell]`: the runs that failed, each of which left its error in `error.txt` in its folder.

    Raises:
        ValueError: for something that cannot work, before the first run; for a folder that holds another comparison,
            or in which the same part is running.
    """
    folder, share = Path(comparison.output_dir), comparison.share(part, parts)
    asked_of_all(comparison, folder)
    missing = [cell for cell in share if read_run(folder, cell) is None]
    data = digest(check_runs(comparison)) if missing else None
    check_recipes(comparison, folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / (LOCK if parts == 1 else f"{LOCK}-{part}-of-{parts}"), timeout=0):
            # Read again: another part may have written it since.
            with files_of_all(folder):
                asked = asked_of_all(comparison, folder, data)
                with write_whole(folder / ASKED) as file:
                    file.write_text(yaml.safe_dump(asked, sort_keys=False), encoding="utf-8")
            failed = run_missing(comparison, share, folder)
    except Timeout as error:
        which = "another comparison" if parts == 1 else f"part {part}/{parts} of the comparison"
        raise ValueError(f"output_dir={str(folder)!r}: {which} is running in it.") from error
    return [cell for cell in failed if read_run(folder, cell) is None and not runs_elsewhere(folder, cell)]


def runs_elsewhere(folder: Path, cell: Cell) -> bool:
    """Whether another process runs a cell."""
    try:
        with FileLock(folder / "runs" / cell.name / LOCK, timeout=0):
            return False
    except Timeout:
        return True


def asked_of_all(comparison: Comparison, folder: Path, data: str | None = None) -> dict[str, Any]:
    """What is asked for, before and now; `data` is their digest. Raises `ValueError` if the folder holds another."""
    before, asked = read_before(folder), asdict(comparison)
    if before is not None:
        asked = widened(before, asked, folder)
    if data is None:
        return asked
    if asked.get("data", data) != data:
        raise ValueError(
            f"output_dir={str(folder)!r} holds a comparison of other data: texts or labels have changed since it "
            "was started, so its runs were trained and tested on other rows; choose another output_dir."
        )
    return asked | {"data": data}


def read_before(folder: Path) -> dict[str, Any] | None:
    """What was compared in the folder before. Raises `ValueError` if it holds something else."""
    names = [entry.name for entry in folder.iterdir()] if folder.exists() else []
    # After the names: another part writes it before anything else.
    if (folder / ASKED).is_file():
        return read_asked(folder)
    if not all(name.startswith((LOCK, ASKED)) for name in names):
        raise ValueError(f"output_dir={str(folder)!r} is not empty and holds no comparison; choose another.")
    return None


def widened(before: dict[str, Any], now: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Both comparisons in one. Raises `ValueError` if they differ in more than their size."""
    # A field that is newer than the folder had its default.
    before = {"balanced": True, "small_validation": False} | before
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
    """The mixup that a variant means, for the task of the comparison."""
    fields = comparison.run | of_the_run(variant) | {"output_dir": comparison.output_dir}
    model_args, data_args, _ = parse_fields(fields)
    mixup = resolve_config(model_args.mixup)
    return mixup if mixup is None or data_args.task != TOKENS else config_to_mix(mixup, labels_tokens=True)


def run_missing(comparison: Comparison, share: list[Cell], folder: Path) -> list[Cell]:
    """Run the cells that are missing in processes of their own, and say how far it is."""
    missing = [cell for cell in share if read_run(folder, cell) is None]
    gpus = [] if comparison.run.get("use_cpu") else visible_gpus()
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    workers = min(comparison.workers or min(len(gpus) or cores, MOST_WORKERS), max(len(missing), 1))
    failed: list[Cell] = []
    with tqdm(total=len(share), initial=len(share) - len(missing), unit="run", smoothing=0.1) as progress:
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
        runs: dict[Future[str], Cell] = {
            pool.submit(run_one, comparison, cell, folder / "runs" / cell.name): cell for cell in missing
        }
    try:
        for run in as_completed(runs):
            error = run.exception()
            if isinstance(error, BrokenProcessPool):
                progress.write("A worker was killed, perhaps for want of memory; what is missing is run again.")
                break
            progress.update()
            reason = run.result() if error is None else f"failed: {error}"
            if reason:
                failed.append(runs[run])
                progress.write(f"{runs[run].name} {reason}")
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


def run_one(comparison: Comparison, cell: Cell, folder: Path) -> str:
    """One cell; what goes wrong is written beside it. Returns why it was left to another process, if it was."""
    folder.mkdir(parents=True, exist_ok=True)
    error = folder / "error.txt"
    try:
        with FileLock(folder / LOCK, timeout=0):
            if not (folder / RESULT).is_file():
                run_cell(comparison, cell, folder)
                error.unlink(missing_ok=True)
        return ""
    except Timeout:
        return "is left to the process that is running it"
    except Exception as reason:
        error.write_text(traceback.format_exc(), encoding="utf-8")
        # Not every exception survives the way to another process.
        raise RuntimeError(f"{type(reason).__name__}: {reason}") from None


def quiet() -> None:
    """Progress bars and notes of the libraries would drown those of the comparison."""
    datasets.disable_progress_bars()
    set_verbosity_error()
    disable_progress_bar()
