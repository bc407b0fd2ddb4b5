"""By what the trials of a hyperparameter search are compared, and in which direction."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_utils import default_compute_objective

from hf_mixup.config import checks
from hf_mixup.config.checks import nearest
from hf_mixup.training.metric_names import higher_is_better

DIRECTIONS = {True: "maximize", False: "minimize"}
# Ends of the names of times, which are no metrics.
NOT_SUMMED = ("_runtime", "_per_second", "_model_preparation_time")


def metric_of_evaluation(metrics: Mapping[str, float], name: str) -> float:
    """The metric `name`, without its `eval_`. Raises `ValueError` if the evaluation did not return it."""
    if f"eval_{name}" not in metrics:
        known = _names_in(metrics)
        hint = f"{nearest(name, known)} Metrics: {', '.join(known) or 'none'}."
        raise ValueError(f"metric_for_best_model={name!r}: not a metric of the evaluation.{hint}")
    return metrics[f"eval_{name}"]


def sum_of_metrics(metrics: Mapping[str, float], direction: str) -> float:
    """Trainer's default objective: all metrics but the loss, or the loss if there are no others.

    Raises:
        ValueError: if the metrics are not all better in `direction`, as far as that is known.
    """
    check_direction([name for name in _names_in(metrics) if name != "loss"] or ["loss"], direction)
    return default_compute_objective({n: v for n, v in metrics.items() if not n.endswith(NOT_SUMMED)})


def _names_in(metrics: Iterable[str]) -> list[str]:
    return [name.removeprefix("eval_") for name in metrics if name != "epoch" and not name.endswith(NOT_SUMMED)]


def check_direction(names: Iterable[str], direction: str | None) -> None:
    """Raise `ValueError` if metrics, as far as they are known, are better in different directions, or not in this."""
    by_direction: dict[str, list[str]] = {}
    for name in names:
        up = higher_is_better(name)
        if up is not None:
            by_direction.setdefault(DIRECTIONS[up], []).append(name)
    advice = "set metric_for_best_model in the training arguments, or give compute_objective"
    if len(by_direction) > 1:
        words = "; ".join(f"{word} {', '.join(same)}" for word, same in by_direction.items())
        raise ValueError(f"The objective would be a sum of metrics that do not go together ({words}): {advice}.")
    for word, same in by_direction.items():
        if direction not in (None, word):
            raise ValueError(f"direction={direction!r}: give direction={word!r} for {', '.join(same)}, {advice}.")


@dataclass
class Objective:
    """What a trial is compared by. A value that is not finite becomes the worst one, so that the trial loses.

    Args:
        compute (`Callable`): takes the metrics of an evaluation and returns a number, or a list of them.
        direction (`str` or `list[str]`): `"minimize"` or `"maximize"`, or one of them for each number.
        metric (`str`, *optional*): the name of the metric that it is, if it is one.
    """

    compute: Callable[[dict[str, float]], Any]
    direction: str | list[str]
    metric: str | None = None

    def __call__(self, metrics: dict[str, float]) -> Any:
        value = self.compute(metrics)
        if _is_finite(value):
            return value
        worst = {"minimize": math.inf, "maximize": -math.inf}
        return worst[self.direction] if isinstance(self.direction, str) else [worst[word] for word in self.direction]


def choose_objective(
    args: TrainingArguments,
    compute_objective: Callable[[dict[str, float]], Any] | None,
    direction: str | list[str] | None,
    has_metrics: bool,
    judged: str | None = None,
) -> Objective:
    """By what the trials of a search are compared, and in which direction.

    Args:
        args (`TrainingArguments`): `metric_for_best_model` is the objective if no other is given.
        compute_objective (`Callable`, *optional*): the user's own.
        direction (`str` or `list[str]`, *optional*): the user's own.
        has_metrics (`bool`): whether there is a `compute_metrics`, without which the loss is the only metric.
        judged (`str`, *optional*): `metric_for_best_model` without the name of an evaluation set.

    Raises:
        ValueError: for an unknown direction, or one in which the metric does not get better.
    """
    for word in direction if isinstance(direction, list) else [direction]:
        if word is not None:
            checks.choice(*DIRECTIONS.values())("direction", word)
    if compute_objective is not None:
        return Objective(compute_objective, direction or "minimize")
    if isinstance(direction, list):
        raise ValueError(f"direction={direction!r}: a list needs a compute_objective that returns as many numbers.")
    if args.metric_for_best_model:
        name = args.metric_for_best_model.removeprefix("eval_")
        check_direction([judged or name], direction)
        up = higher_is_better(judged or name)
        direction = direction or DIRECTIONS[bool(args.greater_is_better) if up is None else up]
        return Objective(partial(metric_of_evaluation, name=name), direction, name)
    if not has_metrics:
        check_direction(["loss"], direction)
    direction = direction or "minimize"
    return Objective(partial(sum_of_metrics, direction=direction), direction)


def check_best(best: Any) -> None:
    """Raise `ValueError` if the best trial, or all of several best ones, have an objective that is not finite."""
    runs = best if isinstance(best, list) else [best]
    if best is not None and runs and not any(_is_finite(run.objective) for run in runs):
        raise ValueError("hyperparameter_search: every trial diverged, no objective was finite; search lower rates.")


def _is_finite(value: Any) -> bool:
    return all(math.isfinite(item) for item in (value if isinstance(value, (list, tuple)) else [value]))
