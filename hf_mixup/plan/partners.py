"""Who: partners that depend on the examples, drawn from a matrix of weights. Pure functions of tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_mixup.config.mixup_config import MixupConfig


@dataclass(frozen=True)
class Examples:
    """What a plan may look at in the examples of a batch, besides their number. Only what its config asks for is there.

    Args:
        targets (`torch.Tensor` of shape `(batch, num_labels)`): class probabilities, multi-hot labels or scores.
        groups (`torch.Tensor` of shape `(batch,)`): the domain of each example, for `"lisa"`.
        margins (`torch.Tensor` of shape `(batch,)`): area under the margin so far, for `"margin"`.
        counts (`torch.Tensor` of shape `(num_labels,)`): examples of each class in the training data, for `"remix"`.
        mask (`torch.Tensor` of shape `(batch, length)`): true where there is a token, for spans.
        segments (`torch.Tensor` of shape `(batch, length)`): 0 and 1 for the two texts of a pair, for spans.
        special (`torch.Tensor` of shape `(batch, length)`): true at separators and the like, for spans.
        saliency (`Callable`): gives that of each token, `(batch, length)`, for `"salient_span"`.
    """

    targets: Tensor | None = None
    groups: Tensor | None = None
    margins: Tensor | None = None
    counts: Tensor | None = None
    mask: Tensor | None = None
    segments: Tensor | None = None
    special: Tensor | None = None
    saliency: Callable[[], Tensor] | None = None


def choose_partner(config: MixupConfig, examples: Examples, uniform: Tensor, coin: bool) -> Tensor:
    """A partner for each example, drawn with the weights that `config.partner` gives to the others of the batch.

    Args:
        config (`MixupConfig`): `partner` and the fields that go with it.
        examples (`Examples`): of the batch.
        uniform (`torch.Tensor` of shape `(batch,)`): random numbers in [0, 1), one an example.
        coin (`bool`): a random bit a batch, true with probability `config.same_label_prob`.

    Returns:
        `torch.LongTensor` of shape `(batch,)`: an example that nobody fits is its own partner, which is no mixing.
    """
    weights = WEIGHTS[config.partner](config, examples, coin)
    weights = weights.float().fill_diagonal_(0.0)
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
    distance = torch.cdist(targets, targets, compute_mode="donot_use_mm_for_euclid_dist")
    score = -distance.square() / (2 * config.bandwidth**2)
    score.fill_diagonal_(-torch.inf)
    # Probabilities are the same when divided by the largest, and those of an outlier do not vanish.
    return torch.exp(score - score.amax(1, keepdim=True))


def _lisa(config: MixupConfig, examples: Examples, coin: bool) -> Tensor:
    """Same label and other domain, or same domain and other label (LISA, Yao et al. 2022)."""
    assert examples.groups is not None
    same_label = _share_a_label(examples)
    same_group = examples.groups.unsqueeze(1) == examples.groups
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
    """Whether the most probable classes are the same, or, of several labels a text, one of them is."""
    targets = _targets(examples)
    is_distribution = (targets.sum(1) - 1).abs() < 1e-3
    top = torch.nn.functional.one_hot(targets.argmax(1), targets.shape[1]).to(targets.dtype)
    classes = torch.where(is_distribution.unsqueeze(1), top, targets)
    return (classes @ classes.t()) > 0.5


def _targets(examples: Examples) -> Tensor:
    assert examples.targets is not None
    return examples.targets


WEIGHTS: dict[str, Callable[[MixupConfig, Examples, bool], Tensor]] = {
    "same_class": _same_class,
    "other_class": _other_class,
    "near_label": _near_label,
    "lisa": _lisa,
    "balanced": _balanced,
    "margin": _margin,
}
