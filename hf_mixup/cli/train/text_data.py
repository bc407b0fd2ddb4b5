"""The data of `task: texts`: a text or a pair per row, with classes or a score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset

from hf_mixup.cli.train.label_task import problem_type_of, task_line
from hf_mixup.cli.train.labels import LabelColumn, check_two_classes, encode_classes, encode_scores
from hf_mixup.cli.train.probabilities import are_probabilities, encode_probabilities
from hf_mixup.cli.train.run_fields import DataArguments

# The field that names the columns, what they hold, and what a row without it is called.
FIELD, INPUT, LACKING = "text_column_names", "a text", "with a missing or empty text"
# What is taken if no column is named, the first that is there.
TEXT_COLUMNS = (["text"], ["sentence"], ["sentence1", "sentence2"])
LABEL_COLUMNS = ("label", "labels")


def input_columns(present: Sequence[str], data_args: DataArguments) -> list[str]:
    """The columns of the texts among those that are `present`: those named, or the usual ones."""
    texts = [name.strip() for name in (data_args.text_column_names or "").split(",") if name.strip()]
    if len(texts) > 2:
        raise ValueError(f"text_column_names={data_args.text_column_names!r}: expected one column, or two for pairs.")
    return texts or next((guess for guess in TEXT_COLUMNS if set(guess) <= set(present)), ["text"])


def usual_columns(data_args: DataArguments) -> list[str]:
    """The columns that may hold the texts of a file, which must not be left out."""
    named = [name.strip() for name in (data_args.text_column_names or "").split(",")]
    return named if data_args.text_column_names else [name for guess in TEXT_COLUMNS for name in guess]


def check_types(split: Dataset, name: str, texts: Sequence[str], label: str | None = None) -> None:
    """Raise `ValueError` if a column of texts holds something else."""
    for column in texts:
        kind = getattr(split.features[column], "dtype", "list")
        # A column of empty cells is read as null, or as float64.
        if kind not in ("string", "large_string") and any(value is not None for value in split[column]):
            raise ValueError(f"text_column_names={column!r}: the {name} data hold {kind} there, expected text.")


def has_input(text: str | None) -> bool:
    """Whether a cell has a text."""
    return bool(text and text.strip())


def encode_labels(
    columns: Mapping[str, LabelColumn], texts: Sequence[str], data_args: DataArguments, known: Sequence[str] | None
) -> tuple[str, dict[str, Dataset], list[str]]:
    """The problem type, the splits with `labels` in place of their label columns, and the class names.

    Args:
        columns (`Mapping[str, LabelColumn]`): by the name of the split.
        texts (`Sequence[str]`): the columns of the texts.
        data_args (`DataArguments`): what the user says of the labels.
        known (`Sequence[str]`, *optional*): the classes of the model, of which the data's must be a part.

    Raises:
        ValueError: for labels that are missing or mean nothing, or that the training data or the model lack.
    """
    train, delimiter = columns["train"], data_args.label_delimiter
    kind = problem_type_of(train.split, train.label, data_args.do_regression, delimiter, train.dropped)
    if kind == "regression":
        return kind, {name: encode_scores(column) for name, column in columns.items()}, []
    if are_probabilities(train, delimiter):
        return ("single_label_classification", *encode_probabilities(columns, known))
    return (kind, *encode_classes(columns, delimiter, kind == "multi_label_classification", known))


def labels_line(
    label: str, problem_type: str, names: Sequence[str], labels: Sequence[Any], data_args: DataArguments
) -> str:
    """What was made of the label column, in one line."""
    return task_line(label, problem_type, names, labels, data_args.do_regression)


def check_classes(train: Dataset, label: str, names: Sequence[str]) -> None:
    """Raises `ValueError` if the encoded `train` has classes, but fewer than two."""
    if names:
        check_two_classes(train, label, names)
