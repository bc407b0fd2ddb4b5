"""CSV and TSV text as columns of cells: each cell as it is written, and what could be meant otherwise refused."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Literal

NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
DELIMITERS = {".csv": ",", ".tsv": "\t"}
QUOTINGS: dict[str, Literal[0, 3]] = {
    "minimal": csv.QUOTE_MINIMAL,
    "backslash": csv.QUOTE_MINIMAL,
    "none": csv.QUOTE_NONE,
}
# A backslash that is not itself after one, before a quotation mark.
ESCAPED_QUOTE = re.compile(r'(?<!\\)((?:\\\\)*)\\"')
# The largest that Python takes on every platform; its default is 131,072 characters.
LONGEST_CELL = 2**31 - 1
BACKSLASH = "give csv_quoting: backslash if a backslash before a quotation mark makes it a part of the text"
UNQUOTED = "give csv_quoting: none if its quotation marks are part of the text"


def read_delimited(text: str, delimiter: str, quoting: str | None = None) -> dict[str, list[str | None]]:
    """The columns of a delimited file whose first line names them.

    Args:
        text (`str`): the whole file. Blank lines are no rows.
        delimiter (`str`): one character.
        quoting (`str`, *optional*): `"minimal"`: a cell may stand in quotation marks, and two of them in it are one;
            `"backslash"`: the same, with a backslash before those that are text; `"none"`: quotation marks are text.
            By default `"minimal"`, and a quoted cell that seems to hold whole rows is refused.

    Returns:
        `dict[str, list[str | None]]`: the cells by column; `None` for an empty one. Columns without a name are left
            out, and blanks around a name.

    Raises:
        ValueError: for rows with more or fewer fields than the header, quotation marks that do not match, a header that
            another delimiter parts, or a column that is there twice.
    """
    records = _records(text, delimiter, quoting)
    first = next(records, None)
    if first is None:
        raise ValueError("the file is empty.")
    header = _header(first.cells, delimiter)
    rows, joined = [], []
    for number, record in enumerate(records, start=1):
        if len(record.cells) != len(header):
            held = repr(delimiter) if len(record.cells) > len(header) else "a line break"
            found = f"row {number} (line {record.line}) has {len(record.cells)} fields, the header has {len(header)}"
            raise ValueError(f"{found}: put a text that holds {held} in quotation marks, or give csv_delimiter.")
        rows.append(record.cells)
        joined += [(number, record.line + offset, line) for offset, line in enumerate(record.lines[:-1])]
    if quoting is None:
        _refuse_joined_rows(rows, joined, delimiter)
    columns = zip(*rows, strict=True) if rows else [()] * len(header)
    return {name: [cell or None for cell in column] for name, column in zip(header, columns, strict=True) if name != ""}


class _Record:
    def __init__(self, cells: list[str], line: int, lines: list[str]) -> None:
        self.cells, self.line, self.lines = cells, line, lines


def _records(text: str, delimiter: str, quoting: str | None) -> Iterator[_Record]:
    """Every record that is not blank, with the number of its first line and its lines."""
    lines: list[str] = []

    def noted() -> Iterator[str]:
        for line in io.StringIO(text, newline=""):
            lines.append(line)
            # Other backslashes are text.
            yield ESCAPED_QUOTE.sub(r'\1""', line) if quoting == "backslash" else line

    reader = csv.reader(noted(), delimiter=delimiter, strict=True, quoting=QUOTINGS[quoting or "minimal"])
    with ExitStack() as after_reading:
        after_reading.callback(csv.field_size_limit, csv.field_size_limit(LONGEST_CELL))
        while True:
            start = reader.line_num + 1
            lines.clear()
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                advice = BACKSLASH if quoting is None and any('\\"' in line for line in lines) else UNQUOTED
                raise ValueError(f"line {start}: a quotation mark without its match ({error}); {advice}.") from error
            if "".join(cells).strip() or len(cells) > 1:
                yield _Record(cells, start, list(lines))


def _header(cells: Sequence[str], delimiter: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    others = [other for other in ",;\t|" if other != delimiter and other in names[0]]
    if len(names) == 1 and others:
        raise ValueError(
            f"its first line, {names[0]!r}, has no {delimiter!r} but {others[0]!r}: give csv_delimiter: {others[0]!r}."
        )
    twice = [name for name, count in Counter(names).items() if name and count > 1]
    if twice:
        raise ValueError(f"column {twice[0]!r} is there twice.")
    return names


def _refuse_joined_rows(rows: Sequence[Sequence[str]], joined: Sequence[tuple[int, int, str]], delimiter: str) -> None:
    """A line inside of a quoted cell that would be a row, with a value as other rows have it: a lone quotation mark."""
    if not joined:
        return
    usual = [_usual(column) for column in zip(*rows, strict=True)]
    for number, line, content in joined:
        cells = next(csv.reader([content.rstrip("\r\n")], delimiter=delimiter, quoting=csv.QUOTE_NONE), [])
        if len(cells) == len(usual) and any(
            is_usual(cell.strip()) for is_usual, cell in zip(usual, cells, strict=True)
        ):
            raise ValueError(
                f"row {number} has a quoted cell of several lines, of which line {line} looks like a row of its own; "
                f"{UNQUOTED}, or csv_quoting: minimal if the cell is right."
            )


def _usual(column: Sequence[str]) -> Callable[[str], bool]:
    """Whether a cell is one that several rows of a column have, or a number in a column of numbers."""
    cells = Counter(cell.strip() for cell in column)
    common = {cell for cell, count in cells.items() if cell and count > 1}
    are_numbers = sum(count for cell, count in cells.items() if NUMBER.fullmatch(cell)) > len(column) / 2
    return lambda cell: cell in common or (are_numbers and NUMBER.fullmatch(cell) is not None)
