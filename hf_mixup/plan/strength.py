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
    """One look at held-out predictions, or at the kind of them that asked for the least mixup.

    Args:
        surplus (`float`): mean confidence less accuracy.
        error (`float`): its standard error.
        rows (`int`): how many examples it is made of.
        trained (`float`): the surplus of what was trained on since the last check, nan if nobody told it.
        strength (`float`): what followed, 0 to 1.
        is_held_back (`bool`): whether it was halved, because the model is as sure of what it trains on.
        is_first_pass (`bool`): whether it is 0, because no training example had been seen twice.
    """

    surplus: float
    error: float
    rows: int
    trained: float
    strength: float
    is_held_back: bool
    is_first_pass: bool


class AutoStrength:
    """The share of the partner's weight that is used: 0 at first, more while held-out predictions are too sure.

    The sign is that of CAMixup (Wen et al. 2021), which turns mixup on where confidence exceeds accuracy. Here the
    strength s moves by `GAIN` times the surplus g, shrunk by its standard error e as an estimate of James and Stein's
    kind: s += 10 g max(0, 1 - (1.5 e / g)^2) while g > 0, and s += 10 g otherwise, so that doubt means less mixup. It
    stays in [0, 1], 1 being what the rest of the config says.

    That holds if the model has learnt more than it knows: if g exceeds the surplus of the training examples by 1.5
    standard errors. A model that is as sure of these is about to learn, and mixup would hold it up: s is halved. In the
    first pass over the training examples there is nothing to repair, and s is 0: each is new to the model, as a
    held-out one is, so its own loss corrects a surplus.

    There may be kinds of surpluses, as of tokens and of the number of entities: s is the least of what they ask for.
    """

    def __init__(self) -> None:
        self.checks: list[Check] = []
        # Number, sum and sum of squares of the surpluses of training examples since the last check, on their device:
        # (3, kinds).
        self.trained: Tensor | None = None

    @property
    def value(self) -> float:
        """The strength now."""
        return self.checks[-1].strength if self.checks else 0.0

    def learn(self, surplus: Tensor) -> None:
        """Take in a training batch, of which only sums are kept; nothing waits for an accelerator.

        Args:
            surplus (`torch.Tensor` of shape `(examples,)` or `(examples, kinds)`): as in `see`, by the own label.
        """
        kinds = _kinds(surplus.detach().float())
        known, values = kinds.isfinite(), kinds.nan_to_num()
        sums = torch.stack([known.float().sum(0), values.sum(0), values.square().sum(0)])
        self.trained = sums if self.trained is None else self.trained.to(sums.device) + sums

    def see(self, surplus: Tensor, is_first_pass: bool = False) -> None:
        """Follow a check of held-out examples.

        Args:
            surplus (`torch.Tensor` of shape `(examples,)` or `(examples, kinds)`): `surplus_of` of each; of some kinds
                of its predictions, the one that asks for the least mixup is followed. Rows with a value that is not
                finite are left out; of less than two rows nothing is learnt.
            is_first_pass (`bool`, defaults to `False`): whether no training example has been seen twice.
        """
        told, self.trained = self.trained, None
        kinds = _kinds(surplus.double())
        kinds = kinds[kinds.isfinite().all(1)]
        if len(kinds) < 2:
            return
        sums = torch.zeros(3, kinds.shape[1]) if told is None else told
        checks = [self._check(*pair, is_first_pass) for pair in zip(kinds.T, sums.T.tolist(), strict=True)]
        self.checks.append(min(checks, key=lambda check: (check.strength, check.surplus)))

    def _check(self, values: Tensor, told: list[float], is_first_pass: bool) -> Check:
        """What the surpluses `(examples,)` of one kind ask for; `told` are the sums of those of training examples."""
        trained, its_error = _mean_and_error(told)
        mean, error = float(values.mean()), float(values.std()) / math.sqrt(len(values))
        step = GAIN * mean
        if mean > 0:
            step *= max(0.0, 1 - (ERRORS * error / mean) ** 2)
        strength = self.value + step
        # Not so if nan: nobody told.
        is_held_back = mean - trained <= ERRORS * math.hypot(error, its_error)
        if is_held_back:
            strength = min(strength, self.value / 2)
        strength = 0.0 if is_first_pass else min(max(strength, 0.0), 1.0)
        return Check(mean, error, len(values), trained, strength, is_held_back, is_first_pass)

    def story(self) -> str:
        """What it did and why, in one sentence; empty if nothing was seen."""
        if not self.checks:
            return ""
        highest = max(self.checks, key=lambda check: check.surplus)
        said = f"confidence less accuracy {highest.surplus:+.3f} at most, with a standard error of {highest.error:.3f}"
        looks = f"of {len(self.checks)} check{'s' * (len(self.checks) > 1)} of {highest.rows} held-out rows"
        sure = [check for check in self.checks if check.surplus > ERRORS * check.error]
        early, waiting = sum(check.is_first_pass for check in sure), sum(check.is_held_back for check in sure)
        if early:
            said += f"; at {early} of them no training row had been seen twice, so its own loss was to correct that"
        if waiting:
            said += f"; at {waiting} of them it was as sure of its training rows, so it had yet to learn them"
        mixing = sum(check.strength > 0 for check in self.checks)
        if not mixing:
            return f"nothing was mixed: none {looks} called for it ({said})."
        strengths = f"up to {max(check.strength for check in self.checks):.2f} and {self.value:.2f} at the end"
        return f"strength {strengths}: on after {mixing} {looks}, being surer than right ({said})."

    def state_dict(self) -> dict[str, Any]:
        """The checks so far and what was trained on since, as plain numbers."""
        trained = None if self.trained is None else self.trained.tolist()
        return {"checks": [list(check) for check in self.checks], "trained": trained}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.checks = [Check(*check) for check in state["checks"]]
        self.trained = None if state["trained"] is None else torch.tensor(state["trained"]).reshape(3, -1)


def _kinds(surplus: Tensor) -> Tensor:
    """`(examples, kinds)`; of one kind, if there are no others."""
    return surplus if surplus.dim() > 1 else surplus.unsqueeze(1)


def _mean_and_error(sums: list[float]) -> tuple[float, float]:
    """The mean of numbers and its standard error, from their number, sum and sum of squares; nan for no number."""
    if not sums[0]:
        return math.nan, math.nan
    count, total, squares = sums
    mean = total / count
    return mean, math.sqrt(max(squares / count - mean**2, 0.0) / count)


def surplus_of(logits: Tensor, targets: Tensor, problem_type: str) -> Tensor:
    """How much surer a model is than it is right: confidence less accuracy of each example, `(examples,)`.

    Its mean is 0 if the model is calibrated as a whole, and positive if it is too sure (Guo et al. 2017, eq. 2).

    Args:
        logits (`torch.Tensor` of shape `(examples, classes)`): of a forward pass that was not mixed.
        targets (`torch.Tensor` of shape `(examples, classes)`): class probabilities, or for several labels 0 or 1.
        problem_type (`str`): `"single_label_classification"`, or `"multi_label_classification"`, in which each label
            is a prediction of its own and the mean over the labels is taken.

    Raises:
        ValueError: for logits and targets of other shapes.
    """
    if logits.shape != targets.shape:
        raise ValueError(f"logits: shape {tuple(logits.shape)} for targets of shape {tuple(targets.shape)}.")
    logits = logits.float()
    if problem_type == "single_label_classification":
        confidence, predicted = logits.softmax(-1).max(-1)
        return confidence - targets.gather(-1, predicted.unsqueeze(-1)).squeeze(-1)
    confidence = torch.maximum(logits, -logits).sigmoid()
    return (confidence - torch.where(logits > 0, targets, 1 - targets)).mean(-1)
