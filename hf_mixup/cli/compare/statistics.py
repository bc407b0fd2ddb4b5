"""What may be concluded from differences between paired runs, over all that is compared. Imports no torch."""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from scipy import optimize, stats

from hf_mixup.training.metric_names import higher_is_better

BETTER, WORSE, EQUIVALENT, NO_WORSE, SAME = "better", "worse", "equivalent", "no worse", "no difference seen"
TOO_FEW, DIVERGED = "too few seeds", "diverged"
# What the differences may say; which of these, is decided over a whole family.
DECIDED = (BETTER, WORSE, EQUIVALENT, NO_WORSE, SAME)
MAIN_METRICS = {
    # Of tags that mark no entities accuracy comes first, as neither F1 nor the error of entities is there.
    "token_classification": ["f1", "accuracy", "macro_f1", "nll", "ece", "entity_ece"],
    "single_label_classification": ["accuracy", "macro_f1", "nll", "ece"],
    "multi_label_classification": ["micro_f1", "lrap", "nll", "label_ece"],
    "regression": ["pearson", "rmse"],
}
# Declared before anything is run. Every other metric is explored.
PRIMARY = {
    "single_label_classification": ["accuracy", "nll", "ece"],
    "multi_label_classification": ["lrap", "micro_f1", "nll", "label_ece"],
    "regression": ["pearson", "rmse"],
    "token_classification": ["f1", "accuracy", "nll", "ece"],
}
PRIMARY_NAMES = {name for names in PRIMARY.values() for name in names}
# The largest difference that does not matter: a point of a share, nats, or a share of the baseline. Others have none.
MARGINS: dict[str, float] = {
    **dict.fromkeys(("accuracy*", "*f1", "subset_accuracy", "lrap*", "pearson*", "spearman*", "ood_*"), 0.01),
    **dict.fromkeys(("*ece*", "brier*", "aurc*", "flips_*", "memorised", "precision", "recall"), 0.01),
    **{"nll*": 0.02, "rmse": 0.01},
}
OF_THE_BASELINE = ("rmse",)
LEVEL, POWER = 0.05, 0.8
# With two pairs an interval is one chance in a few.
FEWEST = 3
# Differences that are smaller are those of the last bits.
EQUAL = 1e-12
PAIRED = ["difference", "low", "high", "p", "p_no_worse", "p_equivalent", "detectable"]
# Each column of p values and that of what they are after correction.
CORRECTED = {"p": "q", "p_no_worse": "q_no_worse", "p_equivalent": "q_equivalent"}


def direction(metric: str) -> bool | None:
    """As `higher_is_better`, and None for what was picked by the development split, and is not judged by it."""
    return None if metric.startswith("dev_") else higher_is_better(metric)


def margin_of(metric: str, baseline: float) -> float:
    """The largest difference of a metric that does not matter; nan if none is declared.

    Args:
        metric (`str`): such as `"ece"` or `"accuracy_dropout_0.1"`.
        baseline (`float`): the mean of the metric over the baseline's runs.
    """
    found = (margin for pattern, margin in MARGINS.items() if fnmatchcase(metric, pattern))
    return next(found, np.nan) * (baseline if metric in OF_THE_BASELINE else 1)


def paired(differences: np.ndarray, metric: str, margin: float) -> list[Any]:
    """The tests of one mean difference.

    Args:
        differences (`np.ndarray`): method minus baseline, of every pair of runs with the same seed, shape (pairs,).
        metric (`str`): what differs.
        margin (`float`): see `margin_of`.

    Returns:
        `list`: a value for each of `PAIRED`: the mean; its 95 % t interval; the p value of the paired t test, of the
            one-sided test that the method is not worse by the margin, and of both one-sided tests (TOST); and the
            smallest difference that would be seen. All but the mean are nan for fewer than 3 pairs, and for equal
            differences other than 0: they have no spread to test by. Differences of 0 have p = 1 and are equivalent.
    """
    count, up = len(differences), direction(metric)
    mean = float(differences.mean()) if count else np.nan
    nothing = [np.nan] * 4
    if count < FEWEST:
        return [mean, np.nan, np.nan, *nothing]
    if np.abs(differences).max() <= EQUAL:
        tost = 0.0 if margin > 0 and up is not None else np.nan
        return [mean, mean, mean, 1.0, tost, tost, np.nan]
    if np.ptp(differences) <= EQUAL * abs(mean):
        return [mean, np.nan, np.nan, *nothing]
    error, free = float(differences.std(ddof=1)) / np.sqrt(count), count - 1
    half, p = stats.t.ppf(1 - LEVEL / 2, free) * error, 2 * stats.t.sf(abs(mean) / error, free)
    gain = np.nan if up is None else mean if up else -mean
    no_worse, no_better = stats.t.sf((gain + margin) / error, free), stats.t.sf((margin - gain) / error, free)
    return [mean, mean - half, mean + half, p, no_worse, max(no_worse, no_better), _noncentrality(count) * error]


@lru_cache
def _noncentrality(count: int) -> float:
    """The mean difference, in its standard errors, that a paired t test of so many pairs sees with 80 % power."""
    edge = stats.t.ppf(1 - LEVEL / 2, count - 1)
    # What the other tail adds to the power is below 1e-5.
    return float(optimize.brentq(lambda shift: stats.nct.sf(edge, count - 1, shift) - POWER, 2, 8))


def corrected(summary: pd.DataFrame) -> pd.DataFrame:
    """Correct the p values of a summary, and decide its verdicts by them.

    A family is what one method is tested for: its primary endpoints, corrected by Holm (the chance of one false mark
    in the family is 5 %), and all other metrics, corrected by Benjamini and Hochberg (5 % of the marks are false). The
    three questions (other than the baseline? worse by the margin? other by the margin?) are corrected apart.

    Args:
        summary (`pandas.DataFrame`): see `hf_mixup.cli.compare.table.summarise`; or the summaries of several
            comparisons one below the other, with an index of their own each: then a family spans them all.

    Returns:
        `pandas.DataFrame`: the same rows with `q`, `q_no_worse`, `q_equivalent` and `verdict`.
    """
    judged, primary = summary.copy(), summary["metric"].isin(PRIMARY_NAMES)
    judged[list(CORRECTED.values())] = np.nan
    tested = judged["verdict"].isin(DECIDED)
    for p, q in CORRECTED.items():
        known = judged[tested & judged[p].notna()]
        for (_, first), family in known.groupby(["method", primary.loc[known.index]], sort=False):
            adjust = holm if first else stats.false_discovery_control
            judged.loc[family.index, q] = adjust(family[p].to_numpy(dtype=float))
    up = judged["metric"].map(direction).eq(True)
    better = (judged["difference"] > 0) == up
    seen = judged["q"] <= LEVEL
    cases = [seen & better, seen, judged["q_equivalent"] <= LEVEL, judged["q_no_worse"] <= LEVEL]
    decided = np.select(cases, [BETTER, WORSE, EQUIVALENT, NO_WORSE], SAME)
    judged["verdict"] = judged.pop("verdict").where(~tested, decided)
    return judged


def holm(p: np.ndarray) -> np.ndarray:
    """p values after Holm's correction, in their order; none of them is nan. Shape (tests,)."""
    order = np.argsort(p)
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return steps[np.argsort(order)]
