"""How two examples become one: activations, attention masks and read-outs. Pure functions of tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_mixup.forward.anatomy.anatomy import Argument
from hf_mixup.forward.soft_mask import SoftMask, soft_mask


def position_weights(lam: Tensor, partner: Tensor, mask: Tensor | None, length: int, read: int | None) -> Tensor:
    """The weight of the example itself at each position: `(batch, length)`, or `(batch, length, width)`.

    Where both texts have a token, or neither has, the weight is lambda; where only one has, that one counts alone, so
    padding never enters a mixture. Only a model that reads its result at a padding position takes padding for text:
    there, in a pair of which one is padded at `read`, the weight is lambda everywhere.

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


def mix_rows(values: Tensor, partner: Tensor, weights: Tensor, batch_dim: int = 0) -> Tensor:
    """weights * values + (1 - weights) * values of the partner, exact where a weight is 0 or 1.

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


def similar_lambda(
    values: Tensor,
    partner: Tensor,
    mask: Tensor | None,
    similarity: tuple[float, float],
    uniform: Tensor,
    batch_dim: int = 0,
) -> Tensor:
    """lambda ~ Beta(tau, tau), tau = s exp(-(d / mean d - 1) / (2 w^2)): `(batch,)` (Bouniot et al. 2023, sec. 3).

    d is the squared distance of a pair's mean hidden states, over the tokens of each text.

    Args:
        values (`torch.Tensor`): hidden states, not mixed yet.
        partner (`torch.Tensor` of shape `(batch,)`): index of each partner.
        mask (`torch.Tensor` of shape `(batch, length)`, *optional*): true where there is a token.
        similarity (`tuple[float, float]`): s and w.
        uniform (`torch.Tensor` of shape `(2, batch)`): random numbers in (0, 1), which lambda is made of.
        batch_dim (`int`, defaults to 0): dimension of the batch.
    """
    states = values.detach().float().movedim(batch_dim, 0)
    if states.dim() == 3:
        fits = mask is not None and mask.shape[1] == states.shape[1]
        states = states.mean(1) if not fits else read_mean(states, mask, partner, torch.ones_like(partner))
    distance = (states - states[partner]).square().flatten(1).sum(1)
    relative = distance / distance.mean().clamp_min(1e-12)
    scale, width = similarity
    tau = (scale * torch.exp(-(relative - 1) / (2 * width**2))).clamp_min(1e-6)
    return symmetric_beta(tau, uniform)


def symmetric_beta(tau: Tensor, uniform: Tensor) -> Tensor:
    """Numbers ~ Beta(tau, tau) from two uniform ones each: `(batch,)`, exact for every tau > 0.

    (1 + T / sqrt(2 tau + T^2)) / 2 of a Student T with 2 tau degrees of freedom (Ulrich 1984), which is
    sqrt(2 tau (u^(-1 / tau) - 1)) cos(2 pi v) (Bailey 1994).

    Args:
        tau (`torch.Tensor` of shape `(batch,)`): > 0.
        uniform (`torch.Tensor` of shape `(2, batch)`): u and v, in (0, 1).
    """
    cosine = torch.cos(2 * torch.pi * uniform[1])
    # The reciprocal stays finite where u^(-1 / tau) does not.
    reciprocal = 1 / torch.expm1(-uniform[0].log() / tau)
    return (1 + cosine / (reciprocal + cosine.square()).sqrt()) / 2


def add_noise(
    values: Tensor, additive: float, multiplicative: float, kept: Tensor | None = None, batch_dim: int = 0
) -> Tensor:
    """z (1 + multiplicative U) + additive rms(z) N, U in [-1, 1] and N normal (Lim et al. 2022, eq. 4), same shape.

    The paper's additive noise is absolute; here it is in units of the root mean square of `values`, so that it means
    the same in every model and at every site; where `kept`, of shape `(batch, length)`, says so, of its tokens only.
    """
    uniform = torch.rand_like(values) * 2 - 1
    square = values.detach().float().square()
    if kept is None:
        scale = square.mean().sqrt().to(values.dtype)
    else:
        weight = kept.transpose(0, batch_dim).to(square.dtype)
        scale = ((square.mean(-1) * weight).sum() / weight.sum()).sqrt().to(values.dtype)
    return values * (1 + multiplicative * uniform) + additive * scale * torch.randn_like(values)


def _shrink(mask: Tensor) -> tuple[Tensor, torch.Size]:
    """Drop expanded (stride 0) dimensions, so that a mask is mixed once and not once a query."""
    full = mask.shape
    for dim, stride in enumerate(mask.stride()):
        if stride == 0:
            mask = mask.narrow(dim, 0, 1)
    return mask, full


def _along(lam: Tensor, mask: Tensor, batch_dim: int) -> Tensor:
    return lam.reshape([1] * batch_dim + [-1] + [1] * (mask.dim() - batch_dim - 1))


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
    weight = _mean_keep(small, partner, lam, batch_dim)
    return weight.log().to(dtype).expand(full)


def mix_truth(
    mask: Tensor, partner: Tensor, lam: Tensor, argument: Argument, blind_counts: Tensor | None = None
) -> SoftMask:
    """A mask that a kernel does not simply add to its scores, interpolated as `SoftMask`.

    Args:
        mask (`torch.Tensor`): the unmixed mask; of a bias that is compared, what it hides counts as true.
        partner, lam (`torch.Tensor` of shape `(batch,)`): the plan.
        argument (`Argument`): what is known of the mask.
        blind_counts (`torch.Tensor` of shape `(batch,)`, *optional*): pairs in which a query that only one of the two
            may use still counts for both, because the model reads it (`reads_padding`).
    """
    is_kept = mask.dtype == torch.bool and argument.kind == "bias"
    truth = (mask.logical_not() if is_kept else mask != 0).float()
    other = truth.index_select(argument.batch_dim, partner)
    weight = torch.lerp(other, truth, _along(lam.float(), truth, argument.batch_dim))
    has_queries = mask.dim() == 4 and argument.batch_dim == 0
    if not (has_queries and argument.keeps and argument.kind == "mask"):
        return soft_mask(weight, bias_dtype=mask.dtype if mask.is_floating_point() else torch.float32)
    blind = 1 - truth.amax(-1, keepdim=True)
    both_blind = torch.minimum(blind, blind[partner])
    if blind_counts is not None:
        mixed_blind = torch.lerp(blind[partner], blind, _along(lam.float(), blind, 0))
        both_blind = torch.where(_along(blind_counts, blind, 0), mixed_blind, both_blind)
    return soft_mask(weight, both_blind.log())


def _mean_keep(keep: Tensor, partner: Tensor, lam: Tensor, batch_dim: int) -> Tensor:
    keep = keep.bool().float()
    return torch.lerp(keep.index_select(batch_dim, partner), keep, _along(lam.float(), keep, batch_dim))


def last_token_position(input_ids: Tensor, pad_token_id: int) -> Tensor:
    """The last position that is not padding, where the heads of decoders read: `(batch,)`."""
    return _last(input_ids != pad_token_id)


def last_eos_position(input_ids: Tensor, eos_token_id: int) -> Tensor:
    """The last end-of-text token, where the heads of encoder-decoders read: `(batch,)`."""
    return _last(input_ids == eos_token_id)


def last_kept_position(mask: Tensor) -> Tensor:
    """The last position that an attention mask keeps: `(batch,)`."""
    return _last(mask != 0)


def _last(found: Tensor) -> Tensor:
    return (torch.arange(found.shape[1], device=found.device) * found).argmax(-1)


def read_last_token(hidden: Tensor, position: Tensor, partner: Tensor, lam: Tensor) -> Tensor:
    """Read at the example's last token and at its partner's, and interpolate: `(batch, width)`.

    Args:
        hidden (`torch.Tensor` of shape `(batch, length, width)`): mixed hidden states.
        position (`torch.Tensor` of shape `(batch,)`): position of each example's last token.
        partner, lam (`torch.Tensor` of shape `(batch,)`): the plan.
    """
    rows = torch.arange(hidden.shape[0], device=hidden.device)
    own, other = hidden[rows, position], hidden[rows, position[partner]]
    return torch.lerp(other, own, lam.unsqueeze(1).to(hidden.dtype))


def read_mean(hidden: Tensor, mask: Tensor | None, partner: Tensor, lam: Tensor) -> Tensor:
    """The mean over positions under the interpolated mask lam * m_i / n_i + (1 - lam) * m_j / n_j: `(batch, width)`."""
    if mask is None:
        return hidden.mean(1)
    share = mask.bool().float()
    share = share / share.sum(1, keepdim=True).clamp_min(1)
    share = torch.lerp(share[partner], share, lam.unsqueeze(1).float())
    return (hidden * share.unsqueeze(-1).to(hidden.dtype)).sum(1)
