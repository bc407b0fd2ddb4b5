"""The tables of a comparison: every metric of every run, and every method against the baseline."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hf_mixup.cli.compare.resampling import add_text_intervals, gather_predictions
from hf_mixup.cli.compare.runs import DERIVED, files_of_all, load_runs, read_asked
from hf_mixup.cli.compare.statistics import (
    DIVERGED,
    EQUIVALENT,
    FEWEST,
    NO_WORSE,
    PAIRED,
    SAME,
    TOO_FEW,
    corrected,
    direction,
    margin_of,
    paired,
)
from hf_mixup.config.files import write_whole

COLUMNS = ["method", "train_size", "label_noise", "seed", "metric", "value"]
SUMMARY = ["method", "train_size", "label_noise", "metric", "mean", "std", "seeds", "lost", "diverged"]
AGAINST = [*PAIRED, "margin", "verdict"]
# A finished run in which this has no finite value has diverged.
TOLD_BY = "test_loss"
SETTING = ["train_size", "label_noise"]
# What a temperature leaves as it is: it changes no ranking of the classes.
UNSCALED = (
    *("accuracy", "macro_f1", "micro_f1", "subset_accuracy", "lrap", "flips", "memorised"),
    *("f1", "precision", "recall"),
)


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
    methods have. Intervals hold for one metric at a time; verdicts are corrected for how much is tested, see
    `hf_mixup.cli.compare.statistics.corrected`.

    Args:
        results (`pandas.DataFrame`): see `collect`.
        baseline (`str`): the method that the others are compared with.

    Returns:
        `pandas.DataFrame`: a row per `method`, `train_size`, `label_noise` and `metric`: `mean`, `std` (with n - 1) and
            `seeds` (how many) of the method, and `lost`, how many more had no finite value, such as the correlation of
            equal scores; `diverged`, in how many seeds the run diverged: its test loss has no finite value;
            `difference` (method minus baseline), `low` and `high` (its 95 % t interval), `p`, `p_no_worse`,
            `p_equivalent` and `detectable`, see `hf_mixup.cli.compare.statistics.paired`; `margin`, what does not
            matter; `q`, `q_no_worse` and `q_equivalent`, the p values after correction; and `verdict`: `"better"` or
            `"worse"` if `q` is at most 0.05; else `"equivalent"` or `"no worse"`, by the margin, if `q_equivalent` or
            `q_no_worse` is; else `"no difference seen"`; `"too few seeds"` with less than 3 pairs; `"diverged"`,
            without a difference, if the method or the baseline diverged in a seed: the seeds that are left are not a
            fair sample. The verdict is empty for the baseline, for metrics that are neither good nor bad by
            themselves, and for those that temperature scaling cannot change.
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
    summary = corrected(pd.DataFrame(rows, columns=SUMMARY + AGAINST))
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
    """The columns `AGAINST`, from the values of each seed and method; no verdict yet, if there may be one."""
    nothing: list[Any] = [np.nan] * (len(AGAINST) - 1)
    if method == baseline or (method == DERIVED and _is_unscaled(metric)):
        return [*nothing, ""]
    if diverged:
        return [*nothing, "" if direction(metric) is None else DIVERGED]
    if baseline not in values:
        return [*nothing, "" if direction(metric) is None else TOO_FEW]
    differences = (values[method] - values[baseline]).dropna().to_numpy()
    margin = margin_of(metric, float(values[baseline].mean()))
    may_be = "" if direction(metric) is None else SAME
    return [*paired(differences, metric, margin), margin, may_be if len(differences) >= FEWEST else TOO_FEW]


def write_tables(folder: str | Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write `results.csv` and `summary.csv` into the folder of a comparison.

    Args:
        folder (`str` or `Path`): the output folder of a comparison; its runs need not all be finished.

    Returns:
        `tuple[pandas.DataFrame, pandas.DataFrame]`: see `collect`; and `summarise`, with what
            `hf_mixup.cli.compare.resampling.add_text_intervals` adds.

    Raises:
        FileNotFoundError: if the folder holds no comparison.
        ValueError: if no run is finished.
    """
    baseline = next(iter(read_asked(folder)["methods"]))
    # One at a time, so that the last to write has seen the runs of all parts.
    with files_of_all(folder):
        results = collect(folder)
        if results.empty:
            raise ValueError(f"{str(folder)!r} holds no finished run yet.")
        summary = add_text_intervals(summarise(results, baseline), gather_predictions(folder), baseline)
        for name, table in (("results.csv", results), ("summary.csv", summary)):
            with write_whole(Path(folder) / name) as part:
                table.to_csv(part, index=False)
    return results, summary


def without_doubles(summary: pd.DataFrame) -> pd.DataFrame:
    """A summary without the test loss, if that is the NLL by another name, as it is for classes."""
    means = summary.pivot_table(index=["method", *SETTING], columns="metric", values="mean")
    if not {"nll", TOLD_BY} <= set(means):
        return summary
    is_double = means[TOLD_BY].isna() | (means[TOLD_BY] == means["nll"])
    return summary[summary["metric"] != TOLD_BY] if is_double.all() else summary


def number(value: float, sign: str = "") -> str:
    """A value for a table: three decimals, fewer for large values; a dash for nan. `sign="+"` shows plus signs."""
    if np.isnan(value):
        return "–"
    return f"{value:{sign}.3f}" if abs(value) < 10 else f"{value:{sign}.4g}"


def verdict_of(row: pd.Series) -> str:
    """The verdict of a row of the summary for a table: says who diverged, and in how many seeds a value is missing.

    Args:
        row (`pandas.Series`): see `summarise`.

    Returns:
        `str`: such as `"better"`, `"no worse by 0.01"`, `"diverged in 2 of 4 seeds"`, `"baseline diverged"` or `"worse
            (1 of 4 seeds without a value)"`; empty if there is nothing to say.
    """
    runs = row["seeds"] + row["lost"]
    if row["diverged"]:
        return f"{DIVERGED} in {row['diverged']} of {runs} seeds"
    lost = f" ({row['lost']} of {runs} seeds without a value)" if row["lost"] else ""
    margin = f"{row['margin']:.2g}"
    longer = {
        DIVERGED: "baseline diverged",
        EQUIVALENT: f"equivalent within {margin}",
        NO_WORSE: f"no worse by {margin}",
    }
    return longer.get(row["verdict"], row["verdict"]) + lost
