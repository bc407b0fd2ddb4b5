"""The table of docs/tokens.md: `python benchmarks/entities_table.py [OUTPUT.jsonl ...]`.

It is of benchmarks/results/entities.csv. With the files that entities.py wrote it is written first.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pandas as pd
from scipy.stats import t

ROOT = Path(__file__).parent.parent
KEPT, PAGE = ROOT / "benchmarks/results/entities.csv", ROOT / "docs/tokens.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
SETS = {"snips": "SNIPS slots", "wnut17": "WNUT-17"}
METHODS = ("none", "default", "tmix", "inter_lada", "intra_lada", "seq_mix")
METRICS = ("f1", "nll", "ece", "entity_ece")


def main(*outputs: str) -> None:
    """Keep the runs of new outputs, and write the table into the page."""
    if outputs:
        lines = [json.loads(line) for output in outputs for line in Path(output).read_text("utf-8").splitlines()]
        pd.DataFrame(lines).sort_values(["set", "seed", "method"]).to_csv(KEPT, index=False)
    page = PAGE.read_text(encoding="utf-8")
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{table(pd.read_csv(KEPT, keep_default_na=False))}\n{END}{after}", "utf-8")


def table(runs: pd.DataFrame) -> str:
    """Means over seeds, and the interval of the change of F1 against the runs of the same seeds with mixup off."""
    lines = [
        "| set | method | seeds | F1 | change of F1 | NLL | ECE | entity ECE |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, title in SETS.items():
        of_set = runs[runs["set"] == name].set_index("seed")
        for method in METHODS:
            own = of_set[of_set["method"] == method]
            if own.empty:
                continue
            change = own["f1"] - of_set[of_set["method"] == "none"]["f1"].reindex(own.index)
            means = [f"{own[metric].mean():.3f}" for metric in METRICS]
            cells = [title, f"`{method}`", str(len(own)), means[0], interval(change, method), *means[1:]]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def interval(change: pd.Series, method: str) -> str:
    """The mean of a change and its 95 % interval over seeds (Student's t)."""
    if method == "none" or len(change) < 2:
        return ""
    half = t.ppf(0.975, len(change) - 1) * change.std() / len(change) ** 0.5
    return f"{change.mean():+.3f} ± {half:.3f}"


if __name__ == "__main__":
    main(*sys.argv[1:])
