"""Stands in for the package flash-attn, so that transformers runs `flash_attention_2` without it.

On a CPU it is plain PyTorch, in any precision. On a GPU it is PyTorch's own copy of the FlashAttention-2 kernel, which
takes half precision only. Everything else (masks, unpadding, arguments) is done by transformers.

    with flash_stand_in():
        model = AutoModelForSequenceClassification.from_config(config, attn_implementation="flash_attention_2")
        model(**batch)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, modeling_flash_attention_utils

KERNEL, LARGEST_HEAD = "flash_attention_2", 256


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    deterministic: bool = False,
    learnable_sink: Tensor | None = None,
) -> Tensor:
    """As `flash_attn.flash_attn_func`: `(batch, length, heads, size)`."""
    lengths = [states.shape[1] for states in (q, k)]
    cumulated = [torch.arange(len(q) + 1, dtype=torch.int32, device=q.device) * length for length in lengths]
    flat = (states.flatten(0, 1) for states in (q, k, v))
    options = (dropout_p, softmax_scale, causal, window_size, softcap, deterministic, learnable_sink)
    return flash_attn_varlen_func(*flat, *cumulated, *lengths, *options).unflatten(0, q.shape[:2])


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    deterministic: bool = False,
    learnable_sink: Tensor | None = None,
) -> Tensor:
    """As `flash_attn.flash_attn_varlen_func`: `(total, heads, size)`, texts one after the other."""
    size = q.shape[-1]
    if not size == k.shape[-1] == v.shape[-1] or size > LARGEST_HEAD:
        raise RuntimeError(f"q, k and v need one head size of at most {LARGEST_HEAD}, not {size}.")
    scale = size**-0.5 if softmax_scale is None else softmax_scale
    left, right = window_size[0], 0 if causal else window_size[1]
    if not q.is_cuda:
        places = (cu_seqlens_q, cu_seqlens_k, left, right)
        return _attention(q, k, v, places, dropout_p, scale, softcap, learnable_sink)
    if softcap or learnable_sink is not None:
        raise RuntimeError("PyTorch's kernel has no softcap and no sinks.")
    q, k, v = (functional.pad(states, (0, -size % 8)) for states in (q, k, v))
    lengths = (cu_seqlens_q, cu_seqlens_k, int(max_seqlen_q), int(max_seqlen_k))
    windows = {"window_size_left": left, "window_size_right": right}
    out = torch.ops.aten._flash_attention_forward(q, k, v, *lengths, dropout_p, causal, False, scale=scale, **windows)
    return out[0][..., :size]


def _kept(cumulated_q: Tensor, cumulated_k: Tensor, left: int, right: int) -> Tensor:
    """Which key a query may read: `(total, total)`."""
    (text_q, place_q), (text_k, place_k) = _places(cumulated_q), _places(cumulated_k)
    # Texts end together if there are more keys than queries.
    more = (cumulated_k.diff() - cumulated_q.diff())[text_q]
    ahead = place_k - (place_q + more).unsqueeze(1)
    keep = text_q.unsqueeze(1) == text_k
    if left >= 0:
        keep = keep & (ahead >= -left)
    return keep & (ahead <= right) if right >= 0 else keep


def _places(cumulated: Tensor) -> tuple[Tensor, Tensor]:
    """The text of each token, and its place in it."""
    every = torch.arange(int(cumulated[-1]), device=cumulated.device)
    text = torch.bucketize(every, cumulated[1:], right=True)
    return text, every - cumulated[text]


@torch.compiler.disable
def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    places: Any,
    dropout: float,
    scale: float,
    softcap: float,
    sink: Tensor | None,
) -> Tensor:
    keep = _kept(*places)
    share, exact = q.shape[1] // k.shape[1], torch.promote_types(q.dtype, torch.float32)
    k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
    # As in the kernel, what is added up is not rounded to half precision.
    scores = torch.einsum("qhd,khd->hqk", q.to(exact), k.to(exact)) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~keep, -torch.inf)
    if sink is not None:
        # One more score of each head, of a key without a value.
        scores = torch.cat([scores, sink.to(exact)[:, None, None].expand(-1, len(q), 1)], -1)
    weights = functional.dropout(scores.softmax(-1)[..., : len(k)], dropout)
    return torch.einsum("hqk,khd->qhd", weights, v.to(exact)).to(v.dtype)


def _can_dispatch(model: PreTrainedModel, *args: Any, **kwargs: Any) -> bool:
    if not model._supports_flash_attn:
        raise ValueError(f"{type(model).__name__} does not support Flash Attention.")
    return True


@contextmanager
def flash_stand_in() -> Iterator[None]:
    """Inside of the block, `attn_implementation="flash_attention_2"` is built and run with the functions above."""
    utils: Any = modeling_flash_attention_utils
    before, can_dispatch = {**vars(utils)}, PreTrainedModel._flash_attn_can_dispatch
    functions = (flash_attn_func, flash_attn_varlen_func, None, utils._pad_input, utils._unpad_input)
    utils._lazy_imports, utils._loaded_implementation = lambda *args, **kwargs: functions, None
    PreTrainedModel._flash_attn_can_dispatch = _can_dispatch  # type: ignore[method-assign]
    try:
        utils.lazy_import_flash_attention(KERNEL)
        yield
    finally:
        vars(utils).update(before)
        PreTrainedModel._flash_attn_can_dispatch = can_dispatch  # type: ignore[method-assign]
