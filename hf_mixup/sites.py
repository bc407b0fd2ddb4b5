"""Where, at run time: the hooks that apply one plan to one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hf_mixup import interpolation
from hf_mixup.anatomy import (
    ENCODER_STATES,
    LINEAR_ARGUMENTS,
    Anatomy,
    BlockCall,
    MaskKind,
    bind,
    first_tensor,
    logits_of,
    text_config,
    with_first_tensor,
    with_logits,
)
from hf_mixup.plan import MixupPlan

# The position of heads that read the same one in every text.
FIXED_READ = {"first": 0, "last": -1}
# Heads that find the position in the tokens of each text.
FOUND_IN_TEXT = ("last_token", "last_eos")


@dataclass
class Mixing:
    """The plan of the forward pass under way, and what its hooks share.

    Args:
        plan (`MixupPlan`): on the device of the batch.
        weights (`list[torch.Tensor]`): weight of the example itself at each position, `(batch, length)`, per stack.
        mask (`torch.Tensor` of shape `(batch, length)`, *optional*): the batch's attention mask.
        reads_padding (`torch.Tensor` of shape `(batch,)`, *optional*): pairs that the head reads at a padding position.
        read_position (`torch.Tensor` of shape `(batch,)`, *optional*): where the head reads each text.
        start (`int`): number of block calls below the site; the first block that sees the mixture.
    """

    plan: MixupPlan
    weights: list[Tensor]
    mask: Tensor | None
    reads_padding: Tensor | None
    read_position: Tensor | None
    start: int
    reached: bool = False
    seen: dict[nn.Module, int] = field(default_factory=dict)
    mixed_arguments: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def mix(self, values: Tensor, stack: int, batch_dim: int) -> Tensor:
        """Mix hidden states or embeddings of a stack, position by position."""
        self.reached = True
        weights = self.weights[min(stack, len(self.weights) - 1)]
        if weights.shape[1] != values.shape[1 - batch_dim]:
            weights = self.plan.lam
        return interpolation.mix_rows(values, self.plan.partner, weights, batch_dim)


def begin(anatomy: Anatomy, plan: MixupPlan, batch: Mapping[str, Any]) -> Mixing:
    """The state of a forward pass that applies `plan` to `batch`.

    Raises:
        ValueError: where plan and batch do not fit, or the attention mask is not 2-D.
    """
    ids = batch.get("input_ids")
    tokens = batch.get("inputs_embeds") if ids is None else ids
    if tokens is None:
        raise ValueError(f"The batch has neither input_ids nor inputs_embeds, only {', '.join(batch)}.")
    if tokens.shape[0] != plan.lam.shape[0]:
        raise ValueError(f"The plan is for a batch of {plan.lam.shape[0]}, this batch has {tokens.shape[0]} examples.")
    if ids is None and (plan.site == "word_embeddings" or anatomy.readout in FOUND_IN_TEXT):
        raise ValueError(f"inputs_embeds: site {plan.site!r} of this model needs input_ids.")
    mask = batch.get("attention_mask")
    if mask is not None and mask.dim() != 2:
        raise ValueError(f"attention_mask: shape {tuple(mask.shape)}; mixup needs (batch, length).")
    for name in ("decoder_input_ids", "decoder_inputs_embeds", "decoder_attention_mask"):
        if batch.get(name) is not None:
            raise ValueError(f"{name}: leave it out, so that the decoder reads the text that the encoder reads.")
    start = _first_mixed_call(anatomy, plan)
    plan, length = plan.to(tokens.device), tokens.shape[1]
    fixed = FIXED_READ.get(anatomy.readout)
    text = None if anatomy.readout == "all" else mask
    weights = [interpolation.position_weights(plan.lam, plan.partner, text, length, fixed)]
    padded = None if mask is None or fixed is None else interpolation.reads_padding(mask, plan.partner, fixed)
    read_position = _read_position(anatomy, ids)
    if anatomy.calls[-1].stack > 0:
        # A decoder without a mask of its own reads every position up to the one that the head reads.
        positions = torch.arange(length, device=tokens.device)
        read = None if read_position is None else positions <= read_position.unsqueeze(1)
        weights.append(interpolation.position_weights(plan.lam, plan.partner, read, length, None))
    return Mixing(plan, weights, mask, padded, read_position, start)


def _read_position(anatomy: Anatomy, ids: Tensor | None) -> Tensor | None:
    """Where the head reads each text, for heads that find the position in the text."""
    if ids is None or anatomy.readout not in FOUND_IN_TEXT:
        return None
    config = text_config(anatomy.root)
    if anatomy.readout == "last_eos":
        return interpolation.last_eos_position(ids, config.eos_token_id)
    return interpolation.last_token_position(ids, config.pad_token_id)


def _first_mixed_call(anatomy: Anatomy, plan: MixupPlan) -> int:
    if plan.site in ("word_embeddings", "embeddings"):
        return 0
    if plan.site == "hidden" and plan.layer is not None and 0 <= plan.layer < anatomy.depth:
        return plan.layer + 1
    if plan.site != "pooled":
        raise ValueError(
            f"This plan's site={plan.site!r} and layer={plan.layer} are not in a model of {anatomy.depth} blocks."
        )
    return anatomy.depth


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
        self.first_calls = {anatomy.first_call(stack) for stack in {call.stack for call in anatomy.calls}}
        self.lookup_mask_names = dict(anatomy.lookup_masks)

    def register(self, mixing: Mixing) -> list[RemovableHandle]:
        """Make `mixing` the current one and register the hooks that its site needs."""
        self.mixing = mixing
        anatomy = self.anatomy
        if mixing.plan.site == "pooled":
            return [anatomy.root.register_forward_hook(self.mix_logits)]
        handles = []
        for module, positions in self.positions.items():
            if positions[-1] >= mixing.start:
                handles.append(module.register_forward_pre_hook(self.before_block, with_kwargs=True))
        if self._ends_a_stack(mixing.start - 1):
            handles.append(anatomy.calls[mixing.start - 1].module.register_forward_hook(self.after_block))
        if mixing.plan.site == "word_embeddings":
            handles += [module.register_forward_hook(self.mix_lookup) for module in self.lookup_stacks]
            for module in self.lookup_mask_names:
                handles.append(module.register_forward_pre_hook(self.before_lookup, with_kwargs=True))
        if anatomy.readout in (*FOUND_IN_TEXT, "mean"):
            handles.append(anatomy.read_at.register_forward_hook(self.mix_readout))
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
        enters = index == mixing.start or (index in self.first_calls and index > mixing.start)
        if enters and mixing.plan.site != "word_embeddings":
            name = next(iter(arguments))
            arguments[name] = _on_first(
                arguments[name], lambda hidden: mixing.mix(hidden, call.stack, self.anatomy.batch_dim)
            )
        dtype = first_tensor(next(iter(arguments.values()))).dtype
        for name, value in arguments.items():
            arguments[name] = self._mix_argument(name, value, call, dtype)
        positional = tuple(arguments[name] for name in call.names[: len(args)])
        return positional, {name: arguments[name] for name in kwargs}

    def _mix_argument(self, name: str, value: Any, call: BlockCall, dtype: torch.dtype) -> Any:
        mixing, anatomy = self.current, self.anatomy
        if isinstance(value, tuple) and name in LINEAR_ARGUMENTS:
            return tuple(self._mix_argument(name, part, call, dtype) for part in value)
        if not isinstance(value, Tensor):
            return value
        if name == ENCODER_STATES and mixing.start > anatomy.first_call(call.stack):
            return _once(mixing, value, lambda states: mixing.mix(states, 0, anatomy.batch_dim))
        if name in LINEAR_ARGUMENTS:
            return _once(mixing, value, self._mix_line)
        if name in call.masks:
            return _once(mixing, value, lambda mask: self._mix_mask(mask, call.masks[name], dtype))
        return value

    def _mix_line(self, value: Tensor) -> Tensor:
        plan = self.current.plan
        batch_dim = 2 if self.anatomy.batch_dim == 1 else 0
        if value.shape[batch_dim] != plan.lam.shape[0]:
            return value
        return interpolation.mix_rows(value, plan.partner, plan.lam, batch_dim)

    def _mix_mask(self, mask: Tensor, kind: MaskKind, dtype: torch.dtype) -> Tensor:
        plan, batch_dim = self.current.plan, kind.batch_dim
        is_shared = mask.shape[batch_dim] == 1 or mask.stride(batch_dim) == 0
        if is_shared:
            return mask
        if kind.convention == "keep_only":
            return interpolation.soft_mask(mask, plan.partner, plan.lam, self.current.reads_padding)
        if kind.convention == "subtract":
            return interpolation.mix_subtracted(mask, plan.partner, plan.lam, batch_dim)
        if mask.dtype == torch.bool:
            return interpolation.mix_keep(mask, plan.partner, plan.lam, dtype, batch_dim)
        return interpolation.mix_bias(mask, plan.partner, plan.lam, batch_dim)

    def after_block(self, module: nn.Module, args: tuple, output: Any) -> Any:
        """Mix what leaves the last block of a stack."""
        mixing, last = self.current, self.current.start - 1
        if self._position(module, self.positions[module]) != last:
            return None
        stack = self.anatomy.calls[last].stack
        return with_first_tensor(output, mixing.mix(first_tensor(output), stack, self.anatomy.batch_dim))

    def mix_lookup(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        """Mix token, position and segment embeddings."""
        stacks = self.lookup_stacks[module]
        stack = stacks[self._position(module, list(range(len(stacks))))]
        batch_dim = self.anatomy.batch_dim
        if output.dim() != 3 or output.shape[batch_dim] != self.current.plan.lam.shape[0]:
            return output
        return self.current.mix(output, stack, batch_dim)

    def before_lookup(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """A mask that embeddings are multiplied by is mixed as they are."""
        name = self.lookup_mask_names[module]
        if isinstance(kwargs.get(name), Tensor):
            mask = kwargs[name].to(self.current.plan.lam.dtype)
            weights = self.current.weights[0]
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


def _once(mixing: Mixing, value: Tensor, mix: Callable[[Tensor], Tensor]) -> Tensor:
    """Mix an argument that several blocks share only once."""
    for known, mixed in mixing.mixed_arguments:
        if known is value:
            return mixed
    mixed = mix(value)
    mixing.mixed_arguments.append((value, mixed))
    return mixed


def _on_first(value: Any, mix: Callable[[Tensor], Tensor]) -> Any:
    return with_first_tensor(value, mix(first_tensor(value)))
