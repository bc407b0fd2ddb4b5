"""What `MixupTrainer(...)` takes, as editors, type checkers and `help` show it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, ParamSpec

import datasets
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset
from transformers import (
    BaseImageProcessor,
    EvalPrediction,
    FeatureExtractionMixin,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TrainerCallback,
    TrainingArguments,
)

from hf_mixup.config.recipes import MixupLike

Shown = ParamSpec("Shown")


def shown_as(parameters: Callable[Shown, None]) -> Callable[[Callable[..., None]], Callable[Shown, None]]:
    """A decorator: a function that passes on whatever it is given shows these parameters."""

    def decorate(function: Any) -> Any:
        function.__signature__ = inspect.signature(parameters)
        return function

    return decorate


def trainer_parameters(
    self: Any,
    model: PreTrainedModel | nn.Module | None = None,
    args: TrainingArguments | None = None,
    data_collator: Callable[[list[Any]], dict[str, Any]] | None = None,
    train_dataset: Dataset | IterableDataset | datasets.Dataset | None = None,
    eval_dataset: Dataset | dict[str, Dataset] | datasets.Dataset | None = None,
    processing_class: PreTrainedTokenizerBase
    | BaseImageProcessor
    | FeatureExtractionMixin
    | ProcessorMixin
    | None = None,
    model_init: Callable[..., PreTrainedModel] | None = None,
    compute_loss_func: Callable[..., Any] | None = None,
    compute_metrics: Callable[[EvalPrediction], dict[str, Any]] | None = None,
    callbacks: list[TrainerCallback] | None = None,
    optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
    optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
    preprocess_logits_for_metrics: Callable[[Tensor, Tensor], Tensor] | None = None,
    *,
    mixup: MixupLike | None = "default",
    class_weights: Sequence[float] | Mapping[int, Sequence[float] | None] | Tensor | None = None,
    soft_targets: bool = False,
    rows_per_example: int = 1,
    nonfinite_loss: Literal["warn", "stop", "ignore"] | str = "warn",
    averaging: Literal["ema"] | str | None = None,
    ema_decay: float | None = None,
    teacher: nn.Module | None = None,
    teacher_weight: float = 1.0,
    teacher_temperature: float = 1.0,
    unlabeled_dataset: Dataset | IterableDataset | datasets.Dataset | None = None,
    unlabeled_views: Dataset | IterableDataset | datasets.Dataset | None = None,
    **kwargs: Any,
) -> None:
    """Trainer's parameters, those of mixup, and what a newer Trainer takes."""
