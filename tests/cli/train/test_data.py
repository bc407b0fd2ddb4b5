import json
import logging

import numpy as np
import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from hf_mixup.cli.train.data import load_splits
from hf_mixup.cli.train.run_fields import DataArguments
from tests.toy_text import write_csv, write_reviews

ROWS = [("a fine film", "good"), ("a dull film", "bad"), ("the plot was weak", "bad"), ("a warm film", "good")] * 5


@pytest.fixture
def load(tmp_path):
    def load(rows=ROWS, header=("text", "label"), known_labels=None, **options):
        options.setdefault("train_file", write_csv(tmp_path / "train.csv", header, rows))
        return load_splits(DataArguments(**options), cache_dir=str(tmp_path / "cache"), known_labels=known_labels)

    return load


def test_string_labels_become_sorted_names(load):
    data = load()
    assert data.problem_type == "single_label_classification"
    assert data.label_names == ["bad", "good"]
    assert {name: rows.num_rows for name, rows in data.splits.items()} == {"train": 18, "validation": 2}
    for row in data.splits["train"]:
        assert data.label_names[row["labels"]] == dict(ROWS)[row["text"]]


def test_integer_labels_keep_numeric_names_in_numeric_order(load):
    data = load([("a film", 10), ("the film", 9), ("the plot", 2)] * 4)
    assert data.label_names == ["2", "9", "10"]
    assert set(data.splits["train"]["labels"]) == {0, 1, 2}


def test_decimal_labels_mean_regression(load):
    data = load([("a film", 0.5), ("the film", 2.5)] * 5)
    assert (data.problem_type, data.label_names) == ("regression", [])
    assert set(data.splits["train"]["labels"]) == {0.5, 2.5}


def test_whole_numbers_written_as_floats_are_classes(tmp_path, load):
    validation_file = write_csv(tmp_path / "dev.csv", ["text", "label"], [("a film", 1), ("the film", 0)])
    data = load([("a film", "1.0"), ("the film", "0.0")] * 5, validation_file=validation_file)
    assert (data.problem_type, data.label_names) == ("single_label_classification", ["0", "1"])
    assert data.splits["validation"]["labels"][:] == [1, 0]
    assert data.labels == "label column 'label': 2 classes ('0', '1')"
    assert load([("a film", float(score)) for score in range(200)]).problem_type == "regression"


def test_decimal_labels_are_named_as_regression(load):
    rows = [("a film", 0.0), ("the film", 2.5), ("the plot", 5.0)] * 5
    data = load(rows)
    assert data.problem_type == "regression"
    said = "label column 'label': decimal numbers from 0 to 5: regression; --do_regression false makes them classes"
    assert data.labels == said
    assert load(rows, do_regression=False).label_names == ["0.0", "2.5", "5.0"]


def test_joined_class_names_suggest_a_delimiter(load, caplog):
    with caplog.at_level(logging.WARNING):
        load([("a film", "joy|love"), ("the film", "fear|anger")] * 5)
    assert "give --label_delimiter '|'" in caplog.text
    caplog.clear()
    load()
    assert "label_delimiter" not in caplog.text


def test_integer_scores_with_do_regression(load):
    data = load([("a film", 1), ("the film", 5)] * 5, do_regression=True)
    assert data.problem_type == "regression"
    assert data.splits["train"].features["labels"] == Value("float32")


def test_delimiter_means_multi_label(load):
    data = load([("a film", "joy love"), ("the film", ""), ("the plot", "fear")] * 5, label_delimiter=" ")
    assert data.problem_type == "multi_label_classification"
    assert data.label_names == ["fear", "joy", "love"]
    hot = {"a film": [0, 1, 1], "the film": [0, 0, 0], "the plot": [1, 0, 0]}
    assert all(row["labels"] == hot[row["text"]] for row in data.splits["train"])


def test_lists_in_jsonl_mean_multi_label(tmp_path, load):
    path = tmp_path / "train.jsonl"
    rows = [{"text": "a film", "labels": ["b", "a"]}, {"text": "the film", "labels": []}] * 5
    path.write_text("\n".join(json.dumps(row) for row in rows))
    data = load(train_file=str(path))
    assert (data.problem_type, data.label_names) == ("multi_label_classification", ["a", "b"])
    assert sorted(map(tuple, data.splits["train"]["labels"]))[0] == (0.0, 0.0)


def test_formats_give_the_same_data(tmp_path, load):
    frame = pd.DataFrame(ROWS, columns=["text", "label"])
    frame.to_parquet(tmp_path / "rows.parquet")
    frame.to_json(tmp_path / "rows.json", orient="records")
    frame.to_json(tmp_path / "rows.jsonl", orient="records", lines=True)
    frame.to_csv(tmp_path / "rows.tsv", sep="\t", index=False)
    expected = load().splits["train"].to_dict()
    for suffix in ("parquet", "json", "jsonl", "tsv"):
        assert load(train_file=str(tmp_path / f"rows.{suffix}")).splits["train"].to_dict() == expected


def test_pairs(load):
    rows = [("a film", "the film", 1.5), ("a plot", "the film", 0.25)] * 5
    data = load(rows, header=("left", "right", "label"), text_column_names="left, right")
    assert data.text_columns == ["left", "right"]


def test_rows_without_text_are_dropped_named_and_counted(load, caplog):
    rows = [*ROWS, ("", "good"), ("   ", "bad"), ("a film", "good"), ("", "bad")]
    with caplog.at_level(logging.WARNING):
        data = load(rows)
    assert data.dropped == {"train": [21, 22, 24]}
    assert "train: dropped 3 of 24 rows with a missing or empty text: row 21, 22, 24" in caplog.text
    assert sum(split.num_rows for split in data.splits.values()) == 21


def test_texts_and_labels_that_pandas_would_call_missing_stay(load):
    data = load([("None", "NA"), ("null", "None"), ("NaN", "NA"), ("NA", "None")] * 5)
    assert data.dropped == {"train": []}
    assert data.label_names == ["NA", "None"]


def test_held_out_rows_are_stratified_and_seeded(load, caplog):
    rows = [(f"a film {number}", "rare" if number < 20 else "common") for number in range(100)]
    with caplog.at_level(logging.WARNING):
        data = load(rows)
    assert "10 of 100 training rows are held out" in caplog.text
    assert sorted(data.splits["validation"]["labels"]) == [0] * 8 + [1] * 2
    assert not set(data.splits["validation"]["text"]) & set(data.splits["train"]["text"])
    again, other = load(rows), load(rows, shuffle_seed=7)
    assert again.splits["validation"]["text"] == data.splits["validation"]["text"]
    assert other.splits["validation"]["text"] != data.splits["validation"]["text"]


def test_two_scores_are_held_out_for_a_correlation(load):
    data = load([("a film", 0.5), ("the film", 2.5)] * 5)
    assert data.splits["validation"].num_rows == 2
    with pytest.raises(ValueError, match=r"too few training rows to hold some out \(2\)"):
        load([("a film", 0.5), ("the film", 2.5)])


def test_limits_and_shuffle(tmp_path, load):
    files = {
        name: write_reviews(tmp_path / f"{name}.csv", 30) for name in ("train_file", "validation_file", "test_file")
    }
    data = load(**files, max_train_samples=11, max_eval_samples=7, max_predict_samples=5)
    assert {name: rows.num_rows for name, rows in data.splits.items()} == {"train": 11, "validation": 7, "test": 5}
    shuffled = load(**files, max_train_samples=11, shuffle_train_dataset=True)
    assert shuffled.splits["train"]["text"] != data.splits["train"]["text"]


def test_classes_of_the_model_give_the_order(load):
    data = load(known_labels=["good", "neutral", "bad"])
    assert data.label_names == ["good", "neutral", "bad"]
    assert set(data.splits["train"]["labels"]) == {0, 2}
    assert load(known_labels=["LABEL_0", "LABEL_1"]).label_names == ["bad", "good"]


def save_dataset(folder, features, **splits):
    for name, rows in splits.items():
        Dataset.from_dict(dict(zip(features, zip(*rows, strict=True), strict=True)), features=features).to_parquet(
            folder / f"{name}.parquet"
        )
    return str(folder)


def test_dataset_with_class_names_and_an_unlabelled_test_split(tmp_path, load, caplog):
    features = Features({"sentence": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    rows = [("a film", 1), ("the film", 0)] * 5
    (tmp_path / "set").mkdir()
    folder = save_dataset(tmp_path / "set", features, train=rows, validation=rows, test=[("a plot", -1)] * 3)
    data = load(train_file=None, dataset_name=folder)
    assert data.label_names == ["no", "yes"]
    assert set(data.splits) == {"train", "validation"}
    assert "no row has a label" in caplog.text


def test_list_of_class_labels(tmp_path, load):
    features = Features({"text": Value("string"), "labels": List(ClassLabel(names=["joy", "fear"]))})
    (tmp_path / "set").mkdir()
    folder = save_dataset(tmp_path / "set", features, train=[("a film", [0, 1]), ("the film", [1])] * 5)
    data = load(train_file=None, dataset_name=folder, train_split_name="train")
    assert data.label_names == ["joy", "fear"]
    assert np.array(data.splits["train"]["labels"]).shape == (9, 2)


BAD_INPUT = {
    "unknown column": ({"text_column_names": "txt"}, r"text_column_names='txt'.*mean 'text'.*Columns: text, label"),
    "unknown label": ({"label_column_name": "lable"}, r"label_column_name='lable'.*mean 'label'.*Columns: text, label"),
    "three texts": ({"text_column_names": "a,b,c"}, r"text_column_names='a,b,c'.*two for pairs"),
    "label as text": ({"text_column_names": "text,label", "label_column_name": "label"}, r"also in text_column_names"),
    "one class": ({"rows": [("a film", "good")] * 9}, r"label_column_name='label'.*one class only, 'good'"),
    "one class left": (
        {"rows": sorted(ROWS, key=str), "max_train_samples": 2},
        r"one class only.*shuffle_train_dataset",
    ),
    "no rows": ({"rows": []}, r"train_file='.*train.csv': the file has no rows"),
    "no texts": ({"rows": [("", "good"), ("", "bad")]}, r"no row of the train data has a text"),
    "no label": ({"rows": [("", "bad"), *ROWS, ("a film", "")]}, r"label_column_name='label': 1 train rows.*row 22"),
    "word as score": ({"do_regression": True}, r"label_column_name='label': train labels are not numbers"),
    "infinite score": ({"rows": [("a", 1.5), ("b", "inf")] * 5}, r"5 train rows lack a finite number: row 2, 4, 6"),
    "no score": ({"rows": [("a", 1.5), ("b", "")] * 7}, r"7 train rows lack a label: row 2, 4, 6, 8, 10 and 2 more, c"),
    "no number": ({"rows": [("a", 1), ("b", 0), ("c", "")] * 2}, r"lack a label: row 3, 6, counted from 1 without the"),
    "outside model": ({"known_labels": ["god", "bat"]}, r"outside of the model's 2: 'bad', 'good'.*Did you mean 'bat'"),
    "beyond model": (
        {"rows": [("a", 0), ("b", 5)] * 5, "known_labels": ["LABEL_0", "LABEL_1", "LABEL_2"]},
        r"outside of the model's 3: '5'\..*ignore_mismatched_sizes",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_clear_error(load, case):
    options, message = BAD_INPUT[case]
    with pytest.raises(ValueError, match=message):
        load(**options)


def test_missing_empty_and_unknown_files(tmp_path, load):
    with pytest.raises(FileNotFoundError, match=r"train_file='.*absent.csv': no such file"):
        load(train_file=str(tmp_path / "absent.csv"))
    (tmp_path / "vaild.csv").write_text("text,label")
    with pytest.raises(FileNotFoundError, match=r"train_file='.*valid.csv': no such file. Did you mean 'vaild.csv'"):
        load(train_file=str(tmp_path / "valid.csv"))
    (tmp_path / "broken.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match=r"train_file='.*broken.parquet': cannot be read as parquet"):
        load(train_file=str(tmp_path / "broken.parquet"))
    with pytest.raises(ValueError, match=r"train_file='data.pkl': expected a file named .csv, .tsv, .json, .jsonl"):
        load(train_file="data.pkl")
    with pytest.raises(ValueError, match=r"train_file='data.jsn'.*Did you mean '.json'"):
        load(train_file="data.jsn")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ValueError, match=r"train_file='.*empty.csv': the file is empty"):
        load(train_file=str(tmp_path / "empty.csv"))
    (tmp_path / "broken.jsonl").write_text('{"text": "a film", ')
    with pytest.raises(ValueError, match=r"train_file='.*broken.jsonl': cannot be read as jsonl"):
        load(train_file=str(tmp_path / "broken.jsonl"))


def test_labels_unseen_in_training(tmp_path, load):
    test_file = write_csv(tmp_path / "test.csv", ["text", "label"], [("a film", "godo"), ("the film", "bad")])
    with pytest.raises(ValueError, match=r"test data have labels that the training data lack: 'godo'.*mean 'good'"):
        load(test_file=test_file)


def test_column_missing_in_validation_only(tmp_path, load):
    validation_file = write_csv(tmp_path / "dev.csv", ["text", "lbl"], ROWS)
    with pytest.raises(ValueError, match=r"label_column_name='label': no such column in the validation data"):
        load(validation_file=validation_file)


def test_split_names(tmp_path, load):
    rows = Dataset.from_dict({"text": ["a film", "the film"] * 5, "label": ["x", "y"] * 5})
    (tmp_path / "set").mkdir()
    for name in ("train", "test"):
        DatasetDict({name: rows})[name].to_parquet(tmp_path / "set" / f"{name}.parquet")
    with pytest.raises(ValueError, match=r"validation_split_name='tests'.*mean 'test'.*Splits: "):
        load(train_file=None, dataset_name=str(tmp_path / "set"), validation_split_name="tests")


def test_source_is_exactly_one():
    with pytest.raises(ValueError, match="dataset_name, train_file: give one of the two"):
        DataArguments()
    with pytest.raises(ValueError, match="max_seq_length=0: expected a whole number of 1 or more"):
        DataArguments(train_file="a.csv", max_seq_length=0)
