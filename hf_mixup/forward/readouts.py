"""The hooks of heads that do not read one position of every text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hf_mixup.forward import interpolation
from hf_mixup.forward.anatomy.inputs import first_tensor, logits_of, map_tensors, with_first_tensor, with_logits
from hf_mixup.forward.state import HookGroup, Mixing


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
