"""`MixupModel`: the way in for somebody else's training loop."""

from __future__ import annotations

import functools
import inspect
import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from hf_mixup.config.recipes import MixupLike
from hf_mixup.forward.anatomy.inputs import bind, check_model, logits_of, with_loss
from hf_mixup.mixup import Mixup
from hf_mixup.training.mixed_step import ModelLoss, share_of_items
from hf_mixup.training.trainer_seams import add_default_callback

NO_LABELS = (
    "labels: none in this training batch; MixupModel mixes them itself. If the loss is computed outside of the model "
    "(label_smoothing_factor, compute_loss_func, sentence-transformers), use MixupTrainer, "
    "`class Mine(MixupMixin, YourTrainer)`, or Mixup.draw, apply and targets in a loss of your own."
)
PASSED_BY = (
    "The first step of this training never called its MixupModel, so nothing was mixed. PEFT's prefix tuning calls the "
    "backbone alone: use an adapter such as LoRA."
)


class MixupModel(nn.Module):
    """A model that mixes the batches it is trained on: in `train()` its outputs carry the mixed loss.

    ```python
    model = MixupModel(model, MixupConfig(alpha=0.4))
    loss = model(**batch).loss
    ```

    What is returned is an object of its own, of a class derived from the model's. It shares parameters, submodules and
    config with the model, and has its methods and its `forward` signature, so a plain `Trainer` finds its columns and
    labels, and what is saved is the plain model. The model that was given still mixes nothing.

    `model(...)` and `model.forward(...)` do the same: in `train()` one mixed pass (and a clean one, if the recipe needs
    it), also inside of wrappers that call `forward`. Hooks of your own run once with each pass, whose inputs have no
    labels and whose outputs have no loss. In `eval()` it is the plain model, and warns once if it is given labels while
    gradients are enabled: it looks like training in the wrong mode.

    The mixed loss is that of the problem type. A model with another loss of its own is refused at the first batch,
    which is run once more for that, in evaluation mode.

    Args:
        model (`nn.Module`): a classifier of transformers, of texts, images or sounds, or a PEFT model around one.
        config (`MixupConfig`, mapping, recipe name or path, defaults to `"fixed"`): what is mixed.
        seed (`int`, defaults to 0): seed of the plans.
        rank (`int`, *optional*): index of this process, by default that of torch.distributed or its launcher, or 0.

    Raises:
        ValueError: for what is not a model, or a config that does not fit the model; in training, for a batch without
            labels.

    `model.mixup` is its `Mixup`. During training, set `model.mixup_epoch` if the config has an
    `off_epoch` or an alpha for each epoch, and `model.mixup_progress`, 0 to 1, if it has a schedule. To resume with
    the same plans, save `model.mixup.state_dict()` with the checkpoint: a plain Trainer does not know of it
    (MixupTrainer does it by itself).
    """

    mixup: Mixup
    mixup_epoch: float | None
    mixup_progress: float | None
    _has_warned: bool = False
    _has_trained: bool = False
    # Whether passes are the plain model's: while the sites are looked for, and inside of a pass that mixes.
    _is_plain: bool
    _model_loss: ModelLoss
    _own_forward: Callable[..., Any] | None

    def __new__(
        cls,
        model: nn.Module,
        config: MixupLike = "fixed",
        seed: int = 0,
        rank: int | None = None,
    ) -> MixupModel:
        check_model(model)
        if mixup_models(model):
            raise ValueError("This model is or holds a MixupModel already.")
        mixing: MixupModel = object.__new__(_derive(type(model)))
        mixing.__dict__.update(model.__dict__, _is_plain=True)
        # accelerate puts a forward of its own on an object; the class's, which mixes, calls it.
        mixing._own_forward = mixing.__dict__.pop("forward", None)
        mixing.mixup = Mixup(mixing, config, seed, _process_index() if rank is None else rank)
        mixing.mixup_epoch = mixing.mixup_progress = None
        mixing._model_loss = ModelLoss()
        mixing._is_plain = False
        add_default_callback(PassedByCallback)
        return mixing

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Everything is there already: the attributes are the model's own."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled and copied as its own class and attributes; the derived class is made anew."""
        return _rebuild, (type(self).__mro__[2],), self.__dict__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._run(super().__call__, args, kwargs)

    def _run(self, plain: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        """What `__call__` and `forward` do; `plain` is what the model's own would have done."""
        if self._is_plain:
            return plain(*args, **kwargs)
        self._is_plain = True
        try:
            if self.training:
                return self._mixed(bind(_names(self), args, kwargs))
            if torch.is_grad_enabled() and not self._has_warned:
                self._warn_of_labels(bind(_names(self), args, kwargs))
            return plain(*args, **kwargs)
        finally:
            self._is_plain = False

    def _mixed(self, inputs: dict[str, Any]) -> Any:
        mixup, labels = self.mixup, inputs.pop("labels", None)
        if labels is None:
            raise ValueError(NO_LABELS)
        self._has_trained = True
        self._model_loss.learn(self, mixup.task, inputs, labels)
        items = inputs.pop("num_items_in_batch", None)
        groups = inputs.pop(mixup.config.group_column or "", None)
        plan = mixup.draw(inputs, self.mixup_epoch, progress=self.mixup_progress, labels=labels, groups=groups)
        # The hooks that mix are run by `nn.Module.__call__`, also if only `forward` was called.
        with mixup.apply(plan, inputs):
            outputs = super().__call__(**inputs)
        clean_logits = logits_of(super().__call__(**inputs)) if mixup.needs_clean_pass(plan) else None
        losses = mixup.loss(logits_of(outputs), labels, plan, clean_logits=clean_logits, reduction="none")
        return with_loss(outputs, share_of_items(losses, labels, items))

    def _warn_of_labels(self, inputs: dict[str, Any]) -> None:
        if inputs.get("labels") is not None:
            self._has_warned = True
            warnings.warn(
                "This MixupModel is in eval mode, where it mixes nothing, and was given labels with gradients enabled. "
                "To train, call model.train() first (from_pretrained returns a model in eval mode, and Lightning keeps "
                "the mode); to evaluate, use torch.no_grad().",
                stacklevel=4,
            )


class PassedByCallback(TrainerCallback):
    """Refuses a training that calls a part of a `MixupModel` instead of it. Every Trainer has it from the first on."""

    _has_looked = False

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Raises `ValueError` if the first step passed by a `MixupModel` in the model that is trained."""
        if not self._has_looked:
            self._has_looked = True
            if not all(model._has_trained for model in mixup_models(kwargs["model"])):
                raise ValueError(PASSED_BY)


def mixup_models(model: nn.Module) -> list[MixupModel]:
    """The `MixupModel`s in a model, itself among them."""
    return [module for module in model.modules() if isinstance(module, MixupModel)]


_DERIVED: dict[Any, Any] = {}


def _derive(base: type[nn.Module]) -> Any:
    if base not in _DERIVED:
        # The name of the model's own class is what save_pretrained writes into the config.
        own = {"__module__": base.__module__, "forward": _mixing_forward(base)}
        _DERIVED[base] = type(base.__name__, (MixupModel, base), own)
    return _DERIVED[base]


def _mixing_forward(base: type[nn.Module]) -> Callable[..., Any]:
    @functools.wraps(base.forward)
    def forward(self: MixupModel, *args: Any, **kwargs: Any) -> Any:
        return self._run(self._own_forward or functools.partial(base.forward, self), args, kwargs)

    return forward


def _names(model: nn.Module) -> list[str]:
    return list(inspect.signature(model.forward).parameters)


def _rebuild(base: type[nn.Module]) -> MixupModel:
    return object.__new__(_derive(base))


def _process_index() -> int:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    # Launchers say it before the process group is there.
    return int(os.environ.get("RANK", 0))
