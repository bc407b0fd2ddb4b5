"""What was found, as JSON, as CSV and as a table in Markdown."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]
NAMES = ("part", "model", "kernel", "precision", "batch", "padded", "site")
NUMBERS = ("value", "bound", "ms", "time", "memory", "mib", "waits")
HEADS = {"time": "time (quartiles)", "memory": "peak memory", "mib": "peak, MiB", "waits": "waits added"}


def write(report: dict[str, Any], output: Path) -> None:
    """The report beside each other in three files of one name."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1, default=str))
    output.with_suffix(".md").write_text(table(report) + "\n")
    columns = [*NAMES, *NUMBERS, *sorted({name for row in report["rows"] for name in row} - {*NAMES, *NUMBERS})]
    with output.with_suffix(".csv").open("w", newline="") as file:
        rows = csv.DictWriter(file, columns)
        rows.writeheader()
        rows.writerows(report["rows"])


def table(report: dict[str, Any]) -> str:
    """The rows in Markdown; times and peak memory are ratios to plain Trainer."""
    versions = ", ".join(f"{name} {number}" for name, number in report.get("versions", {}).items())
    heads = [HEADS.get(name, name) for name in (*NAMES, *NUMBERS)]
    lines = [f"\n{report.get('card') or 'no GPU'}; {versions}; {report['seconds']} s\n"]
    lines += ["| " + " | ".join(heads) + " | |", "|---" * (len(heads) + 1) + "|"]
    for row in report["rows"]:
        verdict = row.get("absent") or {True: "passed", False: "FAILED"}.get(row.get("passed"), "")
        cells = [*(_cell(row, name) for name in (*NAMES, *NUMBERS)), verdict]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(row: Row, name: str) -> str:
    value = row.get(name, "")
    if name == "time" and "low" in row:
        return f"{value:.3f} ({row['low']:.3f}-{row['high']:.3f})"
    if name == "padded" and isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}" if name in ("memory",) else f"{value:.4g}"
    return " ".join(str(value).replace("|", "\\|").split())[:200]
