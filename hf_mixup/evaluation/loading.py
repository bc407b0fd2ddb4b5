"""The metrics as modules of `evaluate`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import evaluate
from datasets import Features, Sequence, Value

from hf_mixup.config.checks import choice
from hf_mixup.evaluation.metrics import classification_metrics, multilabel_metrics, regression_metrics
from hf_mixup.training.metric_names import METRIC_NAMES

SCORE, SCORES, CLASS = Value("float64"), Sequence(Value("float64")), Value("int64")


class _Module(evaluate.Metric):
    """Some of the metrics of a problem type; all are nan if a prediction is not finite."""

    metrics: Callable[..., dict[str, float]]
    names: tuple[str, ...]
    predictions, references = SCORES, CLASS

    def _info(self) -> evaluate.MetricInfo:
        features = Features({"predictions": self.predictions, "references": self.references})
        inputs = f"{self.__doc__}\nReturns:\n    {', '.join(self.names)}; nan if a prediction is not finite."
        return evaluate.MetricInfo(description=self.__doc__, citation="", inputs_description=inputs, features=features)

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        found = self.metrics(predictions, references)
        return {name: found[name] for name in self.names}


class Classification(_Module):
    """Accuracy and macro F1, from logits and class indices; rows with -100 are left out."""

    metrics, names = staticmethod(classification_metrics), ("accuracy", "macro_f1")


class Calibration(_Module):
    """Negative log-likelihood, Brier score, two calibration errors and AURC, from logits and class indices."""

    metrics, names = staticmethod(classification_metrics), ("nll", "brier", "ece", "adaptive_ece", "aurc")


class Multilabel(_Module):
    """F1, ranking precision, likelihood and calibration of several labels, from logits and 0 or 1 per label."""

    metrics, names = staticmethod(multilabel_metrics), METRIC_NAMES["multi_label_classification"]
    references = SCORES


class Regression(_Module):
    """Pearson and Spearman correlation and root mean squared error, from one score per example."""

    metrics, names = staticmethod(regression_metrics), METRIC_NAMES["regression"]
    predictions, references = SCORE, SCORE


MODULES = {"classification": Classification, "calibration": Calibration}
MODULES |= {"multilabel": Multilabel, "regression": Regression}


def load(name: str, **options: Any) -> evaluate.Metric:
    """A module with `add_batch` and `compute(predictions=..., references=...)`; `evaluate.combine` joins several.

    ```python
    >>> metric = load("regression")
    >>> metric.add_batch(predictions=[1.0, 2.0, 4.0], references=[1.0, 2.0, 3.0])
    >>> round(metric.compute()["rmse"], 3)
    0.577
    ```

    Args:
        name (`str`): what is computed.
            - `"classification"`: accuracy and macro F1, from logits and class indices
            - `"calibration"`: NLL, Brier score, ECE, adaptive ECE and AURC, from the same
            - `"multilabel"`: the metrics of `multilabel_metrics`, from logits and 0 or 1 per label
            - `"regression"`: Pearson, Spearman and RMSE, from one score per example
        **options: of `evaluate.Metric`, such as `keep_in_memory`, `cache_dir`, `num_process` or `process_id`.

    Raises:
        ValueError: for another name.
    """
    return MODULES[choice(*MODULES)("name", name)](**options)
