"""The tests of the suite that are skipped without a GPU."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.gpu.models import NO_GPU, Row

ROOT = Path(__file__).parents[2]


def gpu_tests(seconds: float) -> list[Row]:
    """How many passed, and a row for each that did not."""
    files = [path for path in (ROOT / "tests").rglob("test_*.py") if f'reason="{NO_GPU}' in path.read_text("utf-8")]
    found = Path(tempfile.mkdtemp()) / "found.xml"
    options = ["-q", "-p", "no:cacheprovider", "-k", "gpu", f"--junitxml={found}"]
    try:
        command = [sys.executable, "-m", "pytest", *options, *map(str, files)]
        subprocess.run(command, cwd=ROOT, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return [{"passed": False, "value": f"not done after {seconds:.0f} s"}]
    if not found.exists():
        return [{"passed": False, "value": "pytest did not start"}]
    return rows_of(ElementTree.parse(found))


def rows_of(report: ElementTree.ElementTree) -> list[Row]:
    cases = [(f"{case.get('classname')}::{case.get('name')}", case.find("*")) for case in report.iter("testcase")]
    bad = {name: found for name, found in cases if found is not None and found.tag in ("failure", "error", "skipped")}
    total = {"value": f"{len(cases) - len(bad)} of {len(cases)}", "passed": bool(cases) and not bad}
    reasons = {name: str(found.get("message") or found.text or found.tag)[:2000] for name, found in bad.items()}
    return [total, *({"site": name, "value": reason, "passed": False} for name, reason in reasons.items())]
