"""Where, at run time: the hooks that apply one plan to one forward pass."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hf_mixup.forward import interpolation
from hf_mixup.forward.anatomy.anatomy import (
    LINEAR_ARGUMENTS,
    Anatomy,
    Argument,
    BlockCall,
    bind,
    first_tensor,
    logits_of,
    map_tensors,
    with_first_tensor,
    with_logits,
)
from hf_mixup.forward.anatomy.architectures import peculiarity_of
from hf_mixup.forward.soft_mask import soft_mask
from hf_mixup.forward.state import FOUND_IN_TEXT, Mixing
from hf_mixup.forward.text_head import read_both_texts
from hf_mixup.plan.spans import swap_tokens

# How many graphs of one function PyTorch keeps by default, before it gives up and runs it uncompiled.
RECOMPILE_LIMIT = 8


def let_compiled_models_mix(layers: int = 0) -> None:
    """Let a model that was compiled without hooks be compiled anew with them, once for each of `layers`.

    By default PyTorch does not look at hooks, and keeps eight graphs of a function.
    """
    if "torch._dynamo" in sys.modules:
        dynamo = torch._dynamo.config
        dynamo.skip_nnmodule_hook_guards = False
        dynamo.recompile_limit = max(dynamo.recompile_limit, RECOMPILE_LIMIT + layers)


class Hooks:
    """The hooks of one model, made once and registered for the length of one `apply`.

    Args:
        anatomy (`Anatomy`): where the model's sites are.
    """

    def __init__(self, anatomy: Anatomy) -> None:
        self.anatomy = anatomy
        self.mixing: Mixing | None = None
        self.positions: dict[nn.Module, list[int]] = {}
        for index, call in enumerate(anatomy.calls):
            self.positions.setdefault(call.module, []).append(index)
        self.lookup_stacks: dict[nn.Module, list[int]] = {}
        for module, stack in anatomy.lookups:
            self.lookup_stacks.setdefault(module, []).append(stack)
        self.lookup_mask_names = dict(anatomy.lookup_masks)

    def register(self, mixing: Mixing) -> list[RemovableHandle]:
        """Make `mixing` the current one and register the hooks that its site needs."""
        self.mixing = mixing
        visit = mixing.visit
        if visit is None:
            return [*self._mixing_hooks(mixing), *self._reading_hooks(mixing)]
        mixed = [*visit.hooks_before(), *self._mixing_hooks(mixing), *visit.hooks_at_blocks()]
        return [*mixed, *self._reading_hooks(mixing), *visit.hooks_after()]

    def _mixing_hooks(self, mixing: Mixing) -> list[RemovableHandle]:
        anatomy = self.anatomy
        if mixing.plan.site == "pooled":
            return []
        if mixing.plan.source is not None:
            return [anatomy.root.register_forward_pre_hook(self.swap_tokens, with_kwargs=True)]
        if anatomy.entrance is not None:
            mixed = anatomy.calls[mixing.start - 1].module if mixing.start else anatomy.entrance
            masked = anatomy.backbone.register_forward_pre_hook(self.before_backbone, with_kwargs=True)
            return [masked, mixed.register_forward_hook(self.mix_output)]
        handles = []
        if mixing.plan.site == "input":
            handles.append(anatomy.root.register_forward_pre_hook(self.mix_input, with_kwargs=True))
        for module, positions in self.positions.items():
            if positions[-1] >= mixing.start:
                handles.append(module.register_forward_pre_hook(self.before_block, with_kwargs=True))
        if self._ends_a_stack(mixing.start - 1):
            handles.append(anatomy.calls[mixing.start - 1].module.register_forward_hook(self.after_block))
        if mixing.plan.site == "word_embeddings":
            handles += [module.register_forward_hook(self.mix_lookup) for module in self.lookup_stacks]
            for module in self.lookup_mask_names:
                handles.append(module.register_forward_pre_hook(self.before_lookup, with_kwargs=True))
        return handles

    def _reading_hooks(self, mixing: Mixing) -> list[RemovableHandle]:
        anatomy, handles = self.anatomy, []
        if mixing.plan.site == "pooled":
            return [anatomy.root.register_forward_hook(self.mix_logits)]
        if mixing.plan.source is not None or anatomy.entrance is not None:
            return []
        if anatomy.readout in (*FOUND_IN_TEXT, "mean"):
            handles.append(anatomy.read_at.register_forward_hook(self.mix_readout))
        if anatomy.readout == "text":
            handles += read_both_texts(anatomy, lambda: mixing.plan)
        return handles

    def _ends_a_stack(self, index: int) -> bool:
        calls = self.anatomy.calls
        return index >= 0 and (index == len(calls) - 1 or calls[index + 1].stack != calls[index].stack)

    def release(self) -> None:
        """Forget the current forward pass."""
        self.mixing = None

    def _position(self, module: nn.Module, positions: list[int]) -> int:
        """Which of its calls this is, for a module that runs several times (ALBERT's shared layers)."""
        if len(positions) == 1:
            return positions[0]
        mixing = self.current
        seen = mixing.seen.get(module, 0)
        mixing.seen[module] = seen + 1
        return positions[seen % len(positions)]

    @property
    def current(self) -> Mixing:
        assert self.mixing is not None
        return self.mixing

    def before_block(
        self, module: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]] | None:
        """Mix what enters the first block above the site, and the masks of every block above it."""
        index = self._position(module, self.positions[module])
        mixing = self.current
        if index < mixing.start:
            return None
        call = self.anatomy.calls[index]
        arguments = bind(call.names, args, kwargs)
        dtype = first_tensor(next(iter(arguments.values()))).dtype
        for name, value in arguments.items():
            arguments[name] = map_tensors(
                value, name, lambda path, tensor: self._mix_argument(path, tensor, call, dtype)
            )
        positional = tuple(arguments[name] for name in call.names[: len(args)])
        return positional, {name: arguments[name] for name in kwargs}

    def _mix_argument(self, path: str, value: Tensor, call: BlockCall, dtype: torch.dtype) -> Tensor:
        mixing, argument = self.current, call.arguments.get(path)
        if path.split(".")[0] in LINEAR_ARGUMENTS:
            return _once(mixing, value, self._mix_line)
        if path not in call.seen and value.dtype != torch.long:
            raise ValueError(
                f"{path}: {type(call.module).__name__} is given it for this batch, and was not when the model was "
                f"probed with padded texts; so it is not known how it mixes. {peculiarity_of(self.anatomy.root).why}"
            )
        if path in call.alike and not torch.compiler.is_compiling() and mixing.is_first:
            _check_alike(path, value, call)
        if argument is None or (argument.kind == "states" and self._is_mixed(argument, path == call.names[0])):
            return value
        return _once(mixing, value, lambda unmixed: self._mixed(unmixed, argument, call, dtype))

    def _mixed(self, value: Tensor, argument: Argument, call: BlockCall, dtype: torch.dtype) -> Tensor:
        if argument.merged:
            examples = value.unflatten(0, (self.current.plan.lam.shape[0], -1))
            return self._mixed(examples, replace(argument, merged=False), call, dtype).flatten(0, 1)
        if argument.kind != "states":
            return self._mix_mask(value, argument, dtype)
        stack = call.stack if argument.origin is None else self.anatomy.calls[argument.origin].stack
        return self.current.mix(value, argument, stack)

    def _is_mixed(self, argument: Argument, enters_first: bool) -> bool:
        """Whether the states that a block is given were computed from mixed ones."""
        start, origin = self.current.start, argument.origin
        if origin is None:
            from_input = argument.by_position or enters_first
            return from_input and self.current.plan.site in ("input", "word_embeddings")
        return origin >= start or (origin == start - 1 and self._ends_a_stack(origin))

    def _mix_line(self, value: Tensor) -> Tensor:
        plan = self.current.plan
        batch_dim = 2 if self.anatomy.batch_dim == 1 else 0
        if value.shape[batch_dim] != plan.lam.shape[0]:
            return value
        return interpolation.mix_rows(value, plan.partner, plan.lam, batch_dim)

    def _mix_mask(self, mask: Tensor, argument: Argument, dtype: torch.dtype) -> Tensor:
        plan, batch_dim = self.current.plan, argument.batch_dim
        is_shared = mask.shape[batch_dim] == 1 or mask.stride(batch_dim) == 0
        if is_shared:
            return mask
        if argument.kind == "mask" or argument.compared:
            return interpolation.mix_truth(mask, plan.partner, plan.lam, argument, self.current.reads_padding)
        if mask.dtype == torch.bool:
            return interpolation.mix_keep(mask, plan.partner, plan.lam, dtype, batch_dim)
        return interpolation.mix_bias(mask, plan.partner, plan.lam, batch_dim)

    def after_block(self, module: nn.Module, args: tuple, output: Any) -> Any:
        """Mix what leaves the last block of a stack."""
        mixing, last = self.current, self.current.start - 1
        if self._position(module, self.positions[module]) != last:
            return None
        call = self.anatomy.calls[last]
        argument = replace(call.output, origin=last)
        return with_first_tensor(output, mixing.mix(first_tensor(output), argument, call.stack))

    def before_backbone(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Give a model whose masks reach no block as an argument one that is mixed from the site on."""
        mask, mixing = kwargs.get("attention_mask"), self.current
        if mask is None:
            raise ValueError(f"attention_mask: {type(self.anatomy.root).__name__} needs it to be mixed.")
        kept = mask.bool().float()
        weight = interpolation.mix_rows(kept, mixing.plan.partner, mixing.plan.lam)
        return args, kwargs | {"attention_mask": soft_mask(weight, until=(kept, mixing))}

    def mix_output(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        """Mix what leaves a block whose output is not only the next block's input."""
        return self.current.mix(output, Argument("states", 0, by_position=True), 0)

    def mix_input(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Mix the float input of an image or audio model."""
        plan = self.current.plan
        return self._with_input(args, kwargs, lambda value: interpolation.mix_rows(value, plan.partner, plan.lam))

    def swap_tokens(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Take spans of tokens from the partners."""
        plan = self.current.plan
        assert plan.source is not None
        source = plan.source
        return self._with_input(args, kwargs, lambda ids: swap_tokens(ids, plan.partner, source))

    def _with_input(
        self, args: tuple, kwargs: dict[str, Any], mix: Callable[[Tensor], Tensor]
    ) -> tuple[tuple, dict[str, Any]]:
        self.current.reached = True
        name = self.anatomy.input_name
        return (args, kwargs | {name: mix(kwargs[name])}) if name in kwargs else ((mix(args[0]), *args[1:]), kwargs)

    def mix_lookup(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        """Mix token, position and segment embeddings."""
        stacks = self.lookup_stacks[module]
        stack = stacks[self._position(module, list(range(len(stacks))))]
        batch_dim = self.anatomy.batch_dim
        if output.dim() != 3 or output.shape[batch_dim] != self.current.plan.lam.shape[0]:
            return output
        return self.current.mix(output, Argument("states", batch_dim, by_position=True), stack)

    def before_lookup(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """A mask that embeddings are multiplied by is mixed as they are."""
        name = self.lookup_mask_names[module]
        if isinstance(kwargs.get(name), Tensor):
            mask = kwargs[name].to(self.current.plan.lam.dtype)
            weights = self.current.weights[0]
            weights = weights.mean(-1) if weights.dim() == 3 else weights
            kwargs[name] = torch.lerp(mask[self.current.plan.partner], mask, weights)
        return args, kwargs

    def mix_readout(self, module: nn.Module, args: tuple, output: Any) -> Any:
        """Put what the head would read of the mixture wherever it may look."""
        mixing, plan = self.current, self.current.plan
        hidden = first_tensor(output)
        if mixing.read_position is not None:
            read = interpolation.read_last_token(hidden, mixing.read_position, plan.partner, plan.lam)
        else:
            read = interpolation.read_mean(hidden, mixing.mask, plan.partner, plan.lam)
        return with_first_tensor(output, read.unsqueeze(1).expand_as(hidden))

    def mix_logits(self, module: nn.Module, args: tuple, output: Any) -> Any:
        """Pooled states enter an affine layer, so interpolating its output is interpolating them."""
        mixing = self.current
        mixing.reached = True
        mixed = interpolation.mix_rows(logits_of(output), mixing.plan.partner, mixing.plan.lam)
        return with_logits(output, mixed)


def _check_alike(path: str, value: Tensor, call: BlockCall) -> None:
    """Raise `ValueError` where examples differ in an argument in which they did not differ in the probe."""
    rows = value.movedim(call.alike[path], 0)
    if not torch.equal(rows, rows[:1].expand_as(rows)):
        raise ValueError(
            f"{path}: {type(call.module).__name__} is given other values for each example of this batch, and it is not "
            "known how they mix. Give every example the same, or mix at 'pooled'."
        )


def _once(mixing: Mixing, value: Tensor, mix: Callable[[Tensor], Tensor]) -> Tensor:
    """Mix an argument that several blocks share only once."""
    for known, mixed in mixing.mixed_arguments:
        if known is value:
            return mixed
    mixed = mix(value)
    mixing.mixed_arguments.append((value, mixed))
    return mixed
