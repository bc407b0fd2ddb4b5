"""What mixup did between two logs of a training."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hf_mixup.plan.mixup_plan import MixupPlan


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

    def add(self, plan: MixupPlan, accuracy: Tensor | None) -> None:
        """Count a batch.

        Args:
            plan (`MixupPlan`): as the forward pass left it.
            accuracy (`torch.Tensor`, *optional*): `mixed_accuracy` of the batch, for tasks that have one.
        """
        self.batches += 1
        if plan.active:
            self.mixed += 1
            self.weight = self.weight + plan.lam.mean()
            self.sites.add(plan.site if plan.layer is None else f"{plan.site} {plan.layer}")
        if accuracy is not None:
            self.accuracy = accuracy if self.accuracy is None else self.accuracy + accuracy

    def drain(self) -> dict[str, Any]:
        """The logs since the last call: `mixup_lambda`, `mixup_site`, `mixup_accuracy`, if there are any."""
        logs: dict[str, Any] = {}
        if self.mixed:
            logs["mixup_lambda"] = round(float(self.weight) / self.mixed, 4)
            logs["mixup_site"] = ", ".join(sorted(self.sites))
        if self.accuracy is not None:
            logs["mixup_accuracy"] = round(self.accuracy.item() / self.batches, 4)
        self.clear()
        return logs
