"""What is learned of a batch that has labelled and unlabelled rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hf_mixup.plan.mixup_plan import MixupPlan
from hf_mixup.training.guesses import SMALLEST


@dataclass(frozen=True)
class Lesson:
    """What is learned of a batch: labelled rows first, then the unlabelled ones.

    Args:
        inputs (`dict[str, Any]`): what the model is given.
        labels (`torch.Tensor`): class indices `(rows,)`, guessed ones included, or targets, if labels are.
        targets (`torch.Tensor` of shape `(rows, num_labels)`): not mixed.
        weights (`torch.Tensor` of shape `(rows,)`): of each row in the loss; 1 for a labelled one.
        labelled (`int`): how many rows those are.
    """

    inputs: dict[str, Any]
    labels: Tensor
    targets: Tensor
    weights: Tensor
    labelled: int

    def mixed(self, plan: MixupPlan | None) -> tuple[Tensor, Tensor]:
        """Targets and weights under a plan: w = lam w_i + (1 - lam) w_j and (lam w_i y_i + (1 - lam) w_j y_j) / w."""
        if plan is None or not plan.active:
            return self.targets, self.weights
        weights = plan.mix(self.weights)
        targets = plan.mix(self.targets * self.weights.unsqueeze(1))
        return targets / weights.clamp_min(SMALLEST).unsqueeze(1), weights
