"""The cases in a process of their own, which is started anew after a case that ended it or took too long."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# What imports and the start of the GPU may take.
START = 120.0
Handle = Callable[[dict[str, Any]], None]


def in_own_process(small: bool, parts: str | None, end: float, handle: Handle) -> None:
    """Hand on what the cases tell, also those after a case that crashed."""
    worker, words = [sys.executable, "-m", "benchmarks.gpu.worker"], ["small" if small else "", parts or ""]
    follow(lambda file, skip: [*worker, str(file), *words, str(skip), str(end)], handle)


def follow(command: Callable[[Path, int], list[str]], handle: Handle) -> None:
    """Run commands, each from the case on that the last one did not come to, and hand on the rows of all cases."""
    skip = 0
    while True:
        file = Path(tempfile.mkdtemp()) / "told"
        file.touch()
        process = subprocess.Popen(command(file, skip))
        case, why = _listen(process, file, handle)
        if case is None:
            if why:
                handle({"rows": [{"part": "start", "value": why, "passed": False}]})
            return
        if why:
            handle({"rows": [case["row"] | {"value": why, "passed": False}]})
        skip = case["case"] + 1


def _listen(process: subprocess.Popen, file: Path, handle: Handle) -> tuple[dict[str, Any] | None, str]:
    """The case that a process ended at, if it did not come to the end, and why; nothing if its rows are there."""
    case, why, limit = None, "", time.monotonic() + START
    with file.open() as lines:
        while True:
            running = process.poll() is None
            for message in map(json.loads, _whole_lines(lines)):
                handle(message)
                if "row" in message:
                    case, limit = message, time.monotonic() + message["limit"]
                elif "rows" in message:
                    limit = time.monotonic() + START
                why = "unfinished" if "row" in message else ""
            if not running:
                break
            if time.monotonic() > limit:
                process.kill()
                process.wait()
                return case, "took too long"
            time.sleep(0.1)
    if process.returncode == 0:
        return None, ""
    return case, f"ended with status {process.returncode}" if why or case is None else ""


def _whole_lines(lines: Any) -> list[str]:
    found = []
    while True:
        place = lines.tell()
        line = lines.readline()
        if not line.endswith("\n"):
            lines.seek(place)
            return found
        found.append(line)
