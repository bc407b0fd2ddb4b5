import csv

import pytest

from hf_mixup.cli.train.delimited import read_delimited


def test_cells_are_text_as_written():
    columns = read_delimited("text,label\nw1,007\nw2,1e3\n3,TRUE\nNone,NA\n", ",")
    assert columns == {"text": ["w1", "w2", "3", "None"], "label": ["007", "1e3", "TRUE", "NA"]}


def test_quoted_cells_may_hold_everything():
    text = 'text,label\n"one, two\nthree ""four""",a\nfive,b\n'
    assert read_delimited(text, ",")["text"] == ['one, two\nthree "four"', "five"]


def test_blank_lines_names_and_empty_cells():
    columns = read_delimited("\n,text , label\r\n0,w1,a\r\n\r\n   \r\n1,,b\r\n", ",")
    assert columns == {"text": ["w1", None], "label": ["a", "b"]}


def test_a_cell_may_be_longer_than_the_limit_of_csv_which_stays():
    before = csv.field_size_limit()
    assert len(read_delimited(f"text,label\n{'w' * 200_000},a\n", ",")["text"][0]) == 200_000
    assert csv.field_size_limit() == before


def test_quotation_marks_can_be_text():
    assert read_delimited('text\tlabel\n"w1 said\ta\nw2"\tb\n', "\t", "none")["text"] == ['"w1 said', 'w2"']


def test_backslashes_can_part_quotation_marks_from_text():
    text = 'text,label\n"he said \\"w1\\", C:\\new",a\nw2,b\n'
    assert read_delimited(text, ",", "backslash")["text"] == ['he said "w1", C:\\new', "w2"]


def test_many_quoted_cells_of_several_lines_are_read_in_time():
    text = "text,label\n" + '"one, two\nthree, four",a\n' * 50_000
    assert len(read_delimited(text, ",")["text"]) == 50_000


def test_a_quoted_cell_that_seems_to_hold_rows_can_be_meant():
    text = 'text,label\n"first\nw1,a\nlast",b\nw2,a\nw3,a\n'
    assert read_delimited(text, ",", "minimal")["text"] == ["first\nw1,a\nlast", "w2", "w3"]
    with pytest.raises(ValueError, match="row 1 .*line 3 looks like a row of its own; give csv_quoting: none"):
        read_delimited(text, ",")


def test_a_quoted_cell_of_several_lines_with_delimiters_is_no_doubt():
    text = 'text,label\n"Well, no\nOh, yes\nlast",b\nw2,a\nw3,a\n'
    assert len(read_delimited(text, ",")["text"]) == 3


DOUBTS = {
    "delimiter in a text": ("text,label\nw1,a\nw2, w3,b\n", r"row 2 \(line 3\) has 3 fields, the header has 2"),
    "every row": ("text,label\ngood, bad,a\ngood, bad,b\n", r"row 1 \(line 2\) has 3 fields.*quotation marks"),
    "rows in a cell, scores": ('text,label\n"w1,0.1\nw2,0.2\nw3",0.3\nw4,0.4\nw5,0.5\n', r"row 1 .* line 2 looks"),
    "backslashes": ('text,label\n"he said \\"w1\\", ok",a\n', "give csv_quoting: backslash"),
    "missing cell": ("text,label\nw1,a\nw2\n", r"row 2 \(line 3\) has 1 fields, the header has 2: put a text that"),
    "line break": ("label,text\np,w0\nand n\nn,w1\n", "a text that holds a line break in quotation marks"),
    "lone mark": ('text,label\n"w1 said,a\nw2,b\nw3,a\nw4,b\n', r"line 2: a quotation mark without its match"),
    "two lone marks": ('text,label\n"w1,a\nw2,b\n"w3,a\nw4,b\n', r"line 2: .*csv_quoting: none"),
    "rows in a cell": ('text,label\n"w1,a\nw2,b\nw3",a\nw4,b\nw5,b\n', r"row 1 .* line 3 looks like a row"),
    "two rows in a cell": ('text,label\n"w1,a\nw3",a\nw4,a\nw5,b\n', r"row 1 .* line 2 looks like a row"),
    "other delimiter": ("text;label\nw1;a\n", r"'text;label', has no ',' but ';': give csv_delimiter: ';'"),
    "tabs": ("text\tlabel\nw1\ta\n", r"give csv_delimiter: '\\t'"),
    "column twice": ("text,label,label\nw1,a,b\n", "column 'label' is there twice"),
    "nothing": ("\n\n", "the file is empty"),
}


@pytest.mark.parametrize("case", DOUBTS)
def test_doubts_are_refused(case):
    text, message = DOUBTS[case]
    with pytest.raises(ValueError, match=message):
        read_delimited(text, ",")
