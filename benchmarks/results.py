"""Write the tables of docs/results.md from comparisons that were run, and keep their raw results beside it.

    python benchmarks/results.py outputs/compare/*

Of each comparison folder, results.csv goes to benchmarks/results/compare_NAME.csv, and the predictions of its runs to
predictions_NAME.npz; the tables of the default in docs/results.md, all others in docs/results_tables.md and the
picture docs/results.png are made anew from all of these files. In a table `+` is better than the baseline and `-`
worse, after the correction of a method's tests over all comparisons together; `=` is equivalent, `~` no worse. The
picture needs the plots extra.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from hf_mixup.cli.compare.canvas import panels, titled
from hf_mixup.cli.compare.findings import metric_name
from hf_mixup.cli.compare.resampling import add_text_intervals, gather_predictions, save_predictions
from hf_mixup.cli.compare.runs import DERIVED
from hf_mixup.cli.compare.statistics import (
    BETTER,
    DECIDED,
    EQUIVALENT,
    MAIN_METRICS,
    NO_WORSE,
    PRIMARY_NAMES,
    WORSE,
    corrected,
)
from hf_mixup.cli.compare.table import SETTING, number, summarise, write_tables
from hf_mixup.training.metric_names import higher_is_better

ROOT = Path(__file__).parents[1]
KEPT, DOCS, PICTURE = ROOT / "benchmarks/results", ROOT / "docs/results.md", ROOT / "docs/results.png"
TABLES = ROOT / "docs/results_tables.md"
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"
# Comparisons of the default with nothing else but no mixup begin so; those of long trainings, with early stopping, so.
OF_DEFAULT, OF_LONG = "default_", "default_long_"
LONG_METRICS = ("accuracy", "nll", "ece", "ece_scaled", "aurc")
LONG = """In long trainings (1,000 updates of 8 texts), beside early stopping, which takes the
weights of the tenth of the training with the lowest loss on the same development rows:"""
# An excess of the calibration error over what a temperature leaves that is smaller is not worth a share.
EXCESS = 0.03
# Beside the main metrics of the task, one of each promise.
PROMISES = ["nll_scaled", "generalisation_gap", "memorised", "gradient_norm"]
PROMISES += ["label_ece", "flips_characters_0.1", "flips_dropout_0.3", "ood_auroc_softmax"]
MARKS = {BETTER: " +", WORSE: " -", EQUIVALENT: " =", NO_WORSE: " ~"}
MARKED = (BETTER, WORSE)
# In the picture, with colour, marker and place in the row: the default, two that repair more, and what costs nothing.
PICTURED = {
    "default": ("#000000", "D", -0.3),
    "tmix": ("#0072B2", "o", -0.1),
    "manifold": ("#D55E00", "s", 0.1),
    "label_smoothing": ("#666666", "^", 0.3),
}


def main() -> None:
    for folder in map(Path, sys.argv[1:]):
        write_tables(folder)
        shutil.copyfile(folder / "results.csv", KEPT / f"compare_{folder.name}.csv")
        if predictions := gather_predictions(folder):
            save_predictions(predictions, KEPT / f"predictions_{folder.name}.npz")
    summaries = kept_summaries()
    for page, text in ((DOCS, default_pages(summaries)), (TABLES, tables(summaries))):
        before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
        _, _, after = rest.partition(END)
        page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")
    summaries = {path: with_texts(path, summary) for path, summary in summaries.items()}
    draw(pictured(summaries))
    print(f"{len(summaries)} comparisons in {DOCS.relative_to(ROOT)} and {PICTURE.relative_to(ROOT)}")
    print("{:,} verdicts, {:,} of them better or worse".format(*verdicts(summaries)))
    print("of primary endpoints {:,}, and {:,}".format(*verdicts(summaries, PRIMARY_NAMES)))
    marked = pd.concat(summaries.values()).query("verdict in @MARKED and low_texts == low_texts")
    print(f"{(marked['low_texts'] * marked['high_texts'] > 0).sum():,} of {len(marked):,} with other texts, too")


def kept_summaries() -> dict[Path, pd.DataFrame]:
    """The summary of every comparison whose raw results are kept, corrected over all of them."""
    each = {path: summary_of(path) for path in sorted(KEPT.glob("compare_*.csv"))}
    judged = corrected(pd.concat(each, names=["path", None]).reset_index("path").reset_index(drop=True))
    return {path: group.drop(columns="path") for path, group in judged.groupby("path")}


def verdicts(summaries: dict[Path, pd.DataFrame], metrics: Collection[str] | None = None) -> tuple[int, int]:
    """How many verdicts there are on some metrics, or on all, and how many of them say better or worse."""
    given = pd.concat(summaries.values())
    words = given["verdict"] if metrics is None else given[given["metric"].isin(metrics)]["verdict"]
    return int(words.isin(DECIDED).sum()), int(words.isin(MARKED).sum())


def tables(summaries: dict[Path, pd.DataFrame]) -> str:
    return "\n\n".join(section(path, summary) for path, summary in summaries.items())


def default_pages(summaries: dict[Path, pd.DataFrame]) -> str:
    """What docs/results.md shows of the default: short trainings, then long ones."""
    long = {path: summary for path, summary in summaries.items() if name_of(path).startswith(OF_LONG)}
    short = {path: summary for path, summary in summaries.items() if path not in long}
    return "\n\n".join([default_tables(short), *([LONG, long_table(long)] if long else [])])


def long_table(summaries: dict[Path, pd.DataFrame]) -> str:
    """No mixup, early stopping and the default: a row per set and method."""
    heads = ["set", "method", *map(metric_name, LONG_METRICS), "strength"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for path, summary in summaries.items():
        by = summary.set_index(["method", "metric"])
        for method in ("none", "early_stopping", "default"):
            strength = number(by.loc[(method, "mixup_strength"), "mean"]) if method == "default" else ""
            cells = [cell(by, method, metric) for metric in LONG_METRICS]
            name = f"{set_name(path)} {summary['train_size'].iloc[0]}" if method == "none" else ""
            lines.append(f"| {' | '.join([name, method, *cells, strength])} |")
    return "\n".join(lines)


def default_tables(summaries: dict[Path, pd.DataFrame]) -> str:
    """The default against no mixup: a row per set and size; a table for single labels, one for several labels."""
    found: dict[tuple[str, ...], list[str]] = {}
    for path, summary in summaries.items():
        if not name_of(path).startswith(OF_DEFAULT):
            continue
        for (size, noise), group in summary.groupby(SETTING):
            shown = tuple(metric for metric in MAIN_METRICS[kind_of(group)] if metric != "macro_f1")
            name = f"{set_name(path)} {size}" + (f", {noise:.0%} wrong labels" if noise else "")
            found.setdefault(shown, []).append(default_row(name, group.set_index(["method", "metric"]), shown))
    return "\n\n".join("\n".join([default_head(shown), *rows]) for shown, rows in found.items())


def default_head(metrics: Sequence[str]) -> str:
    heads = ["set", *map(metric_name, metrics), "ECE after a temperature", "share of the excess repaired", "strength"]
    return f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}"


def default_row(name: str, by: pd.DataFrame, metrics: Sequence[str]) -> str:
    """Each metric without mixup and with the default; what a temperature leaves; the mean strength at the end."""
    cells = [f"{number(by.loc[('none', metric), 'mean'])} → {cell(by, 'default', metric)}" for metric in metrics]
    none, default, scaled = (by.loc[(method, metrics[-1]), "mean"] for method in ("none", "default", DERIVED))
    excess = none - scaled
    share = f"{(none - default) / excess:.0%}" if excess > EXCESS and default < none else ""
    strength = number(by.loc[("default", "mixup_strength"), "mean"])
    return f"| {' | '.join([name, *cells, number(scaled), share, strength])} |"


def kind_of(group: pd.DataFrame) -> str:
    present = set(group["metric"])
    return next(kind for kind, metrics in MAIN_METRICS.items() if set(metrics) <= present)


def summary_of(path: Path) -> pd.DataFrame:
    results = pd.read_csv(path)
    return summarise(results, results["method"].iloc[0])


def with_texts(path: Path, summary: pd.DataFrame) -> pd.DataFrame:
    """A summary with the intervals over seeds and test texts, if the predictions are kept."""
    kept = path.with_name(path.name.replace("compare_", "predictions_")).with_suffix(".npz")
    predictions = dict(np.load(kept)) if kept.is_file() else {}
    return add_text_intervals(summary, predictions, summary["method"].iloc[0])


def name_of(path: Path) -> str:
    return path.stem.removeprefix("compare_")


def title(path: Path) -> str:
    return name_of(path).replace("_", " ")


def set_name(path: Path) -> str:
    return name_of(path).removeprefix(OF_LONG).removeprefix(OF_DEFAULT).replace("_", " ")


def section(path: Path, summary: pd.DataFrame) -> str:
    name = name_of(path)
    lines = [f"### {title(path)}", "", f"`hf-mixup compare configs/compare/{name}.yaml`; every value: "]
    lines[-1] += f"[{path.name}](../benchmarks/results/{path.name})."
    for (size, noise), group in summary.groupby(SETTING):
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
    return [
        *dict.fromkeys([*MAIN_METRICS[kind_of(group)], *(name for name in PROMISES if name in set(group["metric"]))])
    ]


def cell(by: pd.DataFrame, method: str, metric: str) -> str:
    if (method, metric) not in by.index:
        return ""
    row = by.loc[(method, metric)]
    return f"{number(row['mean'])}{MARKS.get(row['verdict'], '')}"


def pictured(summaries: dict[Path, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The rows of each set and setting, from the comparisons of the default and those of the other methods."""
    rows: dict[str, list[pd.DataFrame]] = {}
    for path, summary in summaries.items():
        for (size, noise), group in summary.groupby(SETTING):
            if "accuracy" in set(group["metric"]) and not name_of(path).startswith(OF_LONG):
                name = f"{set_name(path)}, {size} a class" + (f", {noise:.0%} wrong" if noise else "")
                rows.setdefault(name, []).append(group[group["method"].isin(PICTURED)])
    return {name: pd.concat(groups).set_index(["metric", "method"]) for name, groups in rows.items()}


def draw(rows: dict[str, pd.DataFrame]) -> None:
    """Differences to the baseline with their intervals: a row per set and setting, a column per metric."""
    metrics = ["accuracy", "nll", "ece"]
    figure, axes = panels(1, len(metrics), 2.9, 0.45 * len(rows), sharey=True)
    for axis, metric in zip(axes[0], metrics, strict=True):
        for place, group in enumerate(rows.values()):
            for method in PICTURED:
                if (metric, method) in group.index:
                    draw_difference(axis, place, method, group.loc[(metric, method)])
        axis.axvline(0, color="black", linewidth=0.8)
        better = "right" if higher_is_better(metric) else "left"
        axis.set_xlabel(f"difference in {metric_name(metric)}\nbetter: to the {better}")
    axes[0][0].set_yticks(range(len(rows)), rows)
    axes[0][0].set_ylim(len(rows) - 0.5, -0.5)
    found = "Against no mixup, with 95 % intervals over seeds, and thin: over seeds and test texts; filled: marked"
    titled(figure, found, legend=True).savefig(PICTURE, dpi=110)


def draw_difference(axis: Axes, place: int, method: str, row: pd.Series) -> None:
    """One difference with its interval; the first of a method names it in the legend."""
    colour, marker, aside = PICTURED[method]
    axis.plot([row["low_texts"], row["high_texts"]], [place + aside] * 2, color=colour, linewidth=0.6)
    axis.plot([row["low"], row["high"]], [place + aside] * 2, color=colour, linewidth=1.4)
    face = colour if row["verdict"] in MARKED else "white"
    label = None if method in axis.get_legend_handles_labels()[1] else method
    axis.plot(row["difference"], place + aside, marker, color=colour, markerfacecolor=face, label=label)


if __name__ == "__main__":
    main()
