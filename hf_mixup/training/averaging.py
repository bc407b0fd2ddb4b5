"""The moving average of the weights of a training, with which the model is evaluated and saved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import TrainerCallback
from transformers.utils import logging

from hf_mixup.config.checks import choice, number, optional
from hf_mixup.config.files import write_whole
from hf_mixup.forward.anatomy.host import is_whole
from hf_mixup.training.state import read_tensors
from hf_mixup.training.trainer_seams import call_first

logger = logging.get_logger(__name__)

NONE = "none"
KINDS, EMA_DECAY = ("ema", NONE), 0.999
# In a checkpoint, beside the model with the averaged weights: the weights that the training continues from.
STATE_NAME = "averaging_state.pt"


def check_averaging(averaging: str | None, ema_decay: float | None) -> float:
    """The decay of an average. Raises `ValueError` for another kind of average, and for a decay without one."""
    optional(choice(*KINDS))("averaging", averaging)
    if ema_decay is not None and averaging in (None, NONE):
        raise ValueError(f"ema_decay={ema_decay!r}: used with averaging='ema' only.")
    return number(high=1)("ema_decay", EMA_DECAY if ema_decay is None else ema_decay)


class WeightAverage(TrainerCallback):
    """The exponential moving average of the weights that are trained; the training itself is as without it.

    After update t, average = d * average + (1 - d) * weights with d = min(`ema_decay`, (1 + t) / (10 + t)), so that it
    reaches over the last tenth of a short training (TensorFlow's `ExponentialMovingAverage`). It is one copy of the
    trained weights, in float32 or better. Buffers are not averaged.

    Args:
        averaging (`str`, *optional*): `"ema"`; with `None` or `"none"` nothing is averaged and nothing done.
        ema_decay (`float`, defaults to 0.999): the largest decay, from 0 to 1.

    Raises:
        ValueError: for another kind of average, or a decay without one.
    """

    def __init__(self, averaging: str | None = None, ema_decay: float | None = None) -> None:
        self.decay = check_averaging(averaging, ema_decay)
        self.averaging = None if averaging == NONE else averaging
        self.restart()

    def restart(self) -> None:
        """Forget the average."""
        self.weights: dict[str, nn.Parameter] = {}
        self.averages: list[Tensor] = []
        self.updates, self._is_applied = 0, False

    def attach(self, trainer: Any) -> None:
        """Average the weights of a trainer, before its other callbacks look at them.

        Raises:
            ValueError: for weights of which each process holds a part, and for an optimizer with an average of its own.
        """
        if self.averaging is None:
            return
        trained = [weight for weight in trainer.model.parameters() if weight.requires_grad]
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled or not all(map(is_whole, trained)):
            raise ValueError(
                f"averaging={self.averaging!r}: not with FSDP, DeepSpeed or tensor parallelism, where each process "
                "holds a part of the weights; train with DDP, or leave it out (unlabeled: guesses='model')."
            )
        if trainer.args.optim.startswith("schedule_free"):
            raise ValueError(f"averaging={self.averaging!r}: optim={trainer.args.optim.value!r} averages by itself.")
        call_first(trainer, self)

    # ---- During the training ----

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any
    ) -> None:
        """Start from the weights of the model; those that the optimizer has may be unfrozen later."""
        if self.weights:
            return
        trained = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
        named = model.named_parameters()
        self.weights = {name: weight for name, weight in named if weight.requires_grad or id(weight) in trained}
        self.averages = [
            weight.detach().to(torch.promote_types(weight.dtype, torch.float32), copy=True)
            for weight in self.weights.values()
        ]

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take in the weights of one more update."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        pairs = zip(self.weights.values(), self.averages, strict=True)
        latest = [weight.detach().to(average.dtype) for weight, average in pairs]
        get_ema_multi_avg_fn(decay)(self.averages, latest, None)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Leave the average in the model, for good."""
        self._write(self.averages)
        self.restart()

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model with the averaged weights inside of the block, if there are any."""
        if self._is_applied or not self.weights:
            yield
            return
        before, self._is_applied = [weight.data for weight in self.weights.values()], True
        try:
            for weight, average in zip(self.weights.values(), self.averages, strict=True):
                # The average itself, if it can be: no copy is made then.
                weight.data = average.to(weight.dtype)
            yield
        finally:
            for weight, value in zip(self.weights.values(), before, strict=True):
                weight.data = value
            self._is_applied = False

    @torch.no_grad()
    def _write(self, values: Sequence[Tensor]) -> None:
        for weight, value in zip(self.weights.values(), values, strict=True):
            weight.copy_(value)

    # ---- Checkpoints ----

    def save(self, folder: str | Path) -> None:
        """Write what `load` reads: the weights themselves, and what of the average the model in `folder` rounds off."""
        if not self.weights:
            return
        weights = {name: weight.detach() for name, weight in self.weights.items()}
        pairs = zip(weights.items(), self.averages, strict=True)
        averages = {name: average for (name, weight), average in pairs if average.dtype != weight.dtype}
        with write_whole(Path(folder, STATE_NAME)) as part:
            torch.save({"updates": self.updates, "weights": weights, "averages": averages}, part)

    def load(self, folder: str | Path) -> None:
        """Continue where `save` left off, once the model of `folder` is loaded; with a warning, anew if there is none.

        Raises:
            ValueError: for a file that cannot be read or holds other weights, and for one of an average that is not
                asked for any more.
        """
        path = Path(folder, STATE_NAME)
        if not path.is_file():
            if self.weights:
                logger.warning("%s was saved without averaging, so the average starts anew at its weights.", folder)
            return
        if not self.weights:
            raise ValueError(f"averaging=None: {folder} was saved with averaging='ema', and is resumed with that only.")
        state = read_tensors(path)
        if state["weights"].keys() != self.weights.keys():
            raise ValueError(f"{path}: holds other weights than are trained now; train the same layers.")
        self.updates = state["updates"]
        for name, average in zip(self.weights, self.averages, strict=True):
            average.copy_(state["averages"].get(name, average))
        self._write([state["weights"][name] for name in self.weights])
