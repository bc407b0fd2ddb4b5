"""The table of docs/tokens.md: `python benchmarks/entities_table.py [OUTPUT.jsonl ...]`.

It is of benchmarks/results/entities.csv. The runs of files that entities.py wrote are added to it first, or replace
those of the same set, seed and method.
"""

from __future__ import annotations

import json
import sys
from math import isnan
from pathlib import Path

import pandas as pd

from hf_mixup.cli.compare.statistics import BETTER, PAIRED, SAME, WORSE, corrected, margin_of, paired

ROOT = Path(__file__).parent.parent
KEPT, PAGE = ROOT / "benchmarks/results/entities.csv", ROOT / "docs/tokens.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
SETS = {"snips": "SNIPS slots", "wnut17": "WNUT-17"}
METHODS = ("none", "default", "tmix", "inter_lada", "intra_lada", "seq_mix")
KEY = ["set", "seed", "method"]
METRICS = {"f1": "F1", "nll": "NLL", "ece": "ECE", "entity_ece": "entity ECE"}


def main(*outputs: str) -> None:
    """Keep the runs of new outputs, and write the table into the page."""
    if outputs:
        lines = [json.loads(line) for output in outputs for line in Path(output).read_text("utf-8").splitlines()]
        runs = pd.concat([pd.read_csv(KEPT, keep_default_na=False), pd.DataFrame(lines)])
        runs.drop_duplicates(KEY, keep="last").sort_values(KEY).to_csv(KEPT, index=False)
    page = PAGE.read_text(encoding="utf-8")
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{table(pd.read_csv(KEPT, keep_default_na=False))}\n{END}{after}", "utf-8")


def table(runs: pd.DataFrame) -> str:
    """Means over seeds, and what differs from the runs of the same seeds with mixup off."""
    lines = [
        "| set | method | seeds | F1 | change of F1 | NLL | ECE | entity ECE | marked |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, title in SETS.items():
        verdicts = corrected(differences(runs[runs["set"] == name])).set_index(["method", "metric"])
        for method in METHODS:
            own = runs[(runs["set"] == name) & (runs["method"] == method)]
            if own.empty:
                continue
            found = verdicts.reindex([(method, metric) for metric in METRICS])
            mean, *interval = found[["difference", "low", "high"]].iloc[0]
            change = f"{mean:+.3f}" + ("" if isnan(interval[0]) else " [{:+.3f}, {:+.3f}]".format(*interval))
            marks = [(title, row.verdict) for title, row in zip(METRICS.values(), found.itertuples(), strict=True)]
            marked = [f"{title} {verdict}" for title, verdict in marks if verdict in (BETTER, WORSE)]
            f1, *others = (f"{own[metric].mean():.3f}" for metric in METRICS)
            cells = [title, f"`{method}`", str(len(own)), f1, "" if method == "none" else change, *others]
            lines.append("| " + " | ".join([*cells, ", ".join(marked)]) + " |")
    return "\n".join(lines)


def differences(runs: pd.DataFrame) -> pd.DataFrame:
    """The tests of each metric of each method of a set, not corrected."""
    rows, off = [], runs[runs["method"] == "none"].set_index("seed")
    for method, own in runs[runs["method"] != "none"].set_index("seed").groupby("method"):
        for metric in METRICS:
            change = (own[metric] - off[metric].reindex(own.index)).dropna().to_numpy()
            rows.append([method, metric, SAME, *paired(change, metric, margin_of(metric, off[metric].mean()))])
    return pd.DataFrame(rows, columns=["method", "metric", "verdict", *PAIRED])


if __name__ == "__main__":
    main(*sys.argv[1:])
