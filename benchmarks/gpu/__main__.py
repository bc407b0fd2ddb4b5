"""What mixup is on one GPU: the tests that need it, exactness, and what a step costs. Takes some minutes, no network.

    python -m benchmarks.gpu --output outputs/gpu.json                     # from the root of the repository
    python -m benchmarks.gpu --output outputs/gpu.json --wheels WHEELS     # on a machine that lacks packages
    python -m benchmarks.gpu --output outputs/gpu.json --small             # seconds, also without a GPU

The exit status is 1 if a test failed or a mixture was not exact.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from zipfile import ZipFile

COLUMNS = ("what", "setting", "value", "bound", "ms", "time", "memory", "waits")
PACKAGES = ("torch", "transformers", "accelerate", "peft", "numpy")


def main(words: list[str] | None = None) -> int:
    options = parse(words)
    if options.wheels:
        put_on_path(options.wheels)
    # These need the packages of the wheels.
    import torch

    from benchmarks.gpu.parts import PARTS

    start = time.monotonic()
    report: dict = {
        "card": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "cuda": torch.version.cuda,
        "small": options.small,
        "rows": [],
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        print(f"{part.__name__} ...", flush=True)
        report["rows"] += rows_of(part, options.small, options.seconds - (time.monotonic() - start))
        report["seconds"] = round(time.monotonic() - start, 1)
        # After each part: the machine may be taken away.
        options.output.write_text(json.dumps(report, indent=1))
    print(table(report))
    return int(any(row.get("passed") is False for row in report["rows"]))


def rows_of(part: Callable[[bool, float], list[dict]], small: bool, seconds: float) -> list[dict]:
    """What a part found; one row that says so if there is no time for it, or if it fails."""
    if seconds <= 0:
        return [{"what": part.__name__, "absent": "no time was left"}]
    try:
        return part(small, seconds)
    except Exception as error:
        traceback.print_exc()
        return [{"what": part.__name__, "value": f"{type(error).__name__}: {error}", "passed": False}]


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON file that is written.")
    parser.add_argument("--wheels", type=Path, help="Folder of wheels of packages that are not installed.")
    parser.add_argument("--small", action="store_true", help="A toy model and few rounds.")
    parser.add_argument("--seconds", type=float, default=330.0, help="No part begins later than this.")
    return parser.parse_args(words)


def put_on_path(wheels: Path) -> None:
    """Unpack wheels into a folder of their own, behind what is installed, here and for the tests."""
    folder = tempfile.mkdtemp()
    for wheel in sorted(wheels.glob("*.whl")):
        ZipFile(wheel).extractall(folder)
    sys.path.append(folder)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), folder)))


def table(report: dict) -> str:
    """The rows in Markdown; times and peak memory are ratios to plain Trainer."""
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    lines = [f"\n{report['card'] or 'no GPU'}; {versions}; {report['seconds']} s\n"]
    lines += ["| " + " | ".join(COLUMNS) + " | |", "|---" * (len(COLUMNS) + 1) + "|"]
    for row in report["rows"]:
        verdict = row.get("absent") or {True: "passed", False: "FAILED"}.get(row.get("passed"), "")
        cells = [row.get(name, "") for name in COLUMNS] + [verdict]
        lines.append(
            "| " + " | ".join(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells) + " |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
