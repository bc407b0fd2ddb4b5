"""The hooks outside of the blocks: of the sites there, and of heads that do not read one position of every text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hf_mixup.forward import interpolation
from hf_mixup.forward.anatomy.anatomy import Anatomy, Argument
from hf_mixup.forward.anatomy.calling import map_input
from hf_mixup.forward.anatomy.inputs import (
    first_tensor,
    logits_of,
    map_tensors,
    only_argument,
    with_first_tensor,
    with_logits,
)
from hf_mixup.forward.anatomy.masks import mix_rows
from hf_mixup.forward.anatomy.soft_mask import soft_mask
from hf_mixup.forward.state import HookGroup, Mixing
from hf_mixup.plan.boxes import swap_boxes
from hf_mixup.plan.mixup_plan import MixupPlan
from hf_mixup.plan.spans import swap_tokens


def mix_input(value: Tensor, plan: MixupPlan) -> Tensor:
    """What a model is given, mixed: tokens by spans, images by boxes if the plan has any, other floats on a line."""
    if plan.source is not None:
        return swap_tokens(value, plan.partner, plan.source)
    if plan.box is not None:
        return swap_boxes(value, plan.partner, plan.box)
    return mix_rows(value, plan.partner, plan.lam)


class ModelInput(HookGroup):
    """Mix what the model is given."""

    def register(self, mixing: Mixing) -> Iterator[RemovableHandle]:
        yield self.anatomy.root.register_forward_pre_hook(self.before_model, with_kwargs=True)

    def before_model(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        self.mixing.reached = True
        name, alone = self.anatomy.input_name, only_argument(type(module).forward)
        return map_input(args, kwargs, name, alone, lambda value: mix_input(value, self.mixing.plan))


class Lookups(HookGroup):
    """Mix token, position and segment embeddings, and the masks that they are multiplied by."""

    def __init__(self, anatomy: Anatomy) -> None:
        super().__init__(anatomy)
        self.stacks: dict[nn.Module, list[int]] = {}
        for module, stack in anatomy.lookups:
            self.stacks.setdefault(module, []).append(stack)
        self.mask_names = dict(anatomy.lookup_masks)

    def register(self, mixing: Mixing) -> Iterator[RemovableHandle]:
        for module in self.stacks:
            yield module.register_forward_hook(self.after_lookup)
        for module in self.mask_names:
            yield module.register_forward_pre_hook(self.before_lookup, with_kwargs=True)

    def after_lookup(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        mixing, batch_dim = self.mixing, self.anatomy.batch_dim
        stack = mixing.position("lookups", module, self.stacks[module])
        if output.dim() != 3 or output.shape[batch_dim] != mixing.plan.lam.shape[0]:
            return output
        return mixing.mix(output, Argument("states", batch_dim, by_position=True), stack)

    def before_lookup(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        name, plan, weights = self.mask_names[module], self.mixing.plan, self.mixing.weights[0]
        if isinstance(kwargs.get(name), Tensor):
            weights = weights.mean(-1) if weights.dim() == 3 else weights
            kwargs[name] = mix_rows(kwargs[name].to(plan.lam.dtype), plan.partner, weights)
        return args, kwargs


class BlockOutputs(HookGroup):
    """Mix what leaves a block, and the model's own mask: for hidden states that pass outside of modules."""

    def register(self, mixing: Mixing) -> Iterator[RemovableHandle]:
        anatomy = self.anatomy
        mixed = anatomy.calls[mixing.start - 1].module if mixing.start else anatomy.embedding_module
        assert mixed is not None
        yield anatomy.backbone.register_forward_pre_hook(self.before_backbone, with_kwargs=True)
        yield mixed.register_forward_hook(self.after_block)

    def before_backbone(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Give the model a mask that is mixed from the site on."""
        mask, plan = kwargs.get("attention_mask"), self.mixing.plan
        if mask is None:
            raise ValueError(f"attention_mask: {type(self.anatomy.root).__name__} needs it to be mixed.")
        kept = mask.bool().float()
        weight = mix_rows(kept, plan.partner, plan.lam)
        return args, kwargs | {"attention_mask": soft_mask(weight, until=(kept, self.mixing.has_reached))}

    def after_block(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return self.mixing.mix(output, Argument("states", 0, by_position=True), 0)


class PooledStates(HookGroup):
    """Mix the logits: pooled states enter an affine layer, so mixing its output is mixing them."""

    def register(self, mixing: Mixing) -> Iterator[RemovableHandle]:
        yield self.anatomy.root.register_forward_hook(self.after_model)

    def after_model(self, module: nn.Module, args: tuple, output: Any) -> Any:
        self.mixing.reached, (weights,), plan = True, self.mixing.weights, self.mixing.plan
        logits = logits_of(output)
        if plan.source is not None:
            return with_logits(output, swap_tokens(logits, plan.partner, plan.source, weights))
        return with_logits(output, mix_rows(logits, plan.partner, weights))


# ---- Heads ----


class MixedRead(HookGroup):
    """Put what the head would read of the mixture wherever it may look: for heads of the last token, or of the mean."""

    def register(self, mixing: Mixing) -> Iterator[RemovableHandle]:
        yield self.anatomy.read_at.register_forward_hook(self.after_last)

    def after_last(self, module: nn.Module, args: tuple, output: Any) -> Any:
        mixing, plan = self.mixing, self.mixing.plan
        hidden = first_tensor(output)
        if mixing.read_position is not None:
            read = interpolation.read_last_token(hidden, mixing.read_position, plan.partner, plan.lam)
        else:
            read = interpolation.read_mean(hidden, mixing.mask, plan.partner, plan.lam)
        return with_first_tensor(output, read.unsqueeze(1).expand_as(hidden))


class BothTexts(HookGroup):
    """Let the head read for the example and for its partner, and mix the two logits.

    For heads that find what they read by a rule of their own (pooling by attention, a mean of scores, a shifted last
    token). The head alone runs on twice the rows; the backbone runs once. Lambda may be drawn when the texts are mixed,
    so the plan is read when it is used.
    """

    def register(self, mixing: Mixing) -> Iterator[RemovableHandle]:
        root, backbone = self.anatomy.root, self.anatomy.backbone
        yield root.register_forward_pre_hook(self.before_model, with_kwargs=True)
        yield backbone.register_forward_pre_hook(self.before_backbone, with_kwargs=True)
        yield backbone.register_forward_hook(self.after_backbone)
        yield root.register_forward_hook(self.after_model)

    def with_partners(self, path: str, value: Tensor) -> Tensor:
        plan = self.mixing.plan
        has_rows = value.dim() and value.shape[0] == plan.lam.shape[0]
        return torch.cat([value, value[plan.partner]]) if has_rows else value

    def without_partners(self, path: str, value: Tensor) -> Tensor:
        size = self.mixing.plan.lam.shape[0]
        return value[:size] if value.dim() and value.shape[0] == 2 * size else value

    def twice(self, path: str, value: Tensor) -> Tensor:
        has_rows = value.dim() and value.shape[0] == self.mixing.plan.lam.shape[0]
        return torch.cat([value, value]) if has_rows else value

    def before_model(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return map_tensors(args, "", self.with_partners), map_tensors(kwargs, "", self.with_partners)

    def before_backbone(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return map_tensors(args, "", self.without_partners), map_tensors(kwargs, "", self.without_partners)

    def after_backbone(self, module: nn.Module, args: tuple, output: Any) -> Any:
        return map_tensors(output, "", self.twice)

    def after_model(self, module: nn.Module, args: tuple, output: Any) -> Any:
        lam = self.mixing.plan.lam
        own, other = logits_of(output).split(lam.shape[0])
        output = map_tensors(output, "", self.without_partners)
        return with_logits(output, torch.lerp(other, own, lam.unsqueeze(1).to(own.dtype)))
