"""Partners from outside of the batch: they enter a forward pass with their tokens, skip the blocks, and are met at the
site with hidden states that were computed elsewhere.

A model makes its masks and positions from the tokens of the rows that it is given. So the guests are given to it as
further rows, the masks of both are there, and the rows of the guests leave again before the first block runs. Behind
the last block they are let in once more, so that the head finds as many rows as there are texts; only the logits of
the batch itself are returned.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from hf_mixup.forward.anatomy.anatomy import (
    Anatomy,
    Argument,
    bind,
    first_tensor,
    map_tensors,
    text_config,
    with_first_tensor,
)
from hf_mixup.forward.soft_mask import narrow
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

    def lengthen(self, values: Tensor, length: int, dim: int = 1, fill: float = 0) -> Tensor:
        """`values` with `fill` up to `length` along `dim`."""
        missing = length - values.shape[dim]
        if not missing:
            return values
        sides = (missing, 0) if self.is_left else (0, missing)
        return functional.pad(values, (0, 0) * (values.dim() - dim - 1) + sides, value=fill)


def padding_of(anatomy: Anatomy) -> Padding:
    """How texts of this model are made longer."""
    token = getattr(text_config(anatomy.root), "pad_token_id", None)
    return Padding(token if isinstance(token, int) and token >= 0 else 0, anatomy.readout == "last")


def with_guest_rows(plan: MixupPlan) -> MixupPlan:
    """The plan for the batch and its guests, who stay as they are."""
    rows = torch.arange(plan.lam.shape[0], 2 * plan.lam.shape[0], device=plan.lam.device)
    dimensions = plan.dimension_lam
    return replace(
        plan,
        partner=torch.cat([plan.partner, rows]),
        lam=torch.cat([plan.lam, torch.ones_like(plan.lam)]),
        dimension_lam=None if dimensions is None else torch.cat([dimensions, torch.ones_like(dimensions)]),
    )


def stack_inputs(parts: Sequence[Mapping[str, Tensor]], padding: Padding, length: int = 0) -> dict[str, Tensor]:
    """The rows of several batches as one: texts as long as the longest, with a mask for all.

    Raises:
        ValueError: where the batches have other inputs, or inputs of other shapes.
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


class Visit:
    """The rows of the guests in one forward pass: let in at the model, out before the blocks, in again behind them.

    Args:
        anatomy (`Anatomy`): of the model.
        batch (`Mapping`): the inputs of the batch itself.
        size (`int`): its number of examples.
        guests (`Guests`, *optional*): `None` where hidden states are only kept for later batches.
        meets_at_head (`bool`): whether batch and guests meet behind the last block.
    """

    def __init__(
        self, anatomy: Anatomy, batch: Mapping[str, Any], size: int, guests: OutsidePartners | None, meets_at_head: bool
    ) -> None:
        self.anatomy, self.size, self.guests, self.meets_at_head = anatomy, size, guests, meets_at_head
        self.padding, self.length = padding_of(anatomy), text_length(batch)
        self.names = list(inspect.signature(anatomy.root.forward).parameters)
        self.has_begun = False
        # Hidden states of the batch where it meets its guests, for later batches.
        self.kept: list[Tensor] = []
        self.calls: dict[nn.Module, list[int]] = {}
        for index, call in enumerate(anatomy.calls):
            self.calls.setdefault(call.module, []).append(index)
        self.turns: dict[nn.Module, int] = {}

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """What the model is given for the batch and its guests."""
        if self.guests is None:
            return dict(batch)
        # A batch may hold more than the model takes.
        taken = [name for name in self.names if name != "labels"]
        parts = [
            {name: part[name] for name in taken if name in part}
            for part in (rows_of(batch, self.size), *self.guests.parts)
        ]
        return {**batch, **stack_inputs(parts, self.padding, self.guests.length)}

    def meet(self, values: Tensor, argument: Argument) -> Tensor:
        """Hidden states that were computed for the batch, and after them those of its guests."""
        own = values.narrow(argument.batch_dim, 0, self.size)
        rows = own.movedim(argument.batch_dim, 0)
        runs_along = argument.by_position and self.length is not None
        self.kept.append(self._unpadded(rows.detach()) if runs_along else rows.detach())
        if self.guests is None:
            return own

        def as_long(stored: Tensor) -> Tensor:
            return self.padding.lengthen(stored, rows.shape[1]) if runs_along else stored

        theirs = self.guests.states_at(len(self.kept) - 1, rows, as_long)
        return torch.cat([rows, theirs.to(rows)]).movedim(0, argument.batch_dim)

    def _unpadded(self, rows: Tensor) -> Tensor:
        assert self.length is not None
        return rows.narrow(1, rows.shape[1] - self.length if self.padding.is_left else 0, self.length)

    def hooks_before(self) -> list[RemovableHandle]:
        """Register what has to run before anything is mixed."""
        return [self.anatomy.root.register_forward_pre_hook(self.let_in, with_kwargs=True)]

    def hooks_at_blocks(self) -> list[RemovableHandle]:
        """Register what has to run after masks and hidden states are mixed, and before the head reads."""
        if self.guests is None and not self.meets_at_head:
            return []
        handles = [module.register_forward_hook(self.let_in_behind) for module in self.calls]
        if self.guests is not None:
            handles += [module.register_forward_pre_hook(self.let_out, with_kwargs=True) for module in self.calls]
        return handles

    def hooks_after(self) -> list[RemovableHandle]:
        """Register what has to run at the very end."""
        return [] if self.guests is None else [self.anatomy.root.register_forward_hook(self.let_go)]

    def let_in(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        """Give the model the guests' inputs as well."""
        if self.has_begun:
            raise RuntimeError("apply: a plan with partners from outside of the batch applies to one forward pass.")
        self.has_begun = True
        if self.guests is None:
            return None
        given = bind(self.names, args, kwargs)
        if given.get("labels") is not None:
            raise ValueError("labels: leave them out of the forward pass; they are for Mixup.loss.")
        return (), self.inputs(given)

    def let_out(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Take the guests out of everything that a block is given."""
        call = self.anatomy.calls[self.calls[module][0]]

        def own(path: str, value: Tensor) -> Tensor:
            dim, share = call.batch_dims.get(path, (0, 0))
            is_both = share > 0 and value.shape[dim] == 2 * self.size * share
            return narrow(value, dim, self.size * share) if is_both else value

        arguments = {name: map_tensors(value, name, own) for name, value in bind(call.names, args, kwargs).items()}
        return tuple(arguments[name] for name in call.names[: len(args)]), {name: arguments[name] for name in kwargs}

    def let_in_behind(self, module: nn.Module, args: tuple, output: Any) -> Any:
        """Behind the last block of a stack, let the guests in for what comes after it."""
        turn = self.turns.get(module, 0)
        self.turns[module] = turn + 1
        index = self.calls[module][turn % len(self.calls[module])]
        is_last = index == self.anatomy.depth - 1
        if not is_last and self.anatomy.calls[index + 1].stack == self.anatomy.calls[index].stack:
            return None
        states, argument = first_tensor(output), self.anatomy.calls[index].output
        if is_last and self.meets_at_head:
            both = self.meet(states, argument)
        elif self.guests is not None:
            both = torch.cat([states, states.detach()], argument.batch_dim)
        else:
            return None
        return with_first_tensor(output, both)

    def let_go(self, module: nn.Module, args: tuple, output: Any) -> Any:
        """Return what belongs to the batch itself."""

        def own(path: str, value: Tensor) -> Tensor:
            return value[: self.size] if value.dim() and value.shape[0] == 2 * self.size else value

        return map_tensors(output, "", own)
