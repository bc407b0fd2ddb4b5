"""Where the head of a model reads, found by the gradient of the logits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def nonzero_parameters(root: nn.Module, backbone: nn.Module) -> Iterator[None]:
    """Other values in the place of a head that is all zeros, whose logits depend on nothing; put back after."""
    body = set(backbone.parameters()) if backbone is not root else set()
    zero = [p for p in root.parameters() if p not in body and p.dim() > 1 and not p.any()]
    kept = [parameter.data for parameter in zero]
    try:
        for parameter in zero:
            values = torch.linspace(-0.1, 0.1, parameter.numel(), dtype=parameter.dtype, device=parameter.device)
            parameter.data = values.reshape(parameter.shape)
        yield
    finally:
        for parameter, data in zip(zero, kept, strict=True):
            parameter.data = data


def find_readout(
    logits: Tensor, outputs: list[tuple[nn.Module, Tensor, int]], batch: dict[str, Tensor], eos_token_id: int | None
) -> tuple[str, nn.Module]:
    """At which positions the head reads, and from the output of which module.

    Args:
        logits (`torch.Tensor` of shape `(batch, num_labels)`): of the probe.
        outputs (`list[tuple[nn.Module, torch.Tensor, int]]`): modules, their hidden states, the dimension of the batch
            in them; the first on which the logits depend counts.
        batch (`dict[str, torch.Tensor]`): the probe.
        eos_token_id (`int`, *optional*): the end-of-text token.

    Returns:
        `tuple[str, nn.Module]`: `Anatomy.readout` and `Anatomy.read_at`.

    Raises:
        ValueError: where the logits depend on none of them, or the positions follow no known rule.
    """
    objective = (logits.float() * torch.arange(1, logits.shape[-1] + 1, device=logits.device)).sum()
    outputs = [output for output in outputs if output[1].requires_grad]
    gradients = torch.autograd.grad(objective, [hidden for _, hidden, _ in outputs], allow_unused=True)
    for (module, _, batch_dim), gradient in zip(outputs, gradients, strict=True):
        if gradient is not None and gradient.dim() == 3 and gradient.abs().max() > 0:
            return _name_readout(gradient.transpose(0, batch_dim), batch, eos_token_id, module), module
    raise ValueError("The logits do not depend on the output of the last block, so there is nothing to mix.")


def _name_readout(gradient: Tensor, batch: dict[str, Tensor], eos_token_id: int | None, module: nn.Module) -> str:
    read, ids, mask = gradient.abs().amax(-1) > 0, batch["input_ids"], batch["attention_mask"].bool()
    positions = torch.arange(ids.shape[1], device=mask.device)
    is_eos = ids == eos_token_id if isinstance(eos_token_id, int) else torch.zeros_like(mask)
    patterns = {
        "first": (positions == 0).expand_as(mask),
        "last": (positions == ids.shape[1] - 1).expand_as(mask),
        "last_token": positions == (positions * mask).argmax(-1, keepdim=True),
        "last_eos": positions == (positions * is_eos).argmax(-1, keepdim=True),
        "mean": mask,
        "all": torch.ones_like(mask),
    }
    name = next((name for name, pattern in patterns.items() if torch.equal(read, pattern)), None)
    if name == "mean":
        # An even gradient is a mean; an uneven one is attention over the tokens.
        even = (gradient.sum(1, keepdim=True) / mask.sum(1).view(-1, 1, 1)) * mask.unsqueeze(-1)
        name = "mean" if torch.allclose(gradient, even, rtol=1e-2, atol=1e-6) else None
    if name is None:
        raise ValueError(
            f"The head reads the output of {type(module).__name__} at positions that follow no known rule "
            "(first, last, last token, end of text, mean); mixup cannot interpolate what it reads."
        )
    return name
