import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from hf_mixup.cli.compare.findings import format_summary
from hf_mixup.cli.compare.runs import load_runs
from hf_mixup.cli.compare.statistics import MAIN_METRICS
from hf_mixup.cli.compare.table import collect, summarise, without_doubles, write_tables
from tests.toy_comparison import change_run, write_comparison


def tidy(values, metric="accuracy", seeds=None):
    """Results of one size; `values` maps methods to a value per seed."""
    rows = [
        (method, 20, 0.0, seed, metric, value)
        for method, own in values.items()
        for seed, value in zip(seeds or range(len(own)), own, strict=False)
    ]
    return pd.DataFrame(rows, columns=["method", "train_size", "label_noise", "seed", "metric", "value"])


def against(values, metric="accuracy"):
    summary = summarise(tidy(values, metric), "none").set_index("method")
    return summary.loc["tmix"]


@pytest.mark.parametrize("seed", range(5))
def test_differences_are_paired(seed):
    generator = np.random.default_rng(seed)
    shared = generator.normal(size=6)
    none, tmix = (shared + 0.1 * generator.normal(size=6) for _ in range(2))
    row, wanted = against({"none": none, "tmix": tmix}), stats.ttest_rel(tmix, none)
    interval = wanted.confidence_interval(0.95)
    assert row["difference"] == pytest.approx((tmix - none).mean())
    assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high))
    assert row["p"] == pytest.approx(wanted.pvalue)
    assert (row["mean"], row["std"], row["seeds"]) == pytest.approx((tmix.mean(), tmix.std(ddof=1), 6))


def test_missing_seeds_are_paired_by_seed():
    results = tidy({"none": [1.0, 2.0, 3.0, 4.0], "tmix": [1.1, 2.2, 3.3, 4.4]})
    lost = ((results["method"] == "none") & (results["seed"] == 0)) | (
        (results["method"] == "tmix") & (results["seed"] == 2)
    )
    results = results[~lost].iloc[::-1]
    row = summarise(results, "none").set_index("method").loc["tmix"]
    assert row["difference"] == pytest.approx((0.2 + 0.4) / 2)
    assert row["seeds"] == 3


@pytest.mark.parametrize(
    ("metric", "shift", "verdict"),
    [
        ("accuracy", 1, "better"),
        ("accuracy", -1, "worse"),
        ("nll", 1, "worse"),
        ("nll", -1, "better"),
        ("ece_scaled", -1, "better"),
        ("accuracy", 0, "no difference seen"),
        ("temperature", 1, ""),
    ],
)
def test_verdict_follows_the_direction(metric, shift, verdict):
    none = np.array([0.5, 0.6, 0.7, 0.8])
    row = against({"none": none, "tmix": none + shift + [0.01, -0.02, 0.02, -0.01]}, metric)
    assert row["verdict"] == verdict


@pytest.mark.parametrize(("shift", "verdict"), [(0, "equivalent"), (0.1, "no difference seen")])
def test_equal_differences_are_no_proof_of_a_difference(shift, verdict):
    none = np.array([0.3, 0.6, 0.7])
    row = against({"none": none, "tmix": none + shift})
    expected = (shift, 0, 0, 1, 1) if shift == 0 else (shift, *[np.nan] * 4)
    assert tuple(row[["difference", "low", "high", "p", "q"]]) == pytest.approx(expected, nan_ok=True)
    assert row["verdict"] == verdict


def test_too_few_seeds():
    assert against({"none": [0.5], "tmix": [0.9]})["verdict"] == "too few seeds"
    assert against({"none": [0.5, np.nan], "tmix": [0.9, 0.9]})["verdict"] == "too few seeds"
    assert (summarise(tidy({"tmix": [0.5, 0.6]}), "none")["verdict"] == "too few seeds").all()


def test_runs_without_a_value_are_counted():
    row = against({"none": [0.5, 0.6, 0.7, 0.8], "tmix": [0.9, np.nan, np.nan, 0.8]}, "nll")
    assert (row["seeds"], row["lost"]) == (2, 2)
    summary = summarise(tidy({"none": [0.5, 0.6], "tmix": [0.9, np.nan]}, "nll"), "none")
    assert "0.900 too few seeds (1 of 2 seeds without a value)" in format_summary(summary, ["nll"])


def diverging(**test_losses):
    """Five seeds of two metrics; methods whose `test_losses` are nan have no other value there either."""
    values = {method: [0.9 - (method == "none") * 0.4 * 0.99**seed for seed in range(5)] for method in test_losses}
    kept = {
        method: [value if np.isfinite(loss) else np.nan for value, loss in zip(values[method], losses, strict=True)]
        for method, losses in test_losses.items()
    }
    tables = [tidy(test_losses, "test_loss"), tidy(kept, "accuracy"), tidy(kept, "temperature")]
    return pd.concat(tables, ignore_index=True)


SOUND, LOST = [0.3, 0.4, 0.5, 0.6, 0.7], [0.3, np.nan, 0.5, np.nan, 0.7]


def test_who_diverged_is_not_judged_by_the_seeds_that_are_left():
    summary = summarise(diverging(none=SOUND, tmix=LOST, sound=SOUND), "none").set_index(["metric", "method"])
    tmix, sound = summary.loc[("accuracy", "tmix")], summary.loc[("accuracy", "sound")]
    assert (tmix["verdict"], tmix["diverged"], tmix["seeds"], tmix["lost"]) == ("diverged", 2, 3, 2)
    assert tmix[["difference", "low", "high", "p"]].isna().all()
    assert (sound["verdict"], sound["diverged"]) == ("better", 0)
    assert summary.loc[("test_loss", "tmix"), "verdict"] == "diverged"
    assert summary.loc[("temperature", "tmix"), "verdict"] == ""
    text = format_summary(summary.reset_index(), ["accuracy"])
    assert "0.900 diverged in 2 of 5 seeds" in text and "0.900 better" in text


def test_nothing_is_compared_with_a_baseline_that_diverged():
    results = diverging(none=LOST, temperature_scaling=LOST, tmix=SOUND)
    results = results[~((results["method"] == "temperature_scaling") & (results["metric"] == "test_loss"))]
    results = pd.concat([results, tidy({"none": LOST, "temperature_scaling": LOST, "tmix": SOUND}, "nll")])
    summary = summarise(results, "none").set_index(["metric", "method"])
    methods = ["none", "temperature_scaling", "tmix"]
    assert list(summary.loc["accuracy"].loc[methods, "verdict"]) == ["", "", "diverged"]
    assert list(summary.loc["nll"].loc[methods, "verdict"]) == ["", "diverged", "diverged"]
    assert list(summary.loc["nll"].loc[methods, "diverged"]) == [2, 2, 0]
    text = format_summary(summary.reset_index(), ["accuracy", "nll"])
    assert "tmix                5     0.900 baseline diverged" in text
    assert text.count("diverged in 2 of 5 seeds") == 4


def test_a_correlation_that_is_missing_is_no_divergence():
    row = against({"none": [0.5, 0.6, 0.7, 0.8], "tmix": [0.4, 0.6, 0.8, np.nan]}, "pearson")
    assert (row["diverged"], row["lost"], row["verdict"]) == (0, 1, "no difference seen")


def test_the_baseline_has_no_verdict():
    row = summarise(tidy({"none": [0.5, 0.6], "tmix": [0.9, 0.8]}), "none").iloc[0]
    assert row["method"] == "none" and row["verdict"] == "" and np.isnan(row["difference"])


def test_temperature_scaling_is_a_rival(tmp_path):
    results = collect(write_comparison(tmp_path, sizes=[20]))
    assert list(results["method"].unique()) == ["none", "temperature_scaling", "label_smoothing", "tmix"]
    table = results.pivot(index=["method", "seed"], columns="metric", values="value")
    none, scaled = table.loc["none"], table.loc["temperature_scaling"]
    assert scaled["nll"].equals(none["nll_scaled"]) and scaled["ece"].equals(none["ece_scaled"])
    assert scaled["accuracy_dropout_0.1"].equals(none["accuracy_dropout_0.1"])
    # Measured before scaling only.
    assert scaled[["dev_nll", "test_loss", "path_loss", "adaptive_ece"]].isna().all(axis=None)


def test_what_a_temperature_cannot_change_gets_no_verdict(tmp_path):
    _, summary = write_tables(write_comparison(tmp_path, sizes=[20], noise=[0.2]))
    rows = summary[summary["method"] == "temperature_scaling"].set_index("metric")
    unchanged = ["accuracy", "macro_f1", "accuracy_dropout_0.1", "flips_swaps_0.3", "memorised"]
    assert set(rows.loc[unchanged, "verdict"]) == {""} and rows.loc[unchanged, "difference"].isna().all()
    assert set(rows.loc[["nll", "ece"], "verdict"]) == {"better"}


def test_unfinished_runs_are_absent(tmp_path):
    folder = write_comparison(tmp_path, sizes=[20])
    change_run(folder, "tmix-size20-noise0-seed1", accuracy=None)
    (folder / "runs/tmix-size20-noise0-seed0/result.json").rename(
        folder / "runs/tmix-size20-noise0-seed0/result.json.part"
    )
    (folder / "runs/older-size20-noise0-seed0").mkdir()
    (folder / "runs/older-size20-noise0-seed0/result.json").write_text(json.dumps({"method": "older"}))
    results, summary = write_tables(folder)
    assert len(load_runs(folder)) == 14 and "older" not in set(results["method"])
    found = summary[(summary["method"] == "tmix")].set_index("metric")["seeds"]
    assert (found["accuracy"], found["nll"]) == (3, 4)
    for name, table in (("results.csv", results), ("summary.csv", summary)):
        assert len(pd.read_csv(folder / name)) == len(table)
    assert not list(folder.glob("*.part"))


def test_nothing_to_tell(tmp_path):
    with pytest.raises(FileNotFoundError, match="comparison.yaml"):
        collect(tmp_path)
    with pytest.raises(ValueError, match="no finished run"):
        write_tables(write_comparison(tmp_path, methods=["none"], seeds=[]))


@pytest.mark.parametrize("kind", MAIN_METRICS)
def test_the_terminal_table_is_narrow(tmp_path, kind):
    _, summary = write_tables(write_comparison(tmp_path, noise=[0.0, 0.2], kind=kind))
    text = format_summary(summary, MAIN_METRICS[kind])
    assert max(map(len, text.splitlines())) <= 100
    measured = [name for name in MAIN_METRICS[kind] if name in set(summary["metric"])]
    assert text.count("train_size=") == 4 and len(measured) > 1 and all(name in text for name in measured)
    assert text.count("\ntmix ") == text.count("\nmethod ") >= 4


def test_a_metric_that_is_asked_for_twice_is_shown_once(tmp_path):
    _, summary = write_tables(write_comparison(tmp_path, sizes=[20]))
    every = [metric for metrics in MAIN_METRICS.values() for metric in metrics]
    assert every.count("nll") == 3
    heads = [line.split() for line in format_summary(summary, every).splitlines() if line.startswith("method ")]
    assert [name for head in heads for name in head if name not in ("method", "seeds")] == [
        "accuracy",
        "macro_f1",
        "nll",
        "ece",
    ]


def test_long_names_move_metrics_below(tmp_path):
    methods = ["none", "a_method_with_a_name_that_goes_on_and_on_and_on_and_on"]
    _, summary = write_tables(write_comparison(tmp_path, methods=methods, sizes=[20]))
    lines = format_summary(summary, MAIN_METRICS["single_label_classification"]).splitlines()
    assert max(map(len, lines)) <= 100 and sum(line.startswith("method ") for line in lines) == 4


def test_the_terminal_shows_how_many_seeds_and_which_q_decided(tmp_path):
    _, summary = write_tables(write_comparison(tmp_path, sizes=[20]))
    rows = summary.set_index(["method", "metric"])
    line = next(line for line in format_summary(summary, ["accuracy"]).splitlines() if line.startswith("tmix "))
    assert line.split()[1:4] == ["5", f"{rows.loc[('tmix', 'accuracy'), 'mean']:.3f}", "better"]
    assert rows.loc[("tmix", "accuracy"), "q"] == pytest.approx(float(line.partition("(q ")[2].strip(" <)")), abs=1e-3)
    held = summary.assign(verdict="equivalent", q=0.9, q_equivalent=0.0421, margin=0.01)
    held = held[held["method"] == "tmix"]
    assert "equivalent within 0.01 (q 0.042)" in format_summary(held, ["accuracy"])
    assert "(q" not in format_summary(summary[summary["method"] == "none"], ["accuracy"])


def test_a_test_loss_that_is_the_nll_is_left_out(tmp_path):
    _, summary = write_tables(write_comparison(tmp_path, sizes=[20]))
    assert set(summary["metric"]) - set(without_doubles(summary)["metric"]) == {"test_loss"}
    other = summary.assign(mean=summary["mean"].where(summary["metric"] != "test_loss", 9.0))
    assert "test_loss" in set(without_doubles(other)["metric"])


def test_the_terminal_begins_with_what_is_left_after_correction(tmp_path):
    _, summary = write_tables(write_comparison(tmp_path, noise=[0.0, 0.2]))
    first, *lines = format_summary(summary, ["accuracy"]).splitlines()
    assert first == "Better or worse after correction:"
    said = " ".join(" ".join(lines[: lines.index("")]).split())
    assert "tmix: better: accuracy (everywhere), NLL (everywhere), ECE (everywhere)" in said
    # Explored.
    assert "macro F1" not in said and "gradient" not in said
    for seed in range(5):
        change_run(tmp_path, f"tmix-size80-noise0-seed{seed}", accuracy=0.7 + 0.02 * seed)
    text = " ".join(format_summary(write_tables(tmp_path)[1], []).split())
    assert "tmix: better: accuracy (20, 20 with 20 % wrong labels, 80 with 20 % wrong labels), NLL (every" in text
    one = write_tables(write_comparison(tmp_path / "one", seeds=[0]))[1]
    assert format_summary(one, ["accuracy"]).startswith("Better or worse after correction: nothing\n")
