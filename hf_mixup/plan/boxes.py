"""How, for images: a box of the example gives way to the same box of its partner, and lambda follows from its area."""

from __future__ import annotations

import torch
from torch import Tensor


def plan_boxes(lam: Tensor, height: int, width: int, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """The box that each image takes from its partner, and the lambda that follows (CutMix, Yun et al. 2019).

    Its sides are sqrt(1 - lambda) of those of the image, rounded down to an even number. Its center is any pixel, and
    what is outside of the image is cut off, so lambda 0 is the partner only as far as the box reaches.

    Args:
        lam (`torch.Tensor` of shape `(batch,)`): the share that stays.
        height, width (`int`): of the images, in pixels.
        uniform (`torch.Tensor` of shape `(2, batch)`): random numbers in [0, 1), for the rows and the columns.

    Returns:
        `tuple`: first row, end of the rows, first column and end of the columns, `(batch, 4)`; and lambda, `(batch,)`:
        1 - replaced / all pixels.
    """
    ratio, edges, area = (1 - lam).sqrt(), [], torch.ones_like(lam)
    for size, place in zip((height, width), uniform, strict=True):
        # A fixed lambda is rounded, and a tenth of the rows should be a tenth.
        center, half = (place * size).long(), (ratio * size / 2 + 1e-4).long()
        first, end = (center - half).clamp_min(0), (center + half).clamp_max(size)
        edges += [first, end]
        area = area * (end - first)
    return torch.stack(edges, 1), 1 - area / (height * width)


def swap_boxes(images: Tensor, partner: Tensor, box: Tensor) -> Tensor:
    """The images, `(batch, ..., height, width)`, with the boxes of `plan_boxes` taken from the partners."""
    first_row, end_row, first_column, end_column = box.unsqueeze(-1).unbind(1)
    rows, columns = (torch.arange(size, device=images.device) for size in images.shape[-2:])
    in_rows = (rows >= first_row) & (rows < end_row)
    in_columns = (columns >= first_column) & (columns < end_column)
    inside = in_rows.unsqueeze(2) & in_columns.unsqueeze(1)
    inside = inside.reshape(len(inside), *[1] * (images.dim() - 3), *images.shape[-2:])
    return torch.where(inside, images[partner], images)
