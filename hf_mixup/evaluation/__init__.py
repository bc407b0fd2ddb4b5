"""How good a classifier is, and how well it knows."""

from hf_mixup.evaluation.metrics import (
    classification_metrics,
    compute_metrics_for,
    multilabel_metrics,
    regression_metrics,
)

__all__ = ["classification_metrics", "compute_metrics_for", "multilabel_metrics", "regression_metrics"]
