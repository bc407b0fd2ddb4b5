"""The mask of flex attention, which is a function, as the bias that flex attention takes as well."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_mask


def as_bias(mask: BlockMask) -> Tensor:
    """The bias of a mask: zero where something may be read, `(batch, 1, queries, keys)`; made once for each mask."""
    known = vars(mask).get("_hf_mixup_bias")
    if known is not None:
        return known
    batch, heads, queries, keys = mask.shape
    device = mask.kv_num_blocks.device
    keep = create_mask(mask.mask_mod, batch, heads, queries, keys, str(device))
    # Of a query that may read nothing, flex attention returns zeros: by the mask, and by a bias of infinities.
    vars(mask)["_hf_mixup_bias"] = bias = torch.zeros(keep.shape, device=device).masked_fill(~keep, -torch.inf)
    return bias
