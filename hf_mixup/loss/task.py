"""What label follows: targets, mixed as a plan says, and the losses against them. Knows no model.

The loss of a step is a sum of terms, one for each forward pass. Labels of tokens are another task, in `token_task`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_mixup.config.mixup_config import MixupConfig
from hf_mixup.loss.refusals import check_class_weights, out_of_range, refuse_row, wrong_shape
from hf_mixup.plan.lambdas import at_epoch, numbers_on
from hf_mixup.plan.mixup_plan import MixupPlan
from hf_mixup.plan.partners import PARTNERS
from hf_mixup.plan.strength import surplus_of

# What PyTorch's cross-entropy leaves out.
IGNORED = -100
PROBABILITY_TOLERANCE = 1e-3


def problem_type_of(config: Any, labels: Tensor) -> str:
    """The problem type by transformers' own rules, without writing it into the model's config.

    Args:
        config (`PretrainedConfig`): its `problem_type` decides, else `num_labels` and the labels' dtype do.
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
        raise ValueError(wrong_shape(labels, problem_type, num_labels, expected))
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
    refuse_row(labels, (values >= 0) & (values <= 1), f"{problem_type} takes values in [0, 1]")
    if problem_type == "single_label_classification":
        sums = values.sum(-1, keepdim=True)
        refuse_row(labels, (sums - 1).abs() <= PROBABILITY_TOLERANCE, "class probabilities must sum to 1")


def check_finite(labels: Tensor) -> None:
    """Refuse labels that are not finite. Raises `ValueError` with the first row, from 1."""
    if labels.numel():
        refuse_row(labels, labels.reshape(labels.shape[0], -1).float().isfinite(), "not finite")


def _check_classes(classes: Tensor, num_labels: int, rows: bool) -> None:
    wrong = (classes < 0) | (classes >= num_labels)
    if rows:
        wrong &= classes != IGNORED
    if wrong.any():
        advice = "" if rows else " Leave rows without a label, -100, out of the batch."
        raise ValueError(out_of_range(classes, num_labels, int(wrong.nonzero()[0])) + advice)


def to_targets(labels: Tensor, problem_type: str, num_labels: int) -> Tensor:
    """Labels as float targets that can be interpolated: `(batch,)` or `(batch, k)` in, `(batch, num_labels)` out.

    Class indices become one-hot probabilities; probabilities, multi-hot vectors and scores stay as they are.
    """
    if problem_type == "single_label_classification" and not labels.dtype.is_floating_point:
        return F.one_hot(labels.reshape(-1).long(), num_labels).float()
    return labels.float().reshape(labels.shape[0], -1)


def check_size(labels: Tensor, plan: MixupPlan | None) -> None:
    """Raise `ValueError` for labels of another number than the plan's examples."""
    if plan is not None and labels.shape[:1] != plan.lam.shape:
        raise ValueError(f"labels: shape {tuple(labels.shape)} for a plan of {plan.lam.shape[0]} examples.")


def cross_entropy(logits: Tensor, targets: Tensor, class_weights: Tensor | None, label_smoothing: float) -> Tensor:
    """Cross-entropy with class probabilities, with a factor for each class: `(batch,)`."""
    return F.cross_entropy(logits, targets, weight=class_weights, label_smoothing=label_smoothing, reduction="none")


def binary_cross_entropy(logits: Tensor, targets: Tensor, *_: Any) -> Tensor:
    """The mean binary cross-entropy over the labels of an example: `(batch,)`."""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(-1)


def squared_error(logits: Tensor, targets: Tensor, *_: Any) -> Tensor:
    """The mean squared error over the scores of an example: `(batch,)`."""
    return F.mse_loss(logits, targets, reduction="none").mean(-1)


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor | None, float], Tensor]] = {
    "regression": squared_error,
    "single_label_classification": cross_entropy,
    "multi_label_classification": binary_cross_entropy,
}
PROBLEM_TYPES = tuple(LOSSES)
REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": torch.mean,
    "sum": torch.sum,
    "none": lambda losses: losses,
}


def mixed_accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """The share of the target's mass on the predicted class, averaged over the batch: a scalar in [0, 1].

    On a clean batch it is the accuracy; on a mixed one it is lam for one label hit, 1 - lam for the other.
    """
    predicted = logits.argmax(-1, keepdim=True)
    return targets.gather(-1, predicted).mean()


@dataclass(frozen=True)
class Term:
    """One term of the loss of a step.

    Args:
        weight (`float`): its share of the loss.
        logits, targets (`torch.Tensor` of shape `(batch, num_labels)`): of one forward pass, and what it should give.
    """

    weight: float
    logits: Tensor
    targets: Tensor


class Task:
    """What one model is trained on: the targets, losses and accuracy of its labels, by transformers' rules.

    Args:
        about (`PretrainedConfig`): the config of the model, `num_labels` and `problem_type`; only read.
        config (`MixupConfig`): the class weights and counts.

    Raises:
        ValueError: for class weights or counts, partners or a label rule that do not fit the model.
    """

    def __init__(self, about: Any, config: MixupConfig) -> None:
        self.about, self.config = about, config
        self._checked_labels = False
        # How far training is, for class weights that change with it; whoever knows says it.
        self.epoch: float | None = None
        counts = config.class_counts
        self._check_problem_type(about.problem_type or ("regression" if about.num_labels == 1 else None))
        if counts is not None and len(counts) != about.num_labels:
            raise ValueError(f"class_counts: {len(counts)} counts for num_labels={about.num_labels}.")
        check_class_weights(config.class_weights, about)

    def problem_type(self, labels: Tensor | None) -> str:
        """The problem type of the model, from its config or by transformers' rules from the labels."""
        if labels is None:
            raise ValueError("labels: none in this training batch; mixup needs the labels to mix.")
        if not isinstance(labels, Tensor):
            raise ValueError(f"labels: expected a tensor, got {type(labels).__name__}.")
        return problem_type_of(self.about, labels)

    def check_column(self, labels: Tensor) -> None:
        """Raise `ValueError` for the labels of a data set that cannot be used; -100 is a row without label."""
        check_labels(labels, problem_type_of(self.about, labels), self.about.num_labels, rows=True)

    def targets(self, labels: Tensor, plan: MixupPlan | None = None, device: torch.device | None = None) -> Tensor:
        """The mixed targets: `(batch, num_labels)`, float32.

        Raises:
            ValueError: for labels that are missing, of another number than the plan's examples, or out of range.
        """
        num_labels, problem_type = self.about.num_labels, self.problem_type(labels)
        plan = None if plan is None else plan.of_examples
        check_size(labels, plan)
        # On an accelerator reading the values means waiting for it, so it is done once.
        if labels.device.type == "cpu" or not self._checked_labels:
            check_labels(labels, problem_type, num_labels)
            self._checked_labels = True
        clean = to_targets(labels if device is None else labels.to(device), problem_type, num_labels)
        if plan is None:
            return clean
        return plan.mix(clean, None if plan.outside is None else plan.outside.targets)

    def targets_to_draw(self, labels: Tensor | None, size: int, are_needed: bool) -> Tensor | None:
        """The targets of the `size` labels that a plan depends on, not mixed; `None` if it depends on none.

        Raises:
            ValueError: for labels that are needed and missing, of another number, or that do not fit the config.
        """
        config = self.config
        if labels is not None and len(labels) != size:
            raise ValueError(f"labels: {len(labels)} of them for a batch of {size} examples.")
        if not are_needed:
            return None
        if labels is None:
            plain = {"partner": "random", "label_rule": "lambda", "interpolation": "line"}
            words = {name: getattr(config, name) for name in plain if getattr(config, name) != plain[name]}
            cause = ", ".join(f"{name}={word!r}" for name, word in words.items())
            raise ValueError(f"labels: with {cause} a plan depends on them: give draw(batch, labels=labels).")
        self._check_problem_type(self.problem_type(labels))
        if config.label_rule == "remix" and config.class_counts is None:
            raise ValueError(
                "class_counts: label_rule='remix' needs the number of training examples of each of the "
                f"{self.about.num_labels} classes, such as [900, 80, 20]."
            )
        return self.targets(labels)

    def _check_problem_type(self, problem_type: str | None) -> None:
        config = self.config
        if problem_type == "regression" and PARTNERS[config.partner].is_by_class:
            raise ValueError(f"partner={config.partner!r} needs classes; for scores there is 'near_label'.")
        if config.label_rule == "remix" and problem_type not in (None, "single_label_classification"):
            raise ValueError(f"label_rule='remix' needs single_label_classification, not {problem_type}.")

    def losses(self, logits: Tensor, targets: Tensor, problem_type: str, label_smoothing: float = 0.0) -> Tensor:
        """The loss of each example against the targets that `targets` gives, in float32: `(batch,)`.

        Args:
            logits, targets (`torch.Tensor` of shape `(batch, num_labels)`): output of the model, mixed targets.
            problem_type (`str`): of the labels that the targets were made of.
            label_smoothing (`float`, defaults to 0.0): mass of the target spread evenly over the classes.

        Raises:
            ValueError: for label smoothing of anything but class probabilities, or an epoch that is needed and not
                known.
        """
        single = "single_label_classification"
        if label_smoothing and problem_type != single:
            raise ValueError(f"label_smoothing={label_smoothing} needs {single}, not {problem_type}.")
        weights = self._weights_on(logits.device)
        logits = logits.float().reshape(targets.shape)
        return LOSSES[problem_type](logits, targets, weights, label_smoothing)

    def _weights_on(self, device: torch.device) -> Tensor | None:
        weights = at_epoch("class_weights", self.config.class_weights, self.epoch)
        return None if weights is None else numbers_on(device, tuple(weights))

    def sum_of_terms(self, terms: Sequence[Term], problem_type: str, label_smoothing: float = 0.0) -> Tensor:
        """The weighted sum of the losses of several terms, for each example: `(batch,)`. Raises as `losses` does."""
        losses = [self.losses(term.logits, term.targets, problem_type, label_smoothing) for term in terms]
        total, weight = losses[0], terms[0].weight
        for term, more in zip(terms[1:], losses[1:], strict=True):
            weight += term.weight
            # A running mean, which is exact if a term has all of the weight.
            total = torch.lerp(total, more, term.weight / weight)
        return total if weight == 1 else total * weight

    def accuracy(self, logits: Tensor, targets: Tensor, problem_type: str) -> Tensor | None:
        """`mixed_accuracy` of one label per example; `None` for other tasks."""
        return mixed_accuracy(logits, targets) if problem_type == "single_label_classification" else None

    def logits_shape(self, labels: Tensor) -> tuple[int, ...]:
        """The shape of logits that belong to labels."""
        return (len(labels), self.about.num_labels)

    def surplus(self, logits: Tensor, labels: Tensor) -> Tensor:
        """How much surer than right the model is of each example, nan without a label: `(examples,)`.

        Values of labels are not checked, so that an accelerator is not waited for. Raises as `surplus_of` does.
        """
        is_class = not labels.is_floating_point() and labels.numel() == len(labels)
        values, most = labels.to(logits.device).reshape(len(labels), -1), self.about.num_labels - 1 if is_class else 1
        known = ((values >= 0) & (values <= most)).all(-1)
        targets = to_targets(values.clamp(0, most), self.problem_type(labels), self.about.num_labels)
        return surplus_of(logits, targets, self.problem_type(labels)).where(known, math.nan)
