"""The pictures of a comparison. They need the `plots` extra."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from hf_mixup.cli.compare.canvas import COLOURS, Pictured, bounds_of, draw_line, mean_and_interval, panels, titled
from hf_mixup.cli.compare.findings import PERTURBED, finding, metric_name, overview, select, setting_name
from hf_mixup.cli.compare.runs import DERIVED
from hf_mixup.cli.compare.statistics import BETTER, DIVERGED, WORSE
from hf_mixup.cli.compare.table import verdict_of
from hf_mixup.training.metric_names import higher_is_better

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

VERDICT_STYLES = {BETTER: ("#0072B2", "o", "#0072B2"), WORSE: ("#D55E00", "X", "#D55E00")}
NO_VERDICT = ("#000000", "o", "white")
STRENGTHS = {
    "characters": "share of letters changed",
    "dropout": "share of words dropped",
    "swaps": "share of words swapped",
    "noise": "noise on embeddings (of their RMS)",
}
IN_NATS = ("nll", "generalisation_gap")
MOST_LINES, MOST_DIAGRAMS = 8, 6


def figures(pictured: Pictured) -> dict[str, Figure]:
    """Every picture that there are data for, by the name of its file without the ending; see `PICTURES`.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    drawn = {name: draw(pictured) for name, draw in PICTURES.items()}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def boundary_numbers(pictured: Pictured) -> Figure | None:
    """Of what describes the boundary between classes, and of the gap between test and training loss."""
    if "gradient_norm" not in set(pictured.summary["metric"]):
        return None
    return differences(pictured, ["gradient_norm", "uncertain_width", "generalisation_gap"])


def outliers(pictured: Pictured) -> Figure | None:
    """Of how well texts of another kind are told apart."""
    scores = ("softmax", "energy")
    return differences(pictured, [f"ood_{kind}_{score}" for kind in ("auroc", "fpr95") for score in scores])


def differences(pictured: Pictured, metrics: Sequence[str]) -> Figure | None:
    """Differences to the baseline with their intervals: a row per size and label noise, a column per metric."""
    asked = pictured.summary[pictured.summary["metric"].isin(metrics)]
    measured = asked[asked["mean"].notna()]
    metrics = [metric for metric in metrics if metric in set(measured["metric"])]
    named = {*measured["method"], *asked[asked["diverged"] > 0]["method"]} - {pictured.baseline}
    others = [method for method in pictured.methods if method in named]
    if not others or not metrics:
        return None
    height = 0.7 + 0.3 * len(others)
    figure, axes = panels(len(pictured.settings), len(metrics), 2.6, height, sharex="col", sharey=True)
    for row, (size, noise, name) in zip(axes, pictured.settings, strict=True):
        for axis, metric in zip(row, metrics, strict=True):
            found = select(pictured.summary, metric, size, noise).set_index("method")
            for place, method in enumerate(others):
                if method in found.index:
                    _difference(axis, place, found.loc[method])
            axis.axvline(0, color="black", linewidth=0.8)
            axis.set_yticks(range(len(others)), others)
        row[0].set_ylim(len(others) - 0.5, -0.5)
        row[0].set_title(name, loc="left", fontsize=9)
    for axis, metric in zip(axes[-1], metrics, strict=True):
        direction = {True: "better: to the right", False: "better: to the left", None: "neither way better"}
        unit = " (nats)" if metric in IN_NATS and pictured.problem_type != "regression" else ""
        axis.locator_params(axis="x", nbins=4)
        axis.set_xlabel(f"difference in {metric_name(metric)}{unit}\n{direction[higher_is_better(metric)]}")
    size, noise, name = pictured.settings[0]
    return titled(figure, f"{overview(pictured.summary, metrics, pictured.baseline, size, noise)} ({name})")


def _difference(axis: Axes, place: int, row: pd.Series) -> None:
    if row["verdict"] == DIVERGED:
        centered: dict[str, Any] = {"ha": "center", "va": "center", "transform": axis.get_yaxis_transform()}
        axis.text(0.5, place, verdict_of(row), fontsize=8, backgroundcolor="white", **centered)
        return
    colour, marker, face = VERDICT_STYLES.get(row["verdict"], NO_VERDICT)
    axis.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=1.6)
    axis.plot(row["difference"], place, marker=marker, color=colour, markersize=6, markerfacecolor=face)


def reliability(pictured: Pictured) -> Figure | None:
    """Accuracy against confidence; the bins of all seeds are put together by their counts."""
    shown = []
    for method in pictured.methods:
        of, curve = (pictured.baseline, "reliability_scaled") if method == DERIVED else (method, "reliability")
        if any(pictured.curves(curve, of, size) for size in pictured.shown_sizes):
            shown.append((method, of, curve))
    if not shown:
        return None
    shown = shown[:MOST_DIAGRAMS]
    figure, axes = panels(len(pictured.shown_sizes), len(shown), 1.9, 2.1, sharex=True, sharey=True)
    for row, size in zip(axes, pictured.shown_sizes, strict=True):
        for axis, (method, of, curve) in zip(row, shown, strict=True):
            _diagram(axis, pictured.curves(curve, of, size))
            errors = pictured.values(method, "ece", size)
            if len(errors):
                axis.text(0.04, 0.96, f"ECE {errors.mean():.3f}", va="top", transform=axis.transAxes)
            axis.set_title(fill(pictured.label(method), 24), fontsize=9)
        row[0].set_ylabel(f"{fill(pictured.name(size), 24)}\n\naccuracy in the bin")
    figure.supxlabel("confidence in the bin; grey bars: share of the predictions", fontsize=9)
    return titled(figure, pictured.title("ece"))


def _diagram(axis: Axes, curves: list[dict[str, Any]]) -> None:
    """One reliability diagram."""
    axis.plot([0, 1], [0, 1], color="#666666", linewidth=0.8, linestyle="--")
    axis.set(xlim=(0, 1), ylim=(0, 1), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1], aspect="equal")
    if not curves:
        return
    count = np.array([curve["count"] for curve in curves], dtype=float)
    total = count.sum(0)
    if not total.any():
        return
    filled = total > 0
    edges = np.linspace(0, 1, len(total) + 1)
    axis.bar(edges[:-1], total / total.sum(), np.diff(edges), align="edge", color="#CCCCCC")
    means = {}
    for name in ("confidence", "accuracy"):
        values = np.array([curve[name] for curve in curves], dtype=float)
        means[name] = (np.nan_to_num(values) * count).sum(0)[filled] / total[filled]
    axis.plot(means["confidence"], means["accuracy"], color=COLOURS[2], marker="o", markersize=4, linewidth=1.4)


def paths(pictured: Pictured) -> Figure | None:
    """Confidence and loss along the straight line between two texts."""
    labels = {"confidence": "largest probability", "loss": "loss (nats)"}
    if pictured.problem_type == "regression":
        labels = {"loss": "squared error"}
    along = "position on the line between two texts"
    return _curve_figure(pictured, "path", "t", along, labels, pictured.title("path_loss"))


def learning(pictured: Pictured) -> Figure | None:
    """Clean training and development loss over the steps."""
    unit = "squared error" if pictured.problem_type == "regression" else "nats"
    labels = {"train_loss": f"training loss ({unit})", "dev_loss": f"development loss ({unit})"}
    return _curve_figure(pictured, "learning", "step", "step", labels, pictured.title("test_loss"), sharey=True)


def unlabeled(pictured: Pictured) -> Figure | None:
    """What became of rows without labels over the steps."""
    labels = {
        "use": "mean weight of a guessed row",
        "drift": "drift of the guesses from the prior",
        "disagreement": "answers that are not the guess (share)",
    }
    return _curve_figure(pictured, "unlabeled", "step", "step", labels, "What became of the texts without labels")


def _curve_figure(
    pictured: Pictured, curve: str, x: str, along: str, labels: dict[str, str], title: str, sharey: bool = False
) -> Figure | None:
    """Means of curves over seeds: a row per size, a column per curve."""
    if not any(curve in run["curves"] for run in pictured.runs):
        return None
    figure, axes = panels(len(pictured.shown_sizes), len(labels), 4.2, 2.6, sharey="row" if sharey else False)
    for row, size in zip(axes, pictured.shown_sizes, strict=True):
        for axis, (field, label) in zip(row, labels.items(), strict=True):
            for method in [name for name in pictured.methods if name != DERIVED][:MOST_LINES]:
                found = [one for one in pictured.curves(curve, method, size) if field in one]
                found = [one for one in found if one[x] == found[0][x] and one[field] is not None]
                if found:
                    values = [np.array(one[field], dtype=float) for one in found]
                    draw_line(axis, found[0][x], values, bounds_of(field), pictured.style(method))
            axis.set(xlabel=along, ylabel=label)
        row[0].set_title(pictured.name(size), loc="left", fontsize=9)
    return titled(figure, title, legend=True)


def noise(pictured: Pictured) -> Figure | None:
    """The metric of the task, or changed predictions, against the strength of each perturbation."""
    matches = [match for name in pictured.results["metric"].unique() if (match := PERTURBED.fullmatch(name))]
    followed = sorted({match["metric"] for match in matches}, key=lambda name: name == "flips")[:1]
    matches = [match for match in matches if match["metric"] in followed]
    if not matches:
        return None
    kinds = list(dict.fromkeys(match["kind"] for match in matches))
    figure, axes = panels(len(pictured.shown_sizes), len(kinds), 2.8, 2.5, sharex="col", sharey="row")
    for row, size in zip(axes, pictured.shown_sizes, strict=True):
        for axis, kind in zip(row, kinds, strict=True):
            names = {float(match["strength"]): match[0] for match in matches if match["kind"] == kind}
            # The clean metric is not drawn: it is measured on more texts.
            _metric_lines(axis, pictured, {at: (names[at], size) for at in sorted(names)})
            axis.set_xticks(sorted(names))
        row[0].set_ylabel("changed predictions (share)" if followed == ["flips"] else metric_name(followed[0]))
        row[0].set_title(pictured.name(size), loc="left", fontsize=9)
    for axis, kind in zip(axes[-1], kinds, strict=True):
        axis.set_xlabel(STRENGTHS[kind])
    strongest = max(
        (match for match in matches if match["kind"] == kinds[0]), key=lambda match: float(match["strength"])
    )
    return titled(figure, pictured.title(strongest[0]), legend=True)


def sizes(pictured: Pictured) -> Figure | None:
    """The main metrics against the number of training rows."""
    if len(pictured.sizes) < 2 or not pictured.main:
        return None
    figure, axes = panels(1, len(pictured.main), 2.8, 2.8)
    for axis, metric in zip(axes[0], pictured.main, strict=True):
        _metric_lines(axis, pictured, {size: (metric, size) for size in pictured.sizes}, scale="log")
        axis.set_xticks(pictured.sizes, [str(size) for size in pictured.sizes])
        axis.minorticks_off()
        unit = " (nats)" if metric == "nll" else ""
        axis.set(xlabel="training rows" + " per class" * pictured.per_class, ylabel=f"{metric_name(metric)}{unit}")
    return titled(figure, pictured.title(pictured.main[0]), legend=True)


def _metric_lines(axis: Axes, pictured: Pictured, at: dict[Any, tuple[str, int]], scale: str = "linear") -> None:
    """A line per method through the metrics and sizes `at` places; the places of the methods lie a little apart."""
    ranked = {metric for metric, _ in at.values() if PERTURBED.fullmatch(metric)}
    shown = [method for method in pictured.methods if not (ranked and method == DERIVED)][:MOST_LINES]
    axis.set_xscale(scale)
    for place, method in enumerate(shown):
        values = [pictured.values(method, metric, size) for metric, size in at.values()]
        kept = [(x, one) for x, one in zip(at, values, strict=True) if len(one)]
        if not kept:
            continue
        aside = (place - (len(shown) - 1) / 2) / max(len(shown), 1)
        reach = max(at) - min(at)
        places = [x * 1.12**aside if scale == "log" else x + 0.1 * aside * (reach or 1) for x, _ in kept]
        bounds = bounds_of(next(iter(at.values()))[0])
        means, low, high = np.array([mean_and_interval(one, bounds) for _, one in kept]).T
        axis.errorbar(places, means, yerr=[means - low, high - means], elinewidth=0.9, **pictured.style(method))


def memorised(pictured: Pictured) -> Figure | None:
    """The share of the wrong training labels that a model has learnt by heart."""
    found = pictured.results[pictured.results["metric"] == "memorised"]
    if found["value"].dropna().empty:
        return None
    shares = sorted(found["label_noise"].unique().tolist())
    # A temperature changes no prediction, so its row would repeat the baseline's.
    methods = [method for method in pictured.methods if method in set(found["method"]) and method != DERIVED]
    figure, axes = panels(len(pictured.sizes), len(shares), 3.4, 0.7 + 0.3 * len(methods), sharex=True, sharey=True)
    for row, size in zip(axes, pictured.sizes, strict=True):
        for axis, share in zip(row, shares, strict=True):
            for place, method in enumerate(methods):
                values = pictured.values(method, "memorised", size, share)
                if len(values):
                    mean, low, high = mean_and_interval(values, (0, 1))
                    axis.errorbar(mean, place, xerr=[[mean - low], [high - mean]], **pictured.style(method))
            axis.set_title(setting_name(size, share, pictured.per_class), loc="left", fontsize=9)
            axis.set_yticks(range(len(methods)), [pictured.label(method) for method in methods])
        row[0].set_ylim(len(methods) - 0.5, -0.5)
    for axis in axes[-1]:
        axis.set_xlabel("memorised wrong labels (share)")
    size, share = pictured.sizes[0], shares[-1]
    title = finding(pictured.summary, "memorised", pictured.baseline, size, share)
    return titled(figure, f"{title} ({setting_name(size, share, pictured.per_class)})")


PICTURES: dict[str, Callable[[Pictured], Figure | None]] = {
    "differences": lambda pictured: differences(pictured, pictured.main),
    "reliability": reliability,
    "boundary": paths,
    "boundary_numbers": boundary_numbers,
    "noise": noise,
    "outliers": outliers,
    "learning": learning,
    "unlabeled": unlabeled,
    "sizes": sizes,
    "memorised": memorised,
}
