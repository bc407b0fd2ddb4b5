"""Groups of examples, for partners that depend on them: the column as whole numbers, and its checks."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from datasets import Dataset

from hf_mixup.config.checks import nearest


def number_groups(train: Dataset, column: str, text_columns: Sequence[str]) -> Dataset:
    """The training rows with the groups in `column` as whole numbers.

    Raises:
        ValueError: if there is no such column, or it holds the texts or labels, or a row has no group.
    """
    _check_group_column(train, column, ("labels", *text_columns))
    names, numbers = np.unique([str(group) for group in train[column]], return_inverse=True)
    if None in train[column]:
        raise ValueError(f"group={column!r}: row {train[column][:].index(None) + 1} has no group.")
    if len(names) < 2:
        raise ValueError(f"group={column!r}: all rows are of the group {names[0]!r}; it takes two.")
    return train.remove_columns(column).add_column(column, numbers)


def check_groups(train: Dataset, column: str) -> None:
    """Raise `ValueError` if the training rows have no `column`, or one that is not of whole numbers."""
    _check_group_column(train, column)
    dtype = str(getattr(train.features[column], "dtype", "nested"))
    if not dtype.startswith(("int", "uint", "bool")):
        raise ValueError(
            f"group={column!r}: holds {dtype}, expected whole numbers; "
            f"dataset.class_encode_column({column!r}) makes them."
        )


def _check_group_column(train: Dataset, column: str, taken: Collection[str] = ("labels",)) -> None:
    if column in taken:
        raise ValueError(f"group={column!r}: holds the texts or the labels; groups need a column of their own.")
    if column not in train.column_names:
        free = [name for name in train.column_names if name not in taken]
        raise ValueError(
            f"group={column!r}: no such column in the training data.{nearest(column, free)} "
            f"Columns besides texts and labels: {', '.join(free) or 'none'}."
        )
