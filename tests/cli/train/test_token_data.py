"""Tokens and tags from CoNLL, JSON and Parquet files and data sets, checked and numbered."""

import json
import logging

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from hf_mixup.cli.train.conll import read_conll
from hf_mixup.cli.train.data import load_splits
from hf_mixup.cli.train.run_fields import DataArguments
from tests.toy_tags import write_conll

ROWS = [
    (["Anna", "lives", "in", "New", "York"], ["B-per", "O", "O", "B-loc", "I-loc"]),
    (["Rome", "is", "old"], ["B-loc", "O", "O"]),
    (["Bob", "Smith", "slept"], ["B-per", "I-per", "O"]),
] * 4
NAMES = ["B-loc", "B-per", "I-loc", "I-per", "O"]


def write_json(path, rows, names=("tokens", "ner_tags")):
    path.write_text("\n".join(json.dumps(dict(zip(names, row, strict=True))) for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def load(tmp_path):
    def load(train=None, known_labels=None, needs_validation=False, **options):
        if "dataset_name" not in options:
            options["train_file"] = train or write_conll(tmp_path / "train.conll", ROWS)
            options.setdefault("test_file", options["train_file"])
        given = DataArguments(task="tokens", **options)
        return load_splits(given, str(tmp_path / "cache"), None, known_labels, needs_validation)

    return load


def rows_of(data, split="train"):
    rows = data.splits[split]
    return [(row[data.text_columns[0]], [data.label_names[label] for label in row["labels"]]) for row in rows]


@pytest.mark.parametrize(("suffix", "between"), [(".conll", "\t"), (".txt", " "), (".tsv", "\t"), (".CONLL", "  _ _ ")])
def test_conll_files(load, tmp_path, suffix, between):
    data = load(write_conll(tmp_path / f"train{suffix}", ROWS, between))
    assert rows_of(data) == ROWS and rows_of(data, "test") == ROWS
    assert (data.problem_type, data.task, data.text_columns) == ("token_classification", "tokens", ["tokens"])
    assert data.label_names == NAMES
    assert data.labels == "label column 'tags': 5 tags of 44 tokens, entities of 2 types ('loc', 'per')"


def test_what_conll_files_have_besides(load, tmp_path):
    text = (
        "\ufeff-DOCSTART- -X- -X- O\r\n\r\nNew\u2028York NNP B-loc\r\nis VBZ O \r\n \t\r\n\n"
        "-DOCSTART- O\nAnna NNP B-per\n-DOCSTART- O\n# NN O\n\xa0 NN O"
    )
    file = tmp_path / "train.conll"
    file.write_bytes(text.encode())
    assert rows_of(load(str(file))) == [
        (["New\u2028York", "is"], ["B-loc", "O"]),
        (["Anna"], ["B-per"]),
        (["#", "\xa0"], ["O", "O"]),
    ]


@pytest.mark.parametrize("line", ["lonely", "word\t", "\tO", "word ", " O"])
def test_a_line_without_a_token_or_a_tag_is_named(load, tmp_path, line):
    file = tmp_path / "train.conll"
    file.write_text(f"Anna\tB-per\n\n\nRome\tO\n{line}\n")
    with pytest.raises(ValueError, match="train_file=.*cannot be read as conll: line 5 holds .*expected a token"):
        load(str(file))


def test_read_conll_without_a_last_line_feed():
    assert read_conll("a O\nb B-x\n\nc O") == {"tokens": [["a", "b"], ["c"]], "tags": [["O", "B-x"], ["O"]]}
    assert read_conll("\n \n-DOCSTART- O\n") == {"tokens": [], "tags": []}


def test_a_tsv_file_is_a_table_in_the_other_task(tmp_path):
    file = write_conll(tmp_path / "train.tsv", [(["text", "a film", "the plot"], ["label", "x", "y"])] * 1)
    cache = str(tmp_path / "cache")
    tagged = load_splits(DataArguments(task="tokens", train_file=file, test_file=file), cache, needs_validation=False)
    assert tagged.splits["train"]["tokens"][:] == [["text", "a film", "the plot"]]
    table = load_splits(DataArguments(train_file=file, test_file=file), cache, needs_validation=False)
    assert table.splits["train"]["text"][:] == ["a film", "the plot"]


@pytest.mark.parametrize("names", [("words", "pos_tags"), ("tokens", "labels"), ("tokens", "chunk_tags")])
def test_json_files_with_the_usual_names(load, tmp_path, names):
    data = load(write_json(tmp_path / "train.jsonl", ROWS, names))
    assert rows_of(data) == ROWS and data.text_columns == [names[0]]
    assert f"label column {names[1]!r}" in data.labels


def test_columns_by_name(load, tmp_path):
    rows = [(words, tags, ["X", "Y", "X", "Y", "X"][: len(tags)], 1) for words, tags in ROWS]
    file = write_json(tmp_path / "train.json", rows, ("form", "ner_tags", "xpos", "id"))
    data = load(file, token_column_name="form", label_column_name="xpos")
    assert data.label_names == ["X", "Y"] and data.splits["train"].column_names == ["form", "ner_tags", "id", "labels"]
    assert data.labels == "label column 'xpos': 2 tags of 44 tokens ('X', 'Y')"
    with pytest.raises(ValueError, match="token_column_name='tokens': no such column in the train data.*Columns: form"):
        load(file)
    with pytest.raises(ValueError, match="label_column_name='upos': no such column.*Did you mean 'xpos'"):
        load(file, token_column_name="form", label_column_name="upos")
    with pytest.raises(ValueError, match="label_column_name='form' is also in token_column_name"):
        load(file, token_column_name="form", label_column_name="form")


def test_a_dataset_with_named_tags(load, tmp_path):
    order = ["O", "B-per", "I-per", "B-loc", "I-loc", "B-misc"]
    tags = [[order.index(tag) for tag in row] for _, row in ROWS]
    columns = {"id": [*map(str, range(12))], "tokens": [words for words, _ in ROWS], "ner_tags": tags}
    features = Features(
        {"id": Value("string"), "tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=order))}
    )
    rows = Dataset.from_dict(columns, features)
    for name, part in DatasetDict({"train": rows, "validation": rows}).items():
        (tmp_path / "data").mkdir(exist_ok=True)
        part.to_parquet(tmp_path / "data" / f"{name}.parquet")
    data = load(dataset_name=str(tmp_path / "data"))
    assert data.label_names == order and rows_of(data, "validation") == ROWS
    assert data.splits["train"].features["labels"] == List(Value("int64"))
    assert data.labels == "label column 'ner_tags': 6 tags of 44 tokens, entities of 3 types ('loc', 'misc', 'per')"
    file = str(tmp_path / "data/train.parquet")
    assert load(file).label_names == order


def test_numbers_are_tags_in_the_order_of_their_values(load, tmp_path):
    rows = [(["a", "b", "c"], [10, 2, 0])] * 3
    data = load(write_json(tmp_path / "train.json", rows))
    assert data.label_names == ["0", "2", "10"] and data.splits["train"]["labels"][0] == [2, 1, 0]


def test_the_order_of_a_model_with_tags(load, tmp_path):
    order = ["O", "B-per", "I-per", "B-loc", "I-loc"]
    data = load(known_labels=order)
    assert data.label_names == order and rows_of(data) == ROWS
    with pytest.raises(ValueError, match="labels outside of the model's 2: 'B-loc'"):
        load(known_labels=["O", "B-per"])


def test_rows_without_tokens_are_dropped_and_counted(load, tmp_path, caplog):
    rows = [ROWS[0], ([], []), ROWS[1], (["", " "], ["O", "O"]), ROWS[2], (["a"], ["O", "O"])]
    with caplog.at_level(logging.WARNING):
        data = load(write_json(tmp_path / "train.json", rows[:5]))
    assert rows_of(data) == ROWS[:3] and data.dropped["train"] == [2, 4]
    assert "train: dropped 2 of 5 rows without tokens: row 2, 4" in caplog.text
    with pytest.raises(ValueError, match="row 6 of the train data has 1 tokens and 2 tags; expected as many"):
        load(write_json(tmp_path / "more.json", rows))
    with pytest.raises(ValueError, match="no row of the train data has tokens"):
        load(write_json(tmp_path / "none.json", [([], []), ([""], ["O"])]))


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ((["a", "b"], ["O", None]), "row 13 of the train data has the token 'b' with the tag None at place 2"),
        ((["a", "b"], [" ", "O"]), "row 13 of the train data has the token 'a' with the tag '' at place 1"),
        ((["a", None], ["O", "O"]), "row 13 of the train data has the token None with the tag 'O' at place 2"),
        ((["a", "b"], None), "row 13 of the train data has 2 tokens and 0 tags"),
    ],
)
def test_a_missing_token_or_tag_is_named_with_its_row(load, tmp_path, row, named):
    with pytest.raises(ValueError, match=named):
        load(write_json(tmp_path / "train.json", [*ROWS, row]))


def test_a_negative_tag_is_missing(load, tmp_path):
    with pytest.raises(ValueError, match="row 2 .*the token 'd' with the tag -100 at place 2"):
        load(write_json(tmp_path / "train.json", [(["a", "b"], [0, 1]), (["c", "d"], [0, -100])]))


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        (
            [("a b", ["O", "B-x"])],
            "token_column_name='tokens': the train data hold string there; expected lists",
        ),
        ([([1, 2], ["O", "B-x"])], "token_column_name='tokens': the train data hold lists of int64 there"),
        (
            [(["a", "b"], "O B-x")],
            "label_column_name='ner_tags': the train data hold string there; expected lists",
        ),
        (
            [(["a", "b"], [0.5, 1.0])],
            "label_column_name='ner_tags': the train data hold lists of (float64|double)",
        ),
        ([(["a", "b"], [["O"], ["O"]])], "label_column_name='ner_tags': the train data hold lists of nested there"),
        ([(["a", "b"], ["O", 1])], "column 'ner_tags'"),
    ],
)
def test_columns_of_other_kinds_are_refused(load, tmp_path, rows, named):
    with pytest.raises(ValueError, match=named):
        load(write_json(tmp_path / "train.json", rows * 3))


def test_tags_that_the_training_data_lack(load, tmp_path):
    test_file = write_conll(tmp_path / "test.conll", [*ROWS, (["Rhine"], ["b-loc"])])
    with pytest.raises(ValueError, match="the test data have labels that the training data lack: 'b-loc'.*'B-loc'"):
        load(test_file=test_file)


def test_one_tag_alone_is_refused(load, tmp_path):
    with pytest.raises(ValueError, match="label_column_name='tags': the training data have one class only, 'O'"):
        load(write_conll(tmp_path / "train.conll", [(["a", "b"], ["O", "O"])] * 3))
    rows = [(["a", "b"], ["O", "O"]), (["a", "b"], ["O", "B-x"])]
    with pytest.raises(ValueError, match=r"one class only, 'O'.*shuffle_train_dataset before max_train_samples\?"):
        load(write_conll(tmp_path / "train.conll", rows), max_train_samples=1)


def test_a_test_file_without_tags_is_left_out(load, tmp_path, caplog):
    test_file = tmp_path / "test.jsonl"
    test_file.write_text('{"tokens": ["a"]}\n{"tokens": ["b"]}')
    data = load(write_json(tmp_path / "train.json", ROWS), test_file=str(test_file))
    assert "test: no row has a label, so the test data are left out" in caplog.text
    assert {name: rows.num_rows for name, rows in data.splits.items()} == {"train": 11, "validation": 1}


def test_a_tenth_is_held_out_and_rows_are_counted_and_shuffled(load, tmp_path):
    train = write_conll(tmp_path / "train.conll", ROWS * 5)
    held = [load(train, needs_validation=True, shuffle_seed=seed).splits for seed in (0, 0, 1)]
    assert held[0]["train"].num_rows == 54 and held[0]["validation"].num_rows == 6
    numbered = [rows["validation"]["tokens"][:] for rows in held]
    assert numbered[0] == numbered[1]
    cut = load(train, max_train_samples=5, max_predict_samples=2, shuffle_train_dataset=True)
    assert {name: rows.num_rows for name, rows in cut.splits.items()} == {"train": 5, "test": 2}
    assert rows_of(cut) != ROWS[:5] and rows_of(cut, "test") == ROWS[:2]


def test_names_that_differ_in_case_alone_are_named(load, tmp_path, caplog):
    load(write_conll(tmp_path / "train.conll", [*ROWS, (["Oslo"], ["b-loc"])]))
    assert "'B-loc', 'b-loc' are different classes; is that meant?" in caplog.text


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"task": "token"}, "task='token': expected one of texts, tokens.*Did you mean 'tokens'"),
        ({"task": "tokens", "text_column_names": "a"}, "text_column_names='a': used with task: texts only"),
        ({"task": "tokens", "label_delimiter": "|"}, r"label_delimiter='\|': used with task: texts only"),
        ({"task": "tokens", "do_regression": False}, "do_regression=False: used with task: texts only"),
        ({"task": "tokens", "unlabeled_file": "a.csv"}, "unlabeled_file='a.csv': used with task: texts only"),
        ({"task": "tokens", "max_unlabeled_samples": 3}, "max_unlabeled_samples=3: used with task: texts only"),
        ({"task": "tokens", "csv_delimiter": ";"}, "csv_delimiter=';': used with task: texts only"),
        ({"label_all_tokens": True}, "label_all_tokens=True: used with task: tokens only"),
        ({"token_column_name": "words"}, "token_column_name='words': used with task: tokens only"),
    ],
)
def test_fields_of_the_other_task_are_refused(options, named):
    with pytest.raises(ValueError, match=named):
        DataArguments(train_file="train.conll", **options)


def test_files_of_other_kinds(load, tmp_path):
    (tmp_path / "train.csv").write_text("tokens,tags\na,O\n")
    with pytest.raises(ValueError, match=r".conll, .txt, .tsv, .json, .jsonl, .parquet. A cell of a CSV file"):
        load(str(tmp_path / "train.csv"))
    with pytest.raises(ValueError, match="expected a file named .csv, .tsv, .json"):
        load_splits(DataArguments(train_file=write_conll(tmp_path / "train.conll", ROWS)))
