"""What a mixed batch is trained on: labels, made targets, mixed as the plan says, and the loss against them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_mixup import targets
from hf_mixup.config.mixup_config import MixupConfig
from hf_mixup.plan.mixup_plan import MixupPlan


class Objective:
    """The targets and losses of one model, by transformers' rules for its problem type.

    Args:
        about (`PretrainedConfig`): the config of the model, `num_labels` and `problem_type`; only read.
        config (`MixupConfig`): the class weights and counts.

    Raises:
        ValueError: for class weights or counts that do not fit the model.
    """

    def __init__(self, about: Any, config: MixupConfig) -> None:
        self.about = about
        self._checked_labels = False
        self._class_weights: Tensor | None = None
        counts, weights = config.class_counts, config.class_weights
        if counts is not None and len(counts) != about.num_labels:
            raise ValueError(f"class_counts: {len(counts)} counts for num_labels={about.num_labels}.")
        if weights is None:
            return
        if len(weights) != about.num_labels or about.num_labels == 1:
            raise ValueError(f"class_weights: {len(weights)} weights for num_labels={about.num_labels}.")
        if about.problem_type not in (None, "single_label_classification"):
            raise ValueError(f"class_weights need single_label_classification, not {about.problem_type}.")
        self._class_weights = torch.tensor(weights, dtype=torch.float32)

    def problem_type(self, labels: Tensor | None) -> str:
        """The problem type of the model, from its config or by transformers' rules from the labels."""
        if labels is None:
            raise ValueError("labels: none in this training batch; mixup needs the labels to mix.")
        if not isinstance(labels, Tensor):
            raise ValueError(f"labels: expected a tensor, got {type(labels).__name__}.")
        return targets.problem_type_of(self.about, labels)

    def targets(self, labels: Tensor, plan: MixupPlan | None = None, device: torch.device | None = None) -> Tensor:
        """The mixed targets: `(batch, num_labels)`, float32.

        Raises:
            ValueError: for labels that are missing, of another number than the plan's examples, or out of range.
        """
        num_labels, problem_type = self.about.num_labels, self.problem_type(labels)
        if plan is not None and labels.shape[:1] != plan.lam.shape:
            raise ValueError(f"labels: shape {tuple(labels.shape)} for a plan of {plan.lam.shape[0]} examples.")
        # On an accelerator reading the values means waiting for it, so it is done once.
        if labels.device.type == "cpu" or not self._checked_labels:
            targets.check_labels(labels, problem_type, num_labels)
            self._checked_labels = True
        labels = labels.to(device) if device is not None else labels
        clean = targets.to_targets(labels, problem_type, num_labels)
        return clean if plan is None else targets.mix_targets(clean, plan)

    def losses(self, logits: Tensor, mixed: Tensor, problem_type: str, label_smoothing: float = 0.0) -> Tensor:
        """The loss of each example against the targets that `targets` gives: `(batch,)`."""
        if label_smoothing and problem_type != "single_label_classification":
            raise ValueError(
                f"label_smoothing={label_smoothing} needs single_label_classification, not {problem_type}."
            )
        if self._class_weights is not None and self._class_weights.device != logits.device:
            self._class_weights = self._class_weights.to(logits.device)
        return targets.example_losses(logits, mixed, problem_type, self._class_weights, label_smoothing)
