"""The table of docs/tokens.md: `python benchmarks/entities_table.py [OUTPUT.jsonl ...]`.

It is of benchmarks/results/entities.csv. The runs of files that entities.py wrote are added to it first, or replace
those of the same set, seed and method.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pandas as pd

from hf_mixup.cli.compare.statistics import BETTER, PAIRED, SAME, WORSE, corrected, margin_of, paired

ROOT = Path(__file__).parent.parent
KEPT, PAGE = ROOT / "benchmarks/results/entities.csv", ROOT / "docs/tokens.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
SETS = {"snips": "SNIPS slots", "wnut17": "WNUT-17", "wnut17_long": "WNUT-17, 600 updates"}
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
    verdicts = corrected(differences(runs)).set_index(["set", "method", "metric"])
    for name, title in SETS.items():
        for method in METHODS:
            own = runs[(runs["set"] == name) & (runs["method"] == method)]
            if own.empty:
                continue
            found = verdicts.reindex([(name, method, metric) for metric in METRICS])
            change = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*found[["difference", "low", "high"]].iloc[0])
            marks = [(title, row.verdict) for title, row in zip(METRICS.values(), found.itertuples(), strict=True)]
            marked = [f"{title} {verdict}" for title, verdict in marks if verdict in (BETTER, WORSE)]
            f1, *others = (f"{own[metric].mean():.3f}" for metric in METRICS)
            cells = [title, f"`{method}`", str(len(own)), f1, "" if method == "none" else change, *others]
            lines.append("| " + " | ".join([*cells, ", ".join(marked)]) + " |")
    return "\n".join(lines)


def differences(runs: pd.DataFrame) -> pd.DataFrame:
    """The tests of each metric of each method, not corrected."""
    rows = []
    for (name, method), own in runs.set_index("seed").groupby(["set", "method"]):
        off = runs[(runs["set"] == name) & (runs["method"] == "none")].set_index("seed").reindex(own.index)
        for metric in METRICS if method != "none" else ():
            change = (own[metric] - off[metric]).dropna().to_numpy()
            tests = paired(change, metric, margin_of(metric, off[metric].mean()))
            rows.append([name, method, metric, SAME, *tests])
    return pd.DataFrame(rows, columns=["set", "method", "metric", "verdict", *PAIRED])


if __name__ == "__main__":
    main(*sys.argv[1:])
