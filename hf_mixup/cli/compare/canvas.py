"""What the pictures of a comparison share: their data, looks, panels, lines and intervals."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import stats

from hf_mixup.cli.compare.findings import finding, metric_name, setting_name
from hf_mixup.cli.compare.statistics import DIVERGED, FEWEST, MAIN_METRICS
from hf_mixup.cli.compare.table import SETTING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people with colour blindness can tell apart; markers and lines say the same in grey.
COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "p")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 3)))


class Pictured:
    """What the pictures of a comparison are made of.

    Args:
        results (`pandas.DataFrame`): see `hf_mixup.cli.compare.table.collect`.
        summary (`pandas.DataFrame`): see `hf_mixup.cli.compare.table.summarise`.
        runs (`list[dict]`): see `hf_mixup.cli.compare.table.load_runs`; not empty.
        balanced (`bool`, defaults to `True`): as in the comparison.
    """

    def __init__(
        self, results: pd.DataFrame, summary: pd.DataFrame, runs: list[dict[str, Any]], balanced: bool = True
    ) -> None:
        self.results, self.summary, self.runs = results, summary, runs
        self.problem_type = runs[0]["problem_type"]
        self.per_class = balanced and self.problem_type == "single_label_classification"
        self.methods = list(results["method"].unique())
        self.baseline = self.methods[0]
        self.main = [name for name in MAIN_METRICS[self.problem_type] if (results["metric"] == name).any()]
        self.sizes = sorted(results["train_size"].unique().tolist())
        # The smallest and the largest.
        self.shown_sizes = sorted({self.sizes[0], self.sizes[-1]})
        self.noise = min(results["label_noise"])
        # Every size and label noise, and how they are called.
        pairs = summary[SETTING].drop_duplicates().itertuples(index=False)
        self.settings = [(int(size), noise, setting_name(size, noise, self.per_class)) for size, noise in pairs]

    def name(self, size: int) -> str:
        """A size at the lowest label noise, in words."""
        return setting_name(size, self.noise, self.per_class)

    def title(self, metric: str) -> str:
        """What was found about a metric at the smallest size."""
        if metric not in set(self.summary["metric"]):
            return metric_name(metric).capitalize()
        return f"{finding(self.summary, metric, self.baseline, self.sizes[0], self.noise)} ({self.name(self.sizes[0])})"

    def label(self, method: str) -> str:
        """A method in a legend: its name, and how many of its runs diverged."""
        own = self.summary[self.summary["method"] == method]
        lost = int(own.groupby(SETTING)["diverged"].max().sum())
        return f"{method} ({lost} run{'s' * (lost != 1)} {DIVERGED})" if lost else method

    def style(self, method: str) -> dict[str, Any]:
        """Colour, marker and line of a method, the same in every picture."""
        place = self.methods.index(method)
        # A second round of the colours comes with other markers and lines.
        line = LINES[(place + place // 8) % 8]
        look = {"color": COLOURS[place % 8], "marker": MARKERS[place % 9], "linestyle": line}
        return look | {"label": self.label(method), "markersize": 5, "linewidth": 1.6}

    def values(self, method: str, metric: str, size: int, noise: float | None = None) -> np.ndarray:
        """A metric of every seed, without missing ones."""
        table, noise = self.results, self.noise if noise is None else noise
        at = (table["method"] == method) & (table["metric"] == metric) & (table["label_noise"] == noise)
        return table[at & (table["train_size"] == size)]["value"].dropna().to_numpy()

    def curves(self, curve: str, method: str, size: int) -> list[dict[str, Any]]:
        """A curve of every seed at the lowest label noise."""
        own = [run for run in self.runs if (run["method"], run["train_size"]) == (method, size)]
        return [run["curves"][curve] for run in own if run["label_noise"] == self.noise and curve in run["curves"]]


def draw_line(
    axis: Axes, x: Sequence[float], values: Sequence[np.ndarray], bounds: tuple[float, float], style: dict[str, Any]
) -> None:
    """The mean of curves with the band of its interval."""
    mean, low, high = np.array([mean_and_interval(column, bounds) for column in np.stack(values).T]).T
    axis.plot(x, mean, markevery=max(1, len(mean) // 6), **style)
    axis.fill_between(x, low, high, color=style["color"], alpha=0.12, linewidth=0)


def mean_and_interval(values: Iterable[float], bounds: tuple[float, float]) -> tuple[float, float, float]:
    """Mean and ends of its 95 % t interval, which do not leave what the values can be; nan for less than three."""
    kept = np.array([value for value in values if not np.isnan(value)])
    mean = float(kept.mean()) if len(kept) else np.nan
    half = np.nan if len(kept) < FEWEST else float(stats.t.ppf(0.975, len(kept) - 1) * stats.sem(kept))
    return mean, max(mean - half, bounds[0]), min(mean + half, bounds[1])


def bounds_of(metric: str) -> tuple[float, float]:
    """What a metric can be at least and at most."""
    if metric.startswith(("nll", "rmse")) or metric.endswith("loss"):
        return 0.0, np.inf
    return (-1.0, 1.0) if metric.startswith(("pearson", "spearman")) else (0.0, 1.0)


def panels(rows: int, columns: int, width: float, height: float, **shared: Any) -> tuple[Figure, np.ndarray]:
    """A figure with rows and columns of axes of a size in inches."""
    # Imported here: matplotlib comes with an extra of its own.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(width * columns, 5) + 0.8, height * rows + 1.1), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **shared)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
        for text in (axis.xaxis.label, axis.yaxis.label, axis.title):
            text.set_size(9)
    return figure, axes


def titled(figure: Figure, title: str, legend: bool = False) -> Figure:
    """Put the finding above, broken into lines, and the methods below."""
    title = textwrap.fill(title, int(figure.get_figwidth() * 12))
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    if legend:
        named: dict[str, Any] = {}
        for axis in figure.axes:
            named |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
        figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure
