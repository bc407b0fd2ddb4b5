"""Whether the losses of a training are numbers, said at the first that is not."""

from __future__ import annotations

import math

from transformers.utils import logging

from hf_mixup.config.checks import choice

logger = logging.get_logger(__name__)

POLICIES = ("warn", "stop", "ignore")


class LossWatch:
    """Looks at the losses of a training.

    Args:
        policy (`str`): at the first loss that is not finite: `"warn"` says so once, `"stop"` ends the training with a
            `FloatingPointError`, `"ignore"` does nothing.

    Raises:
        ValueError: for another policy.
    """

    def __init__(self, policy: str) -> None:
        self.policy = choice(*POLICIES)("nonfinite_loss", policy)
        self.has_spoken = False

    def restart(self) -> None:
        """Watch another training."""
        self.has_spoken = False

    def see(self, loss: float, step: int) -> None:
        """Note a loss at a step, counted from 1. Raises `FloatingPointError` for the policy `"stop"`."""
        if math.isfinite(loss) or self.has_spoken or self.policy == "ignore":
            return
        self.has_spoken = True
        message = (
            f"step {step}: the loss is {loss}, so the training has diverged; lower learning_rate, or raise warmup_steps"
        )
        if self.policy == "stop":
            raise FloatingPointError(f"{message}.")
        logger.warning("%s. nonfinite_loss='stop' ends such a training.", message)
