"""Verdicts after correction: what is only chance gets no mark, and what is there gets one."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from hf_mixup.cli.compare.statistics import (
    DECIDED,
    PAIRED,
    PRIMARY,
    PRIMARY_NAMES,
    corrected,
    holm,
    margin_of,
    paired,
)
from hf_mixup.cli.compare.table import summarise
from hf_mixup.training.metric_names import METRIC_NAMES, higher_is_better

COLUMNS = ["method", "train_size", "label_noise", "seed", "metric", "value"]
BASES = {"accuracy": 0.8, "nll": 0.5, "ece": 0.1, "macro_f1": 0.8, "brier": 0.3, "aurc": 0.1}


def drawn(methods, seeds, generator, spread=0.01, shift=None):
    """Results at two sizes: a part of each seed that the methods share, and one of their own, alike in every method."""
    rows = []
    for size in (20, 80):
        shared = generator.normal(size=(seeds, 1)) * 0.03
        for method in ("none", *methods):
            # What is better in one metric of a run tends to be better in the others.
            own = generator.normal(size=(seeds, 1)) + 0.5 * generator.normal(size=(seeds, len(BASES)))
            values = list(BASES.values()) + shared + spread * own
            rows += [
                (method, size, 0.0, seed, metric, values[seed, place] + (shift or {}).get((method, metric), 0))
                for seed in range(seeds)
                for place, metric in enumerate(BASES)
            ]
    return pd.DataFrame(rows, columns=COLUMNS)


def marked(summary, verdicts=("better", "worse")):
    return summary[summary["verdict"].isin(verdicts)]


@pytest.fixture(scope="module")
def control():
    """400 comparisons of a baseline with itself, of five seeds, each as a method of its own."""
    rows, generator = [], np.random.default_rng(0)
    for number in range(400):
        for size, metric in itertools.product((20, 80), BASES):
            tests = paired(0.01 * generator.normal(size=5), metric, margin_of(metric, 1.0))
            rows.append((f"again{number}", size, metric, *tests, "no difference seen"))
    return corrected(pd.DataFrame(rows, columns=["method", "train_size", "metric", *PAIRED, "verdict"]))


def test_of_twenty_controls_one_is_marked_in_a_family(control):
    primary = control["metric"].isin(PRIMARY_NAMES)
    assert set(control["metric"][primary]) == {"accuracy", "nll", "ece"}
    for family in (primary, ~primary):
        # 20 are expected, with a standard deviation of 4.4.
        assert 7 <= marked(control[family])["method"].nunique() <= 33
        assert control[family & (control["p"] <= 0.05)]["method"].nunique() > 80


def test_of_twenty_controls_whose_metrics_agree_one_or_two_are_marked():
    found = [summarise(drawn(["again"], 5, np.random.default_rng(seed)), "none") for seed in range(20)]
    # Two families each, so 2 of 20 are expected. Before correction it is every second one.
    assert sum(not marked(summary).empty for summary in found) <= 3
    assert sum((summary["p"] <= 0.05).any() for summary in found) >= 6


def test_a_control_is_equivalent_at_enough_seeds_and_not_before():
    many, few = (
        summarise(drawn(["again"], *of), "none")
        for of in ((30, np.random.default_rng(1), 0.003), (5, np.random.default_rng(1), 0.03))
    )
    assert set(many[many["method"] == "again"]["verdict"]) == {"equivalent"}
    assert "equivalent" not in set(few["verdict"])


def test_what_is_there_is_seen():
    shift = {("broken", "accuracy"): -0.2, ("broken", "nll"): 0.5, ("repaired", "ece"): -0.08}
    summary = summarise(drawn(["broken", "repaired"], 5, np.random.default_rng(2), shift=shift), "none")
    found = {(row["method"], row["metric"], row["verdict"]) for _, row in marked(summary).iterrows()}
    assert found == {("broken", "accuracy", "worse"), ("broken", "nll", "worse"), ("repaired", "ece", "better")}
    assert len(marked(summary)) == 6


def test_no_worse_is_less_than_equivalent():
    noise = np.random.default_rng(3).normal(size=12)
    exact = (noise - noise.mean()) / noise.std(ddof=1)
    values = {"none": 0.8 + 0 * exact, "up": 0.806 + 0.012 * exact, "down": 0.794 + 0.012 * exact}
    rows = [(name, 20, 0.0, seed, "accuracy", value) for name, of in values.items() for seed, value in enumerate(of)]
    found = summarise(pd.DataFrame(rows, columns=COLUMNS), "none").set_index("method")
    assert found.loc[["up", "down"], "verdict"].tolist() == ["no worse", "no difference seen"]
    assert found.loc["up", "q_no_worse"] <= 0.05 < found.loc["up", "q_equivalent"]


def test_no_metric_is_marked_and_equivalent(control):
    assert ((control["q"] <= 0.05) == control["verdict"].isin(("better", "worse"))).all()
    assert ((control["q"] <= 0.05) & (control["q_no_worse"] <= 0.05)).any()


def slow_holm(p):
    """Step down: the smallest against all, the next against all but one, and none is smaller than one before it."""
    adjusted, least = [None] * len(p), 0.0
    for step, place in enumerate(sorted(range(len(p)), key=lambda place: p[place])):
        least = max(least, min(1.0, (len(p) - step) * p[place]))
        adjusted[place] = least
    return adjusted


def slow_benjamini_hochberg(p):
    """Of each: the smallest of p times the number of tests by its rank, over the p that are not smaller."""
    ranks = {value: sum(other <= value for other in p) for value in p}
    return [min(1.0, min(other * len(p) / ranks[other] for other in p if other >= value)) for value in p]


@pytest.mark.parametrize("seed", range(5))
def test_corrections_by_hand(seed):
    generator = np.random.default_rng(seed)
    p = generator.random(9) ** 3
    p[4] = p[7]
    assert holm(p) == pytest.approx(slow_holm(p))
    rows = [("a", "accuracy", value, "no difference seen") for value in p]
    rows += [("a", "macro_f1", value, "no difference seen") for value in p / 2]
    rows += [("b", "nll", value, "no difference seen") for value in p[:2]]
    # Not tested: without a direction, without enough seeds, with equal differences.
    rows += [("a", "temperature", 1e-9, ""), ("a", "nll", np.nan, "too few seeds"), ("a", "ece", np.nan, DECIDED[-1])]
    summary = pd.DataFrame(rows, columns=["method", "metric", "p", "verdict"])
    summary = summary.assign(difference=1.0, p_no_worse=summary["p"], p_equivalent=np.nan)
    order = generator.permutation(len(summary))
    judged = corrected(summary.iloc[order]).sort_index()
    expected = [*slow_holm(p), *slow_benjamini_hochberg(p / 2), *slow_holm(p[:2])]
    assert judged["q"][:20].tolist() == pytest.approx(expected) == judged["q_no_worse"][:20].tolist()
    assert judged["q"][20:].isna().all() and judged["q_equivalent"].isna().all()
    assert judged["verdict"][20:].tolist() == ["", "too few seeds", "no difference seen"]


def test_a_family_spans_several_comparisons():
    shift = {("tmix", "ece"): -0.013}
    one = summarise(drawn(["tmix"], 6, np.random.default_rng(7), spread=0.004, shift=shift), "none")
    several = pd.concat([one, *(one.assign(p=1.0) for _ in range(20))], ignore_index=True)
    assert len(marked(one)) == 1 and marked(corrected(several)).empty
    assert marked(corrected(one)).equals(marked(one))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("metric", "margin"), [("accuracy", 0.01), ("nll", 0.02)])
def test_the_tests_of_a_difference(seed, metric, margin):
    differences = np.random.default_rng(seed).normal(0.003, 0.01, 7)
    found = dict(zip(PAIRED, paired(differences, metric, margin), strict=True))
    two_sided = stats.ttest_1samp(differences, 0)
    above = stats.ttest_1samp(differences, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(differences, margin, alternative="less").pvalue
    assert found["p"] == pytest.approx(two_sided.pvalue)
    assert (found["low"], found["high"]) == pytest.approx(tuple(two_sided.confidence_interval(0.95)))
    assert found["p_no_worse"] == pytest.approx(above if metric == "accuracy" else below)
    assert found["p_equivalent"] == pytest.approx(max(above, below))


@pytest.mark.parametrize("count", [3, 5, 30])
def test_the_detectable_difference_is_seen_four_times_in_five(count):
    generator = np.random.default_rng(count)
    noise = generator.normal(size=(20_000, count))
    unit = noise[0] / noise[0].std(ddof=1)
    shift = dict(zip(PAIRED, paired(unit, "accuracy", 0.01), strict=True))["detectable"]
    seen = stats.ttest_1samp(noise + shift, 0, axis=1).pvalue <= 0.05
    assert seen.mean() == pytest.approx(0.8, abs=0.01)


def test_equal_differences_have_no_spread_to_test_by():
    found = dict(zip(PAIRED, paired(np.full(5, 0.1) + [0, 1e-17, 0, 0, -1e-17], "accuracy", 0.01), strict=True))
    assert found.pop("difference") == pytest.approx(0.1) and np.isnan(list(found.values())).all()
    for zeros in (np.zeros(5), np.array([1, -1, 2, 0, 1]) * 1e-17):
        found = dict(zip(PAIRED, paired(zeros, "accuracy", 0.01), strict=True))
        assert (found["p"], found["p_no_worse"], found["p_equivalent"]) == (1, 0, 0)
        assert found["low"] == found["high"] == pytest.approx(0)
    found = dict(zip(PAIRED, paired(np.zeros(5), "gradient_norm", margin_of("gradient_norm", 1.0)), strict=True))
    assert found["p"] == 1 and np.isnan(found["p_equivalent"])


def test_margins():
    assert margin_of("rmse", 1.5) == pytest.approx(0.015)
    assert (margin_of("nll", 0.1), margin_of("nll_scaled", 0.1)) == (0.02, 0.02)
    for metric in ("accuracy", "accuracy_dropout_0.1", "ece_scaled", "ood_auroc_energy", "flips_noise_1", "lrap"):
        assert margin_of(metric, 0.5) == 0.01
    for metric in ("gradient_norm", "path_loss", "test_loss", "temperature"):
        assert np.isnan(margin_of(metric, 1.0))


def test_primary_endpoints_are_metrics_with_a_direction_and_a_margin():
    for kind, names in PRIMARY.items():
        assert set(names) <= set(METRIC_NAMES[kind])
        assert all(higher_is_better(name) is not None and margin_of(name, 1.0) > 0 for name in names)
        # By its name alone, a metric is primary or explored, whatever the task.
        assert PRIMARY_NAMES & set(METRIC_NAMES[kind]) == set(names)
