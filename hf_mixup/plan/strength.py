"""How much: a strength that follows how sure a model is of examples that it does not learn from."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Change of the strength per surplus: one of 0.1 that is beyond doubt turns mixup fully on.
GAIN = 10.0
# More than this many standard errors of a surplus are no chance.
ERRORS = 1.5


class Check(NamedTuple):
    """One look at held-out predictions.

    Args:
        surplus (`float`): mean confidence less accuracy.
        error (`float`): its standard error.
        rows (`int`): how many examples it is made of.
        strength (`float`): what followed from it, 0 to 1.
    """

    surplus: float
    error: float
    rows: int
    strength: float


class AutoStrength:
    """The share of the partner's weight that is used: 0 at first, more while held-out predictions are too sure.

    The sign is that of CAMixup (Wen et al. 2021), which turns mixup on where confidence exceeds accuracy. Here the
    strength moves by `GAIN` times the surplus, shrunk by its standard error as an estimate of James and Stein's kind:
    s += 10 g max(0, 1 - (1.5 e / g)^2) while g > 0, and s += 10 g otherwise, so that doubt means less mixup. It
    stays in [0, 1], 1 being what the rest of the config says.
    """

    def __init__(self) -> None:
        self.checks: list[Check] = []

    @property
    def value(self) -> float:
        """The strength now."""
        return self.checks[-1].strength if self.checks else 0.0

    def see(self, surplus: Tensor) -> None:
        """Follow a check of held-out examples.

        Args:
            surplus (`torch.Tensor` of shape `(examples,)`): `surplus_of` of each; two or more, else nothing is learnt.
                Values that are not finite are left out.
        """
        values = surplus.double()[surplus.isfinite()]
        if len(values) < 2:
            return
        mean, error = float(values.mean()), float(values.std()) / math.sqrt(len(values))
        step = GAIN * mean
        if mean > 0:
            step *= max(0.0, 1 - (ERRORS * error / mean) ** 2)
        strength = min(max(self.value + step, 0.0), 1.0)
        self.checks.append(Check(mean, error, len(values), strength))

    def story(self) -> str:
        """What it did and why, in one sentence; empty if nothing was seen."""
        if not self.checks:
            return ""
        highest = max(self.checks, key=lambda check: check.surplus)
        said = f"confidence less accuracy {highest.surplus:+.3f} (standard error {highest.error:.3f}) at most"
        looks = f"of {len(self.checks)} check{'s' * (len(self.checks) > 1)} of {highest.rows} held-out rows"
        mixing = sum(check.strength > 0 for check in self.checks)
        if not mixing:
            return f"nothing was mixed: at none {looks} was the model clearly surer than right ({said})."
        strengths = f"up to {max(check.strength for check in self.checks):.2f} and {self.value:.2f} at the end"
        return f"strength {strengths}: on after {mixing} {looks}, being surer than right ({said})."

    def state_dict(self) -> dict[str, Any]:
        """The checks so far, as plain numbers."""
        return {"checks": [list(check) for check in self.checks]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.checks = [Check(*check) for check in state["checks"]]


def surplus_of(logits: Tensor, targets: Tensor, problem_type: str) -> Tensor:
    """How much surer a model is than it is right: confidence less accuracy of each example, `(examples,)`.

    Its mean is 0 if the model is calibrated as a whole, and positive if it is too sure (Guo et al. 2017, eq. 2).

    Args:
        logits (`torch.Tensor` of shape `(examples, classes)`): of a forward pass that was not mixed.
        targets (`torch.Tensor` of shape `(examples, classes)`): class probabilities, or for several labels 0 or 1.
        problem_type (`str`): `"single_label_classification"`, or `"multi_label_classification"`, in which each label
            is a prediction of its own and the mean over the labels is taken.
    """
    logits = logits.float()
    if problem_type == "single_label_classification":
        confidence, predicted = logits.softmax(-1).max(-1)
        return confidence - targets.gather(-1, predicted.unsqueeze(-1)).squeeze(-1)
    confidence = torch.maximum(logits, -logits).sigmoid()
    return (confidence - torch.where(logits > 0, targets, 1 - targets)).mean(-1)
