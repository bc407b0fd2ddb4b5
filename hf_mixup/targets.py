"""What label follows: mixed targets and their losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_mixup.plan.mixup_plan import MixupPlan

# What PyTorch's cross-entropy leaves out.
IGNORED = -100
PROBABILITY_TOLERANCE = 1e-3
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")


def problem_type_of(config: Any, labels: Tensor) -> str:
    """The problem type by transformers' own rules, without writing it into the model's config.

    Args:
        config (`PretrainedConfig`): its `problem_type` decides where set, else `num_labels` and the labels' dtype do.
        labels (`torch.Tensor`): the labels of a batch.
    """
    if config.problem_type is not None:
        return config.problem_type
    if config.num_labels == 1:
        return "regression"
    is_float = labels.dtype.is_floating_point
    return "multi_label_classification" if is_float else "single_label_classification"


def check_labels(labels: Tensor, problem_type: str, num_labels: int, rows: bool = False) -> None:
    """Refuse labels that cannot be trained on. Reads their values, so call it once, before the first step.

    Args:
        labels (`torch.Tensor`): class indices `(batch,)`; class probabilities, multi-hot vectors or scores
            `(batch, num_labels)`; scores `(batch,)`.
        problem_type (`str`): as in a model's config.
        num_labels (`int`): number of classes or scores.
        rows (`bool`, defaults to `False`): whether they are those of a data set, in which -100 is a row without label.

    Raises:
        ValueError: for a wrong shape or dtype, classes outside [0, `num_labels`), values that are not finite,
            probabilities that do not sum to 1, multi-hot values outside [0, 1]; the message names the row, from 1.
    """
    if problem_type not in PROBLEM_TYPES:
        raise ValueError(f"problem_type={problem_type!r}: expected one of {', '.join(PROBLEM_TYPES)}.")
    per_example = labels.numel() // max(labels.shape[0], 1)
    hard = problem_type == "single_label_classification" and not labels.dtype.is_floating_point
    expected = 1 if hard else num_labels
    if per_example != expected:
        raise ValueError(_wrong_shape(labels, problem_type, num_labels, expected))
    if not labels.numel():
        return
    values = labels.reshape(labels.shape[0], -1)
    if hard:
        _check_classes(values.flatten().long(), num_labels, rows)
        return
    check_finite(labels)
    values = values.float()
    if problem_type == "regression":
        return
    _refuse_row(labels, (values >= 0) & (values <= 1), f"{problem_type} takes values in [0, 1]")
    if problem_type == "single_label_classification":
        sums = values.sum(-1, keepdim=True)
        _refuse_row(labels, (sums - 1).abs() <= PROBABILITY_TOLERANCE, "class probabilities must sum to 1")


def check_finite(labels: Tensor) -> None:
    """Refuse labels that are not finite. Raises `ValueError` with the first row, from 1."""
    if labels.numel():
        _refuse_row(labels, labels.reshape(labels.shape[0], -1).float().isfinite(), "not finite")


def _check_classes(classes: Tensor, num_labels: int, rows: bool) -> None:
    wrong = (classes < 0) | (classes >= num_labels)
    if rows:
        wrong &= classes != IGNORED
    if wrong.any():
        advice = "" if rows else " Leave rows without a label, -100, out of the batch."
        raise ValueError(
            f"labels: found {int(classes.min())} to {int(classes.max())}, but the model has num_labels={num_labels}, "
            f"so labels must lie in 0 to {num_labels - 1}; row {int(wrong.nonzero()[0]) + 1} is the first.{advice}"
        )


def _wrong_shape(labels: Tensor, problem_type: str, num_labels: int, expected: int) -> str:
    if problem_type == "single_label_classification" and labels.dtype.is_floating_point and labels.dim() == 1:
        return f"labels: {labels.dtype} of shape {tuple(labels.shape)}; class indices are integers, use labels.long()."
    shape = "(batch,)" if expected == 1 else f"(batch, {expected})"
    advice = ""
    if problem_type == "single_label_classification" and labels.dim() == 2 and labels.shape[1] == num_labels:
        advice = " For several labels an example set problem_type='multi_label_classification' in the model's config."
    found = f"labels: shape {tuple(labels.shape)} for {problem_type} with num_labels={num_labels}"
    return f"{found}; expected {shape}.{advice}"


def _refuse_row(labels: Tensor, fine: Tensor, why: str) -> None:
    bad = (~fine).any(-1).nonzero().flatten()
    if len(bad):
        row = int(bad[0])
        raise ValueError(f"labels: {labels[row].tolist()} in row {row + 1}: {why}.")


def to_targets(labels: Tensor, problem_type: str, num_labels: int) -> Tensor:
    """Labels as float targets that can be interpolated: `(batch,)` or `(batch, k)` in, `(batch, num_labels)` out.

    Class indices become one-hot probabilities; probabilities, multi-hot vectors and scores stay as they are.
    """
    if problem_type == "single_label_classification" and not labels.dtype.is_floating_point:
        return F.one_hot(labels.reshape(-1).long(), num_labels).float()
    return labels.float().reshape(labels.shape[0], -1)


def mix_targets(targets: Tensor, plan: MixupPlan) -> Tensor:
    """lam * y_i + (1 - lam) * y_j (Zhang et al. 2018, eq. 1), lam being the label's: `(batch, k)` in and out."""
    if not plan.active:
        return targets
    plan = plan.to(targets.device)
    lam = plan.lam if plan.label_lam is None else plan.label_lam
    pool = targets if plan.outside is None else torch.cat([targets, plan.outside.targets.to(targets)])
    return torch.lerp(pool[plan.partner], targets, lam.unsqueeze(-1).to(targets.dtype))


def example_losses(
    logits: Tensor,
    targets: Tensor,
    problem_type: str,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The loss of each example against a float target, in float32.

    Args:
        logits (`torch.Tensor` of shape `(batch, num_labels)`): the model's output.
        targets (`torch.Tensor` of shape `(batch, num_labels)`): probabilities, multi-hot labels or scores.
        problem_type (`str`): cross-entropy for `"single_label_classification"`, mean binary cross-entropy for
            `"multi_label_classification"`, mean squared error for `"regression"`.
        class_weights (`torch.Tensor` of shape `(num_labels,)`, *optional*): factors of the cross-entropy terms.
        label_smoothing (`float`, defaults to 0.0): mass of the target spread evenly over the classes.

    Returns:
        `torch.Tensor` of shape `(batch,)`.
    """
    logits = logits.float().reshape(targets.shape)
    if problem_type == "single_label_classification":
        return F.cross_entropy(logits, targets, weight=class_weights, label_smoothing=label_smoothing, reduction="none")
    if problem_type == "multi_label_classification":
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(-1)
    return F.mse_loss(logits, targets, reduction="none").mean(-1)


def mixed_accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """The share of the target's mass on the predicted class, averaged over the batch: a scalar in [0, 1].

    On a clean batch it is the accuracy; on a mixed one it is lam for one label hit, 1 - lam for the other.
    """
    predicted = logits.argmax(-1, keepdim=True)
    return targets.gather(-1, predicted).mean()
