"""Texts without labels as a part of the loss: their classes are guessed, and they share the mixed pass of a batch."""

from __future__ import annotations

import json
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

from hf_mixup.config.files import write_whole
from hf_mixup.config.unlabeled_config import GIVEN, UnlabeledConfig
from hf_mixup.forward.anatomy.inputs import logits_of, model_config, text_config
from hf_mixup.plan.mixup_plan import MixupPlan
from hf_mixup.training.baseline_trainer import BaselineTrainer
from hf_mixup.training.guesses import Guesses
from hf_mixup.training.label_columns import class_counts, without_ignored
from hf_mixup.training.lesson import Lesson
from hf_mixup.training.state import read_json
from hf_mixup.training.step_counts import is_none
from hf_mixup.training.trainer_seams import evaluating
from hf_mixup.training.unlabeled_checks import (
    NOT_SEVERAL,
    average_guesses,
    check_given,
    check_unlabeled,
    check_views,
    without_missing_mask,
)
from hf_mixup.training.unlabeled_logs import UnlabeledLogs
from hf_mixup.training.unlabeled_rows import (
    UnlabeledRows,
    given_guesses,
    join_rows,
    known_classes,
    warn_of_unused_guesses,
    with_masked_tokens,
    without_labels,
)

logger = logging.get_logger(__name__)

# The running means of the guesses reach over this share of the training.
HORIZON = 0.1
STATE_NAME = "unlabeled_state.json"


class UnlabeledTrainer(BaselineTrainer):
    """Trainer that learns from rows without labels as well, if it is given some.

    Args:
        *args, **kwargs: those of `BaselineTrainer`.
        unlabeled_dataset (`Dataset` or `IterableDataset`, *optional*): rows like those of `train_dataset`. Labels that
            they have are not learned; the guesses are compared with them in the logs. If the guesses are given, the
            labels are these: `(num_labels,)` probabilities per row.
        unlabeled_views (`Dataset` or `IterableDataset`, *optional*): the same rows, in the same order, in other words,
            such as paraphrases. The classes are guessed from `unlabeled_dataset`, and learned on these.
        unlabeled (`UnlabeledConfig`, *optional*): how they are used.

    Raises:
        ValueError: for a task, a loss or settings that do not go with them.
    """

    def __init__(
        self,
        *args: Any,
        unlabeled_dataset: Any = None,
        unlabeled_views: Any = None,
        unlabeled: UnlabeledConfig | None = None,
        averaging: str | None = None,
        ema_decay: float | None = None,
        **kwargs: Any,
    ) -> None:
        self.unlabeled_dataset, self.unlabeled = unlabeled_dataset, unlabeled or UnlabeledConfig()
        self.unlabeled_views = unlabeled_views
        check_views(unlabeled_dataset, unlabeled_views)
        has_rows, has_teacher = unlabeled_dataset is not None, kwargs.get("teacher") is not None
        if has_rows and not has_teacher and average_guesses(self.unlabeled, averaging):
            averaging, ema_decay = "ema", self.unlabeled.decay if ema_decay is None else ema_decay
        super().__init__(*args, averaging=averaging, ema_decay=ema_decay, **kwargs)
        self._rows: UnlabeledRows | None = None
        self._views: UnlabeledRows | None = None
        self._guesses: Guesses | None = None
        self._unlabeled_logs, self._has_checked_rows = UnlabeledLogs(), False
        if has_rows:
            check_unlabeled(self)
            self.unlabeled = without_missing_mask(self.unlabeled, self.processing_class)

    # ---- Start ----

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As that of the other Trainer. Raises `ValueError` for unlabelled rows that cannot be used."""
        self._rows = self._views = self._guesses = None
        self._unlabeled_logs, self._has_checked_rows = UnlabeledLogs(), False
        return super().train(*args, **kwargs)

    def _use_rows(self, config: UnlabeledConfig) -> None:
        """Use unlabelled rows by `config`, in a trial of a search. Raises `ValueError` for another way to guess."""
        ways = [(one.guesses, one.decay) for one in (config, self.unlabeled)]
        if self.unlabeled_dataset is not None and ways[0] != ways[1]:
            raise ValueError(
                f"unlabeled.guesses={config.guesses!r}, unlabeled.decay={config.decay}: a search keeps those of the "
                f"trainer, {self.unlabeled.guesses!r} and {self.unlabeled.decay}."
            )
        self.unlabeled = without_missing_mask(config, self.processing_class)
        self._rows = self._views = self._guesses = None

    def _check_labels(self) -> dict[str, Tensor]:
        columns = super()._check_labels()
        if self.unlabeled_dataset is None or not self.unlabeled.weight:
            return columns
        if self._guesses is None:
            check_unlabeled(self)
            num_labels, known = self._task.about.num_labels, columns.get("train_dataset")
            counts = None if known is None else class_counts(known, num_labels)
            self._guesses = Guesses(self.unlabeled, num_labels, counts)
            if self.unlabeled.guesses == GIVEN:
                check_given(self.unlabeled_dataset, num_labels, self.data_collator)
            self._rows = self._read(self.unlabeled_dataset)
            self._views = None if self.unlabeled_views is None else self._read(self.unlabeled_views)
        return columns

    def _read(self, rows: Any) -> UnlabeledRows:
        dataset, collate = self._rows_and_collator(rows, "unlabeled")
        size = max(1, round(self.unlabeled.ratio * self.args.per_device_train_batch_size))
        process = self.args.process_index, self.args.world_size
        return UnlabeledRows(dataset, collate, size, self.args.seed, *process, self.args.dataloader_num_workers)

    # ---- The step ----

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """As that of the other Trainer, counting the classes of the labels if the data set could not be read."""
        if self._guesses is not None:
            labels = self._with_usual_labels(inputs).get("labels")
            if self._task.problem_type(labels) != "single_label_classification":
                raise ValueError(f"unlabeled_dataset: {NOT_SEVERAL}")
            self._guesses.count(labels, partial(self._over_processes, "sum"))  # type: ignore[arg-type]
            if not self._has_checked_rows:
                self._check_first_batch(self._with_usual_labels(self._on_device(inputs)))
                self._has_checked_rows = True
        return super().training_step(model, inputs, *args, **kwargs)

    def _check_first_batch(self, inputs: dict[str, Any]) -> None:
        """Raise `ValueError` if unlabelled rows cannot be joined to a labelled batch; before they are used."""
        for rows in (self._rows, self._views):
            batch = None if rows is None else rows.look()
            if batch is not None:
                batch, labels = without_labels(batch)
                if rows is self._rows and self._given(labels) is None:
                    warn_of_unused_guesses(labels)
                self._joined({name: value for name, value in inputs.items() if name != "labels"}, batch)

    def _joined(self, labelled: dict[str, Any], batch: dict[str, Any]) -> dict[str, Any]:
        return join_rows(labelled, batch, {"input_ids": self._pad_token}, self._pads_on_left(labelled, batch))

    @property
    def _horizon(self) -> float:
        """Over how many batches running means reach; several are one step if they are accumulated."""
        return HORIZON * max(self.state.max_steps, 1) * self.args.gradient_accumulation_steps

    @property
    def unlabeled_weight(self) -> float:
        """The weight of unlabelled rows in the loss of the coming step."""
        if self._rows is None:
            return 0.0
        since = self.state.global_step / max(self.state.max_steps, 1) - self.unlabeled.begins
        risen = min(1.0, max(0.0, since / self.unlabeled.ramp)) if self.unlabeled.ramp else float(since >= 0)
        return self.unlabeled.weight * risen

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """As that of the other Trainer, plus the weighted loss of unlabelled rows."""
        weight = self.unlabeled_weight if model.training else 0.0
        if not weight:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs = self._with_usual_labels(inputs)
        count = self._count(inputs["labels"])
        if not is_none(count):
            lesson = self._lesson(model, inputs, weight)
            logits, outputs, plan = self._pass(model, lesson)
            loss = self._share_of_step(self._losses(logits, lesson, plan).sum() / lesson.labelled, count)
        else:
            loss, outputs = self._no_loss(model, inputs)
        return (loss, outputs) if return_outputs else loss

    def _lesson(self, model: nn.Module, inputs: dict[str, Any], weight: float) -> Lesson:
        """The labelled rows of a batch, and as many unlabelled ones as `ratio` says."""
        assert self._rows is not None and self._guesses is not None
        if self._lacks_labels(inputs["labels"]):
            inputs, _ = without_ignored(inputs, None)
        labels = inputs.pop("labels")
        labels, learnt = self._taught(model, inputs, labels)
        own, size = self._task.targets(learnt, None, self.args.device), len(labels)
        number = self._rows.taken
        batch, found = without_labels(self._rows.take())
        given, batch = self._given(found), self._on_device(batch)
        guessed = self._guess(batch) if given is None else given.to(self.args.device)
        targets, weights = self._guesses.learn(guessed, self._horizon, partial(self._over_processes, "mean"))
        classes = targets.argmax(-1)
        self._unlabeled_logs.add_guesses(classes, weights, known_classes(found), weight)
        if self._views is not None:
            batch = self._on_device(without_labels(self._views.take())[0])
        if self.unlabeled.mask:
            tokens, seed = self._mask_tokens, (self.args.seed, number + self.args.process_index)
            batch = with_masked_tokens(batch, self.unlabeled.mask, *tokens, seed)
        weights = torch.cat([torch.ones(size, device=weights.device), weights * (weight * size / len(weights))])
        labels = torch.cat([own, targets] if labels.is_floating_point() else [labels.reshape(-1), classes])
        return Lesson(self._joined(inputs, batch), labels, torch.cat([own, targets]), weights, size)

    def _given(self, labels: Tensor | None) -> Tensor | None:
        """The probabilities that unlabelled rows come with, if these are learned. Raises `ValueError`."""
        return given_guesses(labels, self._task.about.num_labels) if self.unlabeled.guesses == GIVEN else None

    def _guess(self, batch: dict[str, Any]) -> Tensor:
        """The probabilities of unlabelled rows: by the average, the model as it is, or the teacher that was given."""
        if self._teacher is not None:
            return self._teacher.logits(batch, self._task.about.num_labels).softmax(-1)
        guesser = self._average.applied() if self.unlabeled.guesses == "average" else nullcontext()
        with torch.no_grad(), guesser, evaluating(self._module):
            return logits_of(self._module(**batch)).float().softmax(-1)

    def _pass(self, model: nn.Module, lesson: Lesson) -> tuple[Tensor, Any, MixupPlan | None]:
        """The logits and outputs of a forward pass, and the plan by which it was mixed, if it was."""
        outputs = model(**lesson.inputs)
        return logits_of(outputs), outputs, None

    def _losses(self, logits: Tensor, lesson: Lesson, plan: MixupPlan | None) -> Tensor:
        """The weighted loss of each row: `(rows,)`."""
        targets, weights = lesson.mixed(plan)
        smoothing = self.args.label_smoothing_factor
        self._task.epoch = self.state.epoch or 0.0
        losses = self._task.losses(logits, targets, "single_label_classification", smoothing)
        if self.unlabeled.loss == "squared_error":
            errors = (logits.float().softmax(-1) - targets).square().mean(-1)
            losses = torch.cat([losses[: lesson.labelled], errors[lesson.labelled :]])
        self._unlabeled_logs.add_answers(logits[lesson.labelled :].detach().argmax(-1))
        return losses * weights

    def _over_processes(self, how: str, value: Tensor) -> Tensor:
        return value if self.args.world_size == 1 else self.accelerator.reduce(value.to(self.args.device), how)

    # ---- Tokens ----

    @property
    def _pad_token(self) -> int:
        known = [getattr(of, "pad_token_id", None) for of in (self.processing_class, text_config(self._module))]
        return next((token for token in known if token is not None), 0)

    @property
    def _mask_tokens(self) -> tuple[int, Tensor]:
        """The mask token, and the tokens that it does not take the place of."""
        tokenizer: Any = self.processing_class
        return tokenizer.mask_token_id, torch.tensor(tokenizer.all_special_ids)

    def _pads_on_left(self, *batches: dict[str, Any]) -> bool:
        side = getattr(self.processing_class, "padding_side", None)
        masks = [batch["attention_mask"] for batch in batches if side is None and "attention_mask" in batch]
        return side == "left" or any(bool((mask[:, 0] == 0).any()) for mask in masks)

    # ---- Logs, checkpoints ----

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add what became of the unlabelled rows since the last log to the training logs."""
        if "loss" in logs and self._guesses is not None:
            logs.update(self._unlabeled_logs.drain(self._guesses))
            if self.is_world_process_zero() and self._guesses.seen >= self._horizon:
                self._unlabeled_logs.warn_of_drift(self._guesses, model_config(self._module))
        super().log(logs, *args, **kwargs)

    def _on_state_saved(self, folder: str) -> None:
        super()._on_state_saved(folder)
        if self._rows is not None and self._guesses is not None and self.args.should_save:
            state = {"taken": self._rows.taken, "guesses": self._guesses.state_dict()}
            with write_whole(Path(folder, STATE_NAME)) as part:
                part.write_text(json.dumps(state), encoding="utf-8")

    def _on_state_loaded(self, folder: str) -> None:
        super()._on_state_loaded(folder)
        path = Path(folder, STATE_NAME)
        if path.is_file() != (self._rows is not None):
            here = "with" if path.is_file() else "without"
            logger.warning("%s was saved %s unlabelled rows, and is resumed otherwise.", folder, here)
        elif self._rows is not None and self._guesses is not None:
            state = read_json(path)
            for rows in (self._rows, self._views):
                if rows is not None:
                    rows.restart(state["taken"])
            self._guesses.load_state_dict(state["guesses"])
