"""Intervals over seeds and test texts."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from hf_mixup.cli.compare.resampling import (
    FINISH,
    _metrics,
    add_text_intervals,
    gather_predictions,
    save_predictions,
)
from hf_mixup.cli.compare.statistics import PRIMARY
from hf_mixup.cli.compare.table import write_tables
from hf_mixup.evaluation.metrics import METRICS
from hf_mixup.evaluation.temperature import scaled_metrics
from tests.toy_comparison import change_run, predicted, write_comparison, write_predictions

SINGLE, _, SCORES, _ = PRIMARY


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", METRICS)
def test_the_fast_metrics_are_those_of_the_evaluation(kind, seed):
    generator = np.random.default_rng(seed)
    logits, labels = predicted(kind, generator)
    rows = generator.integers(len(labels), size=(3, len(labels)))
    counts = np.stack([np.bincount(some, minlength=len(labels)) for some in rows], axis=1)
    found = _metrics(kind, logits, labels, counts, np.arange(len(labels)))
    assert set(found) == set(PRIMARY[kind]) and set(FINISH) <= {name for names in PRIMARY.values() for name in names}
    for place, some in enumerate(rows):
        wanted = METRICS[kind](logits[some], labels[some])
        for name, values in found.items():
            assert values[place] == pytest.approx(wanted[name], abs=1e-6), name


def with_loss(nll):
    """Logits of two classes, and the label 0, that have this loss."""
    margin = -np.log(np.expm1(nll))
    return np.stack([margin, np.zeros_like(margin)], axis=-1)


def compared(generator, seeds, of_seeds, of_texts, texts=60, effect=-0.2):
    """Predictions and a summary; the loss of a text varies with the text and the run, and so does the effect."""
    of_the_text, of_the_effect = generator.normal(size=(2, 1, texts)) * of_texts
    base = 2 + of_the_text + 0.1 * generator.normal(size=(seeds, texts))
    own = base + effect + of_the_effect + of_seeds * generator.normal(size=(seeds, 1))
    nll = np.concatenate([base, own + 0.05 * generator.normal(size=(seeds, texts))]).clip(min=0.05)
    runs = {"method": np.repeat(["none", "tmix"], seeds), "seed": np.tile(np.arange(seeds), 2)}
    same = {"train_size": np.full(2 * seeds, 20), "label_noise": np.zeros(2 * seeds)}
    given = {"logits": with_loss(nll), "labels": np.zeros(texts, int), "problem_type": np.array(SINGLE)}
    difference = (nll[seeds:] - nll[:seeds]).mean(axis=1)
    row = {"method": "tmix", "train_size": 20, "label_noise": 0.0, "metric": "nll", "difference": difference.mean()}
    summary = pd.DataFrame([row | {"high": 0.0}])
    return runs | same | given | {"temperature": np.full(2 * seeds, np.nan)}, summary, difference


@pytest.mark.parametrize(("seeds", "of_seeds", "of_texts"), [(5, 0.2, 0.02), (5, 0.02, 0.4), (3, 0.1, 0.3)])
def test_the_interval_covers_other_seeds_and_other_texts(seeds, of_seeds, of_texts):
    generator, covered, of_seeds_alone = np.random.default_rng(0), [], []
    for _ in range(100):
        predictions, summary, differences = compared(generator, seeds, of_seeds, of_texts)
        row = add_text_intervals(summary, predictions, "none", resamples=200).iloc[0]
        covered.append(row["low_texts"] <= -0.2 <= row["high_texts"])
        interval = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
        of_seeds_alone.append(interval.low <= -0.2 <= interval.high)
    # 0.95, with a standard error of 0.022.
    assert np.mean(covered) >= 0.9
    assert of_texts < 10 * of_seeds or np.mean(of_seeds_alone) < 0.5


def test_texts_are_paired():
    generator = np.random.default_rng(0)
    predictions, summary, differences = compared(generator, 5, of_seeds=0.01, of_texts=0.01)
    row = add_text_intervals(summary, predictions, "none").iloc[0]
    # What a method and the baseline share of a text does not widen the interval.
    hard = predictions["logits"] - 3 * generator.random((1, 60, 1)) * [1, 0]
    again = add_text_intervals(summary, predictions | {"logits": hard}, "none").iloc[0]
    assert row["low_texts"] < differences.mean() < row["high_texts"]
    assert again["high_texts"] - again["low_texts"] < 2 * (row["high_texts"] - row["low_texts"])
    assert add_text_intervals(summary, predictions, "none").iloc[0].equals(row)


def test_a_calibration_error_of_fewer_different_texts_does_not_move_the_interval():
    generator = np.random.default_rng(1)
    # Calibrated and not: resampling adds to the error of the first, and hardly to that of the second.
    confidence = generator.uniform(0.5, 1, size=(6, 200))
    confidence[3:] = 0.7
    logits = np.stack([np.log(confidence / (1 - confidence)), np.zeros_like(confidence)], axis=-1)
    labels = (generator.random(200) > 0.75).astype(int)
    runs = {"method": np.repeat(["none", "tmix"], 3), "seed": np.tile(np.arange(3), 2), "temperature": np.ones(6)}
    runs |= {"train_size": np.full(6, 20), "label_noise": np.zeros(6), "problem_type": np.array(SINGLE)}
    eces = [METRICS[SINGLE](some, labels)["ece"] for some in logits]
    difference = np.mean(eces[3:]) - np.mean(eces[:3])
    row = {"method": "tmix", "train_size": 20, "label_noise": 0.0, "metric": "ece", "difference": difference, "high": 0}
    found = add_text_intervals(pd.DataFrame([row]), runs | {"logits": logits, "labels": labels}, "none").iloc[0]
    assert (found["low_texts"] + found["high_texts"]) / 2 == pytest.approx(difference, abs=0.01)


@pytest.mark.parametrize("kind", METRICS)
def test_predictions_are_kept_in_one_small_file(tmp_path, kind):
    folder = write_comparison(tmp_path / "out", kind=kind, sizes=[20])
    labels, given = write_predictions(folder, kind)
    predictions = gather_predictions(folder)
    save_predictions(predictions, tmp_path / "kept.npz")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["kept.npz"]
    with np.load(tmp_path / "kept.npz") as kept:
        assert set(kept) == set(predictions)
        assert all(
            np.array_equal(kept[name], predictions[name], equal_nan=kept[name].dtype.kind == "f") for name in kept
        )
        assert str(kept["problem_type"]) == kind and np.array_equal(kept["labels"], labels)
        for place, (method, seed) in enumerate(zip(kept["method"], kept["seed"], strict=True)):
            assert kept["logits"][place] == pytest.approx(given[f"{method}-size20-noise0-seed{seed}"], rel=1e-3)
        assert kept["logits"].dtype == (np.float32 if kind == SCORES else np.float16)
        _, summary = write_tables(folder)
        bare = summary.drop(columns=["low_texts", "high_texts"])
        pd.testing.assert_frame_equal(add_text_intervals(bare, kept, "none"), summary)
    columns = list(summary.columns)
    assert columns[columns.index("high") + 1 :][:2] == ["low_texts", "high_texts"] and columns[-1] == "verdict"
    known = summary[summary["low_texts"].notna()]
    assert set(known["metric"]) == set(PRIMARY[kind]) and "none" not in set(known["method"])
    assert (known["low_texts"] < known["high_texts"]).all()
    assert len(known) == len(PRIMARY[kind]) * 2 + 2 * (kind == SINGLE)


def test_temperature_scaling_is_resampled(tmp_path):
    folder = write_comparison(tmp_path, sizes=[20])
    labels, given = write_predictions(folder, SINGLE)
    rows = pd.DataFrame([{"method": "temperature_scaling", "train_size": 20, "label_noise": 0.0, "difference": 1.0}])
    summary = rows.merge(pd.DataFrame({"metric": ["nll"], "high": 0.0}), how="cross")
    changes = []
    for seed in range(5):
        change_run(folder, f"none-size20-noise0-seed{seed}", temperature=4.0)
        logits = given[f"none-size20-noise0-seed{seed}"]
        scaled = scaled_metrics(logits, labels, SINGLE, 4.0)["nll_scaled"]
        changes.append(scaled - METRICS[SINGLE](logits, labels)["nll"])
    found = add_text_intervals(summary, gather_predictions(folder), "none").iloc[0]
    assert found["low_texts"] < np.mean(changes) < found["high_texts"] < 0


@pytest.mark.filterwarnings("error")
def test_what_there_are_no_predictions_of_has_no_interval(tmp_path):
    folder = write_comparison(tmp_path, sizes=[20])
    labels, given = write_predictions(folder, SINGLE)
    for seed in range(3):
        (folder / f"runs/tmix-size20-noise0-seed{seed}/predictions.npz").unlink()
    lost = np.full_like(given["label_smoothing-size20-noise0-seed1"], np.nan)
    lost[0, 0] = np.inf
    path = folder / "runs/label_smoothing-size20-noise0-seed1"
    np.savez_compressed(path / "predictions.npz", test_logits=lost, test_labels=labels)
    change_run(folder, path.name, accuracy=None, nll=None, ece=None, test_loss=None)
    _, summary = write_tables(folder)
    assert set(summary[summary["low_texts"].notna()]["method"]) == {"temperature_scaling"}
    assert np.nanmax(gather_predictions(folder)["logits"]) == 6e4
    np.savez_compressed(path / "predictions.npz", test_logits=lost, test_labels=labels[::-1])
    with pytest.raises(ValueError, match="predictions.npz: the test labels are not those of the other runs"):
        gather_predictions(folder)
    for run in (folder / "runs").iterdir():
        (run / "predictions.npz").unlink(missing_ok=True)
    assert gather_predictions(folder) == {} and write_tables(folder)[1]["low_texts"].isna().all()
