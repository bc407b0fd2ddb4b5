"""The tables of a comparison: every metric of every run, and every method against the baseline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from hf_mixup.cli.compare.runs import DERIVED, load_runs, read_asked
from hf_mixup.config.files import write_whole
from hf_mixup.training.metric_names import higher_is_better

BETTER, SAME, WORSE, TOO_FEW, DIVERGED = "better", "no difference seen", "worse", "too few seeds", "diverged"
MAIN_METRICS = {
    "single_label_classification": ["accuracy", "macro_f1", "nll", "ece"],
    "multi_label_classification": ["micro_f1", "lrap", "nll"],
    "regression": ["pearson", "rmse"],
}
COLUMNS = ["method", "train_size", "label_noise", "seed", "metric", "value"]
SUMMARY = ["method", "train_size", "label_noise", "metric", "mean", "std", "seeds", "lost", "diverged"]
AGAINST = ["difference", "low", "high", "p", "verdict"]
# With two pairs an interval is one chance in a few.
FEWEST = 3
# A finished run in which this has no finite value has diverged.
TOLD_BY = "test_loss"
SETTING = ["train_size", "label_noise"]
# What a temperature leaves as it is: it changes no ranking of the classes.
UNSCALED = ("accuracy", "macro_f1", "micro_f1", "subset_accuracy", "lrap", "flips", "memorised")
WIDTH = 119


def collect(folder: str | Path) -> pd.DataFrame:
    """Every metric of every finished run. Argument and errors as for `read_asked`.

    Returns:
        `pandas.DataFrame`: a row per run and metric: `method`, `train_size`, `label_noise`, `seed`, `metric`, `value`
            (nan for what could not be computed). The baseline comes first. After it comes `temperature_scaling`: the
            baseline with its calibration metrics after scaling, with the metrics that scaling does not change, and
            without those that were not measured after it.
    """
    asked = read_asked(folder)
    baseline = next(iter(asked["methods"]))
    rows: list[tuple[Any, ...]] = []
    for run in load_runs(folder):
        made_of = [(run["method"], run["metrics"])]
        if run["method"] == baseline and any(name.endswith("_scaled") for name in run["metrics"]):
            made_of.append((DERIVED, _scaled(run["metrics"])))
        for method, metrics in made_of:
            key = (method, run["train_size"], run["label_noise"], run["seed"])
            rows += [(*key, name, value) for name, value in metrics.items()]
    results = pd.DataFrame(rows, columns=COLUMNS).astype({"value": float}).replace([np.inf, -np.inf], np.nan)
    others = [name for name in asked["methods"] if name != baseline]
    order = {name: place for place, name in enumerate([baseline, DERIVED, *others])}
    return results.sort_values("method", key=lambda names: names.map(order), kind="stable", ignore_index=True)


def _is_unscaled(metric: str) -> bool:
    return metric.startswith(UNSCALED) and not metric.endswith("_scaled")


def _scaled(metrics: dict[str, float | None]) -> dict[str, float | None]:
    same = {name: value for name, value in metrics.items() if _is_unscaled(name)}
    return same | {name.removesuffix("_scaled"): value for name, value in metrics.items() if name.endswith("_scaled")}


def summarise(results: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Means over seeds, and each method against the baseline.

    The runs of one seed have the same training rows, so differences are taken seed by seed, over the seeds that both
    methods have. The interval is the 95 % t interval of the mean difference. It holds for one metric at a time:
    nothing is corrected for the number of metrics, methods or sizes.

    Args:
        results (`pandas.DataFrame`): see `collect`.
        baseline (`str`): the method that the others are compared with.

    Returns:
        `pandas.DataFrame`: a row per `method`, `train_size`, `label_noise` and `metric`: `mean`, `std` (with n - 1) and
            `seeds` (how many) of the method, and `lost`, how many more had no finite value, such as the correlation of
            equal scores; `diverged`, in how many seeds the run diverged: its test loss has no finite value;
            `difference` (method minus baseline), `low` and `high` (its interval), `p` (paired t test) and `verdict`:
            `"better"` or `"worse"` if the interval excludes 0, else `"no difference seen"`; `"too few seeds"` with
            less than 3 pairs; `"diverged"`, without a difference, if the method or the baseline diverged in a seed:
            the seeds that are left are not a fair sample. The verdict is empty for the baseline, for metrics that are
            neither good nor bad by themselves, and for those that temperature scaling cannot change.
    """
    rows, diverged, made_of = [], _diverged_runs(results), {DERIVED: baseline}
    # Lists, not sorted groups: methods, sizes and metrics stay in the order in which they were asked for.
    for key, group in results.groupby([*SETTING, "metric"], sort=False):
        values = group.pivot(index="seed", columns="method", values="value")
        for method in group["method"].unique():
            own = values[method].dropna()
            lost = int(group.loc[group["method"] == method, "value"].isna().sum())
            # Temperature scaling is made of the baseline's runs.
            of_method, of_baseline = diverged[(*key[:-1], made_of.get(method, method))], diverged[(*key[:-1], baseline)]
            row = [method, *key, own.mean(), own.std(), len(own), lost, of_method]
            rows.append(row + _compare(values, method, baseline, key[-1], of_method + of_baseline > 0))
    summary = pd.DataFrame(rows, columns=SUMMARY + AGAINST)
    place = {method: number for number, method in enumerate(results["method"].unique())}
    return summary.sort_values(
        [*SETTING, "method"],
        key=lambda column: column.map(place) if column.name == "method" else column,
        kind="stable",
        ignore_index=True,
    )


def _diverged_runs(results: pd.DataFrame) -> Counter[tuple[int, float, str]]:
    """How many runs of each size, label noise and method diverged."""
    lost = results[(results["metric"] == TOLD_BY) & results["value"].isna()]
    return Counter(zip(*(lost[column].tolist() for column in (*SETTING, "method")), strict=True))


def _compare(values: pd.DataFrame, method: str, baseline: str, metric: str, diverged: bool) -> list[Any]:
    """As `_against`, from the values of each seed and method; only a verdict if nothing can be compared."""
    nothing = [np.nan] * 4
    if method == baseline or (method == DERIVED and _is_unscaled(metric)):
        return [*nothing, ""]
    if diverged:
        return [*nothing, "" if _direction(metric) is None else DIVERGED]
    if baseline not in values:
        return [*nothing, TOO_FEW]
    return _against((values[method] - values[baseline]).dropna().to_numpy(), metric)


def _direction(metric: str) -> bool | None:
    # What was picked by the development split is not judged by it.
    return None if metric.startswith("dev_") else higher_is_better(metric)


def _against(differences: np.ndarray, metric: str) -> list[Any]:
    """Difference, interval, p and verdict of paired differences."""
    if len(differences) < FEWEST:
        return [differences.mean() if len(differences) else np.nan, np.nan, np.nan, np.nan, TOO_FEW]
    mean = differences.mean()
    if np.ptp(differences) <= 1e-12 * abs(mean):
        low = high = mean
        p = float(mean == 0)
    else:
        test = stats.ttest_1samp(differences, 0)
        (low, high), p = test.confidence_interval(0.95), test.pvalue
    return [mean, low, high, p, _verdict(low, high, _direction(metric))]


def _verdict(low: float, high: float, up: bool | None) -> str:
    if up is None:
        return ""
    if low <= 0 <= high:
        return SAME
    return BETTER if (low > 0) == up else WORSE


def write_tables(folder: str | Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write `results.csv` and `summary.csv` into the folder of a comparison.

    Args:
        folder (`str` or `Path`): the output folder of a comparison; its runs need not all be finished.

    Returns:
        `tuple[pandas.DataFrame, pandas.DataFrame]`: see `collect` and `summarise`.

    Raises:
        FileNotFoundError: if the folder holds no comparison.
        ValueError: if no run is finished.
    """
    results = collect(folder)
    if results.empty:
        raise ValueError(f"{str(folder)!r} holds no finished run yet.")
    summary = summarise(results, next(iter(read_asked(folder)["methods"])))
    for name, table in (("results.csv", results), ("summary.csv", summary)):
        with write_whole(Path(folder) / name) as part:
            table.to_csv(part, index=False)
    return results, summary


def number(value: float, sign: str = "") -> str:
    """A value for a table: three decimals, fewer for large values; a dash for nan. `sign="+"` shows plus signs."""
    if np.isnan(value):
        return "–"
    return f"{value:{sign}.3f}" if abs(value) < 10 else f"{value:{sign}.4g}"


def format_summary(summary: pd.DataFrame, metrics: Sequence[str]) -> str:
    """A table for the terminal: means and verdicts, a block for each size and label noise.

    Args:
        summary (`pandas.DataFrame`): see `summarise`.
        metrics (`Sequence[str]`): which to show, such as `MAIN_METRICS[problem_type]`; unknown and repeated ones are
            left out.

    Returns:
        `str`: lines of less than 120 characters; metrics that do not fit beside the others stand below them.
    """
    blocks = []
    for (size, noise), group in summary.groupby(SETTING, sort=False):
        blocks.append(f"train_size={size}, label_noise={noise:g}")
        methods = list(group["method"].unique())
        shown = group.set_index(["method", "metric"])
        names = _column(["method", *methods])
        lines = names
        for metric in dict.fromkeys(metrics):
            if metric not in set(group["metric"]):
                continue
            column = _column([metric, *(_entry(shown, method, metric) for method in methods)])
            if len(lines[0]) + 1 + len(column[0]) > WIDTH:
                blocks += lines
                lines = names
            lines = [f"{line} {entry}" for line, entry in zip(lines, column, strict=True)]
        blocks += [*lines, ""]
    return "\n".join(line.rstrip() for line in blocks).rstrip()


def _entry(shown: pd.DataFrame, method: str, metric: str) -> str:
    if (method, metric) not in shown.index:
        return "–"
    row = shown.loc[(method, metric)]
    return f"{number(row['mean'])} {verdict_of(row)}"


def verdict_of(row: pd.Series) -> str:
    """The verdict of a row of the summary for a table: says who diverged, and in how many seeds a value is missing.

    Args:
        row (`pandas.Series`): see `summarise`.

    Returns:
        `str`: such as `"better"`, `"diverged in 2 of 4 seeds"`, `"baseline diverged"` or `"worse (1 of 4 seeds without
            a value)"`; empty if there is nothing to say.
    """
    runs = row["seeds"] + row["lost"]
    if row["diverged"]:
        return f"{DIVERGED} in {row['diverged']} of {runs} seeds"
    lost = f" ({row['lost']} of {runs} seeds without a value)" if row["lost"] else ""
    return ("baseline diverged" if row["verdict"] == DIVERGED else row["verdict"]) + lost


def _column(entries: list[str]) -> list[str]:
    # The longest name of a method still leaves room for one metric.
    width = min(max(map(len, entries)), WIDTH // 2)
    return [entry[:width].ljust(width) for entry in entries]
