"""A plain Trainer with a `MixupCollator`: only training batches are mixed, and what cannot work is refused."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
from transformers import TrainerCallback

from hf_mixup.config.mixup_config import MixupConfig
from hf_mixup.loss.task import Task
from hf_mixup.training.trainer_seams import add_default_callback

# Wrappers inside wrappers that are looked into for a collator.
DEPTH_OF_WRAPPERS = 4
NOT_MIXED = "This training batch was not mixed: give the Trainer data_collator=collator as well."


class CollatorCallback(TrainerCallback, ABC):
    """What a Trainer tells a `MixupCollator` that is also its callback.

    Args:
        config (`MixupConfig`): of the collator.
        task (`Task`): of the collator.
        rank (`int`): index of this process.

    Raises:
        ValueError: for a Trainer that cannot work.
    """

    def __init__(self, config: MixupConfig, task: Task, rank: int) -> None:
        self.config, self.task, self.rank = config, task, rank
        self.has_trainer = self.is_training_batch = False
        self.label_smoothing = 0.0
        # In memory that the workers see as well.
        self.has_made_batch = torch.zeros((), dtype=torch.bool).share_memory_()

    @abstractmethod
    def _restart(self, state: Any) -> None:
        """Draw plans anew, for a new training."""

    @abstractmethod
    def _note(self, state: Any) -> None:
        """Note the progress of training."""

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """From now on only training batches are mixed. Raises `ValueError` for a Trainer that cannot work."""
        self._refuse_what_cannot_work(args, kwargs.get("model"))
        self.has_trainer, self.rank = True, args.process_index
        self.label_smoothing = args.label_smoothing_factor

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The batches of the training loader are mixed, with plans that start anew."""
        self.on_init_end(args, state, control, **kwargs)
        self._restart(state)
        self.has_made_batch.fill_(False)
        loader = _plain_loader(kwargs["train_dataloader"])
        loader.collate_fn = TrainingBatches(self, loader.collate_fn)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the progress of training."""
        self._note(state)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refuse batches that were not mixed, and mixed targets that were taken for several labels per example."""
        # The first process may make the batches of all.
        if state.is_world_process_zero and not self.has_made_batch:
            raise ValueError(NOT_MIXED)
        found = getattr(getattr(kwargs.get("model"), "config", None), "problem_type", None)
        if found not in (None, self.task.about.problem_type):
            raise ValueError(
                "compute_loss_func: the model was given the mixed labels and made its own loss of them "
                f"(problem_type={found!r}); give the Trainer compute_loss_func=collator.loss as well."
            )

    def _only_inputs(self) -> str:
        """What to say of a site that is inside of the model."""
        site = self.config.site
        return f"site={site!r}: a plain Trainer cannot mix inside the model; use MixupTrainer, or site='input'."

    def _refuse_what_cannot_work(self, args: Any, model: Any) -> None:
        if self.config.site != "input":
            raise ValueError(self._only_inputs())
        if args.n_gpu > 1:
            raise ValueError(
                f"{args.n_gpu} GPUs without a launcher: start the script with `accelerate launch` or `torchrun`, or "
                "set CUDA_VISIBLE_DEVICES=0."
            )
        if self.config.group_column is not None and args.remove_unused_columns:
            raise ValueError(
                f"remove_unused_columns: partner='lisa' needs the column {self.config.group_column!r}, which the "
                "Trainer removes; set it to False."
            )
        ours, theirs = self.task.about, getattr(model, "config", None)
        for name in ("num_labels", "problem_type"):
            value = getattr(theirs, name, None)
            if value not in (None, getattr(ours, name)):
                raise ValueError(f"{name}={getattr(ours, name)!r}: the model has {name}={value!r}.")


class TrainingBatches:
    """The collator of a Trainer's training loader, which may be a wrapper around a `MixupCollator`."""

    def __init__(self, collator: CollatorCallback, collate_fn: Callable[[list[Any]], Any]) -> None:
        self.collator, self.collate_fn = collator, collate_fn

    def __call__(self, features: list[Any]) -> Any:
        self.collator.is_training_batch = True
        try:
            return self.collate_fn(features)
        finally:
            self.collator.is_training_batch = False


class ForgottenCallback(TrainerCallback):
    """Refuses a Trainer that was given a `MixupCollator` as its `data_collator` alone.

    Every Trainer that is made after MixupCollator is imported has it: nothing tells a collator that a Trainer calls it.
    """

    _about: Any = None
    _problem_type: str | None = None
    _looked_at: Any = None

    def __init__(self) -> None:
        self._suspects: list[CollatorCallback] = []

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note what the first mixed batch of an evaluation would change in the model's config."""
        self._about = getattr(kwargs.get("model"), "config", None)
        self._problem_type = getattr(self._about, "problem_type", None)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Raises `ValueError` for a training loader whose collator was not told of the training."""
        collate_fn, told = _collate_fn_of(kwargs.get("train_dataloader")), set()
        while isinstance(collate_fn, TrainingBatches):
            told.add(collate_fn.collator)
            collate_fn = collate_fn.collate_fn
        for collator in collators_in(collate_fn):
            if collator not in told:
                raise ValueError(_forgotten(collator))
        # Those that a function names among its globals need not be called by it.
        self._suspects = [one for one in collators_in(collate_fn, with_globals=True) if one not in told]
        for collator in self._suspects:
            collator.has_made_batch.fill_(False)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Raises `ValueError` if the first batches were made by a collator that was not told of the training."""
        suspects, self._suspects = self._suspects, []
        for collator in suspects:
            if collator.has_made_batch and not collator.has_trainer:
                self._put_back()
                raise ValueError(_forgotten(collator))

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Raises `ValueError` after the first batch of an evaluation that is mixed; the model's config is put back."""
        loader = kwargs.get("eval_dataloader")
        if loader is self._looked_at:
            return
        self._looked_at = loader
        for collator in collators_in(_collate_fn_of(loader)):
            if not collator.has_trainer:
                self._looked_at = None
                self._put_back()
                raise ValueError(_forgotten(collator))

    def _put_back(self) -> None:
        if self._about is not None:
            self._about.problem_type = self._problem_type


def collators_in(
    collate_fn: Any, depth: int = DEPTH_OF_WRAPPERS, with_globals: bool = False
) -> Iterator[CollatorCallback]:
    """The `MixupCollator`s that a function calls: itself, or inside wrappers such as the Trainer's own."""
    if isinstance(collate_fn, CollatorCallback):
        yield collate_fn
    elif depth and callable(collate_fn) and not isinstance(collate_fn, type):
        for part in _parts(collate_fn, with_globals):
            yield from collators_in(part, depth - 1, with_globals)


def _parts(function: Any, with_globals: bool) -> list[Any]:
    """What a function holds, or names among its globals."""
    if isinstance(function, partial):
        return [function.func, *function.args, *function.keywords.values()]
    if isinstance(function, MethodType):
        return [function.__self__, function.__func__]
    if not isinstance(function, FunctionType):
        return list(getattr(function, "__dict__", {}).values())
    found = []
    for cell in function.__closure__ or ():
        # A variable that is not assigned yet has no value to look into.
        with suppress(ValueError):
            found.append(cell.cell_contents)
    names = function.__code__.co_names if with_globals else ()
    return found + [function.__globals__[name] for name in names if name in function.__globals__]


def _plain_loader(loader: Any) -> Any:
    return getattr(loader, "base_dataloader", loader)


def _collate_fn_of(loader: Any) -> Any:
    return getattr(_plain_loader(loader), "collate_fn", None)


def _forgotten(collator: CollatorCallback) -> str:
    if collator.config.site != "input":
        return collator._only_inputs()
    return (
        "data_collator: a MixupCollator alone mixes evaluation batches too, and leaves the loss of the mixed labels to "
        "the model: give the Trainer callbacks=[collator] and compute_loss_func=collator.loss as well."
    )


add_default_callback(ForgottenCallback)
