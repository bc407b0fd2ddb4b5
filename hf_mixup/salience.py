"""How much each token matters for the loss: the gradient where the text enters the first block."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hf_mixup.anatomy import Anatomy, logits_of


def saliency(anatomy: Anatomy, batch: Mapping[str, Any], loss_of: Callable[[Tensor], Tensor]) -> Tensor:
    """Norm of the loss's gradient at the embedding of each token: `(batch, length)` (SSMix, Yoon et al. 2021).

    It takes a forward pass and the part of a backward pass that leads to the embeddings; gradients of the parameters
    are neither computed nor touched.

    Args:
        anatomy (`Anatomy`): of the model.
        batch (`Mapping`): the inputs of the model, without labels.
        loss_of (`Callable`): the loss of each example, `(batch,)`, from the logits.
    """
    entered: list[Tensor] = []

    def enter(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        if entered:
            return None
        name = anatomy.calls[0].names[0]
        entered.append((args[0] if args else kwargs[name]).detach().requires_grad_(True))
        return ((entered[0], *args[1:]), kwargs) if args else (args, kwargs | {name: entered[0]})

    handle = anatomy.calls[0].module.register_forward_pre_hook(enter, with_kwargs=True)
    try:
        with torch.enable_grad():
            # A MixupModel would mix this pass as well.
            loss = loss_of(logits_of(nn.Module.__call__(anatomy.root, **batch))).sum()
    finally:
        handle.remove()
    try:
        (gradient,) = torch.autograd.grad(loss, entered)
    except RuntimeError as error:
        if "use_reentrant" not in str(error):
            raise
        raise ValueError(
            "interpolation='salient_span' needs a gradient before the step: set "
            "gradient_checkpointing_kwargs={'use_reentrant': False}."
        ) from error
    norms = gradient.float().norm(dim=-1)
    return norms if anatomy.batch_dim == 0 else norms.t()
