"""The tests of the suite that are skipped without a GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.gpu.models import NO_GPU, Row

ROOT = Path(__file__).parents[2]
# Processes that share the GPU, most of whose time is spent compiling; each starts as many more as it is let.
PROCESSES = ["-n", "5"] if find_spec("xdist") else []
FEW_MORE = {"TORCHINDUCTOR_COMPILE_THREADS": "2"}


def gpu_tests(seconds: float) -> list[Row]:
    """How many passed, and a row for each that did not."""
    files = [path for path in (ROOT / "tests").rglob("test_*.py") if f'reason="{NO_GPU}' in path.read_text("utf-8")]
    found, log = (Path(tempfile.mkdtemp()) / name for name in ("found.xml", "log"))
    options = ["-v", *PROCESSES, "-p", "no:cacheprovider", "-k", "gpu", f"--junitxml={found}"]
    command = [sys.executable, "-m", "pytest", *options, *map(str, files)]
    where: dict[str, Any] = {"cwd": ROOT, "env": os.environ | FEW_MORE, "stderr": subprocess.STDOUT}
    with log.open("w") as output, suppress(subprocess.TimeoutExpired):
        subprocess.run(command, timeout=seconds, stdout=output, check=False, **where)
    printed = log.read_text()
    print(printed[-8000:])
    return rows_of(ElementTree.parse(found)) if found.exists() else unfinished(printed)


def rows_of(report: ElementTree.ElementTree) -> list[Row]:
    """What pytest reports; a test that was skipped for want of something else is not counted."""
    cases = [(f"{case.get('classname')}::{case.get('name')}", case.find("*")) for case in report.iter("testcase")]
    told = {name: (found.tag, str(found.get("message") or found.text)) for name, found in cases if found is not None}
    skipped = [name for name, (tag, why) in told.items() if tag == "skipped" and NO_GPU not in why]
    bad = {name: why[:2000] for name, (tag, why) in told.items() if tag in ("failure", "error") or NO_GPU in why}
    count = len(cases) - len(skipped)
    total = {"value": f"{count - len(bad)} of {count}", "passed": count > 0 and not bad}
    return [total, *({"site": name, "value": why, "passed": False} for name, why in bad.items())]


def unfinished(printed: str) -> list[Row]:
    """What is known of tests that were stopped, or of pytest if it did not start."""
    words = re.findall(r"\b(PASSED|FAILED|ERROR)\b", printed)
    value = f"stopped after {words.count('PASSED')} passed of {len(words)}" if words else "pytest did not start"
    return [{"value": f"{value}: {printed[-500:]}", "passed": False}]
