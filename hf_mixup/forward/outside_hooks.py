"""The hooks that add the rows of partners from outside of the batch, and take them out again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hf_mixup.forward.anatomy.inputs import bind, first_tensor, map_arguments, map_tensors, unbind, with_first_tensor
from hf_mixup.forward.anatomy.soft_mask import narrow
from hf_mixup.forward.outside import OutsideRows
from hf_mixup.forward.state import HookGroup, Mixing


class _OutsideHooks(HookGroup):
    @property
    def rows(self) -> OutsideRows:
        assert self.mixing.outside is not None
        return self.mixing.outside


class AddOutsideRows(_OutsideHooks):
    """Give the model the inputs of the partners as well."""

    def register(self, mixing: Mixing) -> Iterator[RemovableHandle]:
        yield self.anatomy.root.register_forward_pre_hook(self.before_model, with_kwargs=True)

    def before_model(
        self, module: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]] | None:
        rows = self.rows
        if rows.has_begun:
            raise RuntimeError("apply: a plan with partners from outside of the batch applies to one forward pass.")
        rows.has_begun = True
        if rows.partners is None:
            return None
        given = bind(rows.names, args, kwargs)
        if given.get("labels") is not None:
            raise ValueError("labels: leave them out of the forward pass; they are for Mixup.loss.")
        return (), rows.inputs(given)


class OutsideRowsAtBlocks(_OutsideHooks):
    """Take the rows of the partners out before each block, and add them after the last block of a stack."""

    def register(self, mixing: Mixing) -> Iterator[RemovableHandle]:
        has_partners = self.rows.partners is not None
        if not has_partners and mixing.plan.site != "pooled":
            return
        for module in self.anatomy.positions:
            yield module.register_forward_hook(self.after_block)
        for module in self.anatomy.positions if has_partners else ():
            yield module.register_forward_pre_hook(self.before_block, with_kwargs=True)

    def before_block(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        call, size = self.anatomy.calls[self.anatomy.positions[module][0]], self.rows.size

        def own(path: str, value: Tensor) -> Tensor:
            dim, share = call.batch_dims.get(path, (0, 0))
            is_both = share > 0 and value.shape[dim] == 2 * size * share
            return narrow(value, dim, size * share) if is_both else value

        return unbind(call.names, map_arguments(bind(call.names, args, kwargs), own), args, kwargs)

    def after_block(self, module: nn.Module, args: tuple, output: Any) -> Any:
        index = self.mixing.position("outside", module, self.anatomy.positions[module])
        if index not in self.anatomy.stack_ends:
            return None
        states, argument = first_tensor(output), self.anatomy.calls[index].output
        if index == self.anatomy.depth - 1 and self.mixing.plan.site == "pooled":
            both = self.rows.with_states(states, argument)
        elif self.rows.partners is not None:
            both = torch.cat([states, states.detach()], argument.batch_dim)
        else:
            return None
        return with_first_tensor(output, both)


class DropOutsideRows(_OutsideHooks):
    """Return what belongs to the batch itself."""

    def register(self, mixing: Mixing) -> Iterator[RemovableHandle]:
        if self.rows.partners is not None:
            yield self.anatomy.root.register_forward_hook(self.after_model)

    def after_model(self, module: nn.Module, args: tuple, output: Any) -> Any:
        return map_tensors(output, "", self.own)

    def own(self, path: str, value: Tensor) -> Tensor:
        size = self.rows.size
        return value[:size] if value.dim() and value.shape[0] == 2 * size else value
