"""docs/default.png, the picture of the README, from benchmarks/results: `python benchmarks/default_picture.py`."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from hf_mixup.evaluation.calibration import reliability

ROOT = Path(__file__).parent.parent
KEPT, PICTURE = ROOT / "benchmarks/results", ROOT / "docs/default.png"
COLORS = {"none": "#d55e00", "default": "#0072b2"}
NAMES = {"none": "no mixup", "default": "hf_mixup's default"}
SETS = {"sst2": "SST-2", "rotten_tomatoes": "Rotten Tomatoes", "label_noise": "wrong labels", "trec": "TREC-6"}
SETS |= {"bbc_news": "BBC News"}
# Bins with fewer predictions than this over all seeds are not drawn: their accuracy says nothing.
FEWEST = 20


def main() -> None:
    """Draw both halves."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), width_ratios=[1, 1.7], layout="constrained")
    draw_reliability(left, "rotten_tomatoes", 200)
    draw_errors(right)
    figure.savefig(PICTURE, dpi=110)


def draw_reliability(axes: Axes, name: str, size: int) -> None:
    """Accuracy by confidence, of all seeds together."""
    runs = np.load(KEPT / f"predictions_default_{name}.npz")
    axes.plot([0.5, 1], [0.5, 1], color="gray", linewidth=0.8)
    for method, color in COLORS.items():
        own = (runs["method"] == method) & (runs["train_size"] == size)
        logits = runs["logits"][own].astype(np.float64)
        bins = reliability(logits.reshape(-1, logits.shape[-1]), np.tile(runs["labels"], own.sum()))
        drawn = np.asarray(bins["count"]) >= FEWEST
        confidence, accuracy = (np.asarray(bins[key], dtype=float)[drawn] for key in ("confidence", "accuracy"))
        axes.plot(confidence, accuracy, marker="o", markersize=4, color=color, label=NAMES[method])
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0.49, 1.01), ylim=(0.45, 1.0))
    axes.set_title(f"{SETS[name]}, {size} texts per class", fontsize=10)
    axes.legend(frameon=False, fontsize=9, loc="upper left")


def draw_errors(axes: Axes) -> None:
    """Mean calibration error of each setting, without mixup and with the default."""
    tables = [pd.read_csv(KEPT / f"compare_default_{name}.csv").assign(set=title) for name, title in SETS.items()]
    table = pd.concat(tables)
    keys = ["set", "train_size", "label_noise"]
    means = table[table["metric"] == "ece"].groupby([*keys, "method"])["value"].mean().unstack()
    means = means.sort_values("none")
    rows = range(len(means))
    axes.hlines(rows, means["none"], means["default"], color="lightgray", linewidth=3, zorder=0)
    for method, color in COLORS.items():
        axes.scatter(means[method], rows, color=color, s=32, label=NAMES[method])
    labels = [f"{title}, {size}" + (f", {noise:.0%}" if noise else "") for title, size, noise in means.index]
    axes.set_yticks(rows, labels, fontsize=8)
    axes.set(xlabel="calibration error (ECE; mean of five seeds)", xlim=(0, None))
    axes.set_title("texts per class, share of wrong labels", fontsize=10)


if __name__ == "__main__":
    main()
