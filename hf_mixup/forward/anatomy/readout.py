"""Where the head of a model reads, found by the gradient of the logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hf_mixup.forward.anatomy.anatomy import BlockCall
from hf_mixup.forward.anatomy.inputs import bind, logits_of, map_tensors, model_config, unbind
from hf_mixup.forward.anatomy.probe_batch import PROBE_BATCH

# A head that gives logits for every token.
EVERY_TOKEN = "tokens"
# The position of heads that read the same one in every text.
FIXED_READ = {"first": 0, "last": -1}
# Share of the logits that rounding does not reach.
NOTICEABLE = 1e-4


class NothingRead(ValueError):
    """The logits depend on the output of no block."""


def checked_logits(root: nn.Module, output: Any, length: int | None) -> Tensor:
    """The logits of the probe, as many as the config says: for each example, or for each of `length` tokens.

    Raises:
        ValueError: for logits of another shape.
    """
    logits, config = logits_of(output), model_config(root)
    if tuple(logits.shape) in ((PROBE_BATCH, config.num_labels), (PROBE_BATCH, length, config.num_labels)):
        return logits
    name = type(root).__name__
    if logits.dim() == 2 and (not isinstance(output, Mapping) or "logits" in output):
        own = getattr(root, "config", None) is config
        count = f"num_labels={logits.shape[1]}"
        said = "its config" if own else f"the config of the {config.model_type} inside"
        cure = f"model.config.{count}" if own else f"model.config = transformers.PretrainedConfig({count})"
        raise ValueError(
            f"{name} returns logits of shape {tuple(logits.shape)} for {PROBE_BATCH} examples, but {said} has "
            f"num_labels={config.num_labels}; set {cure}."
        )
    raise ValueError(
        f"{name} returns {tuple(logits.shape)} for {PROBE_BATCH} texts, not logits of shape "
        f"({PROBE_BATCH}, {config.num_labels}), or for each token; mixup needs a classifier of sequences or tokens."
    )


def find_readout(
    logits: Tensor,
    outputs: list[tuple[nn.Module, Tensor, int, int]],
    batch: dict[str, Tensor],
    eos_token_id: int | None,
) -> tuple[str, nn.Module, int]:
    """At which positions the head reads, and from the output of which module.

    Args:
        logits (`torch.Tensor` of shape `(batch, num_labels)` or `(batch, length, num_labels)`): of the probe.
        outputs (`list[tuple[nn.Module, torch.Tensor, int, int]]`): modules, their hidden states, the dimension of the
            batch in them, the last block call below; the first on which the logits depend counts.
        batch (`dict[str, torch.Tensor]`): the probe.
        eos_token_id (`int`, *optional*): the end-of-text token.

    Returns:
        `tuple[str, nn.Module, int]`: `Anatomy.readout`, `Anatomy.read_at` and the last block call that counts.

    Raises:
        NothingRead: if the logits depend on none of them.
    """
    if not logits.requires_grad:
        raise NothingRead("the logits do not depend on the output of any block")
    objective = (logits.float() * torch.arange(1, logits.shape[-1] + 1, device=logits.device)).sum()
    outputs = [output for output in outputs if output[1].requires_grad]
    gradients = torch.autograd.grad(objective, [output[1] for output in outputs], allow_unused=True, retain_graph=True)
    for (module, _, batch_dim, last), gradient in zip(outputs, gradients, strict=True):
        if gradient is not None and gradient.abs().max() > 0:
            if logits.dim() == 3:
                return EVERY_TOKEN, module, last
            rows = gradient.movedim(batch_dim, 0).flatten(2) if gradient.dim() > 2 else gradient.unsqueeze(1)
            return _name_readout(rows, batch, eos_token_id), module, last
    raise NothingRead("the logits do not depend on the output of any block")


def _name_readout(gradient: Tensor, batch: dict[str, Tensor], eos_token_id: int | None) -> str:
    read = gradient.abs().amax(-1) > 0
    positions = torch.arange(read.shape[1], device=read.device)
    if torch.equal(read, (positions == 0).expand_as(read)):
        return "first"
    if torch.equal(read, (positions == len(positions) - 1).expand_as(read)):
        return "last"
    if torch.equal(read, read[:1].expand_as(read)):
        return "fixed"
    if "input_ids" not in batch or read.shape != batch["input_ids"].shape:
        return "text"
    ids, mask = batch["input_ids"], batch["attention_mask"].bool()
    is_eos = ids == eos_token_id if isinstance(eos_token_id, int) else torch.zeros_like(mask)
    if torch.equal(read, positions == (positions * mask).argmax(-1, keepdim=True)):
        return "last_token"
    if torch.equal(read, positions == (positions * is_eos).argmax(-1, keepdim=True)):
        return "last_eos"
    # An even gradient is a mean; an uneven one is attention over the tokens.
    even = (gradient.sum(1, keepdim=True) / mask.sum(1).view(-1, 1, 1)) * mask.unsqueeze(-1)
    is_mean = torch.equal(read, mask) and torch.allclose(gradient, even, rtol=1e-2, atol=1e-6)
    return "mean" if is_mean else "text"


def takes_padding_for_text(
    run: Callable[[dict[str, Tensor]], Tensor],
    first_call: BlockCall,
    logits: Tensor,
    batch: dict[str, Tensor],
    readout: str,
) -> bool:
    """Whether what stands at padding positions below the first block changes the logits (FNet, convolutions).

    A head that reads one position whatever is there may read padding by itself; such texts tell nothing. Nor do the
    logits of padding.
    """
    if "input_ids" not in batch:
        return True
    padding = batch["attention_mask"] == 0
    told = padding.any(1)
    if readout in FIXED_READ:
        told &= ~padding[:, FIXED_READ[readout]]

    def disturb_states(path: str, value: Tensor) -> Tensor:
        argument = first_call.arguments.get(path)
        if argument is None or argument.kind != "states" or not argument.by_position:
            return value
        longer = value.shape[1 - argument.batch_dim] - padding.shape[1]
        where = functional.pad(padding, (0, longer))
        where = (where.t() if argument.batch_dim == 1 else where).unsqueeze(-1)
        return torch.where(where, value.flip(-1) + value.std(), value)

    def disturb(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        handle.remove()
        arguments = bind(first_call.names, args, kwargs)
        arguments = {name: map_tensors(value, name, disturb_states) for name, value in arguments.items()}
        return unbind(first_call.names, arguments, args, kwargs)

    with first_call.module.register_forward_pre_hook(disturb, with_kwargs=True) as handle, torch.no_grad():
        change = (run(batch) - logits).abs().amax(-1)
    if readout == EVERY_TOKEN:
        change = change.masked_fill(padding, 0.0).amax(1)
    return bool((change[told] > NOTICEABLE * logits.abs().max()).any())
