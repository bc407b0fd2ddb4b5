"""Partners from earlier batches of the same process, for batches that are too small to hold partners of their own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_mixup.plan.mixup_plan import MixupPlan
from hf_mixup.plan.outside_partners import OutsidePartners, rows_of


@dataclass(frozen=True, eq=False)
class Remembered:
    """An example of an earlier batch.

    Args:
        inputs (`dict[str, torch.Tensor]`): what the model was given, one row.
        target (`torch.Tensor` of shape `(num_labels,)`): of its label.
        states (`list[torch.Tensor]`): its hidden states at the site, one row each, without their graph; none if
            embeddings are mixed, which are looked up anew.
    """

    inputs: dict[str, Tensor]
    target: Tensor
    states: list[Tensor]


class Memory:
    """The last examples that were seen at each site.

    Args:
        size (`int`): how many examples are kept for each layer.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.places: dict[str, deque[Remembered]] = {}

    def with_partners(self, plan: MixupPlan, generator: np.random.Generator) -> MixupPlan:
        """The plan with partners from the memory; with nothing to mix if there are none yet for its site."""
        count, known = plan.lam.shape[0], self.places.get(_place(plan), ())
        if not known:
            dimensions = None if plan.dimension_lam is None else torch.ones_like(plan.dimension_lam)
            itself, one = torch.arange(count), torch.ones_like(plan.lam)
            clean = MixupPlan(itself, one, plan.site, plan.layer, dimension_lam=dimensions, is_remembered=True)
            return clean
        rows = generator.choice(len(known), count, replace=len(known) < count)
        chosen = [known[row] for row in rows]
        targets = torch.stack([row.target for row in chosen])

        def states_at(index: int, own: Tensor, as_long: Callable[[Tensor], Tensor]) -> Tensor:
            return torch.cat([as_long(row.states[index]) for row in chosen])

        return replace(
            plan, outside=OutsidePartners([row.inputs for row in chosen], targets, states_at), is_remembered=True
        )

    def add(self, plan: MixupPlan, inputs: Mapping[str, Any], targets: Tensor, states: list[Tensor]) -> None:
        """Remember a batch, in place of the oldest examples.

        Args:
            plan (`MixupPlan`): of the batch.
            inputs (`Mapping`): what the model was given, without partners.
            targets (`torch.Tensor` of shape `(batch, num_labels)`): of its labels, not mixed.
            states (`list[torch.Tensor]`): its hidden states at the site, `(batch, ...)` each.
        """
        place = self.places.setdefault(_place(plan), deque(maxlen=self.size))
        count = plan.lam.shape[0]
        own = {name: value.detach() for name, value in rows_of(inputs, count).items()}
        # Copies, because a view would keep the whole batch alive.
        for row in range(max(count - self.size, 0), count):
            at = slice(row, row + 1)
            kept = {name: value[at].clone() for name, value in own.items()}
            place.append(Remembered(kept, targets[row].clone(), [value[at].clone() for value in states]))

    def state_dict(self) -> dict[str, Any]:
        """What is remembered, as tensors on the host."""
        return {
            place: [
                {
                    "inputs": {name: value.cpu() for name, value in row.inputs.items()},
                    "target": row.target.cpu(),
                    "states": [value.cpu() for value in row.states],
                }
                for row in rows
            ]
            for place, rows in self.places.items()
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device | None = None) -> None:
        """Continue from `state`, on `device`."""
        self.places = {
            place: deque(
                (
                    Remembered(
                        {name: value.to(device) for name, value in row["inputs"].items()},
                        row["target"].to(device),
                        [value.to(device) for value in row["states"]],
                    )
                    for row in rows
                ),
                maxlen=self.size,
            )
            for place, rows in state.items()
        }


def _place(plan: MixupPlan) -> str:
    return plan.site if plan.layer is None else f"{plan.site} {plan.layer}"
