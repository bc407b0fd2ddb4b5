"""docs/unlabelled.png and the tables of docs/unlabelled.md: `few_labels_picture.py [OUTPUT.jsonl ...]`.

They are of benchmarks/results/few_labels.csv. The runs of files that few_labels.py wrote are added to it first; a run
that is there already is replaced.
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
KEY = ["set", "size", "seed", "method", "changed"]
METHODS = {"none": ("labels alone", "#d55e00"), "tmix": ("labels alone, tmix", "#999999")}
METHODS |= {"few_labels": ("and 3,000 texts without labels", "#0072b2")}
METHODS |= {"given": ("and 1,500 texts, guessed by a language model", "#009e73")}
SETS = {"ag_news": "AG News", "trec": "TREC-6", "rotten_tomatoes": "Rotten Tomatoes", "sst2": "SST-2", "imdb": "IMDB"}
METRICS = ("accuracy", "nll", "ece")
CHANGES = {"": "as they are", "imbalanced": "90 % of one class", "foreign": "20 % of another set"}


def main(*outputs: str) -> None:
    """Keep the runs of new outputs, draw the picture, and write the tables into the page."""
    if outputs:
        keep([json.loads(line) for output in outputs for line in Path(output).read_text(encoding="utf-8").splitlines()])
    runs = pd.read_csv(KEPT, keep_default_na=False)
    unchanged = runs[(runs["changed"] == "") & runs["method"].isin(METHODS)]
    draw(unchanged)
    page = PAGE.read_text(encoding="utf-8")
    for name, written in {"table": table(unchanged), "changed": changed_table(runs)}.items():
        begin, end = (f"<!-- {name}: {word} -->" for word in ("begin", "end"))
        page = f"{page.split(begin)[0]}{begin}\n{written}\n{end}{page.split(end)[1]}"
    PAGE.write_text(page, encoding="utf-8")


def keep(lines: list[dict[str, object]]) -> None:
    """Add runs to benchmarks/results/few_labels.csv."""
    runs = pd.concat([pd.read_csv(KEPT, keep_default_na=False), pd.DataFrame(lines)])
    runs.drop_duplicates(KEY, keep="last").to_csv(KEPT, index=False)


def draw(runs: pd.DataFrame) -> None:
    """Accuracy by labels per class, a panel for each set: a bar for the mean over seeds, and a dot for each seed."""
    figure, axes = plt.subplots(1, len(SETS), figsize=(12, 3), sharey=True, layout="constrained")
    sizes = sorted(runs["size"].unique())
    for axis, (name, title) in zip(axes, SETS.items(), strict=True):
        for place, (method, (label, color)) in enumerate(METHODS.items()):
            own = runs[(runs["set"] == name) & (runs["method"] == method)]
            for number, size in enumerate(sizes):
                seeds, at = own[own["size"] == size]["accuracy"], number + 0.2 * (place - (len(METHODS) - 1) / 2)
                if seeds.empty:
                    continue
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
                lines += [f"| {title} | {size} | {len(own)} | `{method}` | {means(own)} |"] if len(own) else []
    return "\n".join(lines)


def changed_table(runs: pd.DataFrame) -> str:
    """The same with changed texts, beside labels alone and the texts as they are, of the same seeds."""
    lines = ["| set | labels per class | texts | seeds | accuracy | NLL | ECE |", "|---|---|---|---|---|---|---|"]
    guessed = runs["method"] == "few_labels"
    for (name, size), changed in runs[guessed & (runs["changed"] != "")].groupby(["set", "size"]):
        same = (runs["set"] == name) & (runs["size"] == size) & runs["seed"].isin(changed["seed"])
        rows = {"none": runs[same & (runs["method"] == "none")]}
        rows |= {words: runs[same & guessed & (runs["changed"] == change)] for change, words in CHANGES.items()}
        for words, own in rows.items():
            lines.append(f"| {SETS[str(name)]} | {size} | {words} | {len(own)} | {means(own)} |")
    return "\n".join(lines)


def means(runs: pd.DataFrame) -> str:
    """The mean of each metric, as cells of a table."""
    return " | ".join(f"{runs[metric].mean():.3f}" for metric in METRICS)


if __name__ == "__main__":
    main(*sys.argv[1:])
