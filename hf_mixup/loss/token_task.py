"""One class per token: the targets and the loss of named entities, chunks and tags. Knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_mixup.config.checks import allow_only
from hf_mixup.config.mixup_config import SPANS, MixupConfig
from hf_mixup.config.tags import BEGINNINGS, OUTSIDE_TAG, tag_parts
from hf_mixup.loss.refusals import out_of_range
from hf_mixup.loss.task import IGNORED, Task, check_size
from hf_mixup.plan.entities import OUTSIDE, UNLABELED, token_kinds
from hf_mixup.plan.lambdas import numbers_on
from hf_mixup.plan.mixup_plan import MixupPlan
from hf_mixup.plan.partners import PARTNERS
from hf_mixup.plan.strength import surplus_of

TOKENS, SINGLE = "token_classification", "single_label_classification"
# What is known of labels per token: partners that do not go by the label of a text.
OF_TOKENS: dict[str, tuple[Any, ...]] = {
    "partner": tuple(name for name, rule in PARTNERS.items() if "targets" not in rule.needs or name == "same_text"),
    "interpolation": ("line", "dimensions", "span", "entity_span"),
    "label_rule": ("lambda", "larger", "own"),
    "class_counts": (None,),
    "unlabeled": (None,),
}


def task_of(about: Any, config: MixupConfig, labels_tokens: bool) -> Task:
    """The task of a model with the config `about` it, which labels tokens or examples. Raises as the task does."""
    return TokenTask(about, config) if labels_tokens else Task(about, config)


class TokenTask(Task):
    """What a token classifier is trained on: labels `(batch, length)`, -100 where a token has none.

    With a(t) = 1 where a text has a label at position t and 0 elsewhere, the loss of a batch is

        sum_t [lam a_i(t) CE(z_t, y_i(t)) + (1 - lam) a_j(t) CE(z_t, y_j(t))] / sum_t [lam a_i(t) + (1 - lam) a_j(t)].

    At lambda = 1 it is that of the examples, at 0 that of their partners, whatever their lengths. So a target is a
    class distribution times the weight of its token: zeros where neither text has a label.

    Args:
        about (`PretrainedConfig`): as of `Task`.
        config (`MixupConfig`): as of `Task`.

    Raises:
        ValueError: for class weights that do not fit, or a config that needs one label per text.
    """

    def __init__(self, about: Any, config: MixupConfig) -> None:
        allow_only(config, OF_TOKENS, "not with labels per token")
        if config.interpolation in SPANS:
            allow_only(config, {"label_rule": ("lambda",)}, "labels of tokens move with them")
        super().__init__(about, config)
        if config.interpolation == "entity_span":
            names = [about.id2label[number] for number in range(about.num_labels)]
            self._entities, self._begins = types_and_beginnings(names)

    def problem_type(self, labels: Tensor | None) -> str:
        """`"token_classification"`. Raises `ValueError` for labels that are missing or not one class per token."""
        super().problem_type(labels)
        assert labels is not None
        if labels.dim() != 2 or labels.is_floating_point():
            raise ValueError(
                f"labels: {labels.dtype} of shape {tuple(labels.shape)}; a token classifier takes class indices of "
                "shape (batch, length), -100 where a token has none."
            )
        return TOKENS

    def check_column(self, labels: Tensor) -> None:
        """As that of `Task`, of labels that are padded with -100."""
        check_tokens(labels, self.about.num_labels)

    def targets(self, labels: Tensor, plan: MixupPlan | None = None, device: torch.device | None = None) -> Tensor:
        """The mixed targets, lam a_i y_i + (1 - lam) a_j y_j: `(batch, length, num_labels)`, float32.

        Raises:
            ValueError: for labels that are missing, of another number than the plan's examples, or out of range.
        """
        self.problem_type(labels)
        check_size(labels, plan)
        if labels.device.type == "cpu" or not self._checked_labels:
            check_tokens(labels, self.about.num_labels)
            self._checked_labels = True
        labels = labels if device is None else labels.to(device)
        known = (labels != IGNORED).unsqueeze(-1)
        clean = F.one_hot(labels.clamp_min(0).long(), self.about.num_labels) * known
        return clean.float() if plan is None else plan.of_examples.mix_tokens(clean.float())

    def targets_to_draw(self, labels: Tensor | None, size: int, are_needed: bool) -> Tensor | None:
        """What each token is, if a plan depends on it: `token_kinds`. Raises as that of `Task`, and without names."""
        if labels is None or not are_needed:
            return super().targets_to_draw(labels, size, are_needed)
        self.problem_type(labels)
        if self.config.partner == "same_text":
            return torch.where(labels >= 0, OUTSIDE, UNLABELED)
        entities, begins = (numbers_on(labels.device, numbers) for numbers in (self._entities, self._begins))
        return token_kinds(labels, entities.long(), begins.bool())

    def losses(self, logits: Tensor, targets: Tensor, problem_type: str, label_smoothing: float = 0.0) -> Tensor:
        """The part of each example in the loss, in float32, so that their mean is that of the batch: `(batch,)`.

        Args:
            logits, targets (`torch.Tensor` of shape `(batch, length, num_labels)`): output of the model, mixed targets.
            problem_type (`str`): `"token_classification"`.
            label_smoothing (`float`, defaults to 0.0): mass of the target spread evenly over the classes.

        Raises:
            ValueError: for logits of another shape, or an epoch that is needed and not known.
        """
        if logits.shape != targets.shape:
            raise ValueError(f"logits: shape {tuple(logits.shape)} for targets of shape {tuple(targets.shape)}.")
        total = targets.sum()
        if label_smoothing:
            even = targets.mean(-1, keepdim=True)
            targets = torch.lerp(targets, even.expand_as(targets), label_smoothing)
        weights = self._weights_on(logits.device)
        chances = logits.float().log_softmax(-1)
        found = -(targets * (chances if weights is None else chances * weights)).sum((1, 2))
        # 0 for a batch without any label.
        return found * (len(targets) / total.clamp_min(1e-12))

    def accuracy(self, logits: Tensor, targets: Tensor, problem_type: str) -> Tensor | None:
        """The share of the target's mass on the predicted classes: a scalar in [0, 1]."""
        return targets.gather(-1, logits.argmax(-1, keepdim=True)).sum() / targets.sum().clamp_min(1e-12)

    def logits_shape(self, labels: Tensor) -> tuple[int, ...]:
        """The shape of logits that belong to labels."""
        return (*labels.shape, self.about.num_labels)

    def surplus(self, logits: Tensor, labels: Tensor) -> Tensor:
        """As that of `Task`, in two kinds, `(examples, 2)`: of what the tokens are, and of how many entities there are.

        The second is the probability of an entity (any label but O) less the share of entities. Mixed with a random
        token, which mostly is O, an entity gets less sure and O hardly does, so mixup makes a model find fewer
        entities. Both are means over labeled tokens, nan without any. If no label is named O, both are the first.
        """
        labels = labels.to(logits.device)
        known = (labels >= 0) & (labels < self.about.num_labels)
        targets = F.one_hot(labels.where(known, 0).long(), self.about.num_labels).float()
        of_tokens = of_entities = surplus_of(logits, targets, SINGLE)
        outside = next((int(label) for label, name in self.about.id2label.items() if name == OUTSIDE_TAG), None)
        if outside is not None:
            of_entities = targets[..., outside] - logits.float().softmax(-1)[..., outside]
        found = torch.stack([of_tokens, of_entities], -1).where(known.unsqueeze(-1), 0).sum(1)
        return found / known.sum(1, keepdim=True)

    def count(self, labels: Tensor) -> int | Tensor:
        """The tokens that have a label; a tensor on an accelerator, which is not waited for."""
        found = (labels != IGNORED).sum()
        return int(found) if found.device.type == "cpu" else found


def types_and_beginnings(names: Sequence[str]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The number of the type of each label, 0 for none, and whether it begins an entity, by their names.

    Raises:
        ValueError: for names of which none is outside of entities.
    """
    if OUTSIDE_TAG not in names:
        raise ValueError(
            f"interpolation='entity_span': needs {OUTSIDE_TAG!r} among the names of the labels, id2label of the "
            f"model's config, for what is no entity; got {', '.join(names)}."
        )
    places, types = zip(*map(tag_parts, names), strict=True)
    known = [OUTSIDE_TAG, *sorted({*types} - {OUTSIDE_TAG})]
    return tuple(map(known.index, types)), tuple(int(place != "" and place in BEGINNINGS) for place in places)


def check_tokens(labels: Tensor, num_labels: int) -> None:
    """Refuse classes outside [0, `num_labels`) other than -100. Raises `ValueError` with the row, from 1."""
    wrong = ((labels < 0) & (labels != IGNORED)) | (labels >= num_labels)
    if wrong.any():
        known = labels[labels != IGNORED]
        raise ValueError(out_of_range(known, num_labels, int(wrong.any(1).nonzero()[0])))
