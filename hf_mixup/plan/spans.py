"""How, for tokens: a span of the example gives way to a span of its partner, and lambda follows from its length."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def plan_spans(
    lam: Tensor,
    partner: Tensor,
    mask: Tensor,
    segments: Tensor | None,
    uniform: Tensor,
    saliency: Tensor | None = None,
    special: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Which token of its partner each position takes, and the lambda that follows.

    In each segment of a text with n tokens that may be replaced, max(floor((1 - lambda) n), 1) of them are, in one
    span, or none if lambda is 1 or the partner has fewer. The first token of a text, the last of each segment and
    what is special by its number stay, and no span crosses them.

    Args:
        lam, partner (`torch.Tensor` of shape `(batch,)`): the share that stays, the index of each partner.
        mask (`torch.Tensor` of shape `(batch, length)`): true where there is a token.
        segments (`torch.Tensor` of shape `(batch, length)`, *optional*): 0 and 1 for the two texts of a pair.
        uniform (`torch.Tensor` of shape `(2, 2, batch)`): random numbers in [0, 1), for both segments and both spans.
        saliency (`torch.Tensor` of shape `(batch, length)`, *optional*): the example's least salient span gives way to
            its partner's most salient one (SSMix, Yoon et al. 2021); without, both spans are random.
        special (`torch.Tensor` of shape `(batch, length)`, *optional*): true where a token must stay.

    Returns:
        `tuple`: positions in the partner's text, `(batch, length)`, -1 where the token stays; and lambda, `(batch,)`:
        1 - replaced / replaceable tokens.
    """
    positions = torch.arange(mask.shape[1], device=mask.device)
    has_partner = partner != torch.arange(len(partner), device=partner.device)
    source = torch.full_like(mask, -1, dtype=torch.long)
    replaced = replaceable = torch.zeros_like(lam)
    for number in range(1 if segments is None else 2):
        first, size = _replaceable(mask.bool(), segments, special, number)
        wanted = ((1 - lam) * size + 1e-4).floor().long().clamp_min(1)
        wanted = torch.where((lam < 1) & has_partner & (wanted <= size) & (wanted <= size[partner]), wanted, 0)
        if saliency is None:
            own, other = uniform[number]
            start = (own * (size - wanted + 1)).floor().long()
            taken = (other * (size[partner] - wanted + 1)).floor().long()
        else:
            start = _best_window(-saliency, first, size, wanted)
            taken = _best_window(saliency[partner], first[partner], size[partner], wanted)
        begin = (first + start).unsqueeze(1)
        is_replaced = (positions >= begin) & (positions < begin + wanted.unsqueeze(1))
        source = torch.where(is_replaced, positions - begin + (first[partner] + taken).unsqueeze(1), source)
        replaced, replaceable = replaced + wanted, replaceable + size
    return source, 1 - replaced / replaceable.clamp_min(1)


def ends_of_text(mask: Tensor) -> Tensor:
    """True at the last token of each text: `(batch, length)`."""
    positions = torch.arange(mask.shape[1], device=mask.device)
    return positions == (positions * mask.bool()).argmax(1, keepdim=True)


def _replaceable(mask: Tensor, segments: Tensor | None, special: Tensor | None, number: int) -> tuple[Tensor, Tensor]:
    """Where the tokens of a segment that may be replaced begin, and how many they are: both `(batch,)`."""
    inside = mask if segments is None else mask & (segments == number)
    positions = torch.arange(mask.shape[1], device=mask.device)
    ends = positions == (positions * inside).argmax(1, keepdim=True)
    if number == 0:
        ends = ends | (positions == inside.int().argmax(1, keepdim=True))
    free = inside & ~ends if special is None else inside & ~ends & ~special
    first = free.int().argmax(1)
    run = (free | (positions < first.unsqueeze(1))).int().cumprod(1).bool() & free
    return first, run.sum(1)


def separated(ids: Tensor, mask: Tensor, separators: Tensor) -> tuple[Tensor, Tensor]:
    """The two texts of a pair, told apart by what stands between them.

    Args:
        ids, mask (`torch.Tensor` of shape `(batch, length)`): token ids; true where there is a token.
        separators (`torch.Tensor` of shape `(n,)`): ids that begin texts, stand between them or end them.

    Returns:
        `tuple`: 0 and 1 for the two texts, and true at separators, both `(batch, length)`.
    """
    special = torch.isin(ids, separators) & mask.bool()
    # What begins a text parts nothing.
    parts = (special & (mask.cumsum(1) > 1)).int()
    return (parts.cumsum(1) - parts > 0).long(), special


def text_parts(
    inputs: Mapping[str, Tensor | None], separators: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The mask, the segments and the separators of a batch of texts, as `plan_spans` takes them: `(batch, length)`.

    Args:
        inputs (`Mapping`): `input_ids`, and if there are any, `attention_mask` and `token_type_ids`.
        separators (`torch.Tensor` of shape `(n,)`, *optional*): ids of tokens that begin, end or part texts.
    """
    ids, mask, segments = (inputs.get(name) for name in ("input_ids", "attention_mask", "token_type_ids"))
    assert ids is not None
    mask = torch.ones_like(ids) if mask is None else mask
    if separators is None:
        return mask, segments, None
    parts, special = separated(ids, mask, separators)
    return mask, parts if segments is None else segments, special


def _best_window(values: Tensor, first: Tensor, size: Tensor, width: Tensor) -> Tensor:
    """Where, counted from `first`, the `width` neighbouring values of largest sum begin; all of shape `(batch,)`."""
    length = values.shape[1]
    sums = torch.nn.functional.pad(values.float().cumsum(1), (1, 0))
    start = torch.arange(length, device=values.device).expand(len(values), -1)
    end = (start + width.unsqueeze(1)).clamp_max(length)
    total = sums.gather(1, end) - sums.gather(1, start)
    fits = (start >= first.unsqueeze(1)) & (start + width.unsqueeze(1) <= (first + size).unsqueeze(1))
    return total.masked_fill(~fits, -torch.inf).argmax(1) - first


def swap_tokens(values: Tensor, partner: Tensor, source: Tensor, kept: Tensor | None = None) -> Tensor:
    """Values of tokens, those with a `source` taken from the partners: of the shape of `values`.

    Args:
        values (`torch.Tensor` of shape `(batch, length, ...)`): token ids, or floats.
        partner (`torch.Tensor` of shape `(batch,)`): index of each partner.
        source (`torch.Tensor` of shape `(batch, length)`): positions in the partner's text, -1 where a token stays.
        kept (`torch.Tensor` of shape `(batch, length)`, *optional*): the weight that floats with a source keep; 0.
    """
    shape = (*source.shape, *[1] * (values.dim() - 2))
    where = source.clamp_min(0).reshape(shape).expand_as(values)
    taken = values[partner].gather(1, where)
    if kept is not None:
        taken = torch.lerp(taken, values, kept.reshape(shape).to(values.dtype))
    return torch.where(source.reshape(shape) >= 0, taken, values)
