"""Attention alone, forward and backward: what the mask of a mixed batch costs with each way to give it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.models import DEVICE, HAS_GPU, Row

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
SIZE, CHANNELS = 64, 8


def attention(batch: int, heads: int, length: int, dtype: torch.dtype = torch.bfloat16) -> list[Row]:
    """A row for each way, in ms."""
    torch.manual_seed(0)
    shape = (batch, heads, length, SIZE)
    q, k, v = (torch.randn(shape, dtype=dtype, device=DEVICE, requires_grad=True) for _ in range(3))
    lengths = torch.randint(length // 4, length + 1, (batch, 1), device=DEVICE)
    keep = torch.arange(length, device=DEVICE) < lengths
    full = keep[:, None, None].expand(batch, 1, length, length).contiguous()
    bias = torch.where(full, 0.0, -0.5).to(dtype)
    extra = [torch.randn(batch, heads, length, CHANNELS, dtype=dtype, device=DEVICE) for _ in range(3)]
    wider: Tensors = tuple(torch.cat(pair, -1).detach().requires_grad_() for pair in zip((q, k, v), extra, strict=True))
    ways: dict[str, Callable[[], torch.Tensor]] = {
        "no mask": lambda: functional.scaled_dot_product_attention(q, k, v),
        "boolean padding mask": lambda: functional.scaled_dot_product_attention(q, k, v, attn_mask=full),
        "dense float mask": lambda: functional.scaled_dot_product_attention(q, k, v, attn_mask=bias),
        "dense float mask, one row expanded": lambda: functional.scaled_dot_product_attention(
            q, k, v, attn_mask=bias[:, :, :1].expand(batch, 1, length, length)
        ),
        "8 more channels, flash": lambda: flash(*wider),
        "8 more channels put on, flash": lambda: flash(
            *(torch.cat(pair, -1) for pair in zip((q, k, v), extra, strict=True))  # type: ignore[arg-type]
        )[..., :SIZE],
    }
    rows = []
    for name, way in ways.items():
        row = {"batch": f"{batch} x {length}", "site": f"{name}, {heads} heads of {SIZE}"}
        try:
            rows.append(row | {"ms": milliseconds(way, (q, k, v, *wider))})
        except RuntimeError as error:
            rows.append(row | {"absent": " ".join(str(error).split())[:200]})
    return rows


def flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return functional.scaled_dot_product_attention(q, k, v, scale=SIZE**-0.5)


def milliseconds(way: Callable[[], torch.Tensor], inputs: tuple[torch.Tensor, ...]) -> float:
    """The median of several runs of some passes each, forward and backward."""
    gradient = torch.ones_like(way())

    def passes(number: int) -> None:
        for _ in range(number):
            way().backward(gradient)
            for tensor in inputs:
                tensor.grad = None

    passes(3)
    if not HAS_GPU:
        return 0.0
    times = []
    for _ in range(10):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        passes(20)
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 20)
    return sorted(times)[len(times) // 2]
