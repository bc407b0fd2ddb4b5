"""The trainer that mixup is compared with: transformers' Trainer, in which every labelled example counts once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hf_mixup.config.mixup_config import MixupConfig
from hf_mixup.forward.anatomy.host import labels_tokens
from hf_mixup.forward.anatomy.inputs import logits_of, model_config, with_loss
from hf_mixup.loss.task import IGNORED, check_finite
from hf_mixup.loss.token_task import task_of
from hf_mixup.training import label_columns
from hf_mixup.training.averaging import WeightAverage
from hf_mixup.training.loss_watch import LossWatch
from hf_mixup.training.step_counts import StepCounts, is_none
from hf_mixup.training.teacher import Teacher
from hf_mixup.training.trainer_checks import check_metric, check_trainer, refuse_teacher_of_tokens
from hf_mixup.training.trainer_seams import changed


class BaselineTrainer(StepCounts):
    """Trainer whose losses are means over labelled examples and whose evaluations hold every row.

    Args:
        *args, **kwargs: exactly Trainer's.
        class_weights (`Sequence[float]` or mapping, *optional*): factor of each class in the cross-entropy, also in
            evaluation; as `MixupConfig.class_weights`.
        nonfinite_loss (`str`, defaults to `"warn"`): see `LossWatch`.
        averaging (`str`, *optional*), ema_decay (`float`, *optional*): see `WeightAverage`.
        teacher (`nn.Module`, *optional*), teacher_weight, teacher_temperature (`float`, default to 1.0): see `Teacher`.

    Raises:
        ValueError: for what cannot be trained; in `train()`, for labels that cannot be trained on or evaluated.
    """

    # False: a loss is a mean per batch, which Trainer divides by the number of accumulated batches. compute_loss says
    # True when it returns the batch's share of the mean over all examples of the step already.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        *args: Any,
        class_weights: Any = None,
        nonfinite_loss: str = "warn",
        averaging: str | None = None,
        ema_decay: float | None = None,
        teacher: nn.Module | None = None,
        teacher_weight: float = 1.0,
        teacher_temperature: float = 1.0,
        **kwargs: Any,
    ) -> None:
        self._loss_watch, self._average = LossWatch(nonfinite_loss), WeightAverage(averaging, ema_decay)
        super().__init__(*args, **kwargs)
        self._average.attach(self)
        self._args_before: dict[str, Any] = {}
        config, self._has_weights = MixupConfig(class_weights=class_weights), class_weights is not None
        self._class_weights = config.class_weights
        check_trainer(self, self._has_weights)
        self._task = task_of(model_config(self._module), config, labels_tokens(self._module))
        if self._labels_tokens:
            refuse_teacher_of_tokens(teacher)
        if teacher is not None:
            self._teacher = Teacher(teacher, teacher_weight, teacher_temperature).attach(self)
        elif (teacher_weight, teacher_temperature) != (1.0, 1.0):
            raise ValueError(f"{teacher_weight=}, {teacher_temperature=}: used with a teacher only.")

    # ---- Evaluation ----

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As Trainer's, also for labels of booleans and small integers."""
        return super().prediction_step(model, self._with_usual_labels(inputs), *args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As Trainer's, with the averaged weights if there are any; a loss that is not finite counts."""
        with changed(self.args, logging_nan_inf_filter=False), self._average.applied():
            return super().evaluation_loop(*args, **kwargs)

    def averaged_weights(self) -> AbstractContextManager[None]:
        """A block in which the model has the averaged weights, if there are any."""
        return self._average.applied()

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """As Trainer's, with every row, and of the data set that is given, not of one that workers still hold."""
        is_given = eval_dataset is not None and not isinstance(eval_dataset, str)
        persistent = self.args.dataloader_persistent_workers and not is_given
        with changed(self.args, dataloader_drop_last=False, dataloader_persistent_workers=persistent):
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """As Trainer's, which holds every row."""
        with changed(self.args, dataloader_drop_last=False):
            return super().get_test_dataloader(*args, **kwargs)

    # ---- Training ----

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As Trainer's. Raises `ValueError` for labels that the model cannot be trained or evaluated on."""
        check_metric(self)
        if self._teacher is not None:
            self._teacher.check(self)
        self._check_labels()
        self._loss_watch.restart()
        self._average.restart()
        try:
            # The filter logs 0, or the losses before, in the place of one that is not finite.
            with changed(self.args, logging_nan_inf_filter=False) as self._args_before:
                output = super().train(*args, **kwargs)
            self._loss_watch.see(output.training_loss, output.global_step)
            return output
        finally:
            self._step_examples, self._args_before = None, {}

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """As Trainer's."""
        loss = super().training_step(*args, **kwargs)
        if loss.device.type == "cpu":
            self._loss_watch.see(loss.item(), self.state.global_step + 1)
        return loss

    @contextmanager
    def _saving_model(self, folder: Path) -> Iterator[None]:
        """The training arguments are saved as the user gave them, and the averaged weights if there are any."""
        with changed(self.args, **self._args_before), self._average.applied():
            yield

    def _on_state_saved(self, folder: str) -> None:
        """The average resumes with the random state."""
        if self.args.should_save:
            self._average.save(folder)

    def _on_state_loaded(self, folder: str) -> None:
        """The average resumes with the random state."""
        self._average.load(folder)

    def _before_best_model(self) -> None:
        """The best model takes the place of the average, in which its checkpoint was saved."""
        self._average.on_train_end()

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As Trainer's."""
        if "loss" in logs:
            self._loss_watch.see(logs["loss"], self.state.global_step)
        super().log(logs, *args, **kwargs)

    def _check_labels(self) -> dict[str, Tensor]:
        """The labels of the data sets, by name. Raises `ValueError` if the model cannot be trained on them."""
        if not self._makes_targets and self.compute_loss_func is not None:
            return {}
        evaluated = {} if self.args.eval_strategy == "no" else label_columns.by_name(self.eval_dataset, "eval_dataset")
        datasets, config = label_columns.by_name(self.train_dataset, "train_dataset") | evaluated, self._task.about
        check = check_finite if not self._makes_targets else self._task.check_column
        columns = dict(label_columns.check_label_columns(datasets, check, self.data_collator, self._labels_tokens))
        if "train_dataset" in columns and self.is_world_process_zero():
            label_columns.warn_of_probabilities(columns["train_dataset"], config)
        found = any(map(self._has_ignored_rows, columns.values()))
        trained = columns.get("train_dataset") if found or self._labels_tokens else None
        if trained is not None and bool((trained == IGNORED).all()) and self._teacher is None:
            raise ValueError("train_dataset: labels: -100 in every row, so there is nothing to learn.")
        # A collator of the user's own may take labels away.
        is_known = "train_dataset" in columns and label_columns.is_of_transformers(self.data_collator)
        self._has_ignored = found if is_known else None
        return columns

    @property
    def _makes_targets(self) -> bool:
        """Whether labels become targets here, and not in the model or in a loss of the user's."""
        return self._has_weights or self._teacher is not None

    @property
    def _casts_labels(self) -> bool:
        """Whether labels of booleans and small integers are made what losses take, also for a loss of the user's."""
        return self._has_weights

    # ---- Loss ----

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Trainer's loss, as a mean over the examples that have a label."""
        inputs, items = self._with_usual_labels(inputs), num_items_in_batch
        labels = inputs["labels"] if isinstance(inputs.get("labels"), Tensor) else None
        is_users, is_taught = self.compute_loss_func is not None, self._teacher is not None and model.training
        if is_taught and labels is None:
            raise ValueError(
                f"labels: none in this training batch, which has only {', '.join(inputs)}; name them so, or add -100 "
                "for rows that only the teacher labels."
            )
        if labels is not None and model.training and not is_users and is_none(self._count(labels)):
            # transformers' loss of no label is nan.
            loss, outputs = self._no_loss(model, inputs)
            is_normalised = False
        elif labels is None or is_users or not (is_taught or self._has_weights or self._are_probabilities(labels)):
            # A mean over the batch is not to be scaled by the number of processes, which Trainer does with the items.
            is_normalised = is_users or (self._smooths_by_step() and items is not None)
            loss, outputs = super().compute_loss(model, inputs, True, items if is_normalised else None)
        else:
            loss, outputs = self._own_loss(model, inputs)
            is_normalised = False
        self.loss_is_scaled_for_ga = is_normalised
        if model.training and labels is not None and not is_normalised:
            loss = self._share_of_step(loss, self._count(labels))
        return (loss, outputs) if return_outputs else loss

    def _own_loss(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
        """The loss of class probabilities, which transformers' heads would flatten, and of weighted classes."""
        given = {name: value for name, value in inputs.items() if name != "labels"}
        labels, learnt = self._taught(model, given, inputs["labels"])
        outputs = model(**given)
        logits = logits_of(outputs)
        is_lacking = self._lacks_labels(labels) if model.training else self._has_ignored_rows(labels)
        kept = labels.reshape(-1) != IGNORED if is_lacking else slice(None)
        targets = self._task.targets(learnt[kept], None, logits.device)
        self._task.epoch = self.state.epoch or 0.0
        problem_type, smoothing = self._task.problem_type(labels), self.args.label_smoothing_factor
        loss = self._task.losses(logits[kept], targets, problem_type, smoothing).mean()
        return loss, with_loss(outputs, loss)

    def _no_loss(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
        """A loss of 0, of a batch without labels."""
        if self.args.world_size > 1 and not self._labels_tokens:
            raise ValueError("labels: -100 in every row of a batch; with several processes each needs a label.")
        outputs = model(**inputs)
        return logits_of(outputs).sum() * 0, outputs

    def _taught(self, model: nn.Module, inputs: dict[str, Any], labels: Tensor) -> tuple[Tensor, Tensor]:
        """The labels, and what is learnt in their place: they themselves, or what a teacher makes of them."""
        if self._teacher is None or not model.training:
            return labels, labels
        return self._teacher.teach(inputs, labels, self._task)

    def _users_loss(
        self, outputs: Any, mixed: Tensor | None, labels: Tensor, num_items_in_batch: Tensor | int | None
    ) -> Tensor:
        """The user's loss: of the mixed targets, and of the labels themselves if nothing was mixed."""
        assert self.compute_loss_func is not None
        targets = labels if mixed is None else mixed.reshape(labels.shape) if mixed.shape[-1] == 1 else mixed
        try:
            loss = self.compute_loss_func(outputs, targets, num_items_in_batch=num_items_in_batch)
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            if mixed is None or isinstance(error, torch.OutOfMemoryError):
                raise
            raise ValueError(
                f"compute_loss_func failed on the mixed targets, floats of shape {tuple(targets.shape)}: {error}. "
                "Under mixup it is given class probabilities (multi-hot vectors, scores) in the place of the labels."
            ) from error
        is_share = self.args.average_tokens_across_devices and num_items_in_batch is not None
        return loss * self.accelerator.num_processes if is_share else loss

    def _are_probabilities(self, labels: Tensor) -> bool:
        is_single_label = model_config(self._module).problem_type == "single_label_classification"
        return is_single_label and labels.dtype.is_floating_point

    def _with_usual_labels(self, inputs: dict[str, Any]) -> dict[str, Any]:
        labels = inputs.get("labels")
        is_users = self.compute_loss_func is not None and not self._casts_labels
        if not isinstance(labels, Tensor) or is_users:
            return dict(inputs)
        if self._labels_tokens:
            # What the config says of the problem is of a head for texts.
            return {**inputs, "labels": labels if labels.is_floating_point() else labels.long()}
        return {**inputs, "labels": label_columns.as_loss_takes_them(labels, model_config(self._module))}
