"""Hyperparameter searches of `MixupTrainer`: what a search space may name, and how a trial begins."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

from transformers import PreTrainedModel, enable_full_determinism, set_seed
from transformers.hyperparameter_search import default_hp_search_backend
from transformers.trainer_utils import HPSearchBackend, number_of_arguments

from hf_mixup.config.checks import nearest
from hf_mixup.config.mixup_config import MixupConfig
from hf_mixup.config.recipes import changed_config, resolve_config
from hf_mixup.training.search_objective import check_best, choose_objective
from hf_mixup.training.trainer_checks import metric_name
from hf_mixup.training.trainer_seams import changed

# How a search space may write the base config of a trial, under "mixup", and each field of `MixupConfig`.
NAMES = {"mixup": "mixup", "recipe": "mixup", "mixup.recipe": "mixup"} | {
    spelling: known.name for known in fields(MixupConfig) for spelling in (known.name, f"mixup.{known.name}")
}
# What a backend puts into a trial besides its hyperparameters.
NOT_CHOSEN: dict[Any, tuple[str, ...]] = {
    HPSearchBackend.RAY: ("wandb",),
    HPSearchBackend.WANDB: ("_wandb", "assignments", "metric"),
}


# ---- What a trial trains with ----


def split_hyperparameters(
    hyperparameters: Mapping[str, Any], arguments: Collection[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a trial chose, for mixup and for the training.

    Args:
        hyperparameters (`Mapping[str, Any]`): names as a search space writes them: `mixup` or `recipe`, fields of
            `MixupConfig` (`alpha` or `mixup.alpha`), training arguments.
        arguments (`Collection[str]`): names of the training arguments.

    Returns:
        `tuple[dict, dict]`: fields of `MixupConfig`, with the base config as `mixup`; training arguments.

    Raises:
        ValueError: for an unknown name, with the nearest spelling, or one thing chosen by two names.
    """
    mixup: dict[str, Any] = {}
    training: dict[str, Any] = {}
    for name, value in hyperparameters.items():
        if name not in NAMES and name not in arguments:
            raise ValueError(
                f"Unknown hyperparameter {name!r}.{nearest(name, [*NAMES, *arguments])} A search space holds mixup or "
                "recipe, fields of MixupConfig such as alpha or mixup.alpha, and training arguments."
            )
        chosen, key = (mixup, NAMES[name]) if name in NAMES else (training, name)
        if key in chosen:
            raise ValueError(f"{name}={value!r}: the search space holds {key} by another name, too; leave one out.")
        chosen[key] = value
    return mixup, training


def trial_config(base: MixupConfig | None, chosen: Mapping[str, Any], class_weights: Any = None) -> MixupConfig | None:
    """The config of a trial.

    Args:
        base (`MixupConfig`, *optional*): the config that the trainer was made with.
        chosen (`Mapping[str, Any]`): fields of `MixupConfig`; `mixup`, if it is there, takes the place of `base`.
        class_weights (`list[float]` or `dict`, *optional*): those of the trainer, for a base that has none.

    Returns:
        `MixupConfig | None`: the base with the chosen fields, `None` if the trial turns mixup off. A field of the base
        that the chosen ones make inapplicable, such as the layers of another site, falls back to its default.

    Raises:
        ValueError: for an unknown recipe, a value that cannot work, or fields without a base.
    """
    chosen = dict(chosen)
    if "mixup" in chosen:
        base = resolve_config(chosen.pop("mixup"))
        chosen = {} if base is None else chosen
    if base is None and chosen:
        raise ValueError(
            f"{', '.join(chosen)}: the trainer has mixup=None, so a search space needs mixup or recipe as well."
        )
    if base is None:
        return None
    values, defaults = base.to_dict(), MixupConfig().to_dict()
    if "unlabeled" in chosen:
        chosen["unlabeled"] = changed_config(base, chosen)["unlabeled"]
    values["class_weights"] = values["class_weights"] or class_weights
    while True:
        try:
            return MixupConfig.from_dict(values | chosen)
        except ValueError as error:
            # An error begins with the field that does not apply and its value: "layers=[1] needs site='hidden'".
            name = str(error).partition("=")[0]
            if name in chosen or values.get(name) == defaults.get(name):
                raise
            values[name] = defaults[name]


# ---- The trials of a search ----


@dataclass
class Search:
    """The trials of one search, each of which starts from the same settings.

    Args:
        base, class_weights: as for `trial_config`.
    """

    base: MixupConfig | None
    class_weights: Any = None
    # Of the current trial.
    config: MixupConfig | None = None
    training: dict[str, Any] = field(default_factory=dict)
    # The training arguments that trials changed, as they were.
    before: dict[str, Any] = field(default_factory=dict)

    def begin(self, trainer: Any, trial: Any, own_names: bool = False) -> None:
        """Read what a trial chose, and seed everything as it says: its model is made next.

        Raises:
            ValueError: for hyperparameters that are unknown or cannot work.
        """
        args, backend = trainer.args, trainer.hp_search_backend
        is_optuna = backend == HPSearchBackend.OPTUNA
        chosen = dict(trainer.hp_space(trial) if is_optuna else trial)
        # A dict is all that a model_init sees of a trial, so it may hold names of its own.
        known = NAMES | vars(args) if own_names and not is_optuna else chosen
        passed = {name: chosen[name] for name in chosen if name in known and name not in NOT_CHOSEN.get(backend, ())}
        mixup, self.training = split_hyperparameters(passed, vars(args))
        self.config = trial_config(self.base, mixup, self.class_weights)
        for name, value in self.before.items():
            setattr(args, name, value)
        self.before |= {name: getattr(args, name) for name in self.training if name not in self.before}
        args.seed = int(self.training.get("seed", args.seed))
        (enable_full_determinism if args.full_determinism else set_seed)(args.seed)

    def set_up(self, trainer: Any, trial: Any, set_up: Callable[[Any], None]) -> None:
        """Give the training arguments of a trial to Trainer's own `set_up`, and mix with the trial's config."""
        space = trainer.hp_space
        try:
            trainer.hp_space = lambda _: self.training
            set_up(trial if trainer.hp_search_backend == HPSearchBackend.OPTUNA else self.training)
        finally:
            # The columns may hold that of the groups of the trial before.
            trainer._set_trial(space, trial)
        trainer._use_in_trial(self.config)


def run_search(
    trainer: Any,
    run: Callable[..., Any],
    compute_objective: Callable[[dict[str, float]], Any] | None,
    direction: str | list[str] | None,
    backend: str | HPSearchBackend | None,
    **options: Any,
) -> Any:
    """Trainer's own search `run`, with an objective and a direction that go together, over trials of mixup.

    Raises:
        ValueError: for a direction that cannot be right; if every trial diverged.
    """
    has_metrics = trainer.compute_metrics is not None
    objective = choose_objective(trainer.args, compute_objective, direction, has_metrics, metric_name(trainer))
    backend = HPSearchBackend(backend or default_hp_search_backend())
    if backend == HPSearchBackend.WANDB and objective.metric is not None:
        options.setdefault("metric", f"eval/{objective.metric}")
    trainer._search = _next_search(trainer)
    # A trial begins before its model is made: Trainer would seed it as the trial before.
    model_init = trainer.model_init and partial(_trial_model, trainer, trainer._search, trainer.model_init)
    with changed(trainer, model_init=model_init):
        best = run(compute_objective=objective, direction=objective.direction, backend=backend, **options)
    check_best(best)
    return best


def _next_search(trainer: Any) -> Search:
    """A new search of a trainer, which starts as its first one did."""
    if trainer._search is not None:
        return Search(trainer._search.base, trainer._search.class_weights)
    base = None if trainer._saved_config is None else replace(trainer._saved_config)
    return Search(base, trainer._class_weights)


def _trial_model(
    trainer: Any, search: Search, model_init: Callable[..., PreTrainedModel], trial: Any
) -> PreTrainedModel:
    takes_trial = number_of_arguments(model_init) == 1
    search.begin(trainer, trial, own_names=takes_trial)
    return model_init(trial) if takes_trial else model_init()
