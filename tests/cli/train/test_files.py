import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from hf_mixup.cli.train.files import FileFormat, read_file


@pytest.fixture
def read(tmp_path):
    def read(name, content=None, **options):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_file("train_file", str(path), FileFormat(**options), str(tmp_path / "cache"))

    return read


def test_one_type_for_the_whole_of_a_csv_file(read):
    labels = [("maybe", "TRUE", "007")[i % 3] if i < 10_000 else ("TRUE", "1.0", "1e3")[i % 3] for i in range(12_000)]
    rows = read("train.csv", "text,label\n" + "".join(f"w{i},{label}\n" for i, label in enumerate(labels)))
    assert rows["label"][:] == labels


def test_one_type_for_the_whole_of_a_json_file(read):
    lines = [json.dumps({"text": "w" * 1000, "label": i if i < 12_000 else 2.5}) for i in range(12_010)]
    rows = read("train.jsonl", "\n".join(lines))
    assert rows.features["label"] == Value("float64") and rows["label"][12_000:][0] == 2.5


@pytest.mark.parametrize("name", ["train[12].csv", "train*.csv", "train?.csv", "[fold1]/train.csv"])
def test_the_named_file_and_no_other_is_read(tmp_path, read, name):
    for other in ("train1.csv", "train2.csv"):
        read(other, "text,label\nother,a\n")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    assert read(name, "text,label\nw1,a\n")["text"][:] == ["w1"]


def test_a_changed_file_is_read_again_also_within_its_time_stamp(tmp_path, read):
    read("train.csv", "text,label\nw1,a\n")
    stamp = os.stat(tmp_path / "train.csv")
    (tmp_path / "train.csv").write_text("text,label\nw2,a\n")
    os.utime(tmp_path / "train.csv", (stamp.st_atime, stamp.st_mtime))
    assert read("train.csv")["text"][:] == ["w2"]


def test_the_same_file_read_in_another_way_is_another_one(read):
    content = 'text\tlabel\n"w1"\ta\n'
    assert read("a.tsv", content)["text"][:] == ["w1"]
    assert read("a.tsv", content, csv_quoting="none")["text"][:] == ['"w1"']


def test_rows_are_kept_on_disk_and_read_once(tmp_path, read, monkeypatch):
    first = read("train.csv", "text,label\nw1,a\n")
    monkeypatch.setattr("hf_mixup.cli.train.files._read", lambda *_: pytest.fail("read again"))
    assert read("train.csv").to_dict() == first.to_dict()
    assert str(tmp_path / "cache") in first.cache_files[0]["filename"]


ENCODED = {"utf-8": None, "utf-8-sig": None, "latin-1": "latin-1", "utf-16": "utf-16", "cp1252": "cp1252"}


@pytest.mark.parametrize("encoding", ENCODED)
def test_encodings(read, encoding):
    rows = read("train.csv", "text,label\nschön,a\n".encode(encoding), encoding=ENCODED[encoding])
    assert rows.column_names == ["text", "label"] and rows["text"][:] == ["schön"]


def test_delimiters_can_be_given(read):
    assert read("a.csv", "text;label\nw1, w2;a\n", csv_delimiter=";")["text"][:] == ["w1, w2"]
    for tab in ("tab", "\\t", "\t"):
        assert read("a.csv", "text\tlabel\nw1\ta\n", csv_delimiter=tab)["label"][:] == ["a"]


def test_json_of_a_list_and_of_lines_and_texts_with_line_separators(read):
    rows = [{"text": "a\u2028b", "label": 1}, {"text": None, "label": 9007199254740993}]
    for name, content in (
        ("a.json", json.dumps(rows, ensure_ascii=False)),
        ("a.jsonl", "\n".join(map(json.dumps, rows))),
    ):
        found = read(name, content)
        assert found["text"][:] == ["a\u2028b", None] and found["label"][:] == [1, 9007199254740993]


def test_columns_of_several_kinds_are_left_out_each_time(read, caplog):
    rows = [{"text": "w1", "label": "a", "id": 1}, {"text": "w2", "label": "b", "id": "a2"}]
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            found = read("a.jsonl", "\n".join(map(json.dumps, rows)))
        assert found.column_names == ["text", "label"]
        assert "column 'id' holds a number in row 1, text in row 2; it is left out" in caplog.text


def test_columns_that_are_needed_are_not_left_out(tmp_path, read):
    read("a.jsonl", '{"text": "w1", "label": "0"}\n{"text": "w2", "label": 1}')
    for _ in range(2):
        with pytest.raises(ValueError, match="'label' holds text in row 1, a number in row 2; expected values of one"):
            read_file("test_file", str(tmp_path / "a.jsonl"), FileFormat(), str(tmp_path / "cache"), ["label"])


def test_the_rows_that_are_kept_can_be_read_by_others(tmp_path, read):
    kept = Path(read("a.csv", "text,label\nw1,a\n").cache_files[0]["filename"])
    other = tmp_path / "other"
    other.write_text("")
    assert kept.stat().st_mode == other.stat().st_mode
    assert [path.name for path in kept.parent.iterdir()] == ["rows.arrow"]


def test_files_of_other_kinds_are_named(read):
    with pytest.raises(ValueError, match="expected a file named .csv.*Save the table as CSV"):
        read("a.xlsx", b"PK")
    with pytest.raises(ValueError, match="expected a file named .csv.*Unpack it first"):
        read("a.csv.gz", b"PK")


def test_threads_may_read_one_file(tmp_path, read):
    read("a.csv", "text,label\n" + "w1,a\n" * 2000)
    options = ("train_file", str(tmp_path / "a.csv"), FileFormat(), str(tmp_path / "other cache"))
    with ThreadPoolExecutor(8) as pool:
        assert {rows.num_rows for rows in pool.map(lambda _: read_file(*options), range(16))} == {2000}


def test_parquet_keeps_its_types(tmp_path, read):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    Dataset.from_dict({"text": ["w1"], "label": [1]}, features=features).to_parquet(tmp_path / "[1].parquet")
    assert read("[1].parquet").features == features
    pd.DataFrame({"text": ["w1"], "label": pd.Categorical(["a"])}).to_parquet(tmp_path / "c.parquet")
    assert read("c.parquet")["label"][:] == ["a"]


REFUSED = {
    "bytes": ("a.csv", b"text,label\nw1,a\nsch\xf6n,b\n", {}, r"line 3 is not UTF-8 \(byte 0xf6\).*encoding: cp1252"),
    "given encoding": ("a.csv", b"text,label\nsch\xf6n,b\n", {"encoding": "ascii"}, "line 2 is not ascii"),
    "utf-16 unmarked": ("a.csv", "text,label\nw1,a\n".encode("utf-16-le"), {}, "NUL character; is it UTF-16"),
    "json kinds": ("a.jsonl", '{"label": "a"}\n{"label": 1}', {}, "'label' holds text in row 1, a number in row 2"),
    "json bool": ("a.json", '[{"label": 0}, {"label": true}]', {}, "a number in row 1, true or false in row 2"),
    "json empty": ("a.json", "[{}, {}]", {}, "its objects are empty"),
    "workbook": ("a.csv", b"PK\x03\x04\xd4\x00", {}, "it is no text. If it is a workbook, save the table as CSV"),
    "gzip": ("a.csv", b"\x1f\x8b\x08\x00", {}, "it is no text. Unpack it first"),
    "json twice": ("a.json", '[{"label": 0, "label": 1}]', {}, "'label' is there twice"),
    "json line": ("a.jsonl", '{"label": 0}\n{"label": ', {}, "line 2, column .*an object per line"),
    "json columns": ("a.json", '{"text": ["a"],\n "label": [1]}', {}, "expected a list of objects, or an object per"),
    "json values": ("a.json", "[1, 2]", {}, "row 1 is a number; expected a list of objects"),
    "json deep": ("a.json", "[" * 100_000, {}, "cannot be read as json"),
    "json large": ("a.jsonl", '{"label": 99999999999999999999}', {}, "column 'label'"),
    "parquet": ("a.parquet", b"PAR1 no", {}, "cannot be read as parquet"),
    "no rows": ("a.csv", "text,label\n", {}, "the file has no rows"),
    "no rows in json": ("a.json", "[]", {}, "the file has no rows"),
    "empty": ("a.csv", " \n", {}, "the file is empty"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_refused(read, case):
    name, content, options, message = REFUSED[case]
    with pytest.raises(ValueError, match=rf"train_file='.*{name}': .*{message}"):
        read(name, content, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"csv_delimiter": ", "}, "csv_delimiter=', ': expected one character"),
        ({"csv_delimiter": '"'}, "csv_delimiter='\"': expected one character"),
        ({"csv_quoting": "nonne"}, "csv_quoting='nonne'.*Did you mean 'none'"),
        ({"encoding": "utf9"}, "encoding='utf9': unknown"),
        ({"encoding": "base64"}, "encoding='base64': unknown"),
    ],
)
def test_what_a_file_does_not_say_is_checked(options, message):
    with pytest.raises(ValueError, match=message):
        FileFormat(**options)
