"""Which rows a training with `strength="auto"` checks between the evaluations of the user."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from torch.utils.data import Subset
from transformers.utils import logging

logger = logging.get_logger(__name__)

# Checks in a training, or fewer if it is short; the share of it that they may take; what makes one worth it.
CHECKS, COST, FEWEST, MOST = (9, 4), 0.02, 32, 512
# A row that is trained on takes a forward pass, and two more for its gradients.
PASSES = 3
# Of the training rows at most this share is held out.
HELD_OUT = 0.1


@dataclass(frozen=True)
class CheckRows:
    """The rows of the checks, and what is left to train on.

    Args:
        train_dataset (`Dataset`): the training rows, without those that are held out.
        rows (`Dataset`, *optional*): of each check; `None` if there are none but the evaluations of the user.
        checks (`int`, defaults to 0): how many checks there are, if nothing is evaluated.
    """

    train_dataset: Any
    rows: Any = None
    checks: int = 0


def choose_rows(trainer: Any) -> CheckRows:
    """Rows of the evaluation set, or held out of the training rows if there is none; drawn from the seed.

    Args:
        trainer (`Trainer`): with a `mixup`, whose `config.check_rows` says how many.
    """
    train, given, asked = trainer.train_dataset, trainer.eval_dataset, trainer.mixup.config.check_rows
    if isinstance(given, Mapping):
        given = next(iter(given.values()), None)
    checks, size = (CHECKS[0], asked) if asked is not None else _within_cost(_rows_trained_on(trainer))
    source = train if given is None else given
    if not size or not isinstance(source, Sized):
        return CheckRows(train)
    order = np.random.default_rng([trainer.args.seed, 1]).permutation(len(source))
    if given is not None:
        return CheckRows(train, _part(given, order[:size]), checks)
    size = min(size, int(HELD_OUT * len(train)))
    if size < FEWEST:
        return CheckRows(train)
    logger.warning(
        "strength='auto': there is no eval_dataset, so %d of %d training rows are held out, to see whether the model "
        "is surer than right. Give an eval_dataset, or set check_rows=0 to train on them.",
        *(size, len(train)),
    )
    return CheckRows(_part(train, np.sort(order[size:])), _part(train, order[:size]), checks)


def _rows_trained_on(trainer: Any) -> int:
    """How many rows a training goes through, repeated ones too; 0 if nobody knows."""
    args = trainer.args
    if args.max_steps > 0:
        return args.max_steps * args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return int(args.num_train_epochs * len(trainer.train_dataset)) if isinstance(trainer.train_dataset, Sized) else 0


def _within_cost(rows: int) -> tuple[int, int]:
    """How many checks of how many rows take `COST` of a training on `rows`; none if they would be too small."""
    for checks in CHECKS:
        size = int(COST * PASSES * rows / checks)
        if size >= FEWEST:
            return checks, min(size, MOST)
    return 0, 0


def _part(rows: Any, indices: np.ndarray) -> Any:
    numbers = indices.tolist()
    return rows.select(numbers) if isinstance(rows, Dataset) else Subset(rows, numbers)
