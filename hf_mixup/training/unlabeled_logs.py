"""What became of unlabelled rows between two logs of a training."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.utils import logging

from hf_mixup.config.unlabeled_config import GIVEN
from hf_mixup.training.guesses import Guesses

logger = logging.get_logger(__name__)

# Above this share of guesses in other classes than the prior says, a warning.
DRIFT = 0.25
DRIFTED = (
    "unlabeled_dataset: the guesses drift: %.0f %% of them are %r, of the labels %.0f %%. If the texts are of other "
    "classes than the labels, give their shares as class_prior; else the guesses collapse: give more labels, a smaller "
    "weight or a smaller learning rate."
)
GIVEN_DRIFTED = (
    "unlabeled_dataset: of the given guesses %.0f %% are %r, of the labels %.0f %%; they are aligned to the labels. If "
    "the texts are of other classes than the labels, give their shares as class_prior."
)


class UnlabeledLogs:
    """Sums over batches, kept on the device and read only when they are logged."""

    def __init__(self) -> None:
        self._has_warned = False
        self._clear()

    def _clear(self) -> None:
        self.batches, self.weight = 0, 0.0
        self.use: Tensor | float = 0.0
        self.disagreement: Tensor | float = 0.0
        self.right: Tensor | float = 0.0
        self.known: Tensor | float = 0.0
        self._classes: Tensor | None = None

    def add_guesses(self, classes: Tensor, weights: Tensor, hidden: Tensor | None, weight: float) -> None:
        """Count the guesses of a batch.

        Args:
            classes, weights (`torch.Tensor` of shape `(rows,)`): the likeliest class of each row, and its weight.
            hidden (`torch.Tensor` of shape `(rows,)`, *optional*): the labels, if they are known; negative for none.
            weight (`float`): of all of them in the loss of the step.
        """
        self.batches, self._classes, self.weight = self.batches + 1, classes, weight
        self.use = self.use + weights.mean()
        if hidden is not None:
            hidden = hidden.to(classes.device)
            self.right = self.right + (classes == hidden).sum()
            self.known = self.known + (hidden >= 0).sum()

    def add_answers(self, answers: Tensor) -> None:
        """Compare the likeliest classes of the mixed pass, `(rows,)`, with the guesses of the same rows."""
        assert self._classes is not None
        self.disagreement = self.disagreement + (answers != self._classes).float().mean()

    def drain(self, guesses: Guesses) -> dict[str, Any]:
        """The logs since the last call: `unlabeled_weight`, `_use`, `_drift`, `_disagreement`, and `_accuracy` if the
        labels are known."""
        if not self.batches:
            return {}
        logs = {
            "unlabeled_weight": self.weight,
            "unlabeled_use": float(self.use) / self.batches,
            "unlabeled_drift": float(guesses.drift),
            "unlabeled_disagreement": float(self.disagreement) / self.batches,
        }
        if self.known:
            logs["unlabeled_accuracy"] = float(self.right) / float(self.known)
        self._clear()
        return {name: round(value, 4) for name, value in logs.items()}

    def warn_of_drift(self, guesses: Guesses, about: Any) -> None:
        """Say, once, that the guesses are of other classes than the prior."""
        if self._has_warned or float(guesses.drift) <= DRIFT:
            return
        self._has_warned = True
        most = int(guesses.surplus.argmax())
        shares = 100 * float(guesses.mean[most]), about.id2label[most], 100 * float(guesses.prior[most])
        logger.warning(GIVEN_DRIFTED if guesses.config.guesses == GIVEN else DRIFTED, *shares)
