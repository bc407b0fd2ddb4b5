"""The names of metrics, and which way each is better. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from hf_mixup.config.checks import nearest
from hf_mixup.config.tags import OUTSIDE_TAG, PLACED, PLACES

METRIC_NAMES = {
    "single_label_classification": ("accuracy", "macro_f1", "nll", "brier", "ece", "adaptive_ece", "aurc"),
    "multi_label_classification": ("micro_f1", "macro_f1", "subset_accuracy", "lrap", "nll", "brier", "label_ece"),
    "regression": ("pearson", "spearman", "rmse"),
    "token_classification": ("f1", "precision", "recall", "accuracy", "nll", "brier", "ece", "entity_ece"),
}
# Of tags that mark no entities, such as parts of speech.
TAG_METRICS = ("accuracy", "macro_f1", "nll", "brier", "ece")

# What tells a better model, for names after `dev_` or `eval_` is taken off.
HIGHER_IS_BETTER = {
    **dict.fromkeys(("accuracy*", "*f1", "subset_accuracy", "lrap*", "pearson*", "spearman*", "ood_auroc_*"), True),
    **dict.fromkeys(("precision", "recall"), True),
    **dict.fromkeys(("loss", "test_loss", "path_loss", "nll*", "brier*", "*ece*", "aurc*", "rmse", "flips_*"), False),
    **dict.fromkeys(("ood_fpr95_*", "memorised", "gradient_norm"), False),
}


def higher_is_better(metric: str) -> bool | None:
    """The direction of a metric.

    ```python
    >>> higher_is_better("eval_nll"), higher_is_better("accuracy")
    (False, True)
    ```

    Args:
        metric (`str`): a name, such as `"nll_scaled"`, `"accuracy_dropout_0.1"` or `"eval_nll"`; `dev_` or `eval_` in
            front changes nothing.

    Returns:
        `bool | None`: None for what is neither good nor bad by itself, such as `temperature` or `train_loss`.
    """
    name = metric.removeprefix("dev_").removeprefix("eval_")
    return next((up for pattern, up in HIGHER_IS_BETTER.items() if fnmatchcase(name, pattern)), None)


def has_entities(label_names: Iterable[str]) -> bool:
    """Whether tags mark entities: one begins with its place, such as `B-` or `I-`, or all are places or `O`."""
    names = set(label_names)
    return any(map(PLACED.match, names)) or ({"B", "I"} <= names <= {*PLACES, OUTSIDE_TAG})


def metric_names(problem_type: str, label_names: Sequence[str] = ()) -> tuple[str, ...]:
    """What an evaluation returns. Of tokens the names of the tags decide whether there are entities."""
    is_tags = problem_type == "token_classification" and not has_entities(label_names)
    return TAG_METRICS if is_tags else METRIC_NAMES[problem_type]


def check_metric_name(
    problem_type: str, name: str, field: str = "metric_for_best_model", label_names: Sequence[str] = ()
) -> None:
    """Raises `ValueError` if `name`, with or without `eval_`, is not what an evaluation returns."""
    names = ("loss", *metric_names(problem_type, label_names))
    if name.removeprefix("eval_") not in names:
        raise ValueError(
            f"{field}={name!r}: no such metric of {problem_type.replace('_', ' ')}."
            f"{nearest(name.removeprefix('eval_'), names)} Metrics: {', '.join(names)}."
        )
