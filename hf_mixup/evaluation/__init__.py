"""How good a classifier is, and how well it knows."""

from typing import TYPE_CHECKING

from hf_mixup.config.lazy import lazy_names

if TYPE_CHECKING:
    from hf_mixup.evaluation.calibration import reliability
    from hf_mixup.evaluation.loading import load
    from hf_mixup.evaluation.metrics import (
        classification_metrics,
        compute_metrics_for,
        first_output,
        multilabel_metrics,
        regression_metrics,
        token_metrics,
    )
    from hf_mixup.evaluation.outliers import outlier_metrics
    from hf_mixup.evaluation.perturbation import flips, perturb
    from hf_mixup.evaluation.predictions import diverged
    from hf_mixup.evaluation.stored_temperature import fold_temperature, scaled_logits
    from hf_mixup.evaluation.temperature import fit_temperature, scaled_metrics, store_temperature
    from hf_mixup.training.metric_names import higher_is_better

__all__ = [
    "classification_metrics",
    "compute_metrics_for",
    "diverged",
    "first_output",
    "fit_temperature",
    "flips",
    "fold_temperature",
    "higher_is_better",
    "load",
    "multilabel_metrics",
    "outlier_metrics",
    "perturb",
    "regression_metrics",
    "reliability",
    "scaled_logits",
    "scaled_metrics",
    "store_temperature",
    "token_metrics",
]

# Most need the packages of the `cli` extra, which `inspect_model` does not.
__getattr__ = lazy_names(
    __name__,
    {
        "evaluation.calibration": ["reliability"],
        "evaluation.loading": ["load"],
        "evaluation.metrics": [
            "classification_metrics",
            "compute_metrics_for",
            "first_output",
            "multilabel_metrics",
            "regression_metrics",
            "token_metrics",
        ],
        "evaluation.outliers": ["outlier_metrics"],
        "evaluation.perturbation": ["flips", "perturb"],
        "evaluation.predictions": ["diverged"],
        "evaluation.stored_temperature": ["fold_temperature", "scaled_logits"],
        "evaluation.temperature": ["fit_temperature", "scaled_metrics", "store_temperature"],
        "training.metric_names": ["higher_is_better"],
    },
)
