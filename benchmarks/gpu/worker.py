"""Runs the cases one after the other and tells what each found, in the process that holds the GPU."""

from __future__ import annotations

import gc
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.cases import Case, every_case
from benchmarks.gpu.models import HAS_FLASH, HAS_GPU, Row

PACKAGES = ("torch", "transformers", "accelerate", "peft", "numpy")
Tell = Callable[[dict[str, Any]], None]


def run_cases(small: bool, parts: str | None, skip: int, end: float, tell: Tell) -> None:
    """Run the cases of some parts from one on, until a time of `time.time()`.

    Tells the versions, the number and the limit of each case before it runs, and its rows after it.
    """
    tell({"about": about()})
    chosen = parts.split(",") if parts else None
    cases = [case for case in every_case(small) if chosen is None or case.part in chosen]
    for number, case in enumerate(cases[skip:], skip):
        row = {"part": case.part} | case.columns
        tell({"case": number, "row": row, "limit": case.seconds})
        begin = time.monotonic()
        found = rows_of(case, end)
        took = round(time.monotonic() - begin, 1)
        tell({"case": number, "rows": [row | own | {"seconds": took} for own in found]})
        if HAS_GPU and is_broken():
            os._exit(1)


def about() -> dict[str, Any]:
    return {
        "card": torch.cuda.get_device_name() if HAS_GPU else None,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "cuda": torch.version.cuda,
        "flash": "flash-attn" if HAS_FLASH else "PyTorch's kernel in its place",
        "tf32": torch.backends.cuda.matmul.allow_tf32,
    }


def rows_of(case: Case, end: float) -> list[Row]:
    """What a case found; one row that says so if it is absent, if there is no time for it, or if it fails."""
    if case.absent:
        return [{"absent": case.absent}]
    if time.time() >= end:
        return [{"absent": "no time was left"}]
    try:
        return case.run()
    except Exception as error:
        traceback.print_exc()
        return [{"value": f"{type(error).__name__}: {error}"[:2000], "passed": False}]
    finally:
        gc.collect()


def is_broken() -> bool:
    """Whether an error has left the GPU unusable for this process; otherwise, its memory is free again."""
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    except RuntimeError:
        return True
    return False


def main() -> None:
    file, small, parts, skip, end = sys.argv[1:]

    def tell(message: dict[str, Any]) -> None:
        with Path(file).open("a") as lines:
            lines.write(json.dumps(message, default=str) + "\n")

    run_cases(small == "small", parts or None, int(skip), float(end), tell)


if __name__ == "__main__":
    main()
