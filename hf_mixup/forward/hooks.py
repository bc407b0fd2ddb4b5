"""Where, at run time: which hooks apply a plan at which site, and those of the blocks themselves."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hf_mixup.forward import outside_hooks, sites
from hf_mixup.forward.anatomy.anatomy import Anatomy, Argument, BlockCall
from hf_mixup.forward.anatomy.host import (
    CHECKPOINTS_HOOKS,
    COMPILER,
    DEFAULT_GRAPHS_KEPT,
    GRAPHS_KEPT,
    LINEAR_ARGUMENTS,
    SKIPS_HOOKS,
    HooksOutside,
    appears_when_compiling,
    hooks_outside,
    is_adapter,
    own_modules,
)
from hf_mixup.forward.anatomy.inputs import (
    bind,
    changeable_state,
    first_tensor,
    map_arguments,
    unbind,
    with_first_tensor,
)
from hf_mixup.forward.anatomy.kernels import flash_kernels_of, let_kernels_take_weights
from hf_mixup.forward.anatomy.masks import mix_mask, mix_rows
from hf_mixup.forward.anatomy.quirks import quirk_of
from hf_mixup.forward.state import HookGroup, Mixing
from hf_mixup.plan.mixup_plan import MixupPlan


def let_compiled_models_mix(layers: int = 0) -> None:
    """Let a model that was compiled without hooks be compiled anew with them, once for each of `layers`.

    By default PyTorch does not look at hooks, and keeps eight graphs of a function.
    """
    if COMPILER in sys.modules:
        config = sys.modules[COMPILER].config
        setattr(config, SKIPS_HOOKS, False)
        setattr(config, GRAPHS_KEPT, max(getattr(config, GRAPHS_KEPT), DEFAULT_GRAPHS_KEPT + layers))


class Blocks(HookGroup):
    """Mix what enters the first block above the site, and the masks of every block above it."""

    def register(self, mixing: Mixing) -> Iterator[RemovableHandle]:
        for module, positions in self.anatomy.positions.items():
            if positions[-1] >= mixing.start:
                yield module.register_forward_pre_hook(self.before_block, with_kwargs=True)
        last = mixing.start - 1
        if last in self.anatomy.stack_ends:
            yield self.anatomy.calls[last].module.register_forward_hook(self.after_block)

    def before_block(
        self, module: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]] | None:
        mixing = self.mixing
        index = mixing.position("blocks", module, self.anatomy.positions[module])
        if index < mixing.start:
            return None
        call = self.anatomy.calls[index]
        arguments = bind(call.names, args, kwargs)
        dtype = first_tensor(next(iter(arguments.values()))).dtype
        arguments = map_arguments(arguments, lambda path, value: self._mix_argument(path, value, call, dtype))
        return unbind(call.names, arguments, args, kwargs)

    def _mix_argument(self, path: str, value: Tensor, call: BlockCall, dtype: torch.dtype) -> Tensor:
        mixing, argument = self.mixing, call.arguments.get(path)
        if path.split(".")[0] in LINEAR_ARGUMENTS:
            return mixing.once(value, self._mix_line)
        if path not in call.seen and value.dtype != torch.long and not appears_when_compiling(path, call.stack):
            raise ValueError(
                f"{path}: {type(call.module).__name__} is given it for this batch, and was not when the model was "
                f"probed with padded texts; so it is not known how it mixes. {quirk_of(self.anatomy.root).why}"
            )
        if path in call.alike and not torch.compiler.is_compiling() and mixing.is_first:
            _check_alike(path, value, call)
        if argument is None or self._is_mixed(argument, path == call.names[0]):
            return value
        return mixing.once(value, lambda unmixed: self._mix(path, unmixed, argument, call, dtype))

    def _mix(self, path: str, value: Tensor, argument: Argument, call: BlockCall, dtype: torch.dtype) -> Tensor:
        mixing, plan = self.mixing, self.mixing.plan
        if argument.kind != "states":
            if argument.origin is not None and mixing.outside is not None:
                raise ValueError(f"{path}: holds the mask of the batch alone; this needs transformers 5.15 or newer.")
            queries = mixing.weights_of_queries(call.stack, value) if value.dim() == 2 else None
            return mix_mask(value, argument, plan.partner, plan.lam, dtype, mixing.reads_padding, queries)
        stack = call.stack if argument.origin is None else self.anatomy.calls[argument.origin].stack
        if not argument.merged:
            return mixing.mix(value, argument, stack)
        return mixing.mix(value.unflatten(0, (plan.lam.shape[0], -1)), argument, stack).flatten(0, 1)

    def _is_mixed(self, argument: Argument, enters_first: bool) -> bool:
        """Whether what a block is given was computed from mixed states."""
        start, origin = self.mixing.start, argument.origin
        if origin is None:
            from_input = argument.kind == "states" and (argument.by_position or enters_first)
            return from_input and self.mixing.plan.site in ("input", "word_embeddings")
        return origin >= start or (origin == start - 1 and origin in self.anatomy.stack_ends)

    def _mix_line(self, value: Tensor) -> Tensor:
        plan = self.mixing.plan
        batch_dim = 2 if self.anatomy.batch_dim == 1 else 0
        if value.shape[batch_dim] != plan.lam.shape[0]:
            return value
        return mix_rows(value, plan.partner, plan.lam, batch_dim)

    def after_block(self, module: nn.Module, args: tuple, output: Any) -> Any:
        """Mix what leaves the last block of a stack."""
        mixing, last = self.mixing, self.mixing.start - 1
        if mixing.position("blocks", module, self.anatomy.positions[module]) != last:
            return None
        call = self.anatomy.calls[last]
        argument = replace(call.output, origin=last)
        return with_first_tensor(output, mixing.mix(first_tensor(output), argument, call.stack))


def _check_alike(path: str, value: Tensor, call: BlockCall) -> None:
    """Raise `ValueError` if examples differ in an argument in which they did not differ in the probe."""
    rows = value.movedim(call.alike[path], 0)
    if not torch.equal(rows, rows[:1].expand_as(rows)):
        raise ValueError(
            f"{path}: {type(call.module).__name__} is given other values for each example of this batch, and it is not "
            "known how they mix. Give every example the same, or mix at 'pooled'."
        )


# What mixes at each site. Spans and boxes are exchanged before the model, and some models are mixed at the outputs of
# blocks.
SITES: dict[str, tuple[type[HookGroup], ...]] = {
    "input": (sites.ModelInput, Blocks),
    "exchanged": (sites.ModelInput,),
    "word_embeddings": (Blocks, sites.Lookups),
    "embeddings": (Blocks,),
    "hidden": (Blocks,),
    "block_outputs": (sites.BlockOutputs,),
    "pooled": (),
}
# What lets the head read the mixture: by its read-out, unless the site says otherwise.
READOUTS: dict[str, tuple[type[HookGroup], ...]] = {
    "last_token": (sites.MixedRead,),
    "last_eos": (sites.MixedRead,),
    "mean": (sites.MixedRead,),
    "text": (sites.BothTexts,),
}
READ_AT_SITE: dict[str, tuple[type[HookGroup], ...]] = {
    "exchanged": (),
    "block_outputs": (),
    "pooled": (sites.PooledStates,),
}
OUTSIDE_ROWS = (outside_hooks.AddOutsideRows, outside_hooks.OutsideRowsAtBlocks, outside_hooks.DropOutsideRows)


def groups_of(anatomy: Anatomy, plan: MixupPlan, with_outside_rows: bool) -> tuple[type[HookGroup], ...]:
    """The groups of hooks that apply a plan, in the order in which they are registered.

    The rows of outside partners are added before anything else, taken out before each block once its masks are mixed,
    added again before the head reads, and dropped at the very end.
    """
    site = plan.site
    if site != "pooled":
        is_exchanged = plan.source is not None or plan.box is not None
        site = "exchanged" if is_exchanged else "block_outputs" if anatomy.embedding_module else site
    read = READ_AT_SITE.get(site, READOUTS.get(anatomy.readout, ()))
    if not with_outside_rows:
        return (*SITES[site], *read)
    add, at_blocks, drop = OUTSIDE_ROWS
    return (add, *SITES[site], at_blocks, *read, drop)


class Hooks:
    """The hooks of one model, made once and registered for the length of one `apply`.

    Args:
        anatomy (`Anatomy`): where the model's sites are.
    """

    def __init__(self, anatomy: Anatomy) -> None:
        self.anatomy = anatomy
        self.flash_kernels = flash_kernels_of(anatomy.root)
        tables = (SITES, READOUTS, READ_AT_SITE, {"outside": OUTSIDE_ROWS})
        self.groups = {kind: kind(anatomy) for table in tables for row in table.values() for kind in row}
        self.handles: list[RemovableHandle | HooksOutside] = []
        # The children of each module, as they are and as they were when the sites were found.
        self._children = [(own_modules(module), {**own_modules(module)}) for module in anatomy.root.modules()]

    def fit(self, model: nn.Module) -> bool:
        """Whether the config and the adapters of the model are as they were when its sites were found."""
        changed = [pair for pair in self._children if pair[0] != pair[1]]
        has_new_adapter = any(is_adapter(child) for pair in changed for children in pair for child in children.values())
        return self.anatomy.state == changeable_state(model) and not has_new_adapter

    def register(self, mixing: Mixing) -> None:
        """Make `mixing` the current pass and register the hooks that its site needs; all of them, or none."""
        if self.flash_kernels:
            let_kernels_take_weights(self.flash_kernels)
        try:
            if CHECKPOINTS_HOOKS:
                self.handles.extend(hooks_outside(self.anatomy.root))
            for kind in groups_of(self.anatomy, mixing.plan, mixing.outside is not None):
                self.groups[kind].current = mixing
                for handle in self.groups[kind].register(mixing):
                    self.handles.append(handle)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Remove the hooks and forget the pass."""
        while self.handles:
            self.handles.pop().remove()
        for group in self.groups.values():
            group.current = None
