"""What mixup did between two logs of a training."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hf_mixup.plan.mixup_plan import MixupPlan
from hf_mixup.targets import mixed_accuracy


class MixupLogs:
    """Sums over batches, kept on the device and read only when they are logged."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Start anew."""
        self.batches = self.mixed = 0
        self.weight: Tensor | float = 0.0
        self.accuracy: Tensor | None = None
        self.sites: set[str] = set()

    def add(self, plan: MixupPlan, logits: Tensor, mixed: Tensor, problem_type: str) -> None:
        """Count a batch.

        Args:
            plan (`MixupPlan`): as the forward pass left it.
            logits, mixed (`torch.Tensor` of shape `(batch, num_labels)`): detached logits, mixed targets.
            problem_type (`str`): an accuracy is kept for `"single_label_classification"` only.
        """
        self.batches += 1
        if plan.active:
            self.mixed += 1
            self.weight = self.weight + plan.lam.mean()
            self.sites.add(plan.site if plan.layer is None else f"{plan.site} {plan.layer}")
        if problem_type == "single_label_classification":
            accuracy = mixed_accuracy(logits, mixed)
            self.accuracy = accuracy if self.accuracy is None else self.accuracy + accuracy

    def drain(self) -> dict[str, Any]:
        """The logs since the last call: `mixup_lambda`, `mixup_site`, `mixup_accuracy`, where there are any."""
        logs: dict[str, Any] = {}
        if self.mixed:
            logs["mixup_lambda"] = round(float(self.weight) / self.mixed, 4)
            logs["mixup_site"] = ", ".join(sorted(self.sites))
        if self.accuracy is not None:
            logs["mixup_accuracy"] = round(self.accuracy.item() / self.batches, 4)
        self.clear()
        return logs
