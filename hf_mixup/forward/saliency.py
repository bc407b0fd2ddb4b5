"""How much each token matters for the loss: the gradient where the text enters the first block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hf_mixup.forward.anatomy.anatomy import Anatomy
from hf_mixup.forward.anatomy.host import CHECKPOINTS_HOOKS, hooks_outside, is_reentrant_checkpoint


def saliency(anatomy: Anatomy, batch: Mapping[str, Any], loss_of: Callable[[Tensor], Tensor]) -> Tensor:
    """Norm of the loss's gradient at the embedding of each token: `(batch, length)` (SSMix, Yoon et al. 2021).

    It takes a forward pass and the part of a backward pass that leads to the embeddings; gradients of the parameters
    are neither computed nor touched.

    Args:
        anatomy (`Anatomy`): of the model.
        batch (`Mapping`): the inputs of the model, without labels.
        loss_of (`Callable`): the loss of each example, `(batch,)`, from the logits.
    """
    try:
        return entry_gradient(anatomy, batch, loss_of).float().norm(dim=-1)
    except RuntimeError as error:
        if not is_reentrant_checkpoint(error):
            raise
        raise ValueError(
            "interpolation='salient_span' needs a gradient before the step: set "
            "gradient_checkpointing_kwargs={'use_reentrant': False}."
        ) from error


def entry_gradient(anatomy: Anatomy, batch: Mapping[str, Any], loss_of: Callable[[Tensor], Tensor]) -> Tensor:
    """The loss's gradient at what enters the first block: `(batch, length, width)`. Args as for `saliency`."""
    entered: list[Tensor] = []

    def enter(states: Tensor) -> Tensor:
        entered.append(states.detach().requires_grad_(True))
        return entered[0]

    with torch.enable_grad():
        with changed_entry(anatomy, enter):
            loss = loss_of(anatomy.run(batch)).sum()
        (gradient,) = torch.autograd.grad(loss, entered)
    return by_text(anatomy, gradient)


@contextmanager
def changed_entry(anatomy: Anatomy, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Put `change(states)` in the place of what enters the first block, in the one forward pass inside the block.

    The states are as the model has them; see `by_text`. The hook is gone after the block, also after an exception.
    """
    is_first = True

    def enter(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        nonlocal is_first
        if not is_first:
            return None
        is_first, name = False, anatomy.calls[0].names[0]
        states = change(args[0] if args else kwargs[name])
        return ((states, *args[1:]), kwargs) if args else (args, kwargs | {name: states})

    with ExitStack() as hooks:
        for handle in hooks_outside(anatomy.root) if CHECKPOINTS_HOOKS else ():
            hooks.callback(handle.remove)
        hooks.enter_context(anatomy.calls[0].module.register_forward_pre_hook(enter, with_kwargs=True))
        yield


def by_text(anatomy: Anatomy, states: Tensor) -> Tensor:
    """Hidden states with the batch in front, and such states as the model has them: it is its own inverse."""
    return states if anatomy.batch_dim == 0 else states.transpose(0, 1)
