"""What mixup is on one GPU: exactness, what a step costs, and the tests that need one. Takes some minutes, no network.

    python -m benchmarks.gpu --output outputs/gpu.json                          # from the root of the repository
    python -m benchmarks.gpu --output outputs/gpu.json --parts exactness,steps  # some of it
    python -m benchmarks.gpu --output outputs/gpu.json --wheels WHEELS          # on a machine that lacks packages
    python -m benchmarks.gpu --output outputs/gpu.json --small                  # toys, also without a GPU

Beside the JSON file, the rows are written as CSV and as a table, after each case. The exit status is 1 if a test failed
or a mixture was not exact.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from benchmarks.gpu.isolation import in_own_process
from benchmarks.gpu.report import table, write


def main(words: list[str] | None = None) -> int:
    options = parse(words)
    if options.wheels:
        put_on_path(options.wheels)
    start = time.time()
    report: dict[str, Any] = {"small": options.small, "seconds": 0.0, "rows": []}

    def handle(message: dict[str, Any]) -> None:
        report.update(message.get("about", {}))
        if "row" in message:
            print(*message["row"].values(), sep=", ", flush=True)
        report["rows"] += message.get("rows", [])
        report["seconds"] = round(time.time() - start, 1)
        # After each case: the machine may be taken away.
        write(report, options.output)

    end = start + options.seconds
    if options.small:
        # This needs the packages of the wheels.
        from benchmarks.gpu.worker import run_cases

        run_cases(True, options.parts, 0, end, handle)
    else:
        in_own_process(False, options.parts, end, handle)
    print(table(report))
    return int(any(row.get("passed") is False for row in report["rows"]))


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON file that is written.")
    parser.add_argument("--parts", help="Only these, with commas between them.")
    parser.add_argument("--wheels", type=Path, help="Folder of wheels of packages that are not installed.")
    parser.add_argument("--small", action="store_true", help="Toy models and few rounds.")
    parser.add_argument("--seconds", type=float, default=330.0, help="No case begins later than this.")
    return parser.parse_args(words)


def put_on_path(wheels: Path) -> None:
    """Unpack wheels into a folder of their own, behind what is installed, here and for other processes."""
    folder = tempfile.mkdtemp()
    for wheel in sorted(wheels.glob("*.whl")):
        ZipFile(wheel).extractall(folder)
    sys.path.append(folder)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), folder)))


if __name__ == "__main__":
    sys.exit(main())
