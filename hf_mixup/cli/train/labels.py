"""Labels as users write them become indices, 0/1 per class or scores, after the checks that precede training."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, List, Value

from hf_mixup.cli.train.label_task import (
    NOT_FINITE,
    as_plain_numbers,
    doubts_about,
    file_rows,
    in_order,
    is_number,
    quoted,
    refuse_written_lists,
    some,
    spelled_as,
)
from hf_mixup.config.checks import nearest

logger = logging.getLogger(__name__)

# What a row of 0/1 per class is made of, as numbers or in text.
BITS = ({0, 1}, {"0", "1"})


def is_unlabelled(split: Dataset, label: str, train: Dataset) -> bool:
    """Whether a split has no label at all: no such column, nothing in it, or -1 throughout, which `train` has not.

    The test splits of the hub often are.
    """
    if label not in split.column_names:
        return not nearest(label, split.column_names)
    cells = {str(cell).strip() for cell in split[label][:] if cell is not None and cell != [] and cell == cell} - {""}
    return not cells or (cells <= {"-1", "-1.0"} and not cells & {str(cell).strip() for cell in train[label][:]})


def encode_scores(split: Dataset, name: str, label: str, dropped: Collection[int]) -> Dataset:
    """Replace the label column of the split called `name` by float `labels`.

    Raises:
        ValueError: if a label is not a finite number.
    """
    cells = [cell.strip() or None if isinstance(cell, str) else cell for cell in split[label][:]]
    _check_present(label, name, [cell is not None and cell == cell for cell in cells], "a label", dropped)
    words = [isinstance(cell, str) and not is_number(cell) and cell.lower() not in NOT_FINITE for cell in cells]
    if any(words):
        rows = [row for row, is_word in zip(file_rows(len(cells), dropped), words, strict=True) if is_word]
        raise ValueError(
            f"label_column_name={label!r}: {name} labels are not numbers: {cells[words.index(True)]!r} in row "
            f"{some(rows)}; expected numbers such as 2.5."
        )
    try:
        scores = np.array(cells, dtype=np.float64).astype(np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"label_column_name={label!r}: {name} labels are not numbers ({error}).") from error
    _check_present(label, name, np.isfinite(scores), "a finite number", dropped)
    return _with_labels(split, label, scores, Value("float32"))


def encode_classes(
    splits: Mapping[str, Dataset],
    label: str,
    delimiter: str | None,
    multi_label: bool,
    known: Sequence[str] | None,
    dropped: Mapping[str, list[int]],
) -> tuple[dict[str, Dataset], list[str]]:
    """Replace the label columns by `labels`: class indices, or 0/1 per class.

    Args:
        splits (`Mapping[str, Dataset]`): classes are those of `"train"`.
        label (`str`): the column.
        delimiter (`str`, *optional*): what separates the class names in one cell.
        multi_label (`bool`): whether a row may have several classes, or none.
        known (`Sequence[str]`, *optional*): the classes of the model, of which the data's must be a part.
        dropped (`Mapping[str, list[int]]`): rows that are no longer there, so that messages count as the file does.

    Returns:
        `tuple[dict[str, Dataset], list[str]]`: the splits and the class names in the order of their indices.

    Raises:
        ValueError: for missing labels, and labels that the training data or the model lack.
    """
    cells, names = _named_cells(splits, label, delimiter, multi_label, known, dropped)
    if known is not None:
        names = _in_model_order(label, names, known)
    encoded = {
        name: _encode(splits[name], name, label, rows, names, multi_label, dropped[name])
        for name, rows in cells.items()
    }
    return encoded, list(names)


def _named_cells(
    splits: Mapping[str, Dataset],
    label: str,
    delimiter: str | None,
    multi_label: bool,
    known: Sequence[str] | None,
    dropped: Mapping[str, list[int]],
) -> tuple[dict[str, list[list[str]]], Sequence[str]]:
    """The class names in every row, and all those of the training data in their order."""
    _say_what_is_read(splits["train"][label][:], label, delimiter)
    cells = {name: _cells(split, label, delimiter) for name, split in splits.items()}
    inner = getattr(splits["train"].features[label], "feature", splits["train"].features[label])
    if isinstance(inner, ClassLabel):
        return {name: [[inner.int2str(n) for n in row] for row in rows] for name, rows in cells.items()}, inner.names
    for name, split in splits.items():
        _refuse_gaps(label, name, split[label][:], dropped[name])
    if multi_label and _are_vectors(label, cells["train"], dropped["train"]):
        logger.warning("label column %r: every row holds 0 and 1 alone, so they are read as one per class.", label)
        width = len(cells["train"][0])
        names = list(known) if known is not None and len(known) == width else [str(number) for number in range(width)]
        return {name: _from_vectors(label, name, rows, names, dropped[name]) for name, rows in cells.items()}, names
    named = {name: [[_plain(value) for value in row] for row in rows] for name, rows in cells.items()}
    named["train"] = as_plain_numbers(named["train"])
    names = in_order(item for row in named["train"] for item in row)
    known_names = set(names)
    named = {name: rows if name == "train" else spelled_as(known_names, rows) for name, rows in named.items()}
    if not multi_label:
        refuse_written_lists(label, names)
        doubts_about(label, names, len(named["train"]))
    return named, names


def _encode(
    split: Dataset,
    name: str,
    label: str,
    rows: list[list[str]],
    names: Sequence[str],
    multi_label: bool,
    dropped: Collection[int],
) -> Dataset:
    index = {item: number for number, item in enumerate(names)}
    if not multi_label:
        _check_present(label, name, [bool(row) for row in rows], "a label", dropped)
    unseen = sorted({item for row in rows for item in row} - set(index))
    if unseen:
        raise ValueError(
            f"label_column_name={label!r}: the {name} data have labels that the training data lack: "
            f"{quoted(unseen)}.{nearest(unseen[0], names)} Labels: {quoted(names, 30)}."
            + ("" if multi_label else " If a cell holds several names, give label_delimiter.")
        )
    if not multi_label:
        return _with_labels(split, label, [index[row[0]] for row in rows], Value("int64"))
    hot = np.zeros((len(rows), len(names)), dtype=np.float32)
    for number, row in enumerate(rows):
        hot[number, [index[item] for item in row]] = 1.0
    return _with_labels(split, label, list(hot), List(Value("float32")))


def check_two_classes(train: Dataset, label: str, names: Sequence[str]) -> None:
    """Raises `ValueError` unless two classes or more occur in the encoded `train`."""
    labels = np.array(train["labels"][:])
    seen = np.flatnonzero(labels.any(axis=0)) if labels.ndim == 2 else np.unique(labels)
    if len(seen) < 2:
        only = names[seen[0]] if len(seen) else None
        hint = " (shuffle_train_dataset before max_train_samples?)" if len(names) > 1 else ""
        raise ValueError(
            f"label_column_name={label!r}: the training data have one class only, {only!r}; expected two or more{hint}."
        )


# ---- Cells ----


def _cells(split: Dataset, label: str, delimiter: str | None) -> list[list[Any]]:
    """What is in every row: nothing if the label is missing, several values if the cell is a list."""
    feature = split.features[label]
    absent = (None, "", -1) if isinstance(getattr(feature, "feature", feature), ClassLabel) else (None, "")
    cells = split[label][:]
    if delimiter:
        refuse_written_lists(label, [cell for cell in cells if isinstance(cell, str)])

    def values(cell: Any) -> list[Any]:
        if isinstance(cell, str) and delimiter:
            return [part.strip() for part in cell.split(delimiter) if part.strip()]
        found = [value.strip() if isinstance(value, str) else value for value in _as_list(cell)]
        return [value for value in found if value not in absent and value == value]

    return [values(cell) for cell in cells]


def _say_what_is_read(cells: Sequence[Any], label: str, delimiter: str | None) -> None:
    """Warn of training labels that are read in another way than they are written, or than was asked for."""
    if delimiter and not any(isinstance(cell, str) and delimiter in cell for cell in cells):
        logger.warning("label_delimiter=%r: no cell holds it, so no row has two classes.", delimiter)
    padded = sum(isinstance(value, str) and value != value.strip() for cell in cells for value in _as_list(cell))
    if padded and not delimiter:
        logger.warning("label column %r: the blanks around %d labels are left out.", label, padded)


def _refuse_gaps(label: str, name: str, cells: Sequence[Any], dropped: Collection[int]) -> None:
    """Raise `ValueError` for a list in which an entry is missing: the others would move to its place."""
    for number, cell in zip(file_rows(len(cells), dropped), cells, strict=True):
        if isinstance(cell, list) and any(value is None or value != value for value in cell):
            raise ValueError(
                f"label_column_name={label!r}: row {number} of the {name} data holds {cell}; no value may be missing."
            )


def _as_list(cell: Any) -> list[Any]:
    return cell if isinstance(cell, list) else [cell]


def _plain(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _are_vectors(label: str, rows: list[list[Any]], dropped: Collection[int]) -> bool:
    """Whether rows are 0/1 per class, not names. Raises `ValueError` for numbers that could be neither."""
    values = {value for row in rows for value in row}
    lengths = {len(row) for row in rows}
    are_bits = bool(values) and any(values <= bits for bits in BITS)
    if are_bits and len(lengths) == 1 and lengths.pop() > 1:
        return True
    are_booleans = any(isinstance(value, bool) for value in values)
    fractions = any(isinstance(value, float) and not value.is_integer() for value in values)
    for number, row in zip(file_rows(len(rows), dropped), rows, strict=True):
        if are_booleans or fractions or (are_bits and len(set(row)) < len(row)):
            raise ValueError(
                f"label_column_name={label!r}: row {number} holds {row}; lists of 0 and 1, one per class, must all "
                "have the same length of two or more, and lists of classes name each once, by words or whole numbers."
            )
    return False


def _from_vectors(
    label: str, name: str, rows: list[list[Any]], names: Sequence[str], dropped: Collection[int]
) -> list[list[str]]:
    for number, row in zip(file_rows(len(rows), dropped), rows, strict=True):
        if len(row) != len(names) or not any(set(row) <= bits for bits in BITS):
            raise ValueError(
                f"label_column_name={label!r}: row {number} of the {name} data holds {row}; expected {len(names)} "
                "values of 0 or 1, as in the training data."
            )
    return [[item for item, bit in zip(names, row, strict=True) if int(bit)] for row in rows]


def _in_model_order(label: str, names: Sequence[str], known: Sequence[str]) -> list[str]:
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


def _with_labels(split: Dataset, label: str, labels: Any, feature: Any) -> Dataset:
    unused = {label, "labels"} & set(split.column_names)
    return split.remove_columns(list(unused)).add_column("labels", labels, feature=feature)


def _check_present(
    label: str, name: str, present: Sequence[bool] | np.ndarray, what: str, dropped: Collection[int]
) -> None:
    rows = file_rows(len(present), dropped)
    missing = [number for number, fine in zip(rows, present, strict=True) if not fine]
    if missing:
        raise ValueError(
            f"label_column_name={label!r}: {len(missing)} {name} rows lack {what}: row {some(missing)}, "
            "counted from 1 without the header."
        )
