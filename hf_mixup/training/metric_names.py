"""The names of metrics, and which way each is better. Imports no torch."""

from __future__ import annotations

from fnmatch import fnmatchcase

from hf_mixup.config.checks import nearest

METRIC_NAMES = {
    "single_label_classification": ("accuracy", "macro_f1", "nll", "brier", "ece", "adaptive_ece", "aurc"),
    "multi_label_classification": ("micro_f1", "macro_f1", "subset_accuracy", "lrap", "nll", "brier", "label_ece"),
    "regression": ("pearson", "spearman", "rmse"),
}

# What tells a better model, for names after `dev_` or `eval_` is taken off.
HIGHER_IS_BETTER = {
    **dict.fromkeys(("accuracy*", "*f1", "subset_accuracy", "lrap*", "pearson*", "spearman*", "ood_auroc_*"), True),
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


def check_metric_name(problem_type: str, name: str, field: str = "metric_for_best_model") -> None:
    """Raises `ValueError` if `name`, with or without `eval_`, is not what an evaluation returns."""
    names = ("loss", *METRIC_NAMES[problem_type])
    if name.removeprefix("eval_") not in names:
        raise ValueError(
            f"{field}={name!r}: no such metric of {problem_type.replace('_', ' ')}."
            f"{nearest(name.removeprefix('eval_'), names)} Metrics: {', '.join(names)}."
        )
