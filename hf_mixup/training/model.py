"""`MixupModel`: the way in for somebody else's training loop."""

from __future__ import annotations

import functools
import inspect
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hf_mixup.config.mixup_config import MixupConfig
from hf_mixup.forward.anatomy.inputs import bind, check_model, logits_of, with_loss
from hf_mixup.mixup import Mixup


class MixupModel(nn.Module):
    """A model that mixes the batches it is trained on: in `train()` its outputs carry the mixed loss.

    ```python
    model = MixupModel(model, MixupConfig(alpha=0.4))
    loss = model(**batch).loss
    ```

    What is returned is the model itself under a class derived from its own: it has the same parameters (shared, not
    copied), names, config, methods and `forward` signature, so a plain `Trainer` finds its columns and labels, and what
    is saved is the plain model. In `eval()` it is the plain model, and warns once if it is given labels while gradients
    are enabled: it looks like training in the wrong mode. Call the model itself: `forward` does not mix.

    Args:
        model (`nn.Module`): a classifier of transformers, of texts, images or sounds, or a PEFT model around one.
        config (`MixupConfig`, mapping, recipe name or path, defaults to `"default"`): what is mixed.
        seed (`int`, defaults to 0): seed of the plans.
        rank (`int`, *optional*): index of this process, by default that of torch.distributed or its launcher, or 0.

    Raises:
        ValueError: for what is not a model, or a config that does not fit the model; in training, for a batch without
            labels, or a call of `forward` with labels.

    `model.mixup` is its `Mixup`. During training, set `model.mixup_epoch` if the config has an
    `off_epoch` or an alpha for each epoch, and `model.mixup_progress`, 0 to 1, if it has a schedule. To resume with
    the same plans, save `model.mixup.state_dict()` with the checkpoint: a plain Trainer does not know of it
    (MixupTrainer does it by itself).
    """

    mixup: Mixup
    mixup_epoch: float | None
    mixup_progress: float | None
    _has_warned: bool = False

    def __new__(
        cls,
        model: nn.Module,
        config: MixupConfig | Mapping[str, Any] | str = "default",
        seed: int = 0,
        rank: int | None = None,
    ) -> MixupModel:
        if isinstance(model, MixupModel):
            raise ValueError("This model is a MixupModel already.")
        check_model(model)
        mixing: MixupModel = object.__new__(_derive(type(model)))
        mixing.__dict__.update(model.__dict__)
        mixing.mixup = Mixup(mixing, config, seed, _process_index() if rank is None else rank)
        mixing.mixup_epoch = mixing.mixup_progress = None
        return mixing

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Everything is there already: the attributes are the model's own."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled and copied as its own class and attributes; the derived class is made anew."""
        return _rebuild, (type(self).__mro__[2],), self.__dict__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        mixup = self.__dict__.get("mixup")
        if mixup is None or not self.training:
            if mixup is not None and not self._has_warned and torch.is_grad_enabled():
                self._warn_of_labels(args, kwargs)
            return super().__call__(*args, **kwargs)
        inputs = bind(list(inspect.signature(self.forward).parameters), args, kwargs)
        labels = inputs.pop("labels", None)
        if labels is None:
            raise ValueError(
                "labels: none in this training batch; MixupModel mixes them itself. (Trainer's label_smoothing_factor "
                "and compute_loss_func take them away: use MixupTrainer with those.)"
            )
        items = inputs.pop("num_items_in_batch", None)
        groups = inputs.pop(mixup.config.group_column, None)
        plan = mixup.draw(inputs, self.mixup_epoch, progress=self.mixup_progress, labels=labels, groups=groups)
        with mixup.apply(plan, inputs):
            outputs = super().__call__(**inputs)
        clean_logits = logits_of(super().__call__(**inputs)) if mixup.needs_clean_pass(plan) else None
        losses = mixup.loss(logits_of(outputs), labels, plan, clean_logits=clean_logits, reduction="none")
        return with_loss(outputs, _reduce(losses, labels, items))

    def _warn_of_labels(self, args: tuple, kwargs: dict[str, Any]) -> None:
        if _has_labels(self, args, kwargs):
            self._has_warned = True
            warnings.warn(
                "This MixupModel is in eval mode, where it mixes nothing, and was given labels with gradients enabled. "
                "To train, call model.train() first (from_pretrained returns a model in eval mode, and Lightning keeps "
                "the mode); to evaluate, use torch.no_grad().",
                stacklevel=3,
            )


_DERIVED: dict[Any, Any] = {}


def _derive(base: type[nn.Module]) -> Any:
    if base not in _DERIVED:
        # The name of the model's own class is what save_pretrained writes into the config.
        own = {"__module__": base.__module__, "forward": _guarded_forward(base)}
        _DERIVED[base] = type(base.__name__, (MixupModel, base), own)
    return _DERIVED[base]


def _guarded_forward(base: type[nn.Module]) -> Callable[..., Any]:
    """The model's own `forward`, which in training never gets labels from `__call__`."""

    @functools.wraps(base.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self.training and (args or "labels" in kwargs) and _has_labels(self, args, kwargs):
            raise ValueError(
                "forward: this MixupModel is in training, and a direct call of forward would not be mixed; call the "
                "model itself: model(**batch)."
            )
        return base.forward(self, *args, **kwargs)

    return forward


def _has_labels(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> bool:
    return bind(list(inspect.signature(model.forward).parameters), args, kwargs).get("labels") is not None


def _rebuild(base: type[nn.Module]) -> MixupModel:
    return object.__new__(_derive(base))


def _reduce(losses: Tensor, labels: Tensor, items: Tensor | int | None) -> Tensor:
    """The mean of a batch, or its share of an accumulated batch of which Trainer counted the label entries."""
    return losses.mean() if items is None else losses.sum() * (labels.numel() // labels.shape[0]) / items


def _process_index() -> int:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    # Launchers say it before the process group is there.
    return int(os.environ.get("RANK", 0))
