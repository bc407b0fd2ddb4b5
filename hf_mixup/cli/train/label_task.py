"""What a column of labels means: classes, several classes per row, or scores; and what could be meant otherwise."""

from __future__ import annotations

import logging
import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from decimal import Decimal
from typing import Any

from datasets import Dataset

from hf_mixup.cli.train.delimited import NUMBER
from hf_mixup.config.checks import nearest

logger = logging.getLogger(__name__)

CLASS_DTYPES = ("string", "large_string", "int", "uint", "bool")
# More whole numbers than this in a column of floats are scores.
MOST_WHOLE_CLASSES = 100
WHOLE = re.compile(r"[+-]?\d+", re.ASCII)
PLAIN_WHOLE = re.compile(r"0|-?[1-9]\d*", re.ASCII)
# How pandas writes whole numbers where one is missing.
WHOLE_FLOAT = re.compile(r"([+-]?\d+)\.0", re.ASCII)
DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+", re.ASCII)
# How Python and JSON write lists; a class may be called [POS] or (other).
LIST = re.compile(r"\[\s*\]|\[.*[,'\"\d].*\]|\(.*,.*\)", re.DOTALL)
NOT_FINITE = ("nan", "inf", "+inf", "-inf", "infinity", "+infinity", "-infinity")


def problem_type_of(
    train: Dataset, label: str, do_regression: bool | None, delimiter: str | None, dropped: Collection[int] = ()
) -> str:
    """What kind of labels a column holds, in the words of a transformers config.

    Text that reads as numbers counts as numbers, as a CSV file has nothing else. Whole numbers are classes even in a
    column of floats: pandas writes 1.0 and 0.0 when a label is missing.

    Args:
        train (`Dataset`): the training rows.
        label (`str`): the column.
        do_regression (`bool`, *optional*): what the user says; by default decimal numbers are scores.
        delimiter (`str`, *optional*): what separates several classes in a cell.
        dropped (`Collection[int]`): rows that are no longer there, so that messages count as the file does.

    Raises:
        ValueError: for a column that holds neither classes nor numbers, or numbers beside words.
    """
    feature = train.features[label]
    inner = getattr(feature, "feature", None)
    dtype = str(getattr(inner or feature, "dtype", "nested"))
    is_float = dtype.startswith("float")
    if inner is None and delimiter is None and do_regression is None:
        is_text = dtype in ("string", "large_string")
        cells = train[label][:]
        do_regression = _text_has_scores(cells, label, dropped) if is_text else is_float and _has_scores(cells)
    if inner is None and do_regression:
        return "regression"
    if do_regression or not (is_float or dtype.startswith(CLASS_DTYPES)):
        raise ValueError(
            f"label_column_name={label!r}: {'lists of ' if inner else ''}{dtype} labels with "
            f"do_regression={do_regression}; expected strings or integers, lists of these or of probabilities, or "
            "numbers for regression."
        )
    return "multi_label_classification" if inner or delimiter else "single_label_classification"


def is_number(cell: str) -> bool:
    """Whether text is a number that a float can hold; 5E9000 is a name."""
    return bool(NUMBER.fullmatch(cell)) and math.isfinite(float(cell))


def _has_scores(values: Iterable[float | None]) -> bool:
    distinct = {value for value in values if value is not None and value == value}
    return len(distinct) > MOST_WHOLE_CLASSES or any(not value.is_integer() for value in distinct)


def _text_has_scores(cells: Sequence[str | None], label: str, dropped: Collection[int]) -> bool:
    """Whether the cells of a column are decimal numbers. Raises `ValueError` if words stand beside such numbers."""
    distinct = {cell.strip() for cell in cells if cell} - {""}
    numbers = {cell for cell in distinct if is_number(cell)}
    words = {cell for cell in distinct - numbers if cell.lower() not in NOT_FINITE}
    if not words:
        return bool(numbers) and _has_scores(float(cell) for cell in numbers) and not all(map(WHOLE.fullmatch, numbers))
    if any(not float(cell).is_integer() for cell in numbers):
        rows = zip(file_rows(len(cells), dropped), cells, strict=True)
        row, word = next((row, cell) for row, cell in rows if cell and cell.strip() in words)
        raise ValueError(
            f"label_column_name={label!r}: decimal numbers, but {word!r} in row {row}; correct it, or say "
            "do_regression: false if these are names of classes."
        )
    if all(DECIMAL_COMMA.fullmatch(cell) for cell in words):
        raise ValueError(
            f"label_column_name={label!r}: numbers such as {sorted(words)[0]!r}: write scores with a point, 3.5 for "
            "3,5; if these are several classes give label_delimiter, if each is the name of one do_regression: false."
        )
    return False


def file_rows(count: int, dropped: Collection[int]) -> list[int]:
    """The numbers, counted from 1, that `count` rows have in their file, of which some were dropped."""
    gone = set(dropped)
    return [number for number in range(1, count + len(gone) + 1) if number not in gone]


def task_line(
    label: str, problem_type: str, names: Sequence[str], labels: Sequence[Any], do_regression: bool | None
) -> str:
    """What was made of the label column, in one line."""
    if problem_type == "regression":
        line = f"numbers from {min(labels):g} to {max(labels):g}: regression"
        inferred = "" if do_regression else "; --do_regression false makes them classes"
        return f"label column {label!r}: {'decimal ' if inferred else ''}{line}{inferred}"
    several = ", several per row" if problem_type == "multi_label_classification" else ""
    if not several and isinstance(labels[0], list):
        found = f"probabilities of {len(names)} classes ({some(map(repr, names), 10)})"
        return f"label column {label!r}: {found}, to train on; measured is the most probable class"
    line = f"label column {label!r}: {len(names)} classes{several} ({some(map(repr, names), 10)})"
    could_be_scores = not several and do_regression is None and len(names) > 2 and all(map(WHOLE.fullmatch, names))
    return line + ("; --do_regression true makes them scores" if could_be_scores else "")


def some(items: Iterable[Any], count: int = 5) -> str:
    """The first `count` items, for a message."""
    items = list(items)
    more = f" and {len(items) - count} more" if len(items) > count else ""
    return ", ".join(str(item) for item in items[:count]) + more


def quoted(names: Iterable[str], count: int = 5) -> str:
    """The first `count` class names in quotation marks, for a message."""
    return some(map(repr, names), count)


# ---- Names of classes ----


def doubts_about(label: str, names: Sequence[str], rows: int) -> None:
    """Warn of class names that a person may have meant otherwise; `rows` is how many were labelled with them."""
    for delimiter in "|;,":
        if len(names) > 1 and sum(delimiter in name for name in names) >= 0.8 * len(names):
            logger.warning(
                "label column %r: nearly all class names hold %r (%s); if a cell names several classes, give "
                "--label_delimiter %r.",
                *(label, delimiter, quoted(names, 3), delimiter),
            )
    alike = defaultdict(list)
    for name in names:
        alike[_bare(name)].append(name)
    for group in alike.values():
        if len(group) > 1:
            logger.warning("label column %r: %s are different classes; is that meant?", label, quoted(group))
    if len(names) > max(20, rows / 2):
        logger.warning(
            "label column %r: %d classes in %d rows, so most have no second example; is it the column of the labels?",
            *(label, len(names), rows),
        )


def _bare(name: str) -> Any:
    """What a name is without case, blanks and the way in which a number is written."""
    if is_number(name):
        return float(name)
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def refuse_written_lists(label: str, names: Iterable[str]) -> None:
    """Raise `ValueError` if every name is a list written as text, such as `"[1, 0]"`."""
    names = list(names)
    if names and all(LIST.fullmatch(name) for name in names):
        raise ValueError(
            f"label_column_name={label!r}: cells such as {names[0]!r} are lists written as text; write several classes "
            "as names with a label_delimiter between them, or use a JSON or Parquet file with lists, as for class "
            "probabilities."
        )


def as_plain_numbers(rows: list[list[str]]) -> list[list[str]]:
    """Names such as `1.0` as `1`, if all are whole numbers written as floats; else the names as they are."""
    if not all(WHOLE_FLOAT.fullmatch(name) for row in rows for name in row):
        return rows
    return [[name.removesuffix(".0") for name in row] for row in rows]


def spelled_as(names: Collection[str], rows: list[list[str]]) -> list[list[str]]:
    """Rows in which `1.0` and `1` are spelled as in `names`, if only the other is there."""
    written = {name for row in rows for name in row}
    other = {name: name.removesuffix(".0") if WHOLE_FLOAT.fullmatch(name) else f"{name}.0" for name in written}
    return [[name if name in names or other[name] not in names else other[name] for name in row] for row in rows]


def in_order(names: Iterable[str]) -> list[str]:
    """Names sorted, by value if each is a number as Python writes it, so that 007 is a name and no number."""
    names = sorted(set(names))
    are_numbers = all(PLAIN_WHOLE.fullmatch(name) or (is_number(name) and name == repr(float(name))) for name in names)
    return sorted(names, key=Decimal) if are_numbers else names


def in_model_order(label: str, names: Sequence[str], known: Sequence[str]) -> list[str]:
    """The classes of the model, in its order. Raises `ValueError` if the data have `names` that it lacks."""
    if set(names) <= set(known):
        return list(known)
    numbers = [str(number) for number in range(len(known))]
    is_unnamed = list(known) == [f"LABEL_{number}" for number in numbers]
    if is_unnamed and set(names) <= set(numbers):
        return numbers
    if is_unnamed and len(names) == len(known):
        return list(names)
    outside = [name for name in names if name not in (numbers if is_unnamed else known)]
    raise ValueError(
        f"label_column_name={label!r}: labels outside of the model's {len(known)}: {quoted(outside)}."
        f"{nearest(outside[0], known)} Its labels: {quoted(known, 30)}; ignore_mismatched_sizes gives it a new head."
    )
