"""`MixupMixin`: mixup around the loss of any subclass of transformers' Trainer."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.trainer_utils import HPSearchBackend
from transformers.utils import logging

from hf_mixup.config.mixup_config import MixupConfig
from hf_mixup.config.recipes import MixupLike, resolve_config
from hf_mixup.mixup import Mixup
from hf_mixup.plan.mixup_plan import MixupPlan
from hf_mixup.training.checkpoints import checkpoint_to_resume
from hf_mixup.training.forward_passes import ForwardPasses
from hf_mixup.training.held_out import HeldOutChecks, checking
from hf_mixup.training.logs import MixupLogs
from hf_mixup.training.mixed_step import (
    MixedPass,
    ModelLoss,
    check_kept_loss,
    check_kind,
    is_float,
    label_sets,
    labels_in,
    mean_of_label_sets,
)
from hf_mixup.training.search import Search, run_search
from hf_mixup.training.trainer_checks import (
    NOTHING_MIXED,
    NOTHING_RAN,
    check_mixing,
    check_model,
    mixes_nothing,
    overrides_loss,
)
from hf_mixup.training.trainer_seams import before_each_update, keeping_arguments

logger = logging.get_logger(__name__)


class MixupMixin(HeldOutChecks):
    """Mixes the training batches of a Trainer that keeps its own loss.

    ```python
    class MixedTrainer(MixupMixin, WeightedTrainer):
        pass

    trainer = MixedTrainer(model=model, args=args, train_dataset=train_dataset, mixup="tmix")
    ```

    The forward pass of the model is mixed, whatever the loss does with its outputs. Labels that are numbers (scores,
    probabilities, multi-hot vectors of floats) reach the loss mixed. Class indices stay what they are: the loss f is
    evaluated on the same mixed outputs for the labels of the examples and for those of their partners, and the result
    is lam f(y) + (1 - lam) f(y of the partners) (Zhang et al. 2018), at no second forward pass. Such a batch has one
    lambda. A model that is given its labels and returns a loss returns that of the mixed labels.

    Args:
        *args, **kwargs: those of the other Trainer. Its class may stand before or after `MixupMixin`.
        mixup (`MixupConfig`, mapping, recipe name, path of a YAML file, or `None`, defaults to `"fixed"`): what to
            mix and how much; `None` turns mixup off.
        soft_targets (`bool`, defaults to `False`): whether the loss takes class probabilities, floats of shape
            `(batch, num_labels)`, in the place of class indices, as `torch.nn.functional.cross_entropy` does. It is
            then evaluated once, on the mixed targets, with a lambda for each example.
        rows_per_example (`int`, defaults to 1): rows of a batch that belong to one example, such as 2 for preferences:
            first the chosen text of each, then the rejected one of each. They share their partner and lambda, and a
            loss without labels, such as that of TRL's `RewardTrainer`, is that of the mixed rows.

    Raises:
        ValueError: for a config that cannot work, or a model that cannot be mixed with it; at the first step, for what
            does not go with the loss, and if nothing would be mixed.

    A model that is given labels runs the first batch of a training once more, in evaluation mode and without gradients:
    its own loss has to be the one that mixed labels get.

    Evaluation and prediction are the other Trainer's own. Training logs also hold `mixup_lambda` (the mean),
    `mixup_site` and, for `strength="auto"`, `mixup_strength`. Labels are those of `args.label_names`, `labels`,
    `label`, `scores`, `score` and `margin`.
    """

    _search: Search | None = None
    # Whether compute_loss is given labels that it should leave as they are; whether it was put on this trainer alone.
    _keeps_labels = False
    _is_replaced = False
    _class_weights: Any = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        before = cls.__mro__[: cls.__mro__.index(MixupMixin)]
        if any("__init__" in vars(base) and not issubclass(base, MixupMixin) for base in before):
            kept = ("mixup", "soft_targets", "rows_per_example")
            cls.__init__ = keeping_arguments(cls.__init__, kept)  # type: ignore[method-assign]

    def __init__(
        self,
        *args: Any,
        mixup: MixupLike | None = "fixed",
        soft_targets: bool = False,
        rows_per_example: int = 1,
        **kwargs: Any,
    ) -> None:
        kept = vars(self).pop("_kept_arguments", {})
        config = resolve_config(kept.get("mixup", mixup))
        super().__init__(*args, **kwargs)
        self.soft_targets = kept.get("soft_targets", soft_targets)
        self.rows_per_example = kept.get("rows_per_example", rows_per_example)
        self._restart()
        self.add_callback(before_each_update(self._check_mixed))
        self.add_callback(checking(self))
        self._use(config)

    def _use(self, config: MixupConfig | None) -> None:
        """Mix by `config` from now on. Raises `ValueError` for what cannot be mixed."""
        if config is None or mixes_nothing(self, config):
            self.mixup = None
            return
        check_mixing(self, config)
        if overrides_loss(type(self)):
            check_kept_loss(config, takes_hard_labels=False)
            if config.class_weights is not None and self._class_weights is None:
                raise ValueError("class_weights: not used by a compute_loss of your own; weigh the classes there.")
        self.mixup = Mixup(self._module, config, self.args.seed, self.args.process_index)
        check_model(self.mixup, self.args)

    def _use_in_trial(self, config: MixupConfig | None) -> None:
        """As `_use`, for a trial of a search."""
        self._use(config)

    def _restart(self) -> None:
        self._logs, self._model_loss = MixupLogs(), ModelLoss()
        # Whether a training step came here, and whether a checkpoint says that batches were mixed.
        self._reached = self._was_mixed = False

    def _extra_columns(self) -> Sequence[str]:
        """The column of groups, if partners depend on it."""
        column = None if self.mixup is None else self.mixup.config.group_column
        return () if column is None else (column,)

    # ---- The step ----

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """As that of the other Trainer, around whose `compute_loss` mixup is."""
        if self.mixup is None:
            return super().training_step(*args, **kwargs)
        self._reached = self._reached or self._rests
        own = vars(self).get("compute_loss")
        self._is_replaced = own is not None
        vars(self)["compute_loss"] = functools.partial(self._mixed_loss, self.compute_loss)
        try:
            return super().training_step(*args, **kwargs)
        finally:
            del vars(self)["compute_loss"]
            if own is not None:
                vars(self)["compute_loss"] = own

    def _mixed_loss(
        self, compute_loss: Callable[..., Any], model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """The loss of the other Trainer on a mixed batch."""
        if not model.training or self._mixes_itself(inputs):
            return compute_loss(model, inputs, *args, **kwargs)
        mixup, inputs = self._mixup_of_current_model(), self._with_usual_labels(inputs)
        groups = inputs.pop(mixup.config.group_column or "", None)
        labels = labels_in(inputs, self.label_names)
        plan = self._plan(mixup, inputs, labels, groups)
        soft = self._soft if self.soft_targets else None
        sets, losses = label_sets(labels, plan, soft) if self._keeps_loss else [labels], []
        run = MixedPass(mixup, self._module, model, plan, labels, sets[0], self._model_loss).run
        passes = ForwardPasses(model, run, labels.keys())
        self._keeps_labels = True
        try:
            for chosen in sets:
                given = copy.copy(inputs)
                given.update(chosen)
                with passes.watched():
                    losses.append(compute_loss(model, given, *args, **kwargs))
        finally:
            self._keeps_labels = False
        if not passes.outputs:
            raise ValueError(NOTHING_RAN)
        self._reached = True
        if self._keeps_loss or not plan.active:
            # Else mixup.loss was called, which takes it in.
            self._learn(passes.outputs[0], next(iter(labels.values()), None))
        self._logs.add(plan.resolved, None)
        return mean_of_label_sets(losses, plan)

    def _plan(self, mixup: Mixup, inputs: dict[str, Any], labels: dict[str, Tensor], groups: Tensor | None) -> Any:
        if not labels and self.rows_per_example == 1:
            raise ValueError(
                f"labels: no tensor of labels in this training batch, which has only {', '.join(inputs)}. Name it in "
                "label_names of the training arguments. A loss without labels that compares the rows of a pair, as "
                "that of TRL's RewardTrainer, needs rows_per_example=2."
            )
        is_hard = not self.soft_targets and not all(map(is_float, labels.values()))
        check_kind(labels, mixup.task.about.num_labels)
        if self._keeps_loss:
            check_kept_loss(mixup.config, is_hard)
        first = next(iter(labels.values()), None)
        if self._is_off and first is not None and self.rows_per_example == 1:
            return MixupPlan(torch.arange(len(first)), torch.ones(len(first)), mixup.config.site, active=False)
        if is_hard and self._keeps_loss and first is not None:
            # What a loss of the user's leaves out has to have some partner.
            first = first.where((first >= 0) & (first < mixup.task.about.num_labels), 0)
        progress = self.state.global_step / max(self.state.max_steps, 1)
        return mixup.draw(
            {name: value for name, value in inputs.items() if isinstance(value, Tensor)},
            self.state.epoch or 0.0,
            progress=progress,
            labels=first,
            groups=groups,
            rows_per_example=self.rows_per_example,
            one_lambda=self._keeps_loss and is_hard,
        )

    def _soft(self, labels: Tensor) -> Tensor:
        """Class indices as class probabilities."""
        assert self.mixup is not None
        return self.mixup.task.targets(labels)

    @property
    def _keeps_loss(self) -> bool:
        """Whether the loss is computed outside of the model."""
        has_function = self.compute_loss_func is not None or self._smooths_labels()
        return has_function or self._is_replaced or overrides_loss(type(self))

    def _mixes_itself(self, inputs: dict[str, Any]) -> bool:
        """Whether `compute_loss` mixes by itself."""
        return False

    def _check_mixed(self) -> None:
        """Raise `ValueError` if mixup is set and no step came here, so that nothing was mixed."""
        if self.mixup is not None and not self._reached:
            raise ValueError(NOTHING_MIXED)

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
        self._restart()
        return super().train(checkpoint, *args, **kwargs)

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
