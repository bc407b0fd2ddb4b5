"""Labels as users write them become indices, 0/1 per class or scores, after the checks that precede training."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, List, Value

from hf_mixup.cli.train.label_task import (
    NOT_FINITE,
    as_plain_numbers,
    doubts_about,
    file_rows,
    in_model_order,
    in_order,
    is_number,
    quoted,
    refuse_written_lists,
    some,
    spelled_as,
)
from hf_mixup.config.checks import nearest
from hf_mixup.loss.task import IGNORED

logger = logging.getLogger(__name__)

# What a row of 0/1 per class is made of, as numbers or in text.
BITS = ({0, 1}, {"0", "1"})


@dataclass(frozen=True)
class LabelColumn:
    """The label column of one split.

    Args:
        label (`str`): its name.
        name (`str`): the name of the split.
        split (`Dataset`): the rows.
        dropped (`Collection[int]`): rows that are no longer there, so that messages count as the file does.
    """

    label: str
    name: str
    split: Dataset
    dropped: Collection[int] = ()

    def error(self, what: str) -> ValueError:
        """An error that names the field."""
        return ValueError(f"label_column_name={self.label!r}: {what}")

    @property
    def feature(self) -> Any:
        """The type of a label, also if a row has a list of them."""
        feature = self.split.features[self.label]
        return getattr(feature, "feature", feature)

    @property
    def cells(self) -> list[Any]:
        """What is in every row."""
        return self.split[self.label][:]

    def numbered(self, cells: Sequence[Any] | np.ndarray) -> Iterator[tuple[int, Any]]:
        """A value of every row, after the number of the row in the file."""
        return zip(file_rows(len(cells), self.dropped), cells, strict=True)

    def check(self, fine: Sequence[bool] | np.ndarray, what: str) -> None:
        """Raise `ValueError` if a row lacks something."""
        missing = [number for number, is_fine in self.numbered(fine) if not is_fine]
        if missing:
            found = f"{len(missing)} {self.name} rows lack {what}: row {some(missing)}"
            raise self.error(f"{found}, counted from 1 without the header.")

    def replaced(self, labels: Any, feature: Any) -> Dataset:
        """The split with `labels` in place of the column."""
        unused = {self.label, "labels"} & set(self.split.column_names)
        return self.split.remove_columns(list(unused)).add_column("labels", labels, feature=feature)


def is_unlabelled(split: Dataset, label: str, train: Dataset) -> bool:
    """Whether a split has no label at all: no such column, nothing in it, or -1 throughout, which `train` has not.

    The test splits of the hub often are.
    """
    if label not in split.column_names:
        return not nearest(label, split.column_names)
    cells = {str(cell).strip() for cell in split[label][:] if cell is not None and cell != [] and cell == cell} - {""}
    return not cells or (cells <= {"-1", "-1.0"} and not cells & {str(cell).strip() for cell in train[label][:]})


def encode_scores(column: LabelColumn) -> Dataset:
    """The split with float `labels` in place of its label column.

    Raises:
        ValueError: if a label is not a finite number.
    """
    cells = [cell.strip() or None if isinstance(cell, str) else cell for cell in column.cells]
    column.check([cell is not None and cell == cell for cell in cells], "a label")
    words = [isinstance(cell, str) and not is_number(cell) and cell.lower() not in NOT_FINITE for cell in cells]
    if any(words):
        rows = [row for row, is_word in column.numbered(words) if is_word]
        raise column.error(
            f"{column.name} labels are not numbers: {cells[words.index(True)]!r} in row "
            f"{some(rows)}; expected numbers such as 2.5."
        )
    try:
        scores = np.array(cells, dtype=np.float64).astype(np.float32)
    except (TypeError, ValueError) as error:
        raise column.error(f"{column.name} labels are not numbers ({error}).") from error
    column.check(np.isfinite(scores), "a finite number")
    return column.replaced(scores, Value("float32"))


def encode_classes(
    columns: Mapping[str, LabelColumn], delimiter: str | None, multi_label: bool, known: Sequence[str] | None
) -> tuple[dict[str, Dataset], list[str]]:
    """The splits with `labels` in place of their label columns: class indices, or 0/1 per class.

    Args:
        columns (`Mapping[str, LabelColumn]`): by the name of the split; classes are those of `"train"`.
        delimiter (`str`, *optional*): what separates the class names in one cell.
        multi_label (`bool`): whether a row may have several classes, or none.
        known (`Sequence[str]`, *optional*): the classes of the model, of which the data's must be a part.

    Returns:
        `tuple[dict[str, Dataset], list[str]]`: the splits and the class names in the order of their indices.

    Raises:
        ValueError: for missing labels, and labels that the training data or the model lack.
    """
    train = columns["train"]
    _say_what_is_read(train, delimiter)
    cells = {name: _cells(column, delimiter) for name, column in columns.items()}
    names: Sequence[str]
    inner = train.feature
    if isinstance(inner, ClassLabel):
        rows, names = {name: [[inner.int2str(n) for n in row] for row in cells[name]] for name in cells}, inner.names
    else:
        for column in columns.values():
            _refuse_gaps(column)
        if multi_label and _are_vectors(train, cells["train"]):
            rows, names = _named_by_place(columns, cells, known)
        else:
            rows, names = _named(cells)
            if not multi_label:
                refuse_written_lists(train.label, names)
                doubts_about(train.label, names, len(rows["train"]))
    if known is not None:
        names = in_model_order(train.label, names, known)
    return {name: _encode(columns[name], rows[name], names, multi_label) for name in columns}, list(names)


def hidden_labels(column: LabelColumn, names: Sequence[str]) -> Dataset:
    """Unlabelled rows with `labels`: the class if a cell names one, else -100. They may have no such column."""
    inner, index = column.split.features.get(column.label), {item: number for number, item in enumerate(names)}
    cells = [[]] * column.split.num_rows if inner is None else _cells(column, None)
    rows = [[inner.int2str(n) if isinstance(inner, ClassLabel) else plain(n) for n in row] for row in cells]
    classes = [index.get(row[0], IGNORED) if len(row) == 1 else IGNORED for row in spelled_as(names, rows)]
    return column.replaced(classes, Value("int64"))


def _named(cells: dict[str, list[list[Any]]]) -> tuple[dict[str, list[list[str]]], list[str]]:
    """The class names in every row, and all those of the training data in their order."""
    named = {name: [[plain(value) for value in row] for row in rows] for name, rows in cells.items()}
    named["train"] = as_plain_numbers(named["train"])
    names = in_order(item for row in named["train"] for item in row)
    known = set(names)
    return {name: rows if name == "train" else spelled_as(known, rows) for name, rows in named.items()}, names


def _named_by_place(
    columns: Mapping[str, LabelColumn], cells: dict[str, list[list[Any]]], known: Sequence[str] | None
) -> tuple[dict[str, list[list[str]]], list[str]]:
    """The same of rows of 0/1 per class, which have the names of the model's classes if there are as many."""
    label, width = columns["train"].label, len(cells["train"][0])
    logger.warning("label column %r: every row holds 0 and 1 alone, so they are read as one per class.", label)
    names = list(known) if known is not None and len(known) == width else [str(number) for number in range(width)]
    return {name: _from_vectors(columns[name], rows, names) for name, rows in cells.items()}, names


def _encode(column: LabelColumn, rows: list[list[str]], names: Sequence[str], multi_label: bool) -> Dataset:
    index = {item: number for number, item in enumerate(names)}
    if not multi_label:
        column.check([bool(row) for row in rows], "a label")
    hint = "" if multi_label else " If a cell holds several names, give label_delimiter."
    refuse_unseen(column, {item for row in rows for item in row}, names, hint)
    if not multi_label:
        return column.replaced([index[row[0]] for row in rows], Value("int64"))
    hot = np.zeros((len(rows), len(names)), dtype=np.float32)
    for number, row in enumerate(rows):
        hot[number, [index[item] for item in row]] = 1.0
    return column.replaced(list(hot), List(Value("float32")))


def refuse_unseen(column: LabelColumn, labels: Collection[str], names: Sequence[str], hint: str = "") -> None:
    """Raise `ValueError` if a split has `labels` beside the `names` of the training data; `hint` ends the message."""
    unseen = sorted(set(labels) - set(names))
    if unseen:
        raise column.error(
            f"the {column.name} data have labels that the training data lack: "
            f"{quoted(unseen)}.{nearest(unseen[0], names)} Labels: {quoted(names, 30)}.{hint}"
        )


def check_two_classes(train: Dataset, label: str, names: Sequence[str]) -> None:
    """Raises `ValueError` unless two classes or more occur in the encoded `train`."""
    labels = np.array(train["labels"][:])
    refuse_one_class(np.flatnonzero(labels.any(axis=0)) if labels.ndim == 2 else np.unique(labels), label, names)


def refuse_one_class(seen: Sequence[int] | np.ndarray, label: str, names: Sequence[str]) -> None:
    """Raises `ValueError` unless two classes or more were `seen` in the training rows."""
    if len(seen) < 2:
        only = names[seen[0]] if len(seen) else None
        hint = " (shuffle_train_dataset before max_train_samples?)" if len(names) > 1 else ""
        raise ValueError(
            f"label_column_name={label!r}: the training data have one class only, {only!r}; expected two or more{hint}."
        )


# ---- Cells ----


def _cells(column: LabelColumn, delimiter: str | None) -> list[list[Any]]:
    """What is in every row: nothing if the label is missing, several values if the cell is a list."""
    absent = (None, "", -1) if isinstance(column.feature, ClassLabel) else (None, "")
    cells = column.cells
    if delimiter:
        refuse_written_lists(column.label, [cell for cell in cells if isinstance(cell, str)])

    def values(cell: Any) -> list[Any]:
        if isinstance(cell, str) and delimiter:
            return [part.strip() for part in cell.split(delimiter) if part.strip()]
        found = [value.strip() if isinstance(value, str) else value for value in _as_list(cell)]
        return [value for value in found if value not in absent and value == value]

    return [values(cell) for cell in cells]


def _say_what_is_read(column: LabelColumn, delimiter: str | None) -> None:
    """Warn of training labels that are read in another way than they are written, or than was asked for."""
    cells = column.cells
    if delimiter and not any(isinstance(cell, str) and delimiter in cell for cell in cells):
        logger.warning("label_delimiter=%r: no cell holds it, so no row has two classes.", delimiter)
    padded = sum(isinstance(value, str) and value != value.strip() for cell in cells for value in _as_list(cell))
    if padded and not delimiter:
        logger.warning("label column %r: the blanks around %d labels are left out.", column.label, padded)


def _refuse_gaps(column: LabelColumn) -> None:
    """Raise `ValueError` for a list in which an entry is missing: the others would move to its place."""
    for number, cell in column.numbered(column.cells):
        if isinstance(cell, list) and any(value is None or value != value for value in cell):
            raise column.error(f"row {number} of the {column.name} data holds {cell}; no value may be missing.")


def _as_list(cell: Any) -> list[Any]:
    return cell if isinstance(cell, list) else [cell]


def plain(value: Any) -> str:
    """The name of a label, without the `.0` of a whole number."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _are_vectors(column: LabelColumn, rows: list[list[Any]]) -> bool:
    """Whether rows are 0/1 per class, not names. Raises `ValueError` for numbers that could be neither."""
    values = {value for row in rows for value in row}
    lengths = {len(row) for row in rows}
    are_bits = bool(values) and any(values <= bits for bits in BITS)
    if are_bits and len(lengths) == 1 and lengths.pop() > 1:
        return True
    are_booleans = any(isinstance(value, bool) for value in values)
    fractions = any(isinstance(value, float) and not value.is_integer() for value in values)
    for number, row in column.numbered(rows):
        if are_booleans or fractions or (are_bits and len(set(row)) < len(row)):
            raise column.error(
                f"row {number} holds {row}; lists of 0 and 1, one per class, must all "
                "have the same length of two or more, and lists of classes name each once, by words or whole numbers."
            )
    return False


def _from_vectors(column: LabelColumn, rows: list[list[Any]], names: Sequence[str]) -> list[list[str]]:
    for number, row in column.numbered(rows):
        if len(row) != len(names) or not any(set(row) <= bits for bits in BITS):
            raise column.error(
                f"row {number} of the {column.name} data holds {row}; expected {len(names)} values of "
                "0 or 1, as in the training data."
            )
    return [[item for item, bit in zip(names, row, strict=True) if int(bit)] for row in rows]
