"""The labels that a trainer is given: checked in the data sets before the first step, and made what losses take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import FunctionType
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers.utils import logging

from hf_mixup.loss.task import IGNORED, PROBABILITY_TOLERANCE, problem_type_of

logger = logging.get_logger(__name__)

NAMES = ("labels", "label")


def check_label_columns(
    datasets: Mapping[str, Any], check: Callable[[Tensor], Any], collator: Any, are_of_tokens: bool = False
) -> Iterator[tuple[str, Tensor]]:
    """Check the labels of data sets that can be read as a whole, and give those of each.

    Args:
        datasets (`Mapping[str, Any]`): by a name for messages. Read are `datasets.Dataset` without a transform of the
            user's own, and lists of mappings under a collator of transformers, as other collators may change labels.
            What is left out here is checked batch by batch.
        check (`Callable`): raises `ValueError` for labels that cannot be used.
        collator: the data collator.
        are_of_tokens (`bool`, defaults to `False`): whether a row has as many labels as tokens; they are given with
            -100 after the end of a text.

    Raises:
        ValueError: for labels that cannot be trained on or evaluated; the message names the data set and the row.
    """
    for name, dataset in datasets.items():
        labels = _label_column(dataset, collator, are_of_tokens)
        if labels is None:
            continue
        try:
            check(labels)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        yield name, labels


def warn_of_probabilities(labels: Tensor, config: Any) -> None:
    """Say what transformers makes of class probabilities if nobody names the problem: several labels per row."""
    if config.problem_type is not None or not labels.is_floating_point() or labels.dim() != 2 or labels.shape[1] < 2:
        return
    sums_to_one = bool(((labels.sum(1) - 1).abs() <= PROBABILITY_TOLERANCE).all())
    if sums_to_one and bool((labels >= 0).all()) and bool((labels != labels.round()).any()):
        logger.warning(
            "train_dataset: labels: every row sums to 1, and with problem_type=None each entry is a label of its own. "
            "For class probabilities set model.config.problem_type = 'single_label_classification'."
        )


def by_name(dataset: Any, name: str) -> dict[str, Any]:
    """A data set, or several that Trainer takes as a mapping, by names for messages."""
    if isinstance(dataset, Mapping):
        return {f"{name}[{key!r}]": part for key, part in dataset.items()}
    return {} if dataset is None else {name: dataset}


def _label_column(dataset: Any, collator: Any, are_of_tokens: bool) -> Tensor | None:
    if isinstance(dataset, Dataset) and dataset.format["type"] != "custom":
        name = next((name for name in NAMES if name in dataset.column_names), None)
        values = None if name is None else dataset.with_format(None)[name][:]
    elif isinstance(dataset, (list, tuple)) and is_of_transformers(collator):
        are_rows = bool(dataset) and all(isinstance(row, Mapping) for row in dataset)
        name = next((name for name in NAMES if name in dataset[0]), None) if are_rows else None
        values = None if name is None else [row.get(name) for row in dataset]
    else:
        return None
    if values is None or any(value is None or isinstance(value, str) for value in values):
        return None
    try:
        array = _padded(values) if are_of_tokens else np.stack([np.asarray(value) for value in values])
        return torch.from_numpy(array) if array.dtype != object else None
    except (TypeError, ValueError):
        return None


def _padded(values: list[Any]) -> np.ndarray:
    rows = [np.asarray(value, dtype=np.int32) for value in values]
    labels = np.full((len(rows), max(map(len, rows))), IGNORED, dtype=np.int32)
    for row, own in zip(labels, rows, strict=True):
        row[: len(own)] = own
    return labels


def is_of_transformers(collator: Any) -> bool:
    """Whether a collator is one of transformers, which leaves labels as they are."""
    module = collator.__module__ if isinstance(collator, FunctionType) else type(collator).__module__
    return module.startswith("transformers.")


def as_loss_takes_them(labels: Tensor, config: Any) -> Tensor:
    """Labels of booleans and small integers in the type that losses want: int64 for indices, else float32."""
    if labels.dtype.is_floating_point:
        return labels
    single = problem_type_of(config, labels) == "single_label_classification"
    return labels.long() if single else labels.float()


def has_ignored(labels: Tensor, config: Any) -> bool:
    """Whether some rows have no label, -100, as PyTorch's cross-entropy leaves them out."""
    is_hard = not labels.dtype.is_floating_point and problem_type_of(config, labels) == "single_label_classification"
    return is_hard and bool((labels == IGNORED).any())


def without_ignored(inputs: dict[str, Any], groups: Tensor | None) -> tuple[dict[str, Any], Tensor | None]:
    """The rows of a batch, `labels` among them, that have a label."""
    kept = inputs["labels"].reshape(-1) != IGNORED
    rows = {
        name: value[kept] if isinstance(value, Tensor) and value.dim() and value.shape[0] == kept.shape[0] else value
        for name, value in inputs.items()
    }
    return rows, None if groups is None else groups[kept]


def class_counts(labels: Tensor, num_labels: int) -> list[float]:
    """The examples of each class among class indices, or the mass of each among probabilities."""
    if labels.is_floating_point():
        return labels.reshape(len(labels), -1).sum(0).tolist()
    classes = labels.reshape(-1).long()
    return torch.bincount(classes[classes >= 0], minlength=num_labels).float().tolist()
