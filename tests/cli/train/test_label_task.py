import json
import logging
import os
import subprocess
import sys

import pytest
from datasets import Dataset

from hf_mixup.cli.train.data import load_splits
from hf_mixup.cli.train.label_task import in_order, problem_type_of
from hf_mixup.cli.train.run_fields import DataArguments
from tests.toy_text import write_csv


@pytest.fixture
def labelled(tmp_path):
    """The data of a CSV file, or of JSON lines where labels are lists, with these labels in turn."""

    def labelled(labels, count=24, **options):
        rows = [(f"w{i}", labels[i % len(labels)]) for i in range(count)]
        if any(isinstance(label, list) for label in labels):
            path = tmp_path / "train.jsonl"
            path.write_text("\n".join(json.dumps({"text": text, "label": label}) for text, label in rows))
        else:
            path = write_csv(tmp_path / "train.csv", ["text", "label"], rows)
        return load_splits(DataArguments(train_file=str(path), **options), str(tmp_path / "cache"))

    return labelled


NAMES = {
    "leading zeros": (["007", "7", "070"], ["007", "070", "7"]),
    "as written": (["1.0", "2", "1e3", "TRUE"], ["1.0", "1e3", "2", "TRUE"]),
    "whole floats": (["1.0", "0.0"], ["0", "1"]),
    "blanks": (["pos", "pos ", "neg", " neg"], ["neg", "pos"]),
    "numbers": (["10", "9", "-1"], ["-1", "9", "10"]),
    "large numbers": ([str(9007199254740993 + i) for i in (3, 1, 0, 2)], [str(9007199254740993 + i) for i in range(4)]),
    "brackets": (["[POS]", "(other)"], ["(other)", "[POS]"]),
    "beyond a float": (["5E9000", "12", "5E99999999"], ["12", "5E9000", "5E99999999"]),
    "number and word": (["0", "1", "other"], ["0", "1", "other"]),
}


@pytest.mark.parametrize("case", NAMES)
def test_class_names_are_the_labels_as_written(labelled, case):
    labels, names = NAMES[case]
    data = labelled(labels)
    assert data.label_names == names
    for split in data.splits.values():
        for row in split:
            written = labels[int(row["text"][1:]) % len(labels)].strip()
            assert data.label_names[row["labels"]] in (written, written.removesuffix(".0"))


def test_every_process_numbers_the_classes_alike():
    code = (
        "from hf_mixup.cli.train.label_task import in_order; "
        "print(in_order(str(9007199254740993 + i % 4) for i in range(8)))"
    )
    seeds = ("0", "2")
    printed = {
        subprocess.check_output([sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, text=True)
        for seed in seeds
    }
    assert len(printed) == 1


def test_numbers_of_one_value_have_an_order():
    assert in_order(["1.0", "1", "2", "0.5"]) == ["0.5", "1", "1.0", "2"]


MULTI_HOT = {
    "integers": [[1, 0, 0], [0, 1, 1], [0, 0, 1]],
    "decimals": [[1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 1.0]],
    "booleans": [[True, False, False], [False, True, True], [False, False, True]],
}


@pytest.mark.parametrize("case", MULTI_HOT)
def test_rows_of_0_and_1_are_one_per_class(labelled, case, caplog):
    with caplog.at_level(logging.WARNING):
        data = labelled(MULTI_HOT[case])
    assert data.label_names == ["0", "1", "2"] and "read as one per class" in caplog.text
    for row in data.splits["train"]:
        assert row["labels"] == [float(bit) for bit in MULTI_HOT[case][int(row["text"][1:]) % 3]]


def test_rows_of_0_and_1_in_text_and_classes_of_one_model(tmp_path, labelled):
    data = labelled(["1 0 0", "0 1 1"], label_delimiter=" ")
    assert data.label_names == ["0", "1", "2"]
    assert {tuple(row) for row in data.splits["train"]["labels"]} == {(1, 0, 0), (0, 1, 1)}
    given = DataArguments(train_file=str(tmp_path / "train.csv"), label_delimiter=" ")
    known = load_splits(given, str(tmp_path / "cache"), known_labels=["joy", "fear", "anger"])
    assert known.label_names == ["joy", "fear", "anger"]


def test_lists_of_classes_stay_lists_of_classes(labelled):
    data = labelled([[0], [1], [0, 1], []])
    assert data.label_names == ["0", "1"]
    assert {tuple(row) for row in data.splits["train"]["labels"]} == {(1, 0), (0, 1), (1, 1), (0, 0)}


SAID = {
    "delimiter unused": (["a", "b"], {"label_delimiter": "|"}, "label_delimiter='|': no cell holds it"),
    "blanks": (["a ", "b"], {}, "the blanks around 12 labels are left out"),
    "case": (["Pos", "pos", "neg"], {}, "'Pos', 'pos' are different classes"),
    "numbers": (["007", "7"], {}, "'007', '7' are different classes"),
    "quoted": (["so, so", "gut"], {}, "2 classes ('gut', 'so, so')"),
    "maybe scores": (["1", "2", "3"], {}, "--do_regression true makes them scores"),
    "one per row": ([f"id{i}" for i in range(24)], {}, "24 classes in 24 rows"),
}


@pytest.mark.parametrize("case", SAID)
def test_what_could_be_meant_otherwise_is_said(labelled, caplog, case):
    labels, options, message = SAID[case]
    with caplog.at_level(logging.WARNING):
        data = labelled(labels, **options)
    assert message in caplog.text + data.labels


REFUSED = {
    "words among scores": (["1.5", "2.5", "n/a"], {}, "decimal numbers, but 'n/a' in row 3.*do_regression: false"),
    "lists of decimals": ([[0.5, 1], [1.0, 0.0]], {}, r"row 1 of the train data holds \[0.5, 1.0\]: their sum is 1.5"),
    "decimal commas and whole numbers": (["3,5", "5", "2,25"], {}, "numbers such as '2,25': write scores with a point"),
    "decimal commas": (["1,5", "2,5"], {}, "numbers such as '1,5': write scores with a point"),
    "a gap in a list": ([[1, 0], [1, None], [0, 1]], {}, r"row 2 of the train data holds \[1, None\]; no value may be"),
    "decimal commas and nan": (["1,5", "nan", "3"], {}, "numbers such as '1,5': write scores with a point"),
    "written lists": (["[1, 0]", "[0, 1]"], {}, r"cells such as '\[0, 1\]' are lists written as text"),
    "written lists, parted": (["[1, 0]", "[0, 1]"], {"label_delimiter": ","}, "are lists written as text"),
    "ragged vectors": ([[1, 0, 0], [0, 1]], {}, r"row 1 holds \[1, 0, 0\]; lists of 0 and 1, one per class"),
    "ragged booleans": ([[True], [False, True]], {}, r"row 1 holds \[True\]; lists of 0 and 1"),
    "words as scores": (["1.5", "x"], {"do_regression": True}, "not numbers: 'x' in row 2, 4, 6, 8, 10 and 7 more"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_labels_of_two_meanings_are_refused(labelled, case):
    labels, options, message = REFUSED[case]
    with pytest.raises(ValueError, match=f"label_column_name='label': .*{message}"):
        labelled(labels, **options)


def test_decimal_names_are_classes_if_the_user_says_so(labelled):
    assert labelled(["3.10", "3.9", "main"], do_regression=False).label_names == ["3.10", "3.9", "main"]


def test_rows_count_as_in_the_file():
    rows = Dataset.from_dict({"label": ["1.5", "n/a"]})
    with pytest.raises(ValueError, match="'n/a' in row 4"):
        problem_type_of(rows, "label", None, None, dropped=[1, 2])


@pytest.mark.parametrize("labels", [["a", "b"], ["0.5", "1.5"]])
@pytest.mark.parametrize("test_rows", ["text,label\nw1,\nw2,\n", "text\nw1\nw2\n", "text,label\nw1,-1\nw2,-1.0\n"])
def test_test_data_without_labels_are_left_out(tmp_path, labelled, caplog, labels, test_rows):
    (tmp_path / "test.csv").write_text(test_rows)
    with caplog.at_level(logging.WARNING):
        data = labelled(labels, test_file=str(tmp_path / "test.csv"))
    assert set(data.splits) == {"train", "validation"} and "no row has a label" in caplog.text


def test_a_misspelt_label_column_of_the_test_data_is_no_missing_one(tmp_path, labelled):
    (tmp_path / "test.csv").write_text("text,lable\nw1,a\n")
    with pytest.raises(ValueError, match="no such column in the test data. Did you mean 'lable'"):
        labelled(["a", "b"], test_file=str(tmp_path / "test.csv"))


def test_vectors_of_another_length_are_refused(tmp_path, labelled):
    (tmp_path / "test.jsonl").write_text('{"text": "w1", "label": [1, 0]}')
    with pytest.raises(ValueError, match=r"row 1 of the test data holds \[1, 0\]; expected 3 values"):
        labelled([[1, 0, 0], [0, 1, 1]], test_file=str(tmp_path / "test.jsonl"))


def test_other_files_may_spell_whole_numbers_as_floats_or_not(tmp_path, labelled):
    (tmp_path / "test.csv").write_text("text,label\nw1,1.0\nw2,0.0\n")
    given = {"test_file": str(tmp_path / "test.csv")}
    for labels in (["1", "0"], ["1.0", "0.0"], ["1.0", "0.0", "unknown"]):
        data = labelled(labels, **given)
        assert [data.label_names[label].removesuffix(".0") for label in data.splits["test"]["labels"]] == ["1", "0"]
