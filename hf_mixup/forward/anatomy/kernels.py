"""Flash kernels: how they are given a mask between 0 and 1, though they take no bias.

A bias for each key is one more dimension of queries and keys: a query holds a one in it, a key its bias divided by the
scale of the scores (Wu et al. 2025). So the kernel itself adds the logarithm of the weight to the score.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hf_mixup.forward.anatomy import host
from hf_mixup.forward.anatomy.soft_mask import SoftMask, weight_now

# Head sizes that kernels take: multiples of one, up to the other.
MULTIPLE, LARGEST_HEAD = 8, 256
# A key of a positive weight has at least this bias: next to nothing, and exact in half precision.
LEAST_BIAS = -40.0


def is_flash(kernel: str) -> bool:
    """Whether a kernel is one of FlashAttention: transformers calls all of them by one function."""
    return host.ALL_ATTENTION_FUNCTIONS.get(kernel) in (host.flash_attention_forward, flash_attention_with_weights)


def flash_kernels_of(root: nn.Module) -> list[str]:
    """The kernels of FlashAttention that a model runs."""
    return [*filter(is_flash, host.kernels_of(root))]


def let_kernels_take_weights(kernels: Iterable[str]) -> None:
    """Let the flash kernels of a model take a `SoftMask`.

    transformers has one table of kernels for all models, so the function in it lets all other masks pass. It stays
    there after the forward pass, since a checkpointed block is run again in the backward pass, until transformers
    fills the table anew, as it does when a kernel of the hub is loaded.
    """
    for kernel in filter(is_flash, kernels):
        host.ALL_ATTENTION_FUNCTIONS.register(kernel, flash_attention_with_weights)


def flash_attention_with_weights(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    *args: Any,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As transformers' `flash_attention_forward`, which also takes a `SoftMask`.

    Args:
        module (`nn.Module`): the attention layer.
        query, key, value (`torch.Tensor` of shape `(batch, heads, length, size)`): keys and values may have fewer
            heads.
        attention_mask (`torch.Tensor` of shape `(batch, length)`, *optional*): of the keys.
        dropout (`float`, defaults to 0.0): of the attention probabilities.
        scaling (`float`, *optional*): of the scores; the inverse root of the size if left out.

    Raises:
        ValueError: for a cap on the scores, or a head size that leaves no room, given a `SoftMask`.
    """
    if not isinstance(attention_mask, SoftMask):
        return host.flash_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, *args, **kwargs
        )
    size, value_size = query.shape[-1], value.shape[-1]
    room = _room(size, kwargs.get("softcap"))
    scale = size**-0.5 if scaling is None else scaling
    keep, biases = _for_all_layers(attention_mask, scale, room, key.dtype)
    key = torch.cat([key, biases.unsqueeze(1).expand(-1, key.shape[1], -1, -1)], -1)
    query = functional.pad(query, (0, room), value=1.0)
    value = functional.pad(value, (0, size + room - value_size))
    output, _ = host.flash_attention_forward(module, query, key, value, keep, dropout, scale, *args, **kwargs)
    # As it was laid out without the room: JetMoe views it.
    output = output[..., :value_size].contiguous()
    if attention_mask.query_weight is not None:
        output = output * attention_mask.query_weight.to(output.dtype)[:, :, None, None]
    return output, None


def _room(size: int, softcap: float | None) -> int:
    """By how much a head grows: two dimensions, up to a size that kernels take."""
    cure = "load the model with attn_implementation='eager', or mix at 'pooled'."
    if softcap is not None:
        raise ValueError(f"softcap={softcap}: a flash kernel would cap the bias of mixed padding as well; {cure}")
    width = -(-(size + 2) // MULTIPLE) * MULTIPLE
    if width > LARGEST_HEAD:
        raise ValueError(
            f"head size {size}: a flash kernel takes at most {LARGEST_HEAD}, and the bias of mixed padding needs two "
            f"more, in a multiple of {MULTIPLE}; {cure}"
        )
    return width - size


def _for_all_layers(mask: SoftMask, scale: float, room: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What may be read at all, and the biases of the keys; made once for the layers that share a mask."""
    weight = weight_now(mask)
    kind = (scale, room, dtype, weight is mask.weight)
    if kind not in mask.of_layers:
        mask.of_layers[kind] = weight > 0, _biases(weight, scale, room).to(dtype)
    return mask.of_layers[kind]


def _biases(weight: Tensor, scale: float, room: int) -> Tensor:
    """The bias of each key in two parts, so that it is exact in half precision, and zeros: `(batch, length, room)`."""
    bias = weight.log().clamp_min(LEAST_BIAS) / scale
    coarse = bias.bfloat16().to(bias.dtype)
    return functional.pad(torch.stack([coarse, bias - coarse], -1), (0, room - 2))


def half_precision(root: nn.Module) -> AbstractContextManager[Any]:
    """Autocast to bfloat16 for a model in float32 whose kernel takes half precision only."""
    first = next(root.parameters())
    kind = first.device.type
    is_refused = first.dtype == torch.float32 and kind != "cpu" and bool(flash_kernels_of(root))
    return torch.autocast(kind, torch.bfloat16) if is_refused and not torch.is_autocast_enabled(kind) else nullcontext()
