"""Taggers of tokens in a comparison."""

import json
import math
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest

from hf_mixup.cli.compare.cell import check_runs, run_cell
from hf_mixup.cli.compare.compare import check_recipes
from hf_mixup.cli.compare.grid import Comparison
from hf_mixup.cli.compare.measures import kept_predictions
from hf_mixup.cli.compare.report import write_report
from hf_mixup.cli.compare.resampling import _metrics, add_text_intervals, gather_predictions
from hf_mixup.cli.compare.rows import read_data, training_data
from hf_mixup.cli.compare.runs import Cell
from hf_mixup.cli.compare.statistics import PRIMARY
from hf_mixup.cli.compare.table import write_tables
from hf_mixup.cli.train.arguments import parse_fields
from hf_mixup.cli.train.data import TextData
from hf_mixup.evaluation.metrics import token_metrics
from hf_mixup.evaluation.temperature import scaled_metrics
from hf_mixup.training.metric_names import METRIC_NAMES, TAG_METRICS
from tests.toy_comparison import change_run, write_comparison
from tests.toy_tags import NAMES, tagged, write_conll

KIND = "token_classification"


@pytest.fixture
def taggers(toy, tmp_path):
    """A comparison of toy taggers; keyword arguments change fields."""

    def make(**changes):
        files = {
            f"{name}_file": write_conll(tmp_path / f"{name}.conll", tagged(count, seed))
            for seed, (name, count) in enumerate({"train": 60, "validation": 20, "test": 24}.items())
        }
        return toy(**{"task": "tokens", "max_steps": 20} | files | changes)

    return make


def data_of(comparison):
    return read_data(*parse_fields(comparison.run | {"output_dir": comparison.output_dir}))


def test_a_run_holds_everything_that_it_measured(taggers, tmp_path):
    methods = {"none": None, "default": None, "label_smoothing": None}
    comparison = taggers(methods=methods, seeds=[0], early_stopping=True, small_validation=True, select_by="f1")
    assert (
        comparison.measures == [] == Comparison(**asdict(comparison)).measures
        and check_runs(comparison).label_names == NAMES
    )
    for cell in comparison.cells():
        folder = tmp_path / "out/runs" / cell.name
        result = run_cell(comparison, cell, folder)
        assert json.loads((folder / "result.json").read_text()) == result and result["problem_type"] == KIND
        metrics, names = result["metrics"], METRIC_NAMES[KIND]
        scaled = [f"{name}_scaled" for name in ("nll", "brier", "ece", "entity_ece")]
        expected = {*names, *(f"dev_{name}" for name in names), *scaled, "temperature", "generalisation_gap"}
        assert expected <= set(metrics) and metrics["test_loss"] == metrics["nll"]
        assert all(math.isfinite(metrics[name]) for name in ("f1", "nll", "dev_nll", "nll_scaled"))
        with np.load(folder / "predictions.npz") as saved:
            kept = {name: saved[name] for name in saved}
    tokens = sum(len(words) for words, _ in tagged(24, 2))
    assert kept["test_logits"].shape == (tokens, 5) and kept["test_labels"].shape == kept["test_texts"].shape
    assert sum(result["curves"]["reliability"]["count"]) == tokens
    right, named = kept["test_entities"].sum(1)
    assert metrics["f1"] == right / named > 0 and kept["test_entities"].shape == (2, 24)
    # A text is numbered from 0, and its tokens stay together.
    assert np.bincount(kept["test_texts"]).tolist() == [
        len(row) for row in data_of(comparison).splits["test"]["tokens"]
    ]
    logits, labels = kept["test_logits"][None], kept["test_labels"][None]
    again = scaled_metrics(logits, labels, KIND, metrics["temperature"], NAMES)["nll_scaled"]
    assert metrics["nll_scaled"] == pytest.approx(again)
    check_recipes(comparison, tmp_path / "out")


def test_tags_that_mark_no_entities_are_measured_by_accuracy(taggers, tmp_path):
    parts = {"B-bad": "NOUN", "I-bad": "NOUN", "B-good": "VERB", "I-good": "VERB", "O": "DET"}
    files = {
        f"{name}_file": write_conll(
            tmp_path / f"{name}.txt", [(words, [parts[tag] for tag in tags]) for words, tags in tagged(30, seed)]
        )
        for seed, name in enumerate(("train", "validation", "test"))
    }
    comparison = taggers(**files, methods=["none", "tmix"], max_steps=4, seeds=[0])
    metrics = run_cell(comparison, comparison.cells()[1], tmp_path / "run")["metrics"]
    assert set(TAG_METRICS) <= set(metrics) and not {"f1", "entity_ece"} & set(metrics)
    assert "test_entities" not in np.load(tmp_path / "run/predictions.npz")


def test_rows_are_texts_and_none_that_is_held_out(taggers, tmp_path, caplog):
    tags = ["O", "O", "O", "B-good"]
    held, as_found = [(["the", "plot", "is", "great"], tags)], [(["The", "PLOT", "is", "great"], tags)]
    other = [([f"number{number}", "plot"], ["O", "B-bad"]) for number in range(30)]
    files = {"train_file": as_found * 3 + other, "validation_file": other[:5], "test_file": [*held, *other[5:8]]}
    paths = {name: write_conll(tmp_path / f"{name}.conll", rows) for name, rows in files.items()}
    data = data_of(taggers(**paths))
    assert data.splits["train"].num_rows == 22 and "11 training rows are left out" in caplog.text
    drawn = [training_data(data, Cell(name, 12, 0.0, 0))[0].splits["train"]["tokens"][:] for name in ("a", "b")]
    assert drawn[0] == drawn[1] and len(drawn[0]) == 12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"measures": ["boundary"]}, r"measures=\['boundary'\]: boundary is of whole texts, not with task: tokens"),
        ({"measures": ["perturbation"]}, "perturbation is of whole texts, not with task: tokens"),
        ({"outliers": "other.csv"}, "outliers='other.csv': needs classes, not token classification"),
        ({"label_noise": [0.2]}, "label_noise=0.2: needs classes, not token classification"),
        ({"unlabeled": 5}, "unlabeled=5: needs one label per text"),
        ({"train_sizes": [70]}, "train_sizes=70: there are [0-9]+ training rows"),
        ({"select_by": "macro_f1"}, "select_by='macro_f1': no such metric of token classification"),
    ],
)
def test_what_is_not_of_tokens_is_refused(taggers, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        check_runs(taggers(**changes))
    assert "\n" not in str(caught.value)


def made_up(generator, texts=40, sure=2.0):
    """Padded logits and labels of texts of 1 to 7 tokens, of which about two thirds are right."""
    labels = np.full((texts, 7), -100)
    for row, length in zip(labels, generator.integers(1, 8, size=texts), strict=True):
        row[:length] = generator.choice(5, size=length, p=[0.15, 0.15, 0.15, 0.15, 0.4])
    logits = generator.normal(size=(texts, 7, 5))
    return logits + sure * np.eye(5)[labels.clip(min=0)], labels


def saved(logits, labels):
    """What a run keeps of them."""
    return kept_predictions("test", logits, labels, TextData({}, ["tokens"], KIND, NAMES, {}))


@pytest.mark.parametrize("seed", range(3))
def test_the_fast_metrics_are_those_of_the_evaluation(seed):
    generator = np.random.default_rng(seed)
    logits, labels = made_up(generator)
    rows = generator.integers(len(labels), size=(3, len(labels)))
    counts = np.stack([np.bincount(some, minlength=len(labels)) for some in rows], axis=1)
    kept = saved(logits, labels)
    given = [kept[f"test_{name}"] for name in ("logits", "labels")]
    found = _metrics(KIND, *given, counts, kept["test_texts"], kept["test_entities"])
    assert set(found) == set(PRIMARY[KIND])
    for place, some in enumerate(rows):
        wanted = token_metrics(logits[some], labels[some], NAMES)
        for name, values in found.items():
            assert values[place] == pytest.approx(wanted[name], abs=1e-6), name


@pytest.mark.parametrize("padding", [0, 3])
def test_whole_texts_are_drawn_and_the_interval_holds_the_difference(tmp_path, padding):
    folder = write_comparison(tmp_path, methods=("none", "tmix"), kind=KIND, sizes=[20])
    labels = made_up(np.random.default_rng(0))[1]
    for number, run in enumerate(sorted((folder / "runs").iterdir())):
        generator = np.random.default_rng([1, number])
        sure = 3.0 if run.name.startswith("tmix") else 1.0
        logits = sure * np.eye(5)[labels.clip(min=0)] + generator.normal(size=(*labels.shape, 5))
        # Another tokenizer pads to another length.
        pads = [(0, 0), (0, padding * (number % 2)), (0, 0)]
        padded = np.pad(logits, pads), np.pad(labels, pads[:2], constant_values=-100)
        np.savez_compressed(run / "predictions.npz", **saved(*padded))
        change_run(folder, run.name, **token_metrics(logits, labels, NAMES))
    _, summary = write_tables(folder)
    known = summary[summary["low_texts"].notna()].set_index("metric")
    assert set(known.index) == set(PRIMARY[KIND]) and set(known["method"]) == {"tmix"}
    assert (known["low_texts"] < known["difference"]).all() and (known["difference"] < known["high_texts"]).all()
    assert known.loc["f1", "verdict"] == known.loc["nll", "verdict"] == "better"
    gathered = gather_predictions(folder)
    assert gathered["entities"].shape == (10, 2, 40) and gathered["logits"].shape == (10, (labels >= 0).sum(), 5)
    assert str(gathered["problem_type"]) == KIND and len(gathered["texts"]) == len(gathered["labels"])
    # Four times as many tokens in the same texts say nothing more about other texts.
    longer = {name: np.repeat(gathered[name], 4, axis=0) for name in ("labels", "texts")}
    longer["logits"] = np.repeat(gathered["logits"], 4, axis=1)
    bare = summary.drop(columns=["low_texts", "high_texts"])
    pd.testing.assert_frame_equal(add_text_intervals(bare, gathered | longer, "none"), summary, atol=1e-6)


def test_the_report_names_what_was_declared(tmp_path):
    pytest.importorskip("matplotlib", reason="needs the plots extra")
    page = write_report(write_comparison(tmp_path, kind=KIND)).read_text(encoding="utf-8")
    assert "primary endpoints (F1 of entities, accuracy, NLL, ECE) are corrected by Holm" in " ".join(page.split())
    assert "20 training rows</h3>" in page and "finds entities better than" in page
