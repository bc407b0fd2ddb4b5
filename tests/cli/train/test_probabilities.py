import json

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from transformers import AutoModelForSequenceClassification

from hf_mixup.cli.compare.cell import run_cell
from hf_mixup.cli.compare.grid import Comparison
from hf_mixup.cli.compare.runs import Cell
from hf_mixup.cli.train.arguments import parse
from hf_mixup.cli.train.classification import finish, prepare
from hf_mixup.cli.train.data import load_splits
from hf_mixup.cli.train.prior_bias import label_priors
from hf_mixup.cli.train.run_fields import DataArguments
from tests.toy_text import reviews, save_toy_model, write_csv

SOFT = [[0.7, 0.2, 0.1], [0.25, 0.25, 0.5], [0, 1, 0], [0.1, 0.6, 0.3]]
NAMES = ["LABEL_0", "LABEL_1", "LABEL_2"]


def write_json(path, labels, count=24):
    rows = [{"text": f"w{i}", "label": labels[i % len(labels)]} for i in range(count)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


@pytest.fixture
def load(tmp_path):
    """The splits of a JSON file with these labels in turn; other files as lists of labels, or as paths."""

    def load(labels=SOFT, known_labels=None, **options):
        given = {"train_file": write_json(tmp_path / "train.jsonl", labels)}
        for name, value in options.items():
            is_list = isinstance(value, list)
            given[name] = write_json(tmp_path / f"{name}.jsonl", value, len(value)) if is_list else value
        return load_splits(DataArguments(**given), str(tmp_path / "cache"), known_labels=known_labels)

    return load


def written(row):
    return SOFT[int(row["text"][1:]) % len(SOFT)]


def test_probabilities_are_trained_on_and_rows_held_out_have_the_most_probable_class(load):
    data = load()
    assert (data.problem_type, data.label_names) == ("single_label_classification", NAMES)
    assert {name: rows.num_rows for name, rows in data.splits.items()} == {"train": 22, "validation": 2}
    assert all(row["labels"] == pytest.approx(written(row)) for row in data.splits["train"])
    assert all(row["labels"] == np.argmax(written(row)) for row in data.splits["validation"])
    assert "probabilities of 3 classes ('LABEL_0', 'LABEL_1', 'LABEL_2')" in data.labels


HARD = {
    "names": ["LABEL_2", "LABEL_0 ", "LABEL_1"],
    "numbers": [2, 0, 1],
    "decimals": [2.0, 0.0, 1.0],
    "probabilities": [[0.1, 0.2, 0.7], [0.4, 0.4, 0.2], [0.0, 1.0, 0.0]],
    "zeros and ones": [[0, 0, 1], [1, 0, 0], [0, 1, 0]],
}


@pytest.mark.parametrize("kind", HARD)
def test_other_splits_hold_classes_or_probabilities(load, kind):
    data = load(validation_file=HARD[kind], test_file=HARD[kind])
    for name in ("validation", "test"):
        assert data.splits[name]["labels"][:] == [2, 0, 1]
        assert data.splits[name].features["labels"] == Value("int64")


def test_other_splits_may_be_of_another_format(tmp_path, load):
    data = load(validation_file=write_csv(tmp_path / "dev.csv", ["text", "label"], [("a", 2), ("b", "1.0")]))
    assert data.splits["validation"]["labels"][:] == [2, 1]


def test_parquet_files_have_lists_too(tmp_path, load):
    pd.DataFrame({"text": [f"w{i}" for i in range(8)], "label": SOFT * 2}).to_parquet(tmp_path / "train.parquet")
    names = ["pos", "neutral", "neg"]
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    Dataset.from_dict({"text": ["a", "b"], "label": [2, 0]}, features=features).to_parquet(tmp_path / "dev.parquet")
    data = load(train_file=str(tmp_path / "train.parquet"), validation_file=str(tmp_path / "dev.parquet"))
    assert data.splits["train"].features["labels"] == List(Value("float32"))
    assert data.splits["train"]["labels"][3] == pytest.approx(SOFT[3])
    assert data.splits["validation"]["labels"][:] == [2, 0]


def test_classes_of_the_model_are_those_of_the_probabilities(load):
    data = load(known_labels=["bad", "so so", "good"], validation_file=["good", "bad", "so so"])
    assert data.label_names == ["bad", "so so", "good"]
    assert data.splits["validation"]["labels"][:] == [2, 0, 1]


def test_rows_of_0_and_1_that_sum_to_1_are_still_one_entry_per_class(load):
    data = load([[1.0, 0.0], [0.0, 1.0]])
    assert (data.problem_type, data.label_names) == ("multi_label_classification", ["0", "1"])


ALLOWED = "expected 3 probabilities from 0 to 1 that sum to 1, within 0.001"
REFUSED = {
    "sum": (
        [[0.7, 0.2, 0.0985]],
        rf"row 5 of the train data holds \[.*\]: their sum is 0.9985; {ALLOWED} \(one decimal number",
    ),
    "negative": ([[0.7, -0.1, 0.4]], rf"row 5 .*: not all are from 0 to 1; {ALLOWED}"),
    "above 1": ([[1.0005, 0.0, 0.0]], rf"row 5 .*: not all are from 0 to 1; {ALLOWED}"),
    "several labels": ([[1.0, 1.0, 0.0]], rf"row 5 .*: their sum is 2; {ALLOWED}"),
    "length": ([[0.5, 0.5]], rf"row 5 .*: 2 values, and the training data have 3; {ALLOWED}"),
    "gap": ([[0.5, None, 0.5]], rf"row 5 .*: not all are finite numbers; {ALLOWED}"),
    "nan": ([[0.5, float("nan"), 0.5]], rf"row 5 .*: not all are finite numbers; {ALLOWED}"),
    "no list": ([[]], "4 train rows lack a label: row 5, 10, 15, 20, counted from 1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_row_that_is_no_distribution_is_named(load, case):
    more, message = REFUSED[case]
    with pytest.raises(ValueError, match=f"label_column_name='label': {message}"):
        load(SOFT + more)


def test_sums_within_rounding_are_fine(load):
    assert load([[0.33, 0.33, 0.3391], [0.333, 0.333, 0.333]]).label_names == NAMES


def test_one_probability_is_none(load):
    with pytest.raises(ValueError, match=r"row 1 of the train data holds \[0.5\]: 1 value; expected 2 probabilities"):
        load([[0.5], [0.7]])


def test_rows_of_other_splits_are_named(load):
    with pytest.raises(
        ValueError, match=r"row 2 of the test data holds \[0.5, 0.6, 0.1\]: their sum is 1.2; .*0.001\."
    ):
        load(test_file=[[1, 0, 0], [0.5, 0.6, 0.1]])
    message = (
        "the test data have labels that are no class of the probabilities: 'LABEL2'. Did you mean 'LABEL_2'.*0 to 2"
    )
    with pytest.raises(ValueError, match=message):
        load(test_file=["LABEL2", "LABEL_1"])
    with pytest.raises(ValueError, match="1 validation rows lack a label: row 2"):
        load(validation_file=["LABEL_2", None])


@pytest.mark.parametrize("sign", ["|", ",", " "])
def test_probabilities_in_text_are_refused(tmp_path, load, sign):
    cells = [sign.join(map(str, row)) for row in SOFT]
    train_file = write_csv(tmp_path / "train.csv", ["text", "label"], [("a film", cell) for cell in cells])
    message = r"cells such as '0.7.0.2.0.1' are class .* as text; .* such as \[0.7, 0.2, 0.1\], in a JSON or Parquet"
    with pytest.raises(ValueError, match=message):
        load(train_file=train_file, label_delimiter=sign if sign == " " else None)


def test_priors_are_the_mass_of_each_class():
    expected = torch.tensor([0.7 + 0.25 + 0.1, 0.2 + 0.25 + 1 + 0.6, 0.1 + 0.5 + 0.3]) + 0.5
    priors = label_priors(torch.tensor(SOFT), 3, "single_label_classification")
    torch.testing.assert_close(priors.softmax(-1), expected / expected.sum())


# ---- A whole run ----


def review_files(folder):
    """Reviews with the shares of annotators who called them bad and good; those of `test` as classes."""
    files = {}
    for seed, (name, count) in enumerate({"train": 40, "validation": 20, "test": 20}.items()):
        labels = [
            int(good) if name == "test" else [0.2, 0.8] if good else [0.9, 0.1] for _, good in reviews(count, seed)
        ]
        rows = [{"text": text, "label": label} for (text, _), label in zip(reviews(count, seed), labels, strict=True)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        files[f"{name}_file"] = str(folder / f"{name}.jsonl")
    return files | {"model_name_or_path": save_toy_model(folder / "toy"), "cache_dir": str(folder / "cache")}


def test_a_run_trains_on_them_and_saves_a_plain_classifier(tmp_path):
    fields = review_files(tmp_path) | {"output_dir": str(tmp_path / "out"), "max_steps": "2", "learning_rate": "5e-3"}
    options = [word for name, value in fields.items() for word in (f"--{name}", value)]
    run = prepare(*parse([*options, "--save_strategy", "no", "--report_to", "none", "--use_cpu"]))
    batch = next(iter(run.trainer.get_train_dataloader()))
    assert batch["labels"].dtype == torch.float32
    assert {tuple(row) for row in batch["labels"].tolist()} == {
        tuple(np.float32([0.2, 0.8])),
        tuple(np.float32([0.9, 0.1])),
    }
    results = finish(run)
    assert results["metrics"]["accuracy"] >= 0 and np.isfinite(results["metrics"]["nll"])
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert saved.config.id2label == {0: "LABEL_0", 1: "LABEL_1"}
    assert saved.config.problem_type == "single_label_classification"


def test_a_comparison_trains_on_them(tmp_path):
    values = review_files(tmp_path) | {"output_dir": str(tmp_path / "out"), "methods": ["none", "default"]}
    values |= {"train_sizes": [8], "measures": [], "max_steps": 5, "use_cpu": True}
    result = run_cell(Comparison.from_dict(values), Cell("default", 8, 0.0, 0), tmp_path / "run")
    assert {"accuracy", "nll_scaled", "train_loss"} <= set(result["metrics"])
    noisy = Comparison.from_dict(values | {"label_noise": [0.25]})
    with pytest.raises(ValueError, match="label_noise=0.25: needs one class per training row, not probabilities"):
        run_cell(noisy, Cell("none", 8, 0.25, 0), tmp_path / "noisy")
