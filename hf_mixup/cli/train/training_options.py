"""What becomes of every option of `transformers.TrainingArguments` in `hf-mixup train` and `hf-mixup compare`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from enum import Enum
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_utils import SchedulerType

from hf_mixup.cli.train.training_dry_run import check_accelerator, check_optimizer, check_reporting, check_torch
from hf_mixup.cli.train.training_option_table import FOLLOW_A_METRIC, OPTIONS
from hf_mixup.training.metric_names import higher_is_better

# Values that say what a comparison does anyway; YAML reads an unquoted no as false.
IN_COMPARISON: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("eval_strategy", "save_strategy", "logging_strategy"), ("no", False)),
    "report_to": ("none", ["none"]),
    "lr_scheduler_type": tuple(item.value for item in SchedulerType if item not in FOLLOW_A_METRIC),
}
LOGGED_SHARE = 0.05
DEFAULTS = {item.name: item.default for item in fields(TrainingArguments)}


def check_options(args: TrainingArguments, given: set[str]) -> None:
    """Check and complete the options of a run, before anything is loaded.

    Args:
        args (`TrainingArguments`): `greater_is_better`, the mode of a schedule that follows a metric and, unless given,
            `logging_steps` are set here.
        given (`set[str]`): the names that the user wrote, in a file or on the command line, with a value.

    Raises:
        ValueError: for an option that cannot work, would be ignored, or needs a package that is not installed; the
            message names the field, the value and the reason.
    """
    check_training_options(args, given)
    set_metric_direction(args, given)
    check_reporting(args)
    check_torch(args)
    check_accelerator(args)
    check_optimizer(args, given)
    if args.logging_strategy == "steps" and "logging_steps" not in given:
        # That of transformers is 500, so that a short training would show no loss.
        args.logging_steps = LOGGED_SHARE


def check_training_options(args: TrainingArguments, given: set[str]) -> None:
    """Raise `ValueError` for a value that cannot work, or a given option that would be ignored."""
    names = {field_name(name) for name in given}
    for name, option in OPTIONS.items():
        value = getattr(args, name, None)
        value = value.value if isinstance(value, Enum) else value
        if option.check is not None and value is not None:
            option.check(name, value)
        if option.used is not None and name in names and value is not None and not option.used(args, names):
            raise ValueError(f"{name}={value!r}: {option.why}.")
    for name in ("do_train", "do_eval", "do_predict"):
        if name in names and not getattr(args, name):
            raise ValueError(f"{name}=False: every run trains and then evaluates; leave it out.")


def set_metric_direction(args: TrainingArguments, given: set[str]) -> None:
    """Let the best model, and a schedule that follows a metric, go by the direction of `metric_for_best_model`.

    `greater_is_better` and `lr_scheduler_kwargs["mode"]` are set unless given. Raises `ValueError` if a given
    direction contradicts the metric.
    """
    metric = args.metric_for_best_model
    up = None if metric is None else higher_is_better(metric.removeprefix("eval_"))
    if up is None:
        return
    direction = f"{metric} is better when it is {'higher' if up else 'lower'}; leave it out"
    if "greater_is_better" in given and args.greater_is_better != up:
        raise ValueError(f"greater_is_better={args.greater_is_better}: {direction}.")
    args.greater_is_better = up
    if args.lr_scheduler_type not in FOLLOW_A_METRIC:
        return
    options, mode = dict(args.lr_scheduler_kwargs or {}), "max" if up else "min"  # type: ignore[arg-type]
    if options.setdefault("mode", mode) != mode:
        raise ValueError(f"lr_scheduler_kwargs={options!r}: mode: {direction}.")
    args.lr_scheduler_kwargs = options


def field_name(name: str) -> str:
    """The field that an option sets: `--no-logging-first-step` sets `logging_first_step`."""
    name = name.replace("-", "_")
    return name if name in OPTIONS else name.removeprefix("no_")


def refused_in_comparison(given: Mapping[str, Any], where: str = "") -> None:
    """Raise `ValueError` for an option that a comparison would ignore, unless its value is what a comparison does.

    Args:
        given (`Mapping`): the fields of the runs, or of a method, as they were written.
        where (`str`): the end of the message, such as `" (in the method 'tmix')"`.
    """
    for name, value in given.items():
        option = OPTIONS.get(field_name(name))
        harmless = IN_COMPARISON.get(field_name(name), (DEFAULTS.get(field_name(name)),))
        if option is not None and option.compare and value is not None and value not in harmless:
            raise ValueError(f"{name}={value!r}: {option.compare}{where}.")
