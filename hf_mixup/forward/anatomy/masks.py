"""Attention masks: how one is recognized, how two become one, and the weight that padding leaves to each position."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from hf_mixup.forward.anatomy.anatomy import Argument
from hf_mixup.forward.anatomy.soft_mask import SoftMask, soft_mask

# An additive mask holds values below this.
BIAS_BELOW = -1e3


def recognize_mask(rows: Tensor, batch_dim: int, merged: bool, compared: bool) -> Argument | None:
    """What a block argument that was there before the first block is as a mask; `None` if it is none.

    Args:
        rows (`torch.Tensor`): the argument, with the batch in front.
        batch_dim (`int`): where the batch was.
        merged (`bool`): see `Argument.merged`.
        compared (`bool`): see `Argument.compared`.
    """
    if bool(((rows == 0) | (rows == 1)).all()):
        keeps = bool(rows[0].flatten()[-1])
        is_bias = rows.dtype == torch.bool and rows.dim() == 4 and keeps
        return Argument("bias" if is_bias else "mask", batch_dim, keeps=keeps, merged=merged, compared=compared)
    if rows.is_floating_point() and rows.min() < BIAS_BELOW:
        return Argument("bias", batch_dim, merged=merged, compared=compared)
    return None


def mix_mask(
    mask: Tensor,
    argument: Argument,
    partner: Tensor,
    lam: Tensor,
    dtype: torch.dtype,
    blind_counts: Tensor | None,
    of_queries: Tensor | None = None,
) -> Tensor:
    """A mask that was recognized, for the mixed rows.

    Args:
        mask (`torch.Tensor`): the unmixed mask; one for all examples stays as it is.
        argument (`Argument`): what it was recognized as.
        partner, lam (`torch.Tensor` of shape `(batch,)`): the plan.
        dtype (`torch.dtype`): of the hidden states.
        blind_counts, of_queries (`torch.Tensor`, *optional*): see `mix_truth`.
    """
    batch_dim = argument.batch_dim
    if argument.merged:
        examples = mask.unflatten(0, (lam.shape[0], -1))
        unmerged = replace(argument, merged=False)
        return mix_mask(examples, unmerged, partner, lam, dtype, blind_counts, of_queries).flatten(0, 1)
    if mask.shape[batch_dim] == 1 or mask.stride(batch_dim) == 0:
        return mask
    if argument.kind == "mask" or argument.compared:
        return mix_truth(mask, partner, lam, argument, blind_counts, of_queries)
    if mask.dtype == torch.bool:
        return mix_keep(mask, partner, lam, dtype, batch_dim)
    return mix_bias(mask, partner, lam, batch_dim)


def mix_bias(bias: Tensor, partner: Tensor, lam: Tensor, batch_dim: int = 0) -> Tensor:
    """An additive attention mask: log(lam * exp(bias_i) + (1 - lam) * exp(bias_j)), of the same shape."""
    small, full = _shrink(bias)
    weight = _along(lam.float(), small, batch_dim)
    own = small.float() + weight.log()
    other = small.float().index_select(batch_dim, partner) + (1 - weight).log()
    return torch.logaddexp(own, other).to(bias.dtype).expand(full)


def mix_keep(keep: Tensor, partner: Tensor, lam: Tensor, dtype: torch.dtype, batch_dim: int = 0) -> Tensor:
    """A boolean attention mask (true: may be read), as the additive mask log(lam * m_i + (1 - lam) * m_j)."""
    small, full = _shrink(keep)
    return mix_rows(small.float(), partner, lam, batch_dim).log().to(dtype).expand(full)


def mix_truth(
    mask: Tensor,
    partner: Tensor,
    lam: Tensor,
    argument: Argument,
    blind_counts: Tensor | None = None,
    of_queries: Tensor | None = None,
) -> SoftMask:
    """A mask that a kernel does not simply add to its scores, interpolated as `SoftMask`.

    Args:
        mask (`torch.Tensor`): the unmixed mask; of a bias that is compared, what it hides counts as true.
        partner, lam (`torch.Tensor` of shape `(batch,)`): the plan.
        argument (`Argument`): what is known of the mask.
        blind_counts (`torch.Tensor` of shape `(batch,)`, *optional*): pairs in which a query that only one of the two
            may use still counts for both, because the model reads it (`reads_padding`).
        of_queries (`torch.Tensor` of shape `(batch, length)`, *optional*): the weight of the example itself at each
            query, if the model reads some that are padding.
    """
    is_kept = mask.dtype == torch.bool and argument.kind == "bias"
    truth = (mask.logical_not() if is_kept else mask != 0).float()
    weight = mix_rows(truth, partner, lam, argument.batch_dim)
    has_queries = mask.dim() == 4 and argument.batch_dim == 0
    if not (has_queries and argument.keeps and argument.kind == "mask"):
        # A mask of the keys alone is one of the queries as well to a flash kernel.
        is_of_keys = of_queries is not None and mask.dim() == 2 and argument.batch_dim == 0
        query = mix_rows(truth, partner, of_queries) if of_queries is not None and is_of_keys else None
        return soft_mask(weight, None, None, mask.dtype if mask.is_floating_point() else torch.float32, query)
    blind = 1 - truth.amax(-1, keepdim=True)
    both_blind = torch.minimum(blind, blind[partner])
    if blind_counts is not None:
        both_blind = torch.where(_along(blind_counts, blind, 0), mix_rows(blind, partner, lam), both_blind)
    return soft_mask(weight, both_blind.log())


def _shrink(mask: Tensor) -> tuple[Tensor, torch.Size]:
    """Drop expanded (stride 0) dimensions, so that a mask is mixed once and not once per query."""
    full = mask.shape
    for dim, stride in enumerate(mask.stride()):
        if stride == 0:
            mask = mask.narrow(dim, 0, 1)
    return mask, full


def _along(lam: Tensor, mask: Tensor, batch_dim: int) -> Tensor:
    return lam.reshape([1] * batch_dim + [-1] + [1] * (mask.dim() - batch_dim - 1))


# ---- Rows of a batch ----


def mix_rows(values: Tensor, partner: Tensor, weights: Tensor, batch_dim: int = 0) -> Tensor:
    """weights * values + (1 - weights) * values of the partner, exact if a weight is 0 or 1.

    Args:
        values (`torch.Tensor`): the batch along `batch_dim`, positions along the other of the first two dimensions.
        partner (`torch.Tensor` of shape `(batch,)`): index of each partner.
        weights (`torch.Tensor` of shape `(batch,)`, `(batch, length)` or `(batch, length, width)`): weight of the
            example itself.
        batch_dim (`int`, defaults to 0): dimension of the batch; 1 for time-major models such as XLNet.
    """
    if weights.dim() >= 2:
        weights = weights.transpose(0, 1) if batch_dim == 1 else weights
        shape = list(weights.shape)
    else:
        shape = [1] * batch_dim + [weights.shape[0]]
    shape += [1] * (values.dim() - len(shape))
    return torch.lerp(values.index_select(batch_dim, partner), values, weights.reshape(shape).to(values.dtype))


def position_weights(lam: Tensor, partner: Tensor, mask: Tensor | None, length: int, read: int | None) -> Tensor:
    """The weight of the example itself at each position: `(batch, length)`, or `(batch, length, width)`.

    If both texts have a token, or neither has, the weight is lambda; if only one has, that one counts alone, so padding
    never enters a mixture. Only a model that reads its result at a padding position takes padding for text: there, in a
    pair of which one is padded at `read`, the weight is lambda everywhere.

    Args:
        lam (`torch.Tensor` of shape `(batch,)` or `(batch, width)`): weight of the example itself, or one for each
            hidden dimension.
        partner (`torch.Tensor` of shape `(batch,)`): index of each partner.
        mask (`torch.Tensor` of shape `(batch, length)`, *optional*): true where there is a token.
        length (`int`): number of positions.
        read (`int`, *optional*): the position that the model reads whatever is there; 0 for a first-token head.
    """
    every = spread(lam, length)
    if mask is None:
        return every
    mask = mask.bool()
    is_plain = mask == mask[partner]
    if read is not None:
        is_plain = is_plain | reads_padding(mask, partner, read).unsqueeze(1)
    if lam.dim() == 2:
        is_plain, mask = is_plain.unsqueeze(-1), mask.unsqueeze(-1)
    return torch.where(is_plain, every, mask.to(lam.dtype))


def spread(lam: Tensor, length: int) -> Tensor:
    """The same weight at `length` positions: `(batch, length)` or `(batch, length, width)`."""
    return lam.unsqueeze(1).expand(-1, length, *lam.shape[1:])


def reads_padding(mask: Tensor, partner: Tensor, read: int) -> Tensor:
    """Whether one of a pair is padded at the position that the model reads: `(batch,)`, boolean."""
    at_read = mask[:, read].bool()
    return ~(at_read & at_read[partner])
