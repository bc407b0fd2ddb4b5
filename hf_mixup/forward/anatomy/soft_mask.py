"""A padding mask that is true by a weight: how kernels of every kind are given the interpolated mask.

A kernel that adds a bias to its scores is given another bias (`masks.mix_bias`). All others take a mask of
zeros and ones and do one of a few things with it: put a large negative number where it hides, subtract a large number
times what it hides, or multiply. `SoftMask` answers each of these as the interpolated mask would: scores gain the
logarithm of the weight, everything else is multiplied by the weight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# Says whether the forward pass has reached its site.
IsReached = Callable[[], bool]
# A number this large, taken from a score or put in its place, leaves nothing of it: there the mask is a bias.
BIAS_SCALE = 1e3


def _methods(*names: str) -> set[Any]:
    """Methods of tensors, as `__torch_function__` is given them."""
    return {getattr(torch.Tensor, name) for name in names}


_SAME = _methods("bool", "int", "long", "detach", "contiguous")
_CAST = _methods("to", "type", "type_as", "float")
_RESHAPED = _methods("__getitem__", "unsqueeze", "squeeze", "view", "reshape", "expand", "expand_as", "transpose")
_RESHAPED |= _methods("permute", "repeat", "flatten", "repeat_interleave")
_RESHAPED |= {torch.unsqueeze, torch.squeeze, torch.reshape, torch.transpose, torch.permute, functional.pad}
_RESHAPED |= {torch.functional.einsum, torch.gather, torch.cat, torch.stack, torch.minimum, torch.maximum}
_INVERTED = _methods("__invert__", "logical_not") | {torch.logical_not}
_ONE_MINUS = _methods("__rsub__") | {torch.rsub}
_PRODUCTS = _methods("mul", "__mul__", "__rmul__", "__and__") | {torch.mul}
_FILLS = {torch.Tensor.masked_fill, torch.masked_fill}
# Whether a comparison with a number between 0 and 1 asks if the mask is true.
_ASKS_IF_TRUE: dict[Any, Callable[[float], bool]] = {
    getattr(torch.Tensor, method): answer
    for name, answer in {
        "eq": lambda value: value != 0,
        "ne": lambda value: value == 0,
        **dict.fromkeys(("gt", "ge"), lambda value: True),
        **dict.fromkeys(("lt", "le"), lambda value: False),
    }.items()
    for method in (name, f"__{name}__")
}
# What may be done with the weights themselves: sizes, sums, shares.
_PLAIN = _methods("dim", "size", "numel", "stride", "new_ones", "new_zeros", "is_floating_point", "sum", "div")
_PLAIN |= _methods("__truediv__", "__repr__", "__format__") | {torch.finfo}
# What the compiler asks of a tensor that enters a graph, as after a break in a flash kernel.
_PLAIN |= _methods("_is_view", "is_neg", "is_conj", "storage_offset", "untyped_storage")


class SoftMask(torch.Tensor):
    """A mask of zeros and ones whose values are weights between the two; made by `soft_mask`."""

    weight: Tensor
    log_blind: Tensor | None
    until: tuple[Tensor, IsReached] | None
    bias_dtype: torch.dtype
    query_weight: Tensor | None
    # What a kernel has made of the weights, for its other layers.
    of_layers: dict[Any, Any]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _SAME and isinstance(args[0], SoftMask):
            return args[0]
        if func in _CAST and isinstance(args[0], SoftMask):
            return _cast(args[0], func, args[1:], kwargs)
        if func in _RESHAPED:
            return _reshaped(func, args, kwargs)
        if func is torch.Tensor.unbind:
            # transformers < 5.15: BigBird goes over the examples one by one.
            return tuple(args[0][row] for row in range(args[0].shape[0]))
        if func in _INVERTED or (func in _ONE_MINUS and args[1] == 1):
            return _inverted(args[0])
        if func in _ASKS_IF_TRUE and isinstance(args[1], (int, float)):
            return args[0] if _ASKS_IF_TRUE[func](args[1]) else _inverted(args[0])
        if func in _IN_PLACE and not isinstance(args[0], SoftMask):
            return args[0].copy_(_IN_PLACE[func](*args))
        if func in _FILLS and isinstance(args[1], SoftMask):
            return _fill(*args, **kwargs)
        if func == torch.where and len(args) == 3 and isinstance(args[0], SoftMask):
            return _where(*args)
        if func in _PRODUCTS:
            return _product(*args)
        if func is functional.scaled_dot_product_attention:
            return func(*args, **kwargs | {"attn_mask": _log(weight_now(kwargs["attn_mask"]), args[0].dtype)})
        if func in _PLAIN or getattr(func, "__name__", "") in ("__get__", "__set__"):
            return _plain_call(func, args, kwargs)
        raise ValueError(
            f"{getattr(func, '__name__', func)}: not known what it makes of a mask between 0 and 1; if the model has "
            "another kernel, load it with attn_implementation='eager', else mix at 'pooled'."
        )


def soft_mask(
    weight: Tensor,
    log_blind: Tensor | None = None,
    until: tuple[Tensor, IsReached] | None = None,
    bias_dtype: torch.dtype = torch.float32,
    query_weight: Tensor | None = None,
) -> SoftMask:
    """A mask of weights.

    Args:
        weight (`torch.Tensor`): how far each element is true, between 0 and 1.
        log_blind (`torch.Tensor`, *optional*): logarithm of how far a query may read nothing, and so reads everything
            evenly, as it does in the unmixed model; shaped as the mask, with one key.
        until (`tuple[torch.Tensor, Callable]`, *optional*): the weights that count until the forward pass has reached
            its site, and a function that says whether it has, for a mask that is given to the whole model.
        bias_dtype (`torch.dtype`, defaults to `torch.float32`): type of the bias that the mask becomes when it is
            multiplied by a large number.
        query_weight (`torch.Tensor`, *optional*): how far each query reads at all, for kernels that let padding read
            nothing; shaped as the mask.
    """
    mask: SoftMask = weight.as_subclass(SoftMask)
    mask.weight, mask.log_blind, mask.until, mask.bias_dtype = weight, log_blind, until, bias_dtype
    mask.query_weight, mask.of_layers = query_weight, {}
    return mask


def narrow(mask: Tensor, dim: int, size: int) -> Tensor:
    """The first `size` rows of a mask, or of any other tensor, along `dim`."""
    if not isinstance(mask, SoftMask):
        return mask.narrow(dim, 0, size)
    blind = None if mask.log_blind is None else mask.log_blind.narrow(dim, 0, size)
    until = None if mask.until is None else (mask.until[0].narrow(dim, 0, size), mask.until[1])
    query = None if mask.query_weight is None else mask.query_weight.narrow(dim, 0, size)
    return soft_mask(mask.weight.narrow(dim, 0, size), blind, until, mask.bias_dtype, query)


def _cast(mask: SoftMask, func: Any, args: Any, kwargs: dict[str, Any]) -> SoftMask:
    named = [*args, kwargs.get("dtype"), kwargs.get("other")]
    dtypes = [part if isinstance(part, torch.dtype) else getattr(part, "dtype", None) for part in named]
    dtype = next((found for found in dtypes if found is not None and found.is_floating_point), mask.bias_dtype)
    dtype = torch.float32 if func is torch.Tensor.float else dtype
    return soft_mask(mask.weight, mask.log_blind, mask.until, dtype, mask.query_weight)


def weight_now(mask: SoftMask) -> Tensor:
    """The weights of a mask that count now."""
    return mask.weight if mask.until is None or mask.until[1]() else mask.until[0]


def _with_weights(value: Any, weight: Callable[[SoftMask], Tensor]) -> Any:
    """A plain tensor for each mask, also for those in a list."""
    if isinstance(value, (tuple, list)) and any(isinstance(part, SoftMask) for part in value):
        return type(value)(_with_weights(part, weight) for part in value)
    return weight(value) if isinstance(value, SoftMask) else value


def _plain_call(func: Any, args: Any, kwargs: dict[str, Any], weight: Callable[[SoftMask], Tensor] = weight_now) -> Any:
    named = {name: _with_weights(value, weight) for name, value in kwargs.items()}
    return func(*(_with_weights(value, weight) for value in args), **named)


def _reshaped(func: Any, args: Any, kwargs: dict[str, Any]) -> SoftMask:
    parts = [part for value in args for part in (value if isinstance(value, (tuple, list)) else [value])]
    mask = next(part for part in parts if isinstance(part, SoftMask))
    until = mask.until
    if until is not None:
        until = _plain_call(func, args, kwargs, lambda part: part.until[0] if part.until else part.weight), until[1]
    return soft_mask(_plain_call(func, args, kwargs, lambda part: part.weight), None, until, mask.bias_dtype)


def _inverted(mask: SoftMask) -> SoftMask:
    until = None if mask.until is None else (1 - mask.until[0], mask.until[1])
    return soft_mask(1 - mask.weight, mask.log_blind, until, mask.bias_dtype)


def _log(weight: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    # Under autocast the scores are in half precision, where the lowest value of another type would be -inf.
    return _finite(weight.log(), dtype)


def _finite(bias: Tensor, dtype: torch.dtype) -> Tensor:
    return bias.to(torch.promote_types(dtype, torch.float32)).clamp_min(torch.finfo(dtype).min).to(dtype)


def _hides(value: Any) -> bool:
    """Whether what is put in the place of a score leaves nothing of it."""
    is_number = isinstance(value, (int, float)) or value.numel() == 1
    return is_number and float(value) <= -BIAS_SCALE


def _fill(scores: Tensor, mask: SoftMask, value: Any) -> Tensor:
    weight = weight_now(mask)
    if isinstance(scores, SoftMask):
        # A kernel that turns the mask into a bias by filling a copy of it.
        scores = torch.zeros_like(weight)
    if not _hides(value):
        return torch.lerp(scores, torch.full_like(scores, value), weight.to(scores.dtype))
    biased = scores + _log(1 - weight, scores.dtype)
    if mask.log_blind is None:
        return biased
    blind = _finite(mask.log_blind, scores.dtype)
    return torch.logaddexp(biased, blind.expand_as(biased))


def _where(mask: SoftMask, chosen: Any, other: Any) -> Tensor:
    weight = weight_now(mask)
    if _hides(other):
        return chosen + _log(weight, chosen.dtype)
    if _hides(chosen):
        return other + _log(1 - weight, other.dtype)
    if any(isinstance(value, Tensor) and not value.is_floating_point() for value in (chosen, other)):
        return torch.where(weight > 0, chosen, other)
    return weight * chosen + (1 - weight) * other


def _product(left: Any, right: Any) -> Any:
    mask, other = (left, right) if isinstance(left, SoftMask) else (right, left)
    weight = weight_now(mask)
    if isinstance(other, (int, float)):
        # The number is meant for what the mask marks, to be subtracted from (or, if negative, added to) the scores.
        if abs(other) < BIAS_SCALE:
            return weight * other
        return _log(1 - weight, mask.bias_dtype) * (-1 if other > 0 else 1)
    if isinstance(other, SoftMask) or not other.is_floating_point():
        return soft_mask(weight * _with_weights(other, weight_now))
    return other * weight.to(other.dtype)


_IN_PLACE: dict[Any, Callable[..., Tensor]] = {
    torch.Tensor.masked_fill_: _fill,
    torch.Tensor.mul_: _product,
    torch.Tensor.__imul__: _product,
}
