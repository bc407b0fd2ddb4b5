"""Which rows a training with `strength="auto"` checks between the evaluations of the user."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from torch.utils.data import IterableDataset, Subset
from transformers.utils import logging

from hf_mixup.training.trainer_checks import overrides

logger = logging.get_logger(__name__)

# Checks in a training, or fewer if it is short; the share of it that they may take; what makes one worth it.
CHECKS, COST, FEWEST, MOST = (9, 4), 0.02, 32, 512
# A row that is trained on takes a forward pass, and two more for its gradients.
PASSES = 3
# Of the training rows at most this share is held out.
HELD_OUT = 0.1
HELD = (
    "strength='auto': there is no eval_dataset, so %d of %d training rows are held out, to see whether the model is "
    "surer than right. Give an eval_dataset, or mixup={'recipe': 'default', 'check_rows': 0} to train on them."
)


@dataclass(frozen=True)
class CheckRows:
    """The rows of the checks, and what is left to train on.

    Args:
        train_dataset (`Dataset`): the training rows, without those that are held out.
        rows (`Dataset`, *optional*): of each check; `None` if there are none but the evaluations of the user.
        checks (`int`, defaults to 0): how many checks there are, if nothing is evaluated.
        why_none (`str`): why there are no rows.
    """

    train_dataset: Any
    rows: Any = None
    checks: int = 0
    why_none: str = ""


def choose_rows(trainer: Any) -> CheckRows:
    """Rows of the evaluation set, or held out of the training rows if there is none; drawn from the seed.

    Args:
        trainer (`Trainer`): with a `mixup`, whose `config.check_rows` says how many.
    """
    train, given, asked = trainer.train_dataset, trainer.eval_dataset, trainer.mixup.config.check_rows
    if isinstance(given, Mapping):
        given = next((rows for rows in given.values() if rows is not train), None)
    checks, size = (CHECKS[0], asked) if asked is not None else _within_cost(_rows_trained_on(trainer))
    source = train if given is None else given
    if asked == 0:
        return CheckRows(train, why_none="check_rows=0 leaves it at your evaluations")
    if not trainer.label_names:
        return CheckRows(train, why_none="label_names is empty, so no labels are known")
    if isinstance(source, IterableDataset) or not isinstance(source, Sized):
        return CheckRows(train, why_none=f"{type(source).__name__} is a stream, of which no rows can be picked")
    if not size:
        return CheckRows(train, why_none=f"in so short a training checks would take more than {COST:.0%} of it")
    order = np.random.default_rng([trainer.args.seed, 1]).permutation(len(source))
    if given is not None:
        return CheckRows(train, _part(given, order[:size]), checks)
    if not isinstance(train, Dataset) or overrides(type(trainer), "_get_train_sampler", "get_train_dataloader"):
        return CheckRows(train, why_none="rows are held out of a datasets.Dataset only, with Trainer's own sampler")
    size = min(size, int(HELD_OUT * len(train)))
    if size < (FEWEST if asked is None else 2):
        return CheckRows(train, why_none=f"of {len(train)} training rows too few could be held out")
    if trainer.is_world_process_zero():
        logger.warning(HELD, size, len(train))
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
