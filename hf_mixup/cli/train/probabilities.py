"""A column of class probabilities, of several annotators or of another model: found, checked, and made labels."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, List, Value

from hf_mixup.cli.train.label_task import is_number, quoted
from hf_mixup.cli.train.labels import LabelColumn
from hf_mixup.config.checks import nearest
from hf_mixup.config.unlabeled_config import GIVEN, UnlabeledConfig
from hf_mixup.loss.task import PROBABILITY_TOLERANCE

logger = logging.getLogger(__name__)


def are_probabilities(train: LabelColumn, delimiter: str | None) -> bool:
    """Whether a column holds lists with a decimal number in one of them; lists of whole numbers are classes, or 0/1.

    Raises:
        ValueError: for probabilities that are written in text, as in a CSV file.
    """
    if not _holds_lists(train):
        _refuse_text(train, delimiter)
        return False
    is_float = str(getattr(train.feature, "dtype", "")).startswith("float")
    return is_float and any(
        value is not None and value == value and not value.is_integer() for cell in train.cells for value in cell or ()
    )


def encode_probabilities(
    columns: Mapping[str, LabelColumn], known: Sequence[str] | None
) -> tuple[dict[str, Dataset], list[str]]:
    """The splits with `labels` in place of their label columns: probabilities to train on, elsewhere class indices.

    Args:
        columns (`Mapping[str, LabelColumn]`): by the name of the split. Those beside `"train"` may hold probabilities,
            of which the most probable class is taken (the first of several), or names or numbers of classes.
        known (`Sequence[str]`, *optional*): the classes of the model, in the order of the probabilities.

    Returns:
        `tuple[dict[str, Dataset], list[str]]`: the splits and the class names: those of the model or of a split that
            names them, if there are as many, else `LABEL_0` and so on.

    Raises:
        ValueError: for a row without a label, or with other than as many probabilities that sum to 1 as the first row.
    """
    train = columns["train"]
    train.check([bool(cell) for cell in train.cells], "a label")
    width = len(train.cells[0])
    named = [column.feature.names for column in columns.values() if isinstance(column.feature, ClassLabel)]
    fitting = [names for names in (known, *named) if names is not None and len(names) == width]
    names = list(fitting[0]) if fitting else [f"LABEL_{number}" for number in range(width)]
    encoded = {}
    for name, column in columns.items():
        if name == "train":
            encoded[name] = column.replaced(list(_probabilities(column, width)), List(Value("float32")))
        else:
            is_soft = _holds_lists(column)
            classes = _probabilities(column, width).argmax(1) if is_soft else _classes(column, names)
            encoded[name] = column.replaced(classes, Value("int64"))
    return encoded, names


def given_probabilities(column: LabelColumn, names: Sequence[str]) -> Dataset | None:
    """Unlabelled rows with the class probabilities that they come with for `labels`; `None` if these are none.

    They are in the order of `names`, of which a line says so. What is wrong with them is a warning, because nobody may
    want to learn them.
    """
    if column.label not in column.split.column_names or not _holds_lists(column):
        return None
    are_numbers = str(getattr(column.feature, "dtype", "")).startswith(("float", "int", "uint"))
    if not are_numbers or not any(cell is not None and len(cell) > 1 for cell in column.cells):
        return None
    try:
        rows = _probabilities(column, len(names))
    except ValueError as error:
        logger.warning("%s No probabilities are read of it.", error)
        return None
    logger.warning("unlabeled: the probabilities of a row are those of %s, in this order.", quoted(names, 30))
    return column.replaced(list(rows), List(Value("float32")))


def check_guesses(config: UnlabeledConfig, rows: Dataset | None) -> None:
    """Raise `ValueError` if the guesses are given, and unlabelled rows do not come with class probabilities."""
    if config.guesses == GIVEN and (rows is None or rows.features["labels"] == Value("int64")):
        raise ValueError(
            f"unlabeled.guesses={GIVEN!r}: needs an unlabeled_file (or unlabeled_split_name) whose label column, of "
            "the same name as in the training data, holds a list of probabilities in each row, one for each class."
        )


def most_probable(rows: Dataset) -> np.ndarray:
    """The class of each row, `(rows,)`: its label, or the most probable if that is a list of probabilities."""
    labels = np.asarray(rows["labels"][:])
    return labels.argmax(1) if labels.ndim == 2 else labels


def as_classes(rows: Dataset, problem_type: str) -> Dataset:
    """Encoded rows to measure on: with the most probable class for a label if that is a list of probabilities."""
    if problem_type != "single_label_classification" or rows.features["labels"] == Value("int64"):
        return rows
    return rows.remove_columns("labels").add_column("labels", most_probable(rows), feature=Value("int64"))


def _holds_lists(column: LabelColumn) -> bool:
    return column.feature != column.split.features[column.label]


def _probabilities(column: LabelColumn, width: int) -> np.ndarray:
    """The probabilities of every row, `(rows, width)`, in float32."""
    cells = column.cells
    column.check([bool(cell) for cell in cells], "a label")
    for number, cell in column.numbered(cells):
        fault = _fault(cell, width)
        if fault:
            hint = " (one decimal number in the column makes all of it probabilities)"
            raise column.error(
                f"row {number} of the {column.name} data holds {cell}: {fault}; expected {max(width, 2)} probabilities "
                f"from 0 to 1 that sum to 1, within {PROBABILITY_TOLERANCE:g}{hint if column.name == 'train' else ''}."
            )
    return np.array(cells, dtype=np.float32)


def _fault(cell: Sequence[Any], width: int) -> str:
    """What is wrong with the probabilities of a row; nothing if they are fine."""
    if len(cell) != width or width < 2:
        return f"{len(cell)} value{'s' * (len(cell) != 1)}" + (
            f", and the training data have {width}" if len(cell) != width else ""
        )
    if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in cell):
        return "not all are finite numbers"
    if min(cell) < 0 or max(cell) > 1:
        return "not all are from 0 to 1"
    return "" if abs(sum(cell) - 1) <= PROBABILITY_TOLERANCE else f"their sum is {sum(cell):.6g}"


def _classes(column: LabelColumn, names: Sequence[str]) -> np.ndarray:
    """The class of every row of a split that has names or numbers of classes, `(rows,)`."""
    feature = column.feature
    cells = [cell.strip() if isinstance(cell, str) else cell for cell in column.cells]
    absent = (None, "", -1) if isinstance(feature, ClassLabel) else (None, "")
    column.check([cell not in absent and cell == cell for cell in cells], "a label")
    written = [feature.int2str(cell) if isinstance(feature, ClassLabel) else str(cell) for cell in cells]
    index = {str(number): number for number in range(len(names))}
    index |= {f"{number}.0": number for number in range(len(names))} | {name: at for at, name in enumerate(names)}
    unknown = sorted(set(written) - set(index))
    if unknown:
        raise column.error(
            f"the {column.name} data have labels that are no class of the probabilities: {quoted(unknown)}."
            f"{nearest(unknown[0], names)} Expected {quoted(names, 30)}, or 0 to {len(names) - 1}. A model "
            "whose config names its classes (id2label) brings other names."
        )
    return np.array([index[label] for label in written])


def _refuse_text(column: LabelColumn, delimiter: str | None) -> None:
    """Raise `ValueError` if every cell is text that holds probabilities with one sign or spaces between them."""
    cells = [cell for cell in column.cells if cell]
    if not cells or not all(isinstance(cell, str) for cell in cells):
        return
    for sign in [delimiter] if delimiter else "|;,/ ":
        rows = [[part.strip() for part in cell.split(sign)] for cell in cells]
        if not all(all(map(is_number, row)) and not _fault([*map(float, row)], len(row)) for row in rows):
            continue
        # Of 0 and 1 alone they are one entry per class.
        example = next((row for row in rows if not all(float(part).is_integer() for part in row)), None)
        if example is not None:
            raise column.error(
                f"cells such as {sign.join(example)!r} are class probabilities written as text; give them as lists, "
                f"such as [{', '.join(example)}], in a JSON or Parquet file."
            )
