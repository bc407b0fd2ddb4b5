"""Labels as users write them become indices, 0/1 per class or scores, after the checks that precede training."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, List, Value

from hf_mixup.checks import nearest

logger = logging.getLogger(__name__)

CLASS_DTYPES = ("string", "large_string", "int", "uint", "bool")
# More whole numbers than this in a column of floats are scores.
MOST_WHOLE_CLASSES = 100


def problem_type_of(train: Dataset, label: str, do_regression: bool | None, delimiter: str | None) -> str:
    """What kind of labels a column holds, in the words of a transformers config.

    Whole numbers are classes even where the column is one of floats: pandas writes 1.0 and 0.0 when a label is missing.

    Raises:
        ValueError: for a column that holds neither classes nor numbers.
    """
    feature = train.features[label]
    inner = getattr(feature, "feature", None)
    dtype = str(getattr(inner or feature, "dtype", "nested"))
    is_float = inner is None and dtype.startswith("float")
    if inner is None and (do_regression or (do_regression is None and is_float and _has_scores(train[label]))):
        return "regression"
    if do_regression or not (is_float or dtype.startswith(CLASS_DTYPES)):
        raise ValueError(
            f"label_column_name={label!r}: {'lists of ' if inner else ''}{dtype} labels with "
            f"do_regression={do_regression}; expected strings or integers, lists of these, or numbers for regression."
        )
    return "multi_label_classification" if inner or delimiter else "single_label_classification"


def task_line(
    label: str, problem_type: str, names: Sequence[str], labels: Sequence[Any], do_regression: bool | None
) -> str:
    """What was made of the label column, in one line."""
    if problem_type == "regression":
        line = f"numbers from {min(labels):g} to {max(labels):g}: regression"
        inferred = "" if do_regression else "; --do_regression false makes them classes"
        return f"label column {label!r}: {'decimal ' if inferred else ''}{line}{inferred}"
    several = ", several a row" if problem_type == "multi_label_classification" else ""
    return f"label column {label!r}: {len(names)} classes{several} ({some(names, 10)})"


def encode_scores(split: Dataset, name: str, label: str, dropped: Collection[int]) -> Dataset:
    """Replace the label column of the split called `name` by float `labels`.

    Raises:
        ValueError: where a label is not a finite number.
    """
    try:
        scores = np.array(split[label], dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"label_column_name={label!r}: {name} labels are not numbers ({error}).") from error
    _check_present(label, name, ~np.isnan(scores), "a label", dropped)
    _check_present(label, name, np.isfinite(scores), "a finite number", dropped)
    return _with_labels(split, label, scores, Value("float32"))


def encode_classes(
    splits: dict[str, Dataset],
    label: str,
    delimiter: str | None,
    multi_label: bool,
    known: Sequence[str] | None,
    dropped: dict[str, list[int]],
) -> tuple[dict[str, Dataset], list[str]]:
    """Replace the label columns by `labels`: class indices, or 0/1 per class.

    Args:
        splits (`dict[str, Dataset]`): classes are those of `"train"`.
        label (`str`): the column.
        delimiter (`str`, *optional*): what separates the class names in one cell.
        multi_label (`bool`): whether a row may have several classes, or none.
        known (`Sequence[str]`, *optional*): the classes of the model, of which the data's must be a part.
        dropped (`dict[str, list[int]]`): rows that are no longer there, so that messages count as the file does.

    Returns:
        `tuple[dict[str, Dataset], list[str]]`: the splits (a test split without any label is left out) and the
        class names in the order of their indices.

    Raises:
        ValueError: for missing labels, and labels that the training data or the model lack.
    """
    cells = {name: _class_names(split, label, delimiter) for name, split in splits.items()}
    # The hub's test splits are often published without labels.
    if "test" in cells and not any(cells["test"]):
        logger.warning("test: no row has a label, so the test data are left out.")
        del cells["test"]
    names = _order(cells["train"], splits["train"].features[label])
    if not multi_label:
        _warn_of_joined_names(label, names)
    if known is not None:
        names = _in_model_order(label, names, known)
    index = {name: number for number, name in enumerate(names)}
    encoded = {}
    for name, rows in cells.items():
        if not multi_label:
            _check_present(label, name, [bool(row) for row in rows], "a label", dropped[name])
        unseen = sorted({item for row in rows for item in row} - set(index))
        if unseen:
            raise ValueError(
                f"label_column_name={label!r}: the {name} data have labels that the training data lack: "
                f"{some(unseen)}.{nearest(unseen[0], names)} Labels: {some(names, 30)}."
                + ("" if multi_label else " If a cell holds several names, give label_delimiter.")
            )
        if multi_label:
            hot = np.zeros((len(rows), len(names)), dtype=np.float32)
            for number, row in enumerate(rows):
                hot[number, [index[item] for item in row]] = 1.0
            encoded[name] = _with_labels(splits[name], label, list(hot), List(Value("float32")))
        else:
            encoded[name] = _with_labels(splits[name], label, [index[row[0]] for row in rows], Value("int64"))
    return encoded, names


def check_two_classes(train: Dataset, label: str, names: Sequence[str]) -> None:
    """Raises `ValueError` unless two classes or more occur in the encoded `train`."""
    labels = np.array(train["labels"])
    seen = np.flatnonzero(labels.any(axis=0)) if labels.ndim == 2 else np.unique(labels)
    if len(seen) < 2:
        only = names[seen[0]] if len(seen) else None
        hint = " (shuffle_train_dataset before max_train_samples?)" if len(names) > 1 else ""
        raise ValueError(
            f"label_column_name={label!r}: the training data have one class only, {only!r}; expected two or more{hint}."
        )


def some(items: Sequence[Any], count: int = 5) -> str:
    """The first `count` items, for a message."""
    more = f" and {len(items) - count} more" if len(items) > count else ""
    return ", ".join(str(item) for item in items[:count]) + more


def _has_scores(values: Iterable[float | None]) -> bool:
    distinct = {value for value in values if value is not None and value == value}
    return len(distinct) > MOST_WHOLE_CLASSES or any(not value.is_integer() for value in distinct)


def _warn_of_joined_names(label: str, names: Sequence[str]) -> None:
    for delimiter in "|;,":
        if len(names) > 1 and sum(delimiter in name for name in names) >= 0.8 * len(names):
            logger.warning(
                "label column %r: nearly all class names hold %r (%s); if a cell names several classes, give "
                "--label_delimiter %r.",
                *(label, delimiter, some(names, 3), delimiter),
            )


def _class_names(split: Dataset, label: str, delimiter: str | None) -> list[list[str]]:
    """The class names of every row: none where the label is missing, several where the cell is a list."""
    feature = split.features[label]
    inner = getattr(feature, "feature", feature)
    is_class = isinstance(inner, ClassLabel)
    absent = (None, "", -1) if is_class else (None, "")

    def names(cell: Any) -> list[str]:
        if isinstance(cell, str) and delimiter:
            return [part.strip() for part in cell.split(delimiter) if part.strip()]
        values = [value for value in (cell if isinstance(cell, list) else [cell]) if value not in absent]
        if is_class:
            return [inner.int2str(value) for value in values]
        return [_plain(value) for value in values if value == value]

    return [names(cell) for cell in split[label]]


def _plain(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _order(rows: Iterable[Sequence[str]], feature: Any) -> list[str]:
    inner = getattr(feature, "feature", feature)
    if isinstance(inner, ClassLabel):
        return list(inner.names)
    is_number = inner.dtype.startswith(("int", "uint", "float"))
    return sorted({item for row in rows for item in row}, key=float if is_number else None)


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
        f"label_column_name={label!r}: labels outside of the model's {len(known)}: {some(outside)}."
        f"{nearest(outside[0], known)} Its labels: {some(known, 30)}; ignore_mismatched_sizes gives it a new head."
    )


def _with_labels(split: Dataset, label: str, labels: Any, feature: Any) -> Dataset:
    unused = {label, "labels"} & set(split.column_names)
    return split.remove_columns(list(unused)).add_column("labels", labels, feature=feature)


def _check_present(
    label: str, name: str, present: Sequence[bool] | np.ndarray, what: str, dropped: Collection[int]
) -> None:
    kept = (number for number in range(1, len(present) + len(dropped) + 1) if number not in dropped)
    missing = [number for number, fine in zip(kept, present, strict=True) if not fine]
    if missing:
        raise ValueError(
            f"label_column_name={label!r}: {len(missing)} {name} rows lack {what}: row {some(missing)}, "
            "counted from 1 without the header."
        )


def number_groups(train: Dataset, column: str) -> Dataset:
    """The training rows with the groups in `column` as whole numbers.

    Raises:
        ValueError: where there is no such column, or a row has no group.
    """
    _check_group_column(train, column)
    names, numbers = np.unique([str(group) for group in train[column]], return_inverse=True)
    if None in train[column]:
        raise ValueError(f"group={column!r}: row {train[column][:].index(None) + 1} has no group.")
    if len(names) < 2:
        raise ValueError(f"group={column!r}: all rows are of the group {names[0]!r}; it takes two.")
    return train.remove_columns(column).add_column(column, numbers)


def check_groups(train: Dataset, column: str) -> None:
    """Raise `ValueError` where the training rows have no `column`, or one that is not of whole numbers."""
    _check_group_column(train, column)
    dtype = str(getattr(train.features[column], "dtype", "nested"))
    if not dtype.startswith(("int", "uint", "bool")):
        raise ValueError(
            f"group={column!r}: holds {dtype}, expected whole numbers; "
            f"dataset.class_encode_column({column!r}) makes them."
        )


def _check_group_column(train: Dataset, column: str) -> None:
    if column not in train.column_names:
        raise ValueError(
            f"group={column!r}: no such column in the training data.{nearest(column, train.column_names)} "
            f"Columns: {', '.join(train.column_names)}."
        )
