"""How good a classifier is, and how well it knows."""

from hf_mixup.evaluation.calibration import reliability
from hf_mixup.evaluation.loading import load
from hf_mixup.evaluation.metrics import (
    classification_metrics,
    compute_metrics_for,
    higher_is_better,
    multilabel_metrics,
    regression_metrics,
)
from hf_mixup.evaluation.outliers import outlier_metrics
from hf_mixup.evaluation.perturbation import flips, perturb
from hf_mixup.evaluation.predictions import diverged
from hf_mixup.evaluation.temperature import fit_temperature, scaled_metrics

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
