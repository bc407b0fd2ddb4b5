"""Every private method and attribute of transformers' Trainer that this package relies on.

Each overridden method does what Trainer does and then calls one with a plain name. What a new transformers moves is
mended here and nowhere else; `tests/test_host.py` says what moved.
"""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import is_torch_version
from datasets import Dataset
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import DEFAULT_CALLBACKS, DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_pt_utils import LabelSmoother

# transformers < 5.23: the training argument that recomputes activations has another name.
RECOMPUTES = (
    "activation_checkpointing" if hasattr(TrainingArguments, "activation_checkpointing") else "gradient_checkpointing"
)
# transformers < 5.19: Trainer divides a loss by the number of accumulated batches by rules of its own.
ASKS_FOR_SCALE = hasattr(Trainer, "loss_is_scaled_for_ga")
# transformers < 5.15: a loss with smoothed labels is a mean over the batch, whatever the step counts.
SMOOTHS_BY_STEP = "num_items_in_batch" in inspect.signature(LabelSmoother.__call__).parameters
# torch < 2.13: before each forward pass DDP writes all buffers, also what the pass before kept for its gradients.
DDP_WRITES_BUFFERS = is_torch_version("<", "2.13")


class TrainerSeams(Trainer):
    """Trainer with plainly named methods at the places where it has private ones; by themselves they change nothing."""

    @property
    def _module(self) -> nn.Module:
        assert self.model is not None
        return self.model

    def _with_usual_labels(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """A batch whose labels are of the types that losses take, as a copy."""
        return copy.copy(inputs)

    def _extra_columns(self) -> Sequence[str]:
        """Columns that are kept although the model does not take them."""
        return ()

    @contextmanager
    def _saving_model(self, folder: Path) -> Iterator[None]:
        """Around the saving of the model to `folder`."""
        yield

    def _on_state_saved(self, folder: str) -> None:
        """After the random state of this process was saved to a checkpoint."""

    def _on_state_loaded(self, folder: str) -> None:
        """After the random state of this process was loaded from a checkpoint."""

    def _before_best_model(self) -> None:
        """At the end of a training, before the best model is loaded."""

    def _set_up_trial(self, trial: Any, set_up: Callable[[Any], None]) -> None:
        """Set up a trial of a search; `set_up` is Trainer's own way."""
        set_up(trial)

    def _set_trial(self, hp_space: Callable[[Any], dict[str, Any]], trial: Any) -> None:
        """Make a trial the current one. The columns that the model takes are looked up anew."""
        self.hp_space, self._trial = hp_space, trial
        self._signature_columns = None

    def _on_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch, on the device of the training."""
        return self._prepare_inputs(batch)

    def _rows_and_collator(self, dataset: Any, description: str) -> tuple[Any, Callable[[list[Any]], Any]]:
        """A data set and a collator, one of which leaves out the columns that the model does not take."""
        if isinstance(dataset, Dataset):
            return self._remove_unused_columns(dataset, description=description), self.data_collator
        return dataset, self._get_collator_with_removed_columns(self.data_collator, description=description)

    def _smooths_labels(self) -> bool:
        """Whether Trainer computes the loss with smoothed labels itself."""
        return self.label_smoother is not None

    def _smooths_by_step(self) -> bool:
        """Whether Trainer computes the loss with smoothed labels itself, and divides it by the examples of the step."""
        return self._smooths_labels() and SMOOTHS_BY_STEP

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """As Trainer's, which divides the loss unless `loss_is_scaled_for_ga`, if a trainer says so at all."""
        if ASKS_FOR_SCALE or getattr(self, "loss_is_scaled_for_ga", None) is None:
            return super().training_step(*args, **kwargs)
        own = {name: value for name, value in vars(self).items() if name == "compute_loss"}
        compute_loss: Callable[..., Any] = self.compute_loss
        vars(self)["compute_loss"] = partial(self._scaled_against_trainer, compute_loss)
        try:
            return super().training_step(*args, **kwargs)
        finally:
            del vars(self)["compute_loss"]
            vars(self).update(own)

    def _scaled_against_trainer(
        self, compute_loss: Callable[..., Tensor], *args: Any, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """transformers < 5.19: the loss, with what Trainer will do to it undone if it is wrong."""
        loss = compute_loss(*args, num_items_in_batch=num_items_in_batch)
        takes_items = self.model_accepts_loss_kwargs and num_items_in_batch is not None
        is_divided = not takes_items and self.compute_loss_func is None
        if is_divided != self.loss_is_scaled_for_ga:
            return loss
        steps = self.current_gradient_accumulation_steps
        return loss * steps if is_divided else loss / steps

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        assert self._signature_columns is not None
        self._signature_columns = [*dict.fromkeys([*self._signature_columns, *self._extra_columns()])]

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        with self._saving_model(Path(output_dir or self.args.output_dir or ".")):
            super()._save(output_dir, state_dict)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self._on_state_saved(output_dir)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is not None:
            self._on_state_loaded(checkpoint)

    def _load_best_model(self) -> None:
        self._before_best_model()
        super()._load_best_model()

    def _hp_search_setup(self, trial: Any) -> None:
        self._set_up_trial(trial, super()._hp_search_setup)


def add_default_callback(callback: type[TrainerCallback]) -> None:
    """Give every Trainer that is made from now on one more callback, once."""
    if callback not in DEFAULT_CALLBACKS:
        DEFAULT_CALLBACKS.append(callback)  # type: ignore[arg-type]


def call_first(trainer: Trainer, callback: TrainerCallback) -> None:
    """Give a trainer a callback that is called before all that it has."""
    trainer.callback_handler.callbacks.insert(0, callback)


def without_rows(trainer: Trainer) -> None:
    """Take the progress bars and the printed rows of logs from a trainer."""
    for callback in (PrinterCallback, DEFAULT_PROGRESS_CALLBACK):
        trainer.remove_callback(callback)


def run_again(model: nn.Module, call: Callable[..., Any], inputs: dict[str, Any]) -> Any:
    """The outputs of one more forward pass of a step, `call`, before the gradients of the first."""
    if DDP_WRITES_BUFFERS and isinstance(model, DistributedDataParallel):
        model.require_forward_param_sync = False
    return call(**inputs)


def keeping_arguments(init: Callable[..., None], names: Sequence[str]) -> Callable[..., None]:
    """An `__init__` that keeps arguments of these names, if it does not know them, for one that comes after it."""
    unknown = [name for name in names if name not in inspect.signature(init).parameters]

    @wraps(init)
    def keeping(self: Any, *args: Any, **kwargs: Any) -> None:
        kept = {name: kwargs.pop(name) for name in unknown if name in kwargs}
        vars(self).setdefault("_kept_arguments", {}).update(kept)
        init(self, *args, **kwargs)
        if "_kept_arguments" in vars(self):
            raise ValueError(
                f"{type(self).__name__}: its __init__ never came to that of MixupMixin, so nothing would be mixed. "
                "Call super().__init__(...) in it, and not Trainer.__init__, or put MixupMixin before its class."
            )

    return keeping


def before_each_update(check: Callable[[], None]) -> TrainerCallback:
    """A callback that calls `check` before the optimizer updates the parameters."""

    class Checking(TrainerCallback):
        def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            check()

    return Checking()


@contextmanager
def changed(args: Any, **values: Any) -> Iterator[dict[str, Any]]:
    """Attributes with other values inside of the block, which is given the values before."""
    before = {name: getattr(args, name) for name in values}
    vars(args).update(values)
    try:
        yield before
    finally:
        vars(args).update(before)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A model in evaluation mode inside of the block; what was training before is after it."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def same_random_state(device: torch.device) -> Iterator[None]:
    """What happens inside of the block takes no random number (torch, numpy, Python) from what comes after it."""
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
