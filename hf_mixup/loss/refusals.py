"""What is refused of labels and class weights, in words."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def check_class_weights(given: Any, about: Any) -> None:
    """Raise `ValueError` for weights that do not fit the config `about` a model."""
    by_epoch = given if isinstance(given, dict) else {0.0: given}
    if min(by_epoch) > 0:
        raise ValueError(f"class_weights={given}: say from epoch 0 on, such as {{0: null, 10: [1, 1, 4]}}.")
    for weights in by_epoch.values():
        if weights is None:
            continue
        if len(weights) != about.num_labels or about.num_labels == 1:
            raise ValueError(f"class_weights: {len(weights)} weights for num_labels={about.num_labels}.")
        if about.problem_type not in (None, "single_label_classification"):
            raise ValueError(f"class_weights need single_label_classification, not {about.problem_type}.")


def out_of_range(classes: Tensor, num_labels: int, row: int) -> str:
    """The message about class indices outside [0, `num_labels`), first in `row`, from 0."""
    return (
        f"labels: found {int(classes.min())} to {int(classes.max())}, but the model has num_labels={num_labels}, "
        f"so labels must lie in 0 to {num_labels - 1}; row {row + 1} is the first."
    )


def wrong_shape(labels: Tensor, problem_type: str, num_labels: int, expected: int) -> str:
    if problem_type == "single_label_classification" and labels.dtype.is_floating_point and labels.dim() == 1:
        return f"labels: {labels.dtype} of shape {tuple(labels.shape)}; class indices are integers, use labels.long()."
    shape = "(batch,)" if expected == 1 else f"(batch, {expected})"
    advice = ""
    if problem_type == "single_label_classification" and labels.dim() == 2 and labels.shape[1] == num_labels:
        advice = " For several labels an example set problem_type='multi_label_classification' in the model's config."
    found = f"labels: shape {tuple(labels.shape)} for {problem_type} with num_labels={num_labels}"
    return f"{found}; expected {shape}.{advice}"


def refuse_row(labels: Tensor, fine: Tensor, why: str) -> None:
    bad = (~fine).any(-1).nonzero().flatten()
    if len(bad):
        row = int(bad[0])
        raise ValueError(f"labels: {labels[row].tolist()} in row {row + 1}: {why}.")
