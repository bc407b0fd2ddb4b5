"""docs/unlabelled.png and the table of docs/unlabelled.md: `few_labels_picture.py [OUTPUT.jsonl ...]`.

Both are of benchmarks/results/few_labels.csv. With the files that few_labels.py wrote it is written first: the runs of
each set, size and seed for which every method was run.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

ROOT = Path(__file__).parent.parent
KEPT, PICTURE, PAGE = (
    ROOT / "benchmarks/results/few_labels.csv",
    ROOT / "docs/unlabelled.png",
    ROOT / "docs/unlabelled.md",
)
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
METHODS = {"none": ("labels alone", "#d55e00"), "tmix": ("labels alone, tmix", "#999999")}
METHODS |= {"few_labels": ("and 3,000 texts without labels", "#0072b2")}
SETS = {"ag_news": "AG News", "trec": "TREC-6", "rotten_tomatoes": "Rotten Tomatoes", "sst2": "SST-2", "imdb": "IMDB"}
METRICS = ("accuracy", "nll", "ece")


def main(*outputs: str) -> None:
    """Keep the runs of new outputs, draw the picture, and write the table into the page."""
    if outputs:
        keep([json.loads(line) for output in outputs for line in Path(output).read_text(encoding="utf-8").splitlines()])
    runs = pd.read_csv(KEPT, keep_default_na=False)
    draw(runs)
    page = PAGE.read_text(encoding="utf-8")
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{table(runs)}\n{END}{after}", encoding="utf-8")


def keep(lines: list[dict[str, object]]) -> None:
    """Write benchmarks/results/few_labels.csv: the settings of these lines for which every method was run."""
    runs = pd.DataFrame(lines)
    runs = runs[runs["method"].isin(METHODS) & (runs["changed"] == "")]
    methods = runs.groupby(["set", "size", "seed"])["method"].transform("nunique")
    runs[methods == len(METHODS)].to_csv(KEPT, index=False)


def draw(runs: pd.DataFrame) -> None:
    """Accuracy by labels per class, a panel for each set: a bar for the mean over seeds, and a dot for each seed."""
    figure, axes = plt.subplots(1, len(SETS), figsize=(11, 2.8), sharey=True, layout="constrained")
    sizes = sorted(runs["size"].unique())
    for axis, (name, title) in zip(axes, SETS.items(), strict=True):
        for place, (method, (label, color)) in enumerate(METHODS.items()):
            own = runs[(runs["set"] == name) & (runs["method"] == method)]
            for number, size in enumerate(sizes):
                seeds, at = own[own["size"] == size]["accuracy"], number + 0.2 * (place - 1)
                axis.plot([at] * len(seeds), seeds, ".", color=color, markersize=4, alpha=0.6)
                axis.plot([at - 0.08, at + 0.08], [seeds.mean()] * 2, color=color, linewidth=2, label=label)
        axis.set(title=title, xticks=range(len(sizes)), xticklabels=sizes, xlabel="labels per class")
        axis.set_xlim(-0.5, len(sizes) - 0.5)
    axes[0].set_ylabel("accuracy")
    lines, names = axes[0].get_legend_handles_labels()
    shown = dict(zip(names, lines, strict=True))
    figure.legend(list(shown.values()), list(shown), loc="outside lower center", ncols=len(METHODS), frameon=False)
    figure.savefig(PICTURE, dpi=110)


def table(runs: pd.DataFrame) -> str:
    """Means over seeds, with the weights that the development rows chose."""
    lines = ["| set | labels per class | seeds | method | accuracy | NLL | ECE |", "|---|---|---|---|---|---|---|"]
    for name, title in SETS.items():
        for size, of_size in runs[runs["set"] == name].groupby("size"):
            for method in METHODS:
                own = of_size[of_size["method"] == method]
                means = " | ".join(f"{own[metric].mean():.3f}" for metric in METRICS)
                lines.append(f"| {title} | {size} | {len(own)} | `{method}` | {means} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main(*sys.argv[1:])
