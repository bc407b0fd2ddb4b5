"""`MixupTrainer`: transformers' Trainer with mixup, the one-line change."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hf_mixup.config.mixup_config import OUTSIDE, MixupConfig
from hf_mixup.config.recipes import MixupLike, beside_unlabeled, resolve_config
from hf_mixup.config.unlabeled_config import UnlabeledConfig
from hf_mixup.forward.anatomy.inputs import logits_of
from hf_mixup.loss.task import mixed_accuracy
from hf_mixup.loss.token_task import TokenTask, task_of
from hf_mixup.mixup import Mixup
from hf_mixup.plan.mixup_plan import MixupPlan
from hf_mixup.plan.partners import partners_apart
from hf_mixup.training.label_columns import class_counts, without_ignored
from hf_mixup.training.lesson import Lesson
from hf_mixup.training.mixed_step import is_float, labels_in
from hf_mixup.training.mixin import MixupMixin
from hf_mixup.training.step_counts import is_none
from hf_mixup.training.trainer_checks import check_trainer, overrides_loss, refuse_teacher_of_tokens
from hf_mixup.training.trainer_parameters import shown_as, trainer_parameters
from hf_mixup.training.trainer_seams import run_again
from hf_mixup.training.unlabeled import UnlabeledTrainer
from hf_mixup.training.unlabeled_checks import check_joined


class MixupTrainer(MixupMixin, UnlabeledTrainer):
    """Trainer that mixes its training batches. Evaluation and prediction are Trainer's own.

    ```python
    trainer = MixupTrainer(model=model, args=args, train_dataset=train_dataset, mixup="tmix")
    trainer.train()
    ```

    Args:
        model, args, ..., **kwargs: exactly Trainer's.
        mixup (`MixupConfig`, mapping, recipe name, path of a YAML file, or `None`, defaults to `"default"`): what to
            mix and how much; `None` turns mixup off.
        class_weights (`Sequence[float]` or mapping, *optional*): factor of each class in the cross-entropy, in training
            with mixup on or off, and in evaluation, or from which epoch on which. Defaults to the `class_weights` of
            the config. The loss is the mean over examples, not over weights.
        soft_targets, rows_per_example: see `MixupMixin`.
        nonfinite_loss (`str`, defaults to `"warn"`): what to do at the first training loss that is not finite:
            `"warn"`, `"stop"` (a `FloatingPointError`) or `"ignore"`. On an accelerator it shows when it is logged.
        averaging (`str`, *optional*): `"ema"` evaluates, saves and in the end leaves the exponential moving average of
            the trained weights; the training itself is as without. Not with FSDP and DeepSpeed. `"none"` is off.
        ema_decay (`float`, defaults to 0.999): of the average; see `hf_mixup.training.averaging.WeightAverage`.
        teacher (`nn.Module`, *optional*): a trained classifier that takes the same batches and returns logits of the
            same classes. In training, example i learns (1 - w) y_i + w p_i, its label and the probabilities that the
            teacher gives its row; mixtures are those of them. Rows labelled -100 learn p_i alone. See
            `hf_mixup.training.teacher.Teacher`.
        teacher_weight (`float`, defaults to 1.0): w, from 0 to 1.
        teacher_temperature (`float`, defaults to 1.0): what the logits of the teacher are divided by.
        unlabeled_dataset (`Dataset` or `IterableDataset`, *optional*): texts without labels, like those of
            `train_dataset`, whose classes are guessed in the second half of the training, and learned. The field
            `unlabeled` of the config says how. Then the moving average of the weights guesses, and is what is evaluated
            and saved; if there is a `teacher`, that guesses, and nothing is averaged. Labels that these rows have are
            not learned; `unlabeled_accuracy` in the logs compares the guesses with them. With `guesses: given` they are
            class probabilities, `(num_labels,)` per row, and learned from the start.
        unlabeled_views (`Dataset` or `IterableDataset`, *optional*): the same rows, in the same order, in other words,
            such as paraphrases: what is guessed for a row is learned on its view.

    Raises:
        ValueError: for a config that cannot work, or a model that cannot be mixed with it; in `train()`, for labels
            that cannot be trained on or evaluated, and if the first step mixes nothing although mixup is set.

    To learn from a larger model of the same classes and tokens:

    ```python
    trainer = MixupTrainer(model=model, args=args, train_dataset=train_dataset, mixup="tmix", teacher=teacher)
    trainer.train()
    ```

    Labels may be class indices, class probabilities (with `problem_type="single_label_classification"`), multi-hot
    vectors or scores, also as booleans and small integers. Rows labelled -100 are left out of their batch, unless there
    is a teacher; a loss of your own on class indices is given them.

    A `compute_loss_func`, or a `compute_loss` of a subclass, is used as `MixupMixin` says: on class indices it is
    evaluated twice per batch, on the same outputs. With `soft_targets=True` a `compute_loss_func` is given the mixed
    targets instead, of shape `(batch, num_labels)`, and the labels on batches that are not mixed.

    Evaluation counts every row, whatever `dataloader_drop_last` and `logging_nan_inf_filter` say.

    Training logs also hold `mixup_lambda` (the mean), `mixup_site` and, for single-label classification,
    `mixup_accuracy`: the mean mass of the mixed target on the predicted class.
    """

    @shown_as(trainer_parameters)
    def __init__(
        self, *args: Any, mixup: MixupLike | None = "default", class_weights: Any = None, **kwargs: Any
    ) -> None:
        config = resolve_config(mixup if kwargs.get("unlabeled_dataset") is None else beside_unlabeled(mixup))
        if config is not None:
            class_weights = config.class_weights if class_weights is None else class_weights
            config.class_weights = MixupConfig(class_weights=class_weights).class_weights
            kwargs["unlabeled"] = kwargs.get("unlabeled") or config.unlabeled
        super().__init__(*args, mixup=config, class_weights=class_weights, **kwargs)

    # Whether the loss of the user's was seen to take mixed targets.
    _takes_targets = False

    # ---- Loss ----

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Trainer's own loss in evaluation and with mixup off, else that of the mixed batch."""
        if self.mixup is None or not model.training or self._keeps_labels or self.unlabeled_weight:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if not self._mixes_itself(inputs):
            return self._mixed_loss(self.compute_loss, model, inputs, return_outputs, num_items_in_batch)
        inputs, self._reached = self._with_usual_labels(inputs), True
        mixup = self._mixup_of_current_model()
        groups = inputs.pop(mixup.config.group_column or "", None)
        given = dict(inputs)
        if inputs.get("labels") is None:
            raise ValueError(
                f"labels: none in this training batch, which has only {', '.join(inputs)}. Name the column labels, and "
                "the argument of forward: Trainer drops columns that the model does not take."
            )
        # Refuses labels that are no tensor.
        problem_type = mixup.task.problem_type(inputs["labels"])
        count = self._count(inputs["labels"])
        if self._lacks_labels(inputs["labels"], count):
            inputs, groups = without_ignored(inputs, groups)
        if not is_none(count):
            self._check_models_loss(inputs)
        labels = inputs.pop("labels")
        if is_none(count) or self._rests:
            found = self._clean_loss(model, given, num_items_in_batch)
            return found if return_outputs else found[0]
        labels, learnt = self._taught(model, inputs, labels)
        plan = self._plan_of(mixup, inputs, labels, learnt, groups)
        with mixup.apply(plan, inputs):
            outputs = model(**inputs)
        logits = logits_of(outputs)
        mixed = mixup.targets(learnt, plan, logits.device)
        if self.compute_loss_func is not None:
            self.loss_is_scaled_for_ga = True
            self._learn(outputs, labels)
            self._check_users_loss(outputs, mixed, labels, num_items_in_batch)
            loss = self._users_loss(outputs, mixed if plan.active else None, labels, num_items_in_batch)
        else:
            clean_logits = logits_of(run_again(model, model, inputs)) if mixup.needs_clean_pass(plan) else None
            smoothing = self.args.label_smoothing_factor
            clean = None if learnt is labels else learnt
            loss = mixup.loss(logits, labels, plan, smoothing, clean_logits, targets=mixed, clean_targets=clean)
            loss = self._share_of_step(loss, count)
        self._logs.add(plan.resolved, mixup.task.accuracy(logits.detach(), mixed, problem_type))
        return (loss, outputs) if return_outputs else loss

    def _check_first_batch(self, inputs: dict[str, Any]) -> None:
        super()._check_first_batch(inputs)
        if self._lacks_labels(inputs["labels"]):
            inputs, _ = without_ignored(inputs, None)
        if not is_none(self._count(inputs["labels"])):
            self._check_models_loss(inputs)

    def _pass(self, model: nn.Module, lesson: Lesson) -> tuple[Tensor, Any, MixupPlan | None]:
        if self.mixup is None:
            return super()._pass(model, lesson)
        self._reached, mixup, size = True, self._mixup_of_current_model(), lesson.labelled
        plan = self._plan_of(mixup, lesson.inputs, lesson.labels, lesson.labels, None)
        if self.unlabeled.partners == "apart" and plan.active:
            plan = replace(plan, partner=partners_apart(mixup.planner.generator, size, len(plan.lam)))
        with mixup.apply(plan, lesson.inputs):
            outputs = model(**lesson.inputs)
        logits = logits_of(outputs)
        self._learn(logits[:size], lesson.labels[:size])
        self._logs.add(plan.resolved, mixed_accuracy(logits[:size].detach(), lesson.mixed(plan)[0][:size]))
        return logits, outputs, plan

    def _plan_of(
        self, mixup: Mixup, inputs: dict[str, Any], labels: Tensor, learnt: Tensor, groups: Tensor | None
    ) -> MixupPlan:
        progress = self.state.global_step / max(self.state.max_steps, 1)
        # Rules of partners go by the labels; what partners from outside of the batch bring is learnt.
        drawn = learnt if mixup.config.partner in OUTSIDE else labels
        return mixup.draw(inputs, self.state.epoch or 0.0, progress=progress, labels=drawn, groups=groups)

    def _clean_loss(self, model: nn.Module, inputs: dict[str, Any], items: Tensor | int | None) -> tuple[Tensor, Any]:
        """The loss with mixup off, of a batch that the strength has to know of."""
        loss, outputs = super().compute_loss(model, inputs, True, items)
        self._learn(outputs, self._with_usual_labels(inputs)["labels"])
        return loss, outputs

    def _check_users_loss(self, *args: Any) -> None:
        """Raise `ValueError` if the user's loss does not take mixed targets; at the first batch, mixed or not."""
        if not self._takes_targets:
            with torch.no_grad():
                self._users_loss(*args)
        self._takes_targets = True

    def _check_models_loss(self, inputs: dict[str, Any]) -> None:
        """Raise `ValueError` if the model, given labels, has a loss of another kind; at the first batch."""
        is_own = self._has_weights or self._teacher is not None or self._smooths_labels()
        is_models = self.compute_loss_func is None and not is_own
        takes_labels = "labels" in inspect.signature(self._module.forward).parameters
        if is_models and takes_labels:
            self._model_loss.learn(self._module, self._task, inputs, inputs["labels"])

    def _mixes_itself(self, inputs: dict[str, Any]) -> bool:
        """Whether the loss is that of mixed targets, and not one of the user's that takes labels."""
        labels = inputs.get("labels")
        has_others = labels is None and bool(labels_in(inputs, self.label_names))
        if has_others or self._is_replaced or overrides_loss(type(self)):
            return False
        is_soft = self.soft_targets or (isinstance(labels, Tensor) and is_float(labels))
        return self.compute_loss_func is None or is_soft

    @property
    def _casts_labels(self) -> bool:
        return self.mixup is not None or super()._casts_labels

    @property
    def _makes_targets(self) -> bool:
        is_mixed = self.mixup is not None and (self.compute_loss_func is None or self.soft_targets)
        return is_mixed or super()._makes_targets

    def _check_labels(self) -> dict[str, Tensor]:
        columns = super()._check_labels()
        config = None if self.mixup is None else self.mixup.config
        if config is not None and config.label_rule == "remix" and "train_dataset" in columns:
            counts = class_counts(columns["train_dataset"], self._task.about.num_labels)
            config.class_counts = config.class_counts or counts
        return columns

    def _use(self, config: MixupConfig | None) -> None:
        if config is not None and self.unlabeled_dataset is not None:
            # What is saved says how these rows were used, but Mixup takes no such config.
            check_joined(config, self.unlabeled)
            config = replace(config, unlabeled=None)
        super()._use(config)
        if self.mixup is not None and isinstance(self.mixup.task, TokenTask):
            # A head of one's own is known by its logits.
            refuse_teacher_of_tokens(self._teacher)
            self._task = task_of(self._task.about, self._task.config, True)

    @property
    def _saved_config(self) -> MixupConfig | None:
        config = super()._saved_config
        is_used = config is not None and self.unlabeled_dataset is not None
        return replace(config, unlabeled=self.unlabeled) if is_used else config  # type: ignore[type-var]

    def _use_in_trial(self, config: MixupConfig | None) -> None:
        if config is not None:
            check_trainer(self, config.class_weights is not None)
            own = UnlabeledConfig(guesses=self.unlabeled.guesses, decay=self.unlabeled.decay)
            self._use_rows(config.unlabeled or own)
        super()._use_in_trial(config)
        if config is not None:
            self._check_labels()
