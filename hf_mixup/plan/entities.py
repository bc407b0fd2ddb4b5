"""How, for labels per token: an entity gives way to one of the partner, or each token is mixed with one of its text."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# What a token is: without a label and outside of entities, outside, the first of an entity, inside of one, and inside
# without a label, such as the second sub-word of a name.
UNLABELED, OUTSIDE, BEGINS, INSIDE, INSIDE_UNLABELED = -1, 0, 1, 2, 3


def token_kinds(labels: Tensor, entities: Tensor, begins: Tensor) -> Tensor:
    """What each token is, from its label and those before it: `(batch, length)`.

    Args:
        labels (`torch.Tensor` of shape `(batch, length)`): class indices, negative without a label.
        entities (`torch.Tensor` of shape `(num_labels,)`): the number of the type of each label, 0 outside of entities.
        begins (`torch.Tensor` of shape `(num_labels,)`): true for labels that begin an entity, such as `B-person`.
    """
    known = labels >= 0
    positions = torch.arange(labels.shape[1], device=labels.device)
    last = torch.where(known, positions, -1).cummax(1).values
    kind = torch.where(last >= 0, entities[labels.gather(1, last.clamp_min(0)).clamp_min(0)], 0)
    before = F.pad(kind[:, :-1], (1, 0))
    is_first = known & (kind > 0) & (begins[labels.clamp_min(0)] | (before != kind))
    inside = torch.where(known, INSIDE, INSIDE_UNLABELED).where(kind > 0, torch.where(known, OUTSIDE, UNLABELED))
    return torch.where(is_first, BEGINS, inside)


def plan_entities(
    kinds: Tensor, partner: Tensor, fixed: Tensor, wanted: Tensor, uniform: Tensor
) -> tuple[Tensor, Tensor]:
    """Which token of its partner each position takes, and the share of the tokens that stay.

    Of all pairs of an entity of the text and one of its partner that are as long, one is drawn; its tokens and their
    labels change the text. A text without such a pair stays as it is. (SeqMix, Zhang et al. 2020, exchanges parts of
    two texts that are as long.)

    Args:
        kinds (`torch.Tensor` of shape `(batch, length)`): `token_kinds`.
        partner (`torch.Tensor` of shape `(batch,)`): index of each partner.
        fixed (`torch.Tensor` of shape `(batch, length)`): true for padding, and tokens that begin, part or end texts.
        wanted (`torch.Tensor` of shape `(batch,)`): true for texts in which an entity may give way.
        uniform (`torch.Tensor` of shape `(batch,)`): random numbers in [0, 1).

    Returns:
        `tuple`: positions in the partner's text, `(batch, length)`, -1 where the token stays; and lambda, `(batch,)`.
    """
    length = kinds.shape[1]
    positions = torch.arange(length, device=kinds.device)
    begins, inside = (kinds == BEGINS) & ~fixed, (kinds >= INSIDE) & ~fixed
    ends = torch.where(inside, length, positions).flip(1).cummin(1).values.flip(1)
    size = F.pad(ends[:, 1:], (0, 1), value=length) - positions
    has_partner = (wanted & (partner != torch.arange(len(partner), device=partner.device))).reshape(-1, 1, 1)
    fits = begins.unsqueeze(2) & begins[partner].unsqueeze(1) & (size.unsqueeze(2) == size[partner].unsqueeze(1))
    pairs = (fits & has_partner).flatten(1)
    cumulative = pairs.cumsum(1)
    drawn = (uniform * cumulative[:, -1]).floor().long().unsqueeze(1)
    chosen = torch.searchsorted(cumulative, drawn, right=True).clamp_max(length**2 - 1)
    start, taken = chosen // length, chosen % length
    stop = start + size.gather(1, start)
    is_taken = (positions >= start) & (positions < stop) & pairs.any(1, keepdim=True)
    source = torch.where(is_taken, positions - start + taken, -1)
    return source, 1 - is_taken.sum(1) / (~fixed).sum(1).clamp_min(1)


def other_tokens(kinds: Tensor, uniform: Tensor) -> Tensor:
    """For each labeled token another of the same text, by a permutation: its position, `(batch, length)`, else -1.

    Args:
        kinds (`torch.Tensor` of shape `(batch, length)`): `token_kinds`.
        uniform (`torch.Tensor` of shape `(batch, length)`): random numbers in [0, 1).
    """
    labeled = (kinds >= OUTSIDE) & (kinds <= INSIDE)
    order = uniform.masked_fill(~labeled, 2.0).argsort(dim=1, stable=True)
    return order.gather(1, (labeled.cumsum(1) - 1).clamp_min(0)).where(labeled, -1)
