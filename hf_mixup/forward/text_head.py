"""Heads that find what they read by a rule of their own (pooling by attention, a mean of scores, a shifted last token).

Such a head is evaluated for both texts of a pair, on the mixed states, and its two logits are interpolated. The head
alone runs on twice the rows; the backbone runs once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hf_mixup.forward.anatomy.anatomy import Anatomy, logits_of, map_tensors, with_logits
from hf_mixup.plan.mixup_plan import MixupPlan


def read_both_texts(anatomy: Anatomy, current_plan: Callable[[], MixupPlan]) -> list[RemovableHandle]:
    """Register the hooks that let the head of one forward pass read for the example and for its partner."""
    # Lambda may be drawn where the texts are mixed, so the plan is asked for when it is used.
    size = current_plan().lam.shape[0]

    def with_partners(path: str, value: Tensor) -> Tensor:
        return torch.cat([value, value[current_plan().partner]]) if value.dim() and value.shape[0] == size else value

    def without_partners(path: str, value: Tensor) -> Tensor:
        return value[:size] if value.dim() and value.shape[0] == 2 * size else value

    def twice(path: str, value: Tensor) -> Tensor:
        return torch.cat([value, value]) if value.dim() and value.shape[0] == size else value

    def before_model(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return map_tensors(args, "", with_partners), map_tensors(kwargs, "", with_partners)

    def before_backbone(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return map_tensors(args, "", without_partners), map_tensors(kwargs, "", without_partners)

    def after_backbone(module: nn.Module, args: tuple, output: Any) -> Any:
        return map_tensors(output, "", twice)

    def after_model(module: nn.Module, args: tuple, output: Any) -> Any:
        own, other = logits_of(output).split(size)
        output = map_tensors(output, "", without_partners)
        return with_logits(output, torch.lerp(other, own, current_plan().lam.unsqueeze(1).to(own.dtype)))

    return [
        anatomy.root.register_forward_pre_hook(before_model, with_kwargs=True),
        anatomy.backbone.register_forward_pre_hook(before_backbone, with_kwargs=True),
        anatomy.backbone.register_forward_hook(after_backbone),
        anatomy.root.register_forward_hook(after_model),
    ]
