"""How good a classifier is, and how well it knows."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hf_mixup.config.extras import install_advice

if TYPE_CHECKING:
    from hf_mixup.evaluation.calibration import reliability
    from hf_mixup.evaluation.loading import load
    from hf_mixup.evaluation.metrics import (
        classification_metrics,
        compute_metrics_for,
        multilabel_metrics,
        regression_metrics,
    )
    from hf_mixup.evaluation.outliers import outlier_metrics
    from hf_mixup.evaluation.perturbation import flips, perturb
    from hf_mixup.evaluation.predictions import diverged
    from hf_mixup.evaluation.temperature import fit_temperature, scaled_metrics
    from hf_mixup.training.metric_names import higher_is_better

__all__ = [
    "classification_metrics",
    "compute_metrics_for",
    "diverged",
    "fit_temperature",
    "flips",
    "higher_is_better",
    "load",
    "multilabel_metrics",
    "outlier_metrics",
    "perturb",
    "regression_metrics",
    "reliability",
    "scaled_metrics",
]

# Loaded when first used: most need the packages of the `cli` extra, which `inspect_model` does not.
_MODULES = {
    "evaluation.calibration": ["reliability"],
    "evaluation.loading": ["load"],
    "evaluation.metrics": ["classification_metrics", "compute_metrics_for", "multilabel_metrics", "regression_metrics"],
    "evaluation.outliers": ["outlier_metrics"],
    "evaluation.perturbation": ["flips", "perturb"],
    "evaluation.predictions": ["diverged"],
    "evaluation.temperature": ["fit_temperature", "scaled_metrics"],
    "training.metric_names": ["higher_is_better"],
}


def __getattr__(name: str) -> Any:
    module = next((module for module, names in _MODULES.items() if name in names), None)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"hf_mixup.{module}"), name)
    except ModuleNotFoundError as error:
        raise ImportError(install_advice(error) or str(error)) from error
