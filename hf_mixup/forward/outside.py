"""Partners from outside of the batch: their rows in a forward pass.

A model makes its masks and positions from the tokens of the rows that it is given. So it is given the partners as
further rows, and makes masks for both. The rows of the partners are taken out before the first block: at the site the
batch is mixed with hidden states of the partners that were computed elsewhere. After the last block there are as many
rows again as there are texts, for the head; only the logits of the batch itself are returned.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hf_mixup.forward.anatomy.anatomy import Anatomy, Argument
from hf_mixup.forward.anatomy.inputs import pad_token, text_config
from hf_mixup.plan.mixup_plan import MixupPlan
from hf_mixup.plan.outside_partners import OutsidePartners, rows_of, text_length


@dataclass(frozen=True)
class Padding:
    """How texts of a model are made longer.

    Args:
        token (`int`): what stands in `input_ids` there.
        is_left (`bool`): whether it goes before the text, for heads that read the last position whatever is there.
    """

    token: int = 0
    is_left: bool = False

    def lengthen(self, values: Tensor, length: int, fill: float = 0) -> Tensor:
        """`values` with `fill` up to `length` positions."""
        missing = length - values.shape[1]
        if not missing:
            return values
        sides = (missing, 0) if self.is_left else (0, missing)
        return functional.pad(values, (0, 0) * (values.dim() - 2) + sides, value=fill)


def padding_of(anatomy: Anatomy) -> Padding:
    """How texts of this model are made longer."""
    return Padding(pad_token(text_config(anatomy.root)), anatomy.readout == "last")


def with_outside_rows(plan: MixupPlan) -> MixupPlan:
    """The plan for the batch and its partners from outside, which stay as they are."""
    rows = torch.arange(plan.lam.shape[0], 2 * plan.lam.shape[0], device=plan.lam.device)
    dimensions, box = plan.dimension_lam, plan.box
    return replace(
        plan,
        partner=torch.cat([plan.partner, rows]),
        lam=torch.cat([plan.lam, torch.ones_like(plan.lam)]),
        dimension_lam=None if dimensions is None else torch.cat([dimensions, torch.ones_like(dimensions)]),
        box=None if box is None else torch.cat([box, torch.zeros_like(box)]),
    )


def stack_inputs(parts: Sequence[Mapping[str, Tensor]], padding: Padding, length: int = 0) -> dict[str, Tensor]:
    """The rows of several batches as one: texts as long as the longest, with a mask for all.

    Raises:
        ValueError: if the batches have other inputs, or inputs of other shapes.
    """
    lengths = [text_length(part) for part in parts]
    if lengths[0] is not None:
        parts = [_with_mask(part, own or 0) for part, own in zip(parts, lengths, strict=True)]
    length = max([length, *(own or 0 for own in lengths)])
    stacked = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        if any(name not in part for part in parts):
            raise ValueError(f"{name}: not in every batch, so their examples cannot be mixed with each other.")
        fill = padding.token if name == "input_ids" else 0
        rows = [
            padding.lengthen(part[name], length, fill=fill) if _runs_along(part[name], own) else part[name]
            for part, own in zip(parts, lengths, strict=True)
        ]
        shapes = list(dict.fromkeys(tuple(row.shape[1:]) for row in rows))
        if len(shapes) > 1:
            raise ValueError(f"{name}: shapes {shapes}; batches that are mixed with each other need the same.")
        stacked[name] = torch.cat(rows)
    return stacked


def _runs_along(values: Tensor, length: int | None) -> bool:
    return length is not None and values.dim() > 1 and values.shape[1] == length


def _with_mask(part: Mapping[str, Tensor], length: int) -> dict[str, Tensor]:
    tokens = part["input_ids"] if "input_ids" in part else part["inputs_embeds"]
    every = torch.ones(tokens.shape[0], length, dtype=torch.long, device=tokens.device)
    return {"attention_mask": every, **part}


class OutsideRows:
    """The rows of partners from outside of the batch in one forward pass.

    Args:
        anatomy (`Anatomy`): of the model.
        batch (`Mapping`): the inputs of the batch itself.
        size (`int`): its number of examples.
        partners (`OutsidePartners`, *optional*): `None` if hidden states are only kept for later batches.
    """

    def __init__(self, anatomy: Anatomy, batch: Mapping[str, Any], size: int, partners: OutsidePartners | None) -> None:
        self.size, self.partners = size, partners
        self.padding, self.length = padding_of(anatomy), text_length(batch)
        self.names = list(inspect.signature(anatomy.root.forward).parameters)
        self.has_begun = False
        # Hidden states of the batch where it is mixed, for later batches.
        self.kept: list[Tensor] = []

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """What the model is given for the batch and its partners."""
        if self.partners is None:
            return dict(batch)
        # A batch may hold more than the model takes.
        taken = [name for name in self.names if name != "labels"]
        parts = [
            {name: part[name] for name in taken if name in part}
            for part in (rows_of(batch, self.size), *self.partners.parts)
        ]
        return {**batch, **stack_inputs(parts, self.padding, self.partners.length)}

    def with_states(self, values: Tensor, argument: Argument) -> Tensor:
        """Hidden states that were computed for the batch, and after them those of its partners."""
        own = values.narrow(argument.batch_dim, 0, self.size)
        rows = own.movedim(argument.batch_dim, 0)
        runs_along = argument.by_position and self.length is not None
        kept = rows.detach()
        if runs_along and self.length is not None:
            kept = kept.narrow(1, kept.shape[1] - self.length if self.padding.is_left else 0, self.length)
        self.kept.append(kept)
        if self.partners is None:
            return own

        def as_long(stored: Tensor) -> Tensor:
            return self.padding.lengthen(stored, rows.shape[1]) if runs_along else stored

        theirs = self.partners.states_at(len(self.kept) - 1, rows, as_long)
        return torch.cat([rows, theirs.to(rows)]).movedim(0, argument.batch_dim)
