"""One run of a comparison, in this process."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from hf_mixup.cli.compare.cell import Trained, better, check_runs, run_cell, train_variant
from hf_mixup.cli.compare.rows import draw_rows, flip_labels, read_data, training_data
from hf_mixup.cli.compare.runs import Cell
from hf_mixup.cli.train.arguments import parse_fields
from hf_mixup.evaluation.metrics import METRICS
from hf_mixup.training.metric_names import METRIC_NAMES
from tests.toy_text import reviews, write_csv


def data_of(comparison):
    return read_data(*parse_fields(comparison.run | {"output_dir": comparison.output_dir}))


def texts(data):
    return list(zip(data.splits["train"]["text"], data.splits["train"]["labels"], strict=True))


def test_rows_belong_to_the_seed_and_the_size_and_not_to_the_method(toy):
    data = data_of(toy())
    drawn = {
        (method, seed): texts(training_data(data, Cell(method, 12, 0.0, seed))[0])
        for method in ("none", "default")
        for seed in (0, 1)
    }
    assert drawn["none", 0] == drawn["default", 0] != drawn["none", 1]
    assert [label for _, label in drawn["none", 0]].count(0) == 12 == len(drawn["none", 0]) / 2


def test_splits_that_are_missing_are_held_out_the_same_in_every_run(toy, tmp_path, caplog):
    rows = [(f"the film number {number}", ("bad", "good")[number % 2]) for number in range(100)]
    file = write_csv(tmp_path / "alone.csv", ["text", "label"], rows)
    alone = toy(train_file=file, validation_file=None, test_file=None)
    splits = data_of(alone).splits
    assert {name: split.num_rows for name, split in splits.items()} == {"train": 81, "test": 9, "validation": 10}
    assert len({text for split in splits.values() for text in split["text"]}) == 100
    assert "No test data: 9 of 90 training rows are held out for it." in caplog.text
    assert list(data_of(alone).splits["test"]["text"]) == list(splits["test"]["text"])


def test_rows_that_are_held_out_are_not_those_of_the_development_file(toy, tmp_path):
    rows = [(f"the film number {number}", ("bad", "good")[number % 2]) for number in range(100)]
    files = {"train_file": rows, "validation_file": rows[:60]}
    paths = {name: write_csv(tmp_path / f"{name}.csv", ["text", "label"], some) for name, some in files.items()}
    splits = data_of(toy(**paths, test_file=None)).splits
    assert {name: split.num_rows for name, split in splits.items()} == {"train": 36, "test": 4, "validation": 60}
    assert not set(splits["test"]["text"]) & set(splits["validation"]["text"])


def test_what_nothing_can_be_measured_on_is_refused(toy, tmp_path):
    short = write_csv(tmp_path / "short.csv", ["text", "label"], [("a film", 0.5)])
    scores = write_csv(tmp_path / "scores.csv", ["text", "label"], [("a film", 0.5), ("the plot", 2.5)] * 7)
    with pytest.raises(ValueError, match="test_file=.*1 row to measure on"):
        data_of(toy(train_file=scores, validation_file=None, test_file=short))
    unlabelled = write_csv(tmp_path / "unlabelled.csv", ["text", "label"], [("a film", "")] * 20)
    with pytest.raises(ValueError, match=r"test_file='.*unlabelled.csv': has no labels"):
        data_of(toy(test_file=unlabelled))


def test_replaced_labels_are_other_labels_and_as_many_as_asked(toy):
    data = data_of(toy())
    rows = data.splits["train"].select(draw_rows(data, 30, np.random.default_rng(0)))
    noisy, flipped = flip_labels(rows, data, 0.4, np.random.default_rng(0))
    before, after = np.asarray(rows["labels"]), np.asarray(noisy["labels"])
    assert flipped.sum() == 24 and ((before != after) == flipped).all()
    assert noisy.features["labels"] == rows.features["labels"]


def test_a_run_holds_everything_that_it_measured(toy, tmp_path):
    outliers = write_csv(tmp_path / "other.csv", ["text"], [["with the plot"], ["a film was"], ["the the the"]] * 8)
    comparison = toy(outliers=outliers, label_noise=[0.25])
    folder = tmp_path / "out/runs/one"
    result = run_cell(comparison, Cell("default", 12, 0.25, 0), folder)
    assert json.loads((folder / "result.json").read_text()) == result
    metrics = result["metrics"]
    names = METRIC_NAMES["single_label_classification"]
    scaled = [f"{name}_scaled" for name in ("nll", "brier", "ece", "adaptive_ece", "aurc")]
    expected = {*names, *(f"dev_{name}" for name in names), *scaled, "temperature", "memorised", "generalisation_gap"}
    expected |= {
        f"{what}_{how}" for what in ("accuracy", "flips") for how in ("characters_0.1", "dropout_0.3", "noise_1")
    }
    expected |= {"gradient_norm", "uncertain_width", "path_loss", "steepness", "ood_auroc_energy", "ood_fpr95_softmax"}
    assert expected <= set(metrics) and all(math.isfinite(metrics[name]) for name in expected)
    assert result["curves"]["learning"]["step"] == [2, 4, 6, 8, 10]
    assert {"learning", "path", "reliability", "reliability_scaled", "strength"} == set(result["curves"])
    with np.load(folder / "predictions.npz") as saved:
        again = METRICS["single_label_classification"](saved["test_logits"], saved["test_labels"])
        assert saved["dev_logits"].shape == (40, 2)
    assert {name: metrics[name] for name in again} == pytest.approx(again)


def test_a_run_is_the_same_again(toy, tmp_path):
    comparison, cell = toy(), Cell("default", 12, 0.0, 3)
    first, second = (run_cell(comparison, cell, tmp_path / name) for name in ("a", "b"))
    assert first["metrics"] == second["metrics"] and first["curves"] == second["curves"]
    assert run_cell(comparison, Cell("default", 12, 0.0, 4), tmp_path / "c")["metrics"] != first["metrics"]


def test_a_method_may_average_its_weights(toy, tmp_path):
    averaged = {"mixup": "none", "averaging": "ema"}
    methods = {"none": None, "averaged": averaged, "last": averaged | {"ema_decay": 0}}
    comparison = toy(methods=methods, measures=[])
    found = {name: run_cell(comparison, Cell(name, 12, 0.0, 0), tmp_path / name) for name in methods}
    assert found["averaged"]["variant"] == averaged and found["averaged"]["train"]["steps"] == 10
    assert found["last"]["metrics"]["nll"] == found["none"]["metrics"]["nll"] != found["averaged"]["metrics"]["nll"]
    assert found["last"]["curves"]["learning"] == found["none"]["curves"]["learning"]
    with pytest.raises(ValueError, match="methods: averaged: averaging='emma': expected one of ema"):
        check_runs(toy(methods=methods | {"averaged": averaged | {"averaging": "emma"}}))


def test_a_reseeded_run_has_other_random_numbers_and_the_same_rows(toy, tmp_path):
    comparison, trained = toy(methods=["none", "again"], label_noise=[0.25], max_steps=2), {}
    for name in comparison.methods:
        fields = comparison.methods[name][0]
        data, _ = training_data(data_of(comparison), Cell(name, 12, 0.25, 3))
        trained[name] = train_variant(comparison, Cell(name, 12, 0.25, 3), fields, data, tmp_path / name)
    none, again = trained["none"], trained["again"]
    assert (none.trainer.args.seed, again.trainer.args.seed) == (3, 1003)
    assert none.splits["train"].to_dict() == again.splits["train"].to_dict()
    assert not np.array_equal(none.dev_logits, again.dev_logits)


def task_files(folder, kind):
    """Fields of a comparison of classes with noise, of scores, of several labels, or of pairs."""
    rows, changes = {
        "classes": (lambda text, good: [text, "good" if good else "bad"], {"label_noise": [0.25]}),
        "scores": (lambda text, good: [text, 0.5 + 3 * good], {}),
        "several labels": (lambda text, good: [text, "fun,short" if good else "short"], {"label_delimiter": ","}),
        "pairs": (
            lambda text, good: [text, "a film", "good" if good else "bad"],
            {"text_column_names": "text,other"},
        ),
    }[kind]
    header = ["text", "other", "label"] if kind == "pairs" else ["text", "label"]
    return changes | {
        f"{name}_file": write_csv(folder / f"{name}.tasks.csv", header, [rows(*row) for row in reviews(count, seed)])
        for seed, (name, count) in enumerate({"train": 60, "validation": 30, "test": 30}.items())
    }


@pytest.mark.parametrize("kind", ["scores", "several labels", "pairs"])
def test_other_tasks_are_measured(toy, tmp_path, kind):
    result = run_cell(toy(**task_files(tmp_path, kind)), Cell("default", 12, 0.0, 0), tmp_path / "run")
    metrics = result["metrics"]
    assert set(METRIC_NAMES[result["problem_type"]]) <= set(metrics)
    followed = {"scores": "pearson", "several labels": "lrap", "pairs": "accuracy"}[kind]
    assert math.isfinite(metrics[f"{followed}_swaps_0.3"]) and math.isfinite(metrics["path_loss"])
    assert ("temperature" in metrics) == (kind != "scores")


@pytest.mark.parametrize("kind", ["classes", "scores", "several labels"])
def test_a_run_that_diverged_ends_and_has_measured_nothing(toy, tmp_path, kind):
    changes = task_files(tmp_path, kind)
    if kind == "classes":
        changes["outliers"] = write_csv(tmp_path / "other.csv", ["text"], [["with the plot"], ["a film was"]] * 8)
    sound, lost = toy(**changes, max_steps=2), toy(**changes, max_steps=2, learning_rate=1e25, max_grad_norm=0)
    cell = Cell("none", 12, changes.get("label_noise", [0.0])[0], 0)
    wanted, found = (run_cell(one, cell, tmp_path / name) for one, name in ((sound, "sound"), (lost, "lost")))
    assert found["metrics"] == dict.fromkeys(wanted["metrics"])
    text = (tmp_path / "lost/result.json").read_text()
    assert json.loads(text) == found and "NaN" not in text and "Infinity" not in text
    assert found["curves"].keys() == wanted["curves"].keys()
    assert found["curves"]["learning"]["dev_loss"] == [None] * 2
    if kind == "classes":
        assert {"memorised", "ood_auroc_energy", "temperature", "uncertain_width"} <= set(found["metrics"])
        assert found["curves"]["reliability"]["count"] == [0] * 15


def variant(name, problem_type, logits, labels):
    """What is left of a training for the choice between variants."""
    metrics = METRICS[problem_type](logits, labels)
    loss = metrics["rmse"] ** 2 if problem_type == "regression" else metrics["nll"]
    return Trained(SimpleNamespace(), {}, {}, 0.0, metrics | {"loss": loss}, logits, labels, {"name": name}, None)


@pytest.mark.parametrize(
    ("problem_type", "metric"),
    [(kind, metric) for kind, names in METRIC_NAMES.items() if kind in METRICS for metric in (None, "loss", *names)],
)
def test_a_variant_that_diverged_is_never_picked(problem_type, metric):
    labels = {
        "single_label_classification": np.array([0] * 7 + [1] * 3),
        "multi_label_classification": np.array([[1, 0]] * 10),
        "regression": np.arange(10.0),
    }[problem_type]
    # Wrong about nearly everything, and equal scores have no correlation.
    bad = np.zeros((10, 1)) if problem_type == "regression" else np.tile([-1.0, 1.0], (10, 1))
    sound = variant("sound", problem_type, bad, labels)
    lost = variant("lost", problem_type, np.full_like(bad, np.nan), labels)
    for pair in ((sound, lost), (lost, sound)):
        best = None
        for one in pair:
            best = better(best, one, f"eval_{metric}" if metric else None)
        assert best.fields["name"] == "sound"


def test_early_stopping_takes_the_weights_that_did_best_on_the_development_split(toy, tmp_path):
    """The labels of the training rows are wrong: the longer it trains, the worse it is."""
    comparison = toy(methods=["none", "early_stopping"], label_noise=[0.9], measures=[], max_steps=30)
    none, early = (run_cell(comparison, cell, tmp_path / cell.name) for cell in comparison.cells()[:2])
    losses = none["curves"]["learning"]["dev_loss"]
    assert losses[-1] > 1.5 * min(losses)
    assert early["metrics"]["dev_loss"] < min(losses[1:]) < none["metrics"]["dev_loss"]
    assert early["curves"]["learning"] == none["curves"]["learning"]
    assert early["metrics"]["train_loss"] > none["metrics"]["train_loss"]


def test_rows_that_are_not_balanced_are_drawn_as_they_come(toy, tmp_path):
    rows = [(f"the film number {number}", "good" if number % 10 else "bad") for number in range(100)]
    comparison = toy(
        train_file=write_csv(tmp_path / "few.csv", ["text", "label"], rows), balanced=False, train_sizes=[90]
    )
    data = data_of(comparison)
    labels = training_data(data, Cell("none", 90, 0.0, 0), comparison.balanced)[0].splits["train"]["labels"]
    assert len(labels) == 90 and 0 < list(labels).count(0) <= 10
