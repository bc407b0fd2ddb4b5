"""`MixupTrainer`: transformers' Trainer with mixup, the one-line change."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.trainer_utils import HPSearchBackend
from transformers.utils import logging

from hf_mixup.config.mixup_config import MixupConfig
from hf_mixup.config.recipes import resolve_config
from hf_mixup.forward.anatomy.inputs import logits_of
from hf_mixup.mixup import Mixup
from hf_mixup.training.baseline_trainer import BaselineTrainer
from hf_mixup.training.checkpoints import checkpoint_to_resume
from hf_mixup.training.label_columns import class_counts, without_ignored
from hf_mixup.training.logs import MixupLogs
from hf_mixup.training.search import Search, run_search
from hf_mixup.training.state import CONFIG_NAME, load_state, save_state
from hf_mixup.training.trainer_checks import NOTHING_MIXED, check_mixing

logger = logging.get_logger(__name__)


class MixupTrainer(BaselineTrainer):
    """Trainer that mixes its training batches. Evaluation and prediction are Trainer's own.

    Args:
        *args, **kwargs: exactly Trainer's.
        mixup (`MixupConfig`, mapping, recipe name, path of a YAML file, or `None`, defaults to `"default"`): what to
            mix and how much; `None` turns mixup off.
        class_weights (`Sequence[float]`, *optional*): factor of each class in the cross-entropy, in training with mixup
            on or off, and in evaluation. Defaults to the `class_weights` of the config. The loss is the mean over
            examples, not over weights.
        nonfinite_loss (`str`, defaults to `"warn"`): what to do at the first training loss that is not finite:
            `"warn"`, `"stop"` (a `FloatingPointError`) or `"ignore"`. On an accelerator it shows when it is logged.

    Raises:
        ValueError: for a config that cannot work, or a model that cannot be mixed with it; in `train()`, for labels
            that cannot be trained on or evaluated, and if the first step draws no plan although mixup is set.

    Labels may be class indices, class probabilities (with `problem_type="single_label_classification"`), multi-hot
    vectors or scores, also as booleans and small integers. Rows labelled -100 are left out of their batch. A
    `compute_loss_func` is given the mixed targets, of shape `(batch, num_labels)`, in the place of the labels;
    `torch.nn.functional.cross_entropy` takes them as they are. On batches that are not mixed it is given the labels.

    Evaluation counts every row, whatever `dataloader_drop_last` and `logging_nan_inf_filter` say.

    Training logs also hold `mixup_lambda` (the mean), `mixup_site` and, for single-label classification,
    `mixup_accuracy`: the mean mass of the mixed target on the predicted class.
    """

    _search: Search | None = None

    def __init__(
        self,
        *args: Any,
        mixup: MixupConfig | Mapping[str, Any] | str | None = "default",
        class_weights: Sequence[float] | None = None,
        **kwargs: Any,
    ) -> None:
        config = resolve_config(mixup)
        if class_weights is None and config is not None:
            class_weights = config.class_weights
        super().__init__(*args, class_weights=class_weights, **kwargs)
        self.mixup: Mixup | None = None
        self._logs = MixupLogs()
        # Whether a training step came to compute_loss, and whether a checkpoint says that batches were mixed.
        self._reached = self._was_mixed = False
        if config is None:
            return
        config.class_weights = None if class_weights is None else torch.as_tensor(class_weights).tolist()
        check_mixing(self, config)
        self.mixup = Mixup(self._module, config, self.args.seed, self.args.process_index)
        reach = self.args.world_size if config.partner == "all_ranks" else 1
        if self.args.train_batch_size * reach > 1 or config.partner == "previous_batch":
            self.mixup.check()
        else:
            logger.warning(
                "per_device_train_batch_size=1: a batch of one has no partners, so nothing will be mixed; there is "
                "partner='previous_batch' for that."
            )

    def _extra_columns(self) -> Sequence[str]:
        """The column of groups, if partners depend on it."""
        column = None if self.mixup is None else self.mixup.config.group_column
        return () if column is None else (column,)

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As Trainer's, which the column of groups is not for."""
        if self.mixup is not None:
            inputs = {name: value for name, value in inputs.items() if name != self.mixup.config.group_column}
        return super().prediction_step(model, inputs, *args, **kwargs)

    # ---- Loss ----

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Trainer's own loss in evaluation and with mixup off, else that of the mixed batch."""
        if self.mixup is None or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs = self._with_usual_labels(inputs)
        self._reached = True
        mixup = self._mixup_of_current_model()
        groups = inputs.pop(mixup.config.group_column or "", None)
        if inputs.get("labels") is None:
            raise ValueError(f"labels: none in this training batch, which has only {', '.join(inputs)}.")
        # Refuses labels that are no tensor.
        problem_type = mixup.task.problem_type(inputs["labels"])
        count = self._count(inputs["labels"])
        if 0 < count < len(inputs["labels"]):
            inputs, groups = without_ignored(inputs, groups)
        labels = inputs.pop("labels")
        if not count:
            if self.args.world_size > 1:
                raise ValueError("labels: -100 in every row of a batch; with several processes each needs a label.")
            outputs = model(**inputs)
            return (logits_of(outputs).sum() * 0, outputs) if return_outputs else logits_of(outputs).sum() * 0
        progress = self.state.global_step / max(self.state.max_steps, 1)
        plan = mixup.draw(inputs, self.state.epoch or 0.0, progress=progress, labels=labels, groups=groups)
        with mixup.apply(plan, inputs):
            outputs = model(**inputs)
        logits = logits_of(outputs)
        mixed = mixup.targets(labels, plan, logits.device)
        if self.compute_loss_func is not None:
            self.loss_is_scaled_for_ga = True
            loss = self._users_loss(outputs, mixed if plan.active else None, labels, num_items_in_batch)
        else:
            clean_logits = logits_of(model(**inputs)) if mixup.needs_clean_pass(plan) else None
            smoothing = self.args.label_smoothing_factor
            loss = mixup.loss(logits, labels, plan, smoothing, clean_logits, targets=mixed)
            loss = self._share_of_step(loss, count)
        self._logs.add(plan.resolved, mixup.task.accuracy(logits.detach(), mixed, problem_type))
        return (loss, outputs) if return_outputs else loss

    def _mixup_of_current_model(self) -> Mixup:
        """The Mixup of the model being trained; `model_init` and sharding replace the model that was given."""
        assert self.mixup is not None
        if self.mixup.model is not self.model:
            state = self.mixup.state_dict()
            self.mixup = Mixup(self._module, self.mixup.config, self.args.seed, self.args.process_index)
            self.mixup.load_state_dict(state)
        return self.mixup

    # ---- Start, search ----

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As Trainer's. Every training starts the random stream of mixup anew, and a resumed one continues it.

        Raises:
            ValueError, FileNotFoundError: for a checkpoint that is not whole, or of another model.
        """
        is_sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        folder, rank = str(self.args.output_dir), self.args.process_index if self.args.save_on_each_node else None
        checkpoint = checkpoint_to_resume(resume_from_checkpoint, folder, self.model, is_sharded, rank)
        if self.mixup is not None:
            self.mixup.restart(self.args.seed, self.args.process_index)
        self._logs = MixupLogs()
        self._reached = self._was_mixed = False
        return super().train(checkpoint, *args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """As Trainer's. Raises `ValueError` if mixup is set and the first step drew no plan."""
        drawn = None if self.mixup is None else self.mixup.planner.drawn
        loss = super().training_step(*args, **kwargs)
        if self.mixup is not None and not self._reached:
            # A compute_loss of the user's own may draw, or apply plans that it made by hand.
            self._reached = self.mixup.planner.drawn != drawn or self.mixup.mixed > 0
            if not self._reached:
                raise ValueError(NOTHING_MIXED)
        return loss

    @property
    def _makes_targets(self) -> bool:
        return self.mixup is not None or super()._makes_targets

    def _check_labels(self) -> dict[str, Tensor]:
        columns = super()._check_labels()
        config = None if self.mixup is None else self.mixup.config
        if config is not None and config.label_rule == "remix" and "train_dataset" in columns:
            counts = class_counts(columns["train_dataset"], self._task.about.num_labels)
            config.class_counts = config.class_counts or counts
        return columns

    def hyperparameter_search(
        self,
        hp_space: Callable[[Any], dict[str, Any]] | None = None,
        compute_objective: Callable[[dict[str, float]], Any] | None = None,
        n_trials: int = 20,
        direction: str | list[str] | None = None,
        backend: str | HPSearchBackend | None = None,
        hp_name: Callable[[Any], str] | None = None,
        **kwargs: Any,
    ) -> Any:
        """As Trainer's, over mixup as well: every trial starts from the config that the trainer was made with.

        Args:
            hp_space (`Callable`, *optional*): besides training arguments it may name `mixup` or `recipe`, what `mixup=`
                takes, as the base of a trial (`"none"` turns mixup off, and fields are then without effect), and fields
                of `MixupConfig`, as `alpha` or `mixup.alpha`. Fields of the base that those make inapplicable, such as
                the layers of another site, fall back to their defaults.
            compute_objective (`Callable`, *optional*): defaults to the metric that `metric_for_best_model` names in the
                training arguments, else to Trainer's: the sum of all metrics, or the loss if there are no others.
            n_trials (`int`, defaults to 20): number of trials.
            direction (`str` or `list[str]`, *optional*): `"minimize"` or `"maximize"`; defaults to the direction of
                `metric_for_best_model`, else to `"minimize"`.
            backend, hp_name, **kwargs: as Trainer's.

        Returns:
            `BestRun` or `list[BestRun]`: the best trial, its hyperparameters by the names that the search space gave.
            A trial whose objective is not finite is never the best. The trainer is left with the settings of the last
            trial, as Trainer is.

        Raises:
            ValueError: for an unknown hyperparameter, before its trial trains; for metrics that do not get better in
                `direction`; if every trial diverged.
        """
        options = {"hp_space": hp_space, "n_trials": n_trials, "hp_name": hp_name, **kwargs}
        return run_search(self, super().hyperparameter_search, compute_objective, direction, backend, **options)

    def _set_up_trial(self, trial: Any, set_up: Callable[[Any], None]) -> None:
        """As Trainer's, with the mixup config of the trial."""
        if trial is None or self._search is None or self.hp_search_backend is None:
            set_up(trial)
        else:
            self._search.set_up(self, trial, set_up)

    # ---- Logs ----

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add what mixup did since the last log to the training logs."""
        if "loss" in logs and self.mixup is not None:
            logs.update(self._logs.drain())
        super().log(logs, *args, **kwargs)

    # ---- Saving and resuming ----

    @property
    def _has_mixed(self) -> bool:
        """Whether some batch was mixed, so that nothing saved says so of a training in which none was."""
        return self.mixup is not None and (self._was_mixed or self.mixup.mixed > 0)

    @contextmanager
    def _saving_model(self, folder: Path) -> Iterator[None]:
        """The mixup config is saved with a model that was mixed."""
        with super()._saving_model(folder):
            yield
        if self._has_mixed and self.mixup is not None and self.args.should_save:
            self.mixup.config.save(folder / CONFIG_NAME)

    def _on_state_saved(self, folder: str) -> None:
        """The plans resume with the random state."""
        if self.mixup is not None:
            save_state(folder, self.mixup, self.args.process_index, self.args.world_size)

    def _on_state_loaded(self, folder: str) -> None:
        """The plans resume with the random state."""
        if self.mixup is not None:
            load_state(folder, self.mixup, self.args.process_index, self.args.world_size)
            self._was_mixed = Path(folder, CONFIG_NAME).is_file()

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Trainer's model card, with the mixup config."""
        super().create_model_card(*args, **kwargs)
        path = Path(self.args.output_dir or ".") / "README.md"
        if self.mixup is None or not self._has_mixed or not self.is_world_process_zero() or not path.is_file():
            return
        with path.open("a", encoding="utf-8") as card:
            card.write(f"\n### Mixup\n\nTrained with hf_mixup:\n\n```yaml\n{self.mixup.config.to_yaml()}```\n")
