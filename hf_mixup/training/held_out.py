"""Predictions of rows that a training does not learn from, which `strength="auto"` follows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.utils import logging

from hf_mixup.forward.anatomy.inputs import logits_of
from hf_mixup.plan.strength import AutoStrength
from hf_mixup.training.check_rows import CheckRows, choose_rows
from hf_mixup.training.records import MixupRecords
from hf_mixup.training.trainer_seams import changed, same_random_state

logger = logging.get_logger(__name__)

NO_CHECKS = (
    "mixup: strength='auto' {seen} no held-out predictions, so nothing {mixed}: {why}. Give an eval_dataset and "
    "evaluate while you train (eval_strategy), or say how many of its rows each check may take, "
    "mixup={{'recipe': 'default', 'check_rows': 200}} (on the command line validation_file, --eval_strategy, "
    "--mixup.check_rows)."
)
UNSEEN = "no evaluation of rows with labels came before the last step"
ONE_PASS = (
    "mixup: strength='auto' mixes nothing in the first pass over the training rows, and this training has no second. "
    "Train two epochs or more, or name a recipe of a fixed strength, such as mixup='tmix'."
)


class HeldOutChecks(MixupRecords):
    """Trainer that checks held-out predictions, if the strength of mixup follows them.

    The evaluations that the user asked for are checks. A part of the training without one ends with a check of its own,
    which leaves every other random number as it is. All processes see the predictions of all.
    """

    # Of what was predicted since the last step, one tensor per batch.
    _surplus: list[Tensor]
    _check_rows: CheckRows | None = None
    _is_watching = _is_under_way = _follows = False
    # The step after which there was a check of its own.
    _checked_at = -1
    soft_targets: bool

    @property
    def _auto_strength(self) -> AutoStrength | None:
        return None if self.mixup is None else self.mixup.planner.auto_strength

    @property
    def check_rows(self) -> CheckRows | None:
        """What the training under way, or the last one, checks, if its strength follows held-out predictions."""
        return self._check_rows

    @property
    def trained_rows(self) -> Any:
        """The training rows, less those that it holds out for its checks."""
        return self.train_dataset if self._check_rows is None else self._check_rows.train_dataset

    @property
    def _rests(self) -> bool:
        """Whether the strength is 0 for now, so that a step is that of the other Trainer."""
        return self._is_off and self.mixup.config.group_column is None and not self.soft_targets  # type: ignore[union-attr]

    @property
    def _is_off(self) -> bool:
        """Whether the strength follows held-out predictions, and is 0 for now."""
        return self._auto_strength is not None and self._auto_strength.value == 0

    # ---- What is seen ----

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, *args: Any, **kwargs: Any
    ) -> Any:
        """As that of the other Trainer, which the column of groups is not for."""
        if self.mixup is not None:
            inputs = {name: value for name, value in inputs.items() if name != self.mixup.config.group_column}
        if not self._is_watching:
            return super().prediction_step(model, inputs, prediction_loss_only, *args, **kwargs)
        loss, logits, labels = super().prediction_step(model, inputs, False, *args, **kwargs)
        self._note(next(iter(logits), None) if isinstance(logits, (tuple, list)) else logits, labels)
        return (loss, None, None) if prediction_loss_only else (loss, logits, labels)

    def _note(self, logits: Any, labels: Any) -> None:
        surplus = self._surplus_of(logits, labels)
        if surplus is not None:
            # Without the rows that fill up the last batch of a process.
            self._surplus.append(self.accelerator.gather_for_metrics(surplus).cpu())

    def _learn(self, outputs: Any, labels: Any) -> None:
        """Take in a training batch."""
        if self._auto_strength is None:
            return
        surplus = self._surplus_of(logits_of(outputs).detach(), labels)
        if surplus is not None:
            self._auto_strength.learn(surplus)

    def _surplus_of(self, logits: Any, labels: Any) -> Tensor | None:
        """How much surer than right the model is of each row, nan without a label; `None` for what are no classes."""
        assert self.mixup is not None
        task = self.mixup.task
        is_known = isinstance(logits, Tensor) and isinstance(labels, Tensor) and labels.dim() > 0
        if not is_known or logits.shape != task.logits_shape(labels):
            return None
        return task.surplus(logits, labels)

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As that of the other Trainer. Evaluations of other rows than those of `self.eval_dataset` say nothing."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(rows, str) and isinstance(self.eval_dataset, Mapping):
            rows = self.eval_dataset.get(rows)
        known = self.eval_dataset.values() if isinstance(self.eval_dataset, Mapping) else ()
        is_own = any(rows is own for own in (self.eval_dataset, *known)) and rows is not self.train_dataset
        with changed(self, _follows=is_own):
            return super().evaluate(eval_dataset, *args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As that of the other Trainer."""
        is_watched = self._is_under_way and self._follows and self._auto_strength is not None
        if is_watched and self._checked_at == self.state.global_step:
            # The rows of the check are among those that are evaluated now.
            self._surplus, self._checked_at = [], -1
        with changed(self, _is_watching=is_watched):
            return super().evaluation_loop(*args, **kwargs)

    def _follow(self) -> None:
        """Let the strength follow what was seen since the last step."""
        auto = self._auto_strength
        # Before the first step nothing is learnt, and nothing is to be repaired.
        if auto is not None and self._surplus and self.state.global_step:
            if auto.trained is not None:
                auto.trained = self.accelerator.reduce(auto.trained.to(self.args.device), "sum")
            auto.see(torch.cat(self._surplus), self.state.epoch < 1)
        self._surplus = []

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """As that of the other Trainer."""
        self._follow()
        return super().training_step(*args, **kwargs)

    def _on_state_saved(self, folder: str) -> None:
        # What is seen after the last step has nothing to change.
        if self.state.global_step < self.state.max_steps:
            self._follow()
        super()._on_state_saved(folder)

    def _on_state_loaded(self, folder: str) -> None:
        super()._on_state_loaded(folder)
        # Seen before, by the training that is resumed.
        self._surplus = []

    # ---- Checks of its own ----

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As that of the other Trainer; at the end it says what the strength was, and why."""
        self._surplus, self._checked_at = [], -1
        with changed(self, _is_under_way=True):
            output = super().train(*args, **kwargs)
        if self.is_world_process_zero() and self._auto_strength is not None:
            why = (self._check_rows and self._check_rows.why_none) if self.args.eval_strategy == "no" else None
            story = self._auto_strength.story()
            if story:
                logger.warning(f"mixup: {story}")
            elif why or not self._has_one_pass:
                logger.warning(NO_CHECKS.format(seen="saw", mixed="was mixed", why=why or UNSEEN))
        return output

    @property
    def _has_one_pass(self) -> bool:
        """Whether no training row is seen twice, so that the strength stays 0."""
        return self._auto_strength is not None and self.state.num_train_epochs <= 1

    def get_train_dataloader(self) -> Any:
        """As that of the other Trainer, in a training without the rows that are held out."""
        # Here, because a trial of a search has a config of its own by now.
        self._check_rows = choose_rows(self) if self._is_under_way and self._auto_strength is not None else None
        if self._check_rows is None:
            return super().get_train_dataloader()
        if self._check_rows.why_none and self.args.eval_strategy == "no" and self.is_world_process_zero():
            why = self._check_rows.why_none
            logger.warning(NO_CHECKS.format(seen="will see", mixed="will be mixed", why=why))
        with changed(self, train_dataset=self._check_rows.train_dataset):
            return super().get_train_dataloader()

    def _check_if_due(self) -> None:
        """After a step: predict the rows of a check, if it is time and nothing was evaluated since the last one."""
        chosen, step, last = self._check_rows, self.state.global_step, self.state.max_steps
        if chosen is None or chosen.rows is None or self._auto_strength is None or step >= last:
            return
        # The training has one part more than checks, and one stands at the end of each part but the last.
        parts = chosen.checks + 1
        is_due = step * parts // last > (step - 1) * parts // last
        if not is_due or self.control.should_evaluate or (step - self._last_evaluation()) * parts < last:
            return
        quiet = changed(self.callback_handler, callbacks=[], eval_dataloader=self.callback_handler.eval_dataloader)
        plain = changed(self.args, dataloader_persistent_workers=False, dataloader_drop_last=False)
        with same_random_state(self.args.device), quiet, plain, changed(self, _follows=True):
            self.evaluation_loop(self.get_eval_dataloader(chosen.rows), "Check", prediction_loss_only=True)
        self._checked_at = step

    def _last_evaluation(self) -> float:
        """The step of the last evaluation of the user's in this training."""
        steps = (logs["step"] for logs in reversed(self.state.log_history) if any(map(_is_of_evaluation, logs)))
        return next(steps, -math.inf)


def _is_of_evaluation(name: str) -> bool:
    return name.startswith("eval_")


def checking(trainer: HeldOutChecks) -> TrainerCallback:
    """A callback that lets `trainer` check held-out rows."""

    class Checking(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            if trainer._has_one_pass and trainer.is_world_process_zero():
                logger.warning(ONE_PASS)

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            trainer._check_if_due()

    return Checking()
