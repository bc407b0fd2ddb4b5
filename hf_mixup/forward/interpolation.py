"""How two examples become one, besides the line: similarity, noise, what a head reads. Pure functions of tensors."""

from __future__ import annotations

import torch
from torch import Tensor


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
    the same in every model and at every site; with `kept`, of shape `(batch, length)`, of its tokens only.
    """
    uniform = torch.rand_like(values) * 2 - 1
    square = values.detach().float().square()
    if kept is None:
        scale = square.mean().sqrt().to(values.dtype)
    else:
        weight = kept.transpose(0, batch_dim).to(square.dtype)
        scale = ((square.mean(-1) * weight).sum() / weight.sum()).sqrt().to(values.dtype)
    return values * (1 + multiplicative * uniform) + additive * scale * torch.randn_like(values)


def last_position(found: Tensor) -> Tensor:
    """The last position at which `found`, boolean of shape `(batch, length)`, is true: `(batch,)`."""
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
