"""Write the tables of docs/results.md from comparisons that were run, and keep their raw results beside it.

    python benchmarks/results.py outputs/compare/*

Of each comparison folder, results.csv goes to benchmarks/results/compare_NAME.csv; the tables in docs/results.md are
written anew from all of these files. In a table `+` is better than the baseline and `-` worse, at 95 %.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pandas as pd

from hf_mixup.comparison.findings import metric_name
from hf_mixup.comparison.table import MAIN_METRICS, number, summarise, write_tables

ROOT = Path(__file__).parents[1]
KEPT, DOCS = ROOT / "benchmarks/results", ROOT / "docs/results.md"
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"
# Beside the main metrics of the task, one of each promise.
PROMISES = ["nll_scaled", "generalisation_gap", "memorised", "gradient_norm"]
PROMISES += ["flips_characters_0.1", "flips_dropout_0.3", "ood_auroc_softmax"]
MARKS = {"better": " +", "worse": " -"}


def main() -> None:
    for folder in map(Path, sys.argv[1:]):
        write_tables(folder)
        shutil.copyfile(folder / "results.csv", KEPT / f"compare_{folder.name}.csv")
    sections = [section(path) for path in sorted(KEPT.glob("compare_*.csv"))]
    before, _, rest = DOCS.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    DOCS.write_text(f"{before}{BEGIN}\n\n" + "\n\n".join(sections) + f"\n\n{END}{after}", encoding="utf-8")
    print(f"{len(sections)} comparisons in {DOCS.relative_to(ROOT)}")


def section(path: Path) -> str:
    name = path.stem.removeprefix("compare_")
    results = pd.read_csv(path)
    summary = summarise(results, results["method"].iloc[0])
    lines = [f"### {name.replace('_', ' ')}", "", f"`hf-mixup compare configs/compare/{name}.yaml`; every value: "]
    lines[-1] += f"[{path.name}](../benchmarks/results/{path.name})."
    for (size, noise), group in summary.groupby(["train_size", "label_noise"]):
        shown = [metric for metric in columns(group)]
        noisy = f", {noise:.0%} of the labels wrong" if noise else ""
        lines += ["", f"Training size {size}{noisy}:", ""]
        lines.append("| method | seeds | " + " | ".join(metric_name(metric) for metric in shown) + " |")
        lines.append("|---|---" + "|---" * len(shown) + "|")
        by = group.set_index(["method", "metric"])
        for method in group["method"].unique():
            seeds = max(by.loc[method, "seeds"])
            cells = [cell(by, method, metric) for metric in shown]
            lines.append(f"| {method} | {seeds} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def columns(group: pd.DataFrame) -> list[str]:
    present = set(group["metric"])
    main_metrics = next(metrics for metrics in MAIN_METRICS.values() if set(metrics) <= present)
    return [*main_metrics, *(metric for metric in PROMISES if metric in present)]


def cell(by: pd.DataFrame, method: str, metric: str) -> str:
    if (method, metric) not in by.index:
        return ""
    row = by.loc[(method, metric)]
    return f"{number(row['mean'])}{MARKS.get(row['verdict'], '')}"


if __name__ == "__main__":
    main()
