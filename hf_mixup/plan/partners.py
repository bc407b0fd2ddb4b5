"""Who: how the partners of each name are found, and what that needs. Pure functions of tensors.

A new partner is a function that gives a matrix of weights, and a row in `PARTNERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hf_mixup.config.mixup_config import MixupConfig
from hf_mixup.plan.examples import Examples


def choose_partner(config: MixupConfig, examples: Examples, uniform: Tensor, coin: bool) -> Tensor:
    """A partner for each example, drawn with the weights that `config.partner` gives to the others of the batch.

    Args:
        config (`MixupConfig`): `partner` and the fields that go with it.
        examples (`Examples`): of the batch.
        uniform (`torch.Tensor` of shape `(batch,)`): random numbers in [0, 1), one per example.
        coin (`bool`): a random bit per batch, true with probability `config.same_label_prob`.

    Returns:
        `torch.LongTensor` of shape `(batch,)`: an example that nobody fits is its own partner, which is no mixing.
    """
    rule = PARTNERS[config.partner].weights
    assert rule is not None
    weights = rule(config, examples, coin).float().fill_diagonal_(0.0)
    return draw_from_rows(weights, uniform.to(weights.device, non_blocking=True))


def draw_from_rows(weights: Tensor, uniform: Tensor) -> Tensor:
    """An index for each row, with probabilities proportional to the row: by inverting its cumulative sum.

    Args:
        weights (`torch.Tensor` of shape `(batch, batch)`): >= 0; a row of zeros gives its own number.
        uniform (`torch.Tensor` of shape `(batch,)`): in [0, 1).
    """
    cumulative = weights.cumsum(1)
    total = cumulative[:, -1:]
    # A number below 1 that rounding cannot lift to the total.
    drawn = uniform.float().clamp_max(1 - 1e-6).unsqueeze(1) * total
    partner = torch.searchsorted(cumulative, drawn, right=True).squeeze(1)
    own = torch.arange(weights.shape[0], device=weights.device)
    return torch.where(total.squeeze(1) > 0, partner, own)


def _same_class(config: MixupConfig, examples: Examples, coin: bool) -> Tensor:
    return _share_a_label(examples)


def _other_class(config: MixupConfig, examples: Examples, coin: bool) -> Tensor:
    return ~_share_a_label(examples)


def _near_label(config: MixupConfig, examples: Examples, coin: bool) -> Tensor:
    """exp(-|y_i - y_j|^2 / (2 bandwidth^2)) (C-Mixup, Yao et al. 2022, eq. 6)."""
    targets = _targets(examples)
    return _kernel(torch.cdist(targets, targets, compute_mode="donot_use_mm_for_euclid_dist"), config.bandwidth)


def _kernel(distance: Tensor, bandwidth: float) -> Tensor:
    score = -distance.square() / (2 * bandwidth**2)
    score.fill_diagonal_(-torch.inf)
    # Probabilities are the same when divided by the largest, and those of an outlier do not vanish.
    return torch.exp(score - score.amax(1, keepdim=True))


def _near_length(config: MixupConfig, examples: Examples, coin: bool) -> Tensor:
    """exp(-(n_i - n_j)^2 / (2 bandwidth^2)) of the numbers of tokens, as `_near_label` of labels."""
    ids, mask = (examples.inputs.get(name) for name in ("input_ids", "attention_mask"))
    assert ids is not None
    length = (torch.ones_like(ids) if mask is None else mask != 0)[: examples.size].sum(1, keepdim=True).float()
    return _kernel((length - length.t()).abs(), config.bandwidth)


def _near_text(config: MixupConfig, examples: Examples, coin: bool) -> Tensor:
    """The nearest texts by the cosine of their states share `near_prob`, and all others the rest (LADA, sec. 3.3)."""
    assert examples.states is not None
    states = torch.nn.functional.normalize(examples.states()[: examples.size].float(), dim=1)
    near = (states @ states.t()).fill_diagonal_(-torch.inf)
    others = ~torch.eye(len(near), dtype=torch.bool, device=near.device)
    count = min(config.neighbors, len(near) - 1)
    is_near = torch.zeros_like(others).scatter(1, near.topk(count, dim=1).indices, True)
    return config.near_prob * is_near / max(count, 1) + (1 - config.near_prob) * others / max(len(near) - 1, 1)


def _lisa(config: MixupConfig, examples: Examples, coin: bool) -> Tensor:
    """Same label and other domain, or same domain and other label (LISA, Yao et al. 2022)."""
    assert examples.groups is not None
    same_label = _share_a_label(examples)
    groups = examples.groups.reshape(-1)
    same_group = groups.unsqueeze(1) == groups
    return same_label & ~same_group if coin else same_group & ~same_label


def _balanced(config: MixupConfig, examples: Examples, coin: bool) -> Tensor:
    """Every class of the batch is as likely, whatever its number of examples."""
    targets = _targets(examples)
    # Of the others: an example does not count for its own class, which it cannot be drawn from.
    count = (targets * targets.sum(0)).sum(1) - targets @ targets.t()
    # A text without any label is a class of its own.
    return count.clamp_min(1).reciprocal()


def _margin(config: MixupConfig, examples: Examples, coin: bool) -> Tensor:
    """Easy with hard: the halves of the batch above and below the median margin (Park and Caragea 2022)."""
    assert examples.margins is not None
    rank = examples.margins.argsort(stable=True).argsort()
    is_easy = rank >= len(rank) // 2
    return is_easy.unsqueeze(1) != is_easy


def _share_a_label(examples: Examples) -> Tensor:
    """Whether the most probable classes are the same, or, of several labels per text, one of them is."""
    targets = _targets(examples)
    is_distribution = (targets.sum(1) - 1).abs() < 1e-3
    top = torch.nn.functional.one_hot(targets.argmax(1), targets.shape[1]).to(targets.dtype)
    classes = torch.where(is_distribution.unsqueeze(1), top, targets)
    return (classes @ classes.t()) > 0.5


def _targets(examples: Examples) -> Tensor:
    assert examples.targets is not None
    return examples.targets


@dataclass(frozen=True)
class Partner:
    """How partners are found.

    Args:
        weights (`Callable`, *optional*): how likely each example is drawn for each other, `(batch, batch)`; `None` for
            partners that are numbered without looking at the batch.
        needs (`tuple[str, ...]`): the fields of `Examples` that have to be there.
        is_by_class (`bool`): whether they are for classes, and not for scores.
    """

    weights: Callable[[MixupConfig, Examples, bool], Tensor] | None = None
    needs: tuple[str, ...] = ("targets",)
    is_by_class: bool = False


PARTNERS: dict[str, Partner] = {
    "random": Partner(needs=()),
    "same_class": Partner(_same_class, is_by_class=True),
    "other_class": Partner(_other_class, is_by_class=True),
    "near_label": Partner(_near_label),
    "balanced": Partner(_balanced, is_by_class=True),
    "lisa": Partner(_lisa, ("targets", "groups"), is_by_class=True),
    "margin": Partner(_margin, ("targets", "input_ids", "margins"), is_by_class=True),
    "near_length": Partner(_near_length, needs=("input_ids",)),
    "near_text": Partner(_near_text, needs=("input_ids", "states")),
    "same_text": Partner(),
    "previous_batch": Partner(),
    "all_ranks": Partner(),
}


def one_cycle(order: np.ndarray) -> np.ndarray:
    """The partners that a permutation gives if nobody may be their own: each example's is the one before it in `order`.

    The batch is then one cycle (Sattolo 1986), in which each example is partner once: int64 of shape (batch,).
    """
    partner = np.empty_like(order)
    partner[order] = np.roll(order, 1)
    return partner


def partners_apart(generator: np.random.Generator, size: int, total: int) -> Tensor:
    """Partners, at random, of the first `size` of `total` examples among themselves, and of the others: `(total,)`."""
    parts = generator.permutation(size), size + generator.permutation(total - size)
    return torch.from_numpy(np.concatenate(parts))
