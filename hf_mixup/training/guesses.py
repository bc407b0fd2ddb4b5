"""What is guessed for rows without labels: targets and weights made of the probabilities that a model gives them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_mixup.config.unlabeled_config import NONE, UNIFORM, UnlabeledConfig
from hf_mixup.training.label_columns import class_counts

# No variance and no share is smaller.
SMALLEST = 1e-6


class Guesses:
    """Aligns, sharpens and weighs guessed probabilities, with running means over about a tenth of the training.

    With p the guess for a row, q its aligned form and P the class prior:

        q = p P / mean p, normalised              (ReMixMatch, Berthelot et al. 2020, sec. 3.1)
        target = q^(1/T), normalised              (MixMatch, Berthelot et al. 2019, eq. 7)
        weight = exp(-max(0, m - max q)^2 / (2 (s / confidence)^2))   (SoftMatch, Chen et al. 2023, eq. 7 and 8)

    m and s are the running mean and standard deviation of max q.

    Args:
        config (`UnlabeledConfig`): what of that is done.
        num_labels (`int`): the number of classes.
        counts (`Sequence[float]`, *optional*): the labelled rows of each class; else `count` counts them.

    Raises:
        ValueError: for a `class_prior` of another number of classes.
    """

    def __init__(self, config: UnlabeledConfig, num_labels: int, counts: Sequence[float] | None = None) -> None:
        given = [1 / num_labels] * num_labels if config.class_prior == UNIFORM else config.class_prior
        if isinstance(given, list) and len(given) != num_labels:
            raise ValueError(f"unlabeled.class_prior: {len(given)} shares for num_labels={num_labels}.")
        self.config, self.seen, self._is_counting = config, 0, counts is None and not isinstance(given, list)
        # One row more for each class; a share that was given is what it is.
        self.counts = torch.tensor(given) if isinstance(given, list) else 1 + torch.tensor(counts or [0.0] * num_labels)
        self.mean, self.confidence = self.prior, torch.ones(2)

    @property
    def prior(self) -> Tensor:
        """The share of each class among the labels, or that was given; drift is measured against it in any case."""
        return self.counts / self.counts.sum()

    def count(self, labels: Tensor, over_processes: Callable[[Tensor], Tensor] = lambda value: value) -> None:
        """Count the labels of a batch, class indices `(rows,)` or probabilities, if nobody has counted them before.

        `over_processes` gives the sum over all processes of a small tensor.
        """
        if self._is_counting:
            found = torch.tensor(class_counts(labels.detach(), len(self.counts))[: len(self.counts)])
            self.counts = self.counts + over_processes(found).to(self.counts.device)

    def learn(
        self, guessed: Tensor, horizon: float, over_processes: Callable[[Tensor], Tensor] = lambda value: value
    ) -> tuple[Tensor, Tensor]:
        """Take a batch into the running means, and return what is learned of it.

        Args:
            guessed (`torch.Tensor` of shape `(rows, num_labels)`): probabilities.
            horizon (`float`): over how many batches the running means reach; before that they are plain means.
            over_processes (`Callable`, *optional*): the mean over all processes of a small tensor.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: targets `(rows, num_labels)` and weights `(rows,)`.
        """
        self.seen += 1
        share = max(1 / self.seen, 1 / max(horizon, 1.0))
        self.mean = _moved(self.mean, over_processes(guessed.mean(0)), share)
        aligned = guessed
        if self.config.class_prior != NONE:
            aligned = guessed * (self.prior.to(guessed.device) / self.mean.clamp_min(SMALLEST))
            total = aligned.sum(-1, keepdim=True)
            # A guess that is sure of a class of which the prior has none stays as it is.
            aligned = torch.where(total > 0, aligned / total.clamp_min(torch.finfo(total.dtype).tiny), guessed)
        largest = aligned.max(-1).values
        found = torch.stack([largest.mean(), largest.square().mean()])
        self.confidence = _moved(self.confidence, over_processes(found), share)
        return self._sharpened(aligned), self._weights(largest)

    def _sharpened(self, probabilities: Tensor) -> Tensor:
        if self.config.temperature == 0:
            return F.one_hot(probabilities.argmax(-1), probabilities.shape[-1]).to(probabilities.dtype)
        # As logarithms, because powers of small probabilities are 0.
        return (probabilities.clamp_min(SMALLEST).log() / self.config.temperature).softmax(-1)

    def _weights(self, largest: Tensor) -> Tensor:
        if self.config.confidence is None:
            return torch.ones_like(largest)
        mean, square = self.confidence
        variance = (square - mean.square()).clamp_min(SMALLEST) / self.config.confidence**2
        return (-(mean - largest).clamp_min(0).square() / (2 * variance)).exp()

    @property
    def surplus(self) -> Tensor:
        """How much larger the running mean of the guesses is than the prior: `(num_labels,)`."""
        return self.mean - self.prior.to(self.mean.device)

    @property
    def drift(self) -> Tensor:
        """How far the running mean of the guesses is from the prior, 0 to 1: half the sum of the differences."""
        return self.surplus.abs().sum() / 2

    def state_dict(self) -> dict[str, Any]:
        """The running means, as plain numbers."""
        numbers = {name: getattr(self, name).tolist() for name in ("counts", "mean", "confidence")}
        return {"seen": self.seen, **numbers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.seen = state["seen"]
        self.mean, self.confidence = torch.tensor(state["mean"]), torch.tensor(state["confidence"])
        if self._is_counting:
            self.counts = torch.tensor(state["counts"])


def _moved(mean: Tensor, found: Tensor, share: float) -> Tensor:
    """A running mean with one value more, unless that is not finite, as after an overflow in half precision."""
    mean = mean.to(found.device)
    return torch.where(found.isfinite(), torch.lerp(mean, found, share), mean)
