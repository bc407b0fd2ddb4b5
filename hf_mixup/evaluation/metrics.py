"""Metrics of a set of predictions: arrays in, a dict of floats out."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from scipy.special import expit, softmax
from scipy.stats import ConstantInputWarning, pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, label_ranking_average_precision_score, root_mean_squared_error
from torch.nn import functional as F
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error
from transformers import EvalPrediction

from hf_mixup.checks import nearest

ECE_BINS = 15
# torchmetrics bins in float32 and gives a probability of exactly 1 a bin of its own, a 16th.
BELOW_ONE = float(np.nextafter(np.float32(1), np.float32(0)))


def classification_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Metrics of single-label predictions.

    Args:
        logits (`np.ndarray`): scores before the softmax, shape (examples, classes).
        labels (`np.ndarray`): class indices, shape (examples,).

    Returns:
        `dict[str, float]`: `accuracy`; `macro_f1`, over the classes that occur in labels or predictions; `nll`, the
        mean negative log-likelihood in nats; `brier`, the squared distance between probabilities and one-hot labels,
        summed over classes (0 to 2); `ece`, the expected calibration error over 15 equal-width bins, and
        `adaptive_ece`, over 15 bins with the same number of examples (both 0 to 1).

    Raises:
        ValueError: for shapes that do not belong together, or no examples.
    """
    logits, labels = _single_label(logits, labels)
    # Softmax first: torchmetrics would take logits that lie in [0, 1] for probabilities.
    probabilities = softmax(logits, axis=1)
    predicted = probabilities.argmax(axis=1)
    one_hot = np.eye(logits.shape[1])[labels]
    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        "macro_f1": float(f1_score(labels, predicted, average="macro", zero_division=0)),
        "nll": float(F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels).long())),
        "brier": float(np.square(probabilities - one_hot).sum(axis=1).mean()),
        "ece": float(
            multiclass_calibration_error(
                torch.from_numpy(probabilities.clip(max=BELOW_ONE)),
                torch.from_numpy(labels).long(),
                num_classes=logits.shape[1],
                n_bins=ECE_BINS,
            )
        ),
        "adaptive_ece": _adaptive_ece(probabilities.max(axis=1), predicted == labels),
    }


def _adaptive_ece(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Calibration error over bins of equal mass; equal confidences are divided in the order of the examples."""
    gaps = (correct - confidence)[np.argsort(confidence, kind="stable")]
    return float(sum(abs(part.sum()) for part in np.array_split(gaps, ECE_BINS)) / len(gaps))


def reliability(logits: np.ndarray, labels: np.ndarray) -> dict[str, list[Any]]:
    """What a reliability diagram shows: accuracy by confidence, the probability of the predicted class.

    Args:
        logits (`np.ndarray`): scores before the softmax, shape (examples, classes).
        labels (`np.ndarray`): class indices, shape (examples,).

    Returns:
        `dict[str, list]`: `confidence` and `accuracy`, the means over the examples of each of 15 equal-width bins from
        0 to 1 (None where a bin is empty), and `count`, the examples in it.

    Raises:
        ValueError: for shapes that do not belong together, or no examples.
    """
    logits, labels = _single_label(logits, labels)
    probabilities = softmax(logits, axis=1)
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1)
    members = [bins == number for number in range(ECE_BINS)]
    return {
        "confidence": [float(confidence[member].mean()) if member.any() else None for member in members],
        "accuracy": [float(correct[member].mean()) if member.any() else None for member in members],
        "count": [int(member.sum()) for member in members],
    }


def _single_label(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise ValueError(_shapes("logits (examples, classes), labels (examples,)", logits, labels))
    return logits, labels


def multilabel_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Metrics of multi-label predictions; a label is predicted where its probability exceeds one half.

    Args:
        logits (`np.ndarray`): scores before the sigmoid, shape (examples, labels).
        labels (`np.ndarray`): 0 or 1 per label, same shape.

    Returns:
        `dict[str, float]`: `micro_f1`; `macro_f1`, over all labels; `subset_accuracy`, the share of examples with
        every label right; `lrap`, the label-ranking average precision, which needs no threshold (0 to 1); `nll`, the
        binary cross-entropy in nats, and `brier`, the squared error of the probabilities, both means over examples
        and labels; `label_ece`, the mean over labels of the calibration error of the label's probability, over 15
        equal-width bins (0 to 1).

    Raises:
        ValueError: for shapes that do not belong together, or no examples.
    """
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if logits.ndim != 2 or labels.shape != logits.shape or not len(labels):
        raise ValueError(_shapes("logits and labels (examples, labels)", logits, labels))
    predicted, truth, probabilities = (logits > 0).astype(int), labels.astype(int), expit(logits)
    return {
        "micro_f1": float(f1_score(truth, predicted, average="micro", zero_division=0)),
        "macro_f1": float(f1_score(truth, predicted, average="macro", zero_division=0)),
        "subset_accuracy": float((truth == predicted).all(axis=1).mean()),
        "lrap": float(label_ranking_average_precision_score(truth, logits)),
        "nll": float(F.binary_cross_entropy_with_logits(torch.from_numpy(logits), torch.from_numpy(labels))),
        "brier": float(np.square(probabilities - labels).mean()),
        "label_ece": float(np.mean([_binary_ece(*label) for label in zip(probabilities.T, truth.T, strict=True)])),
    }


def _binary_ece(probabilities: np.ndarray, truth: np.ndarray) -> float:
    return float(
        binary_calibration_error(
            torch.from_numpy(probabilities.astype(np.float32).clip(max=BELOW_ONE)),
            torch.from_numpy(truth.copy()),
            n_bins=ECE_BINS,
        )
    )


def regression_metrics(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Metrics of predicted scores.

    Args:
        predictions (`np.ndarray`): shape (examples,) or (examples, 1), in the unit of the labels.
        labels (`np.ndarray`): shape (examples,) or (examples, 1).

    Returns:
        `dict[str, float]`: `pearson` and `spearman` correlations (nan where either side is constant) and `rmse`, the
        root mean squared error in the unit of the labels.

    Raises:
        ValueError: for shapes that do not belong together, or fewer than two examples.
    """
    predictions, labels = np.asarray(predictions, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if predictions.size != len(predictions) or labels.size != predictions.size or labels.size < 2:
        raise ValueError(_shapes("one score per example, two examples or more", predictions, labels))
    predictions, labels = predictions.reshape(-1), labels.reshape(-1)
    with warnings.catch_warnings():
        # The nan says it, and before the first update all scores may be equal.
        warnings.simplefilter("ignore", ConstantInputWarning)
        correlations = {
            "pearson": float(pearsonr(predictions, labels).statistic),
            "spearman": float(spearmanr(predictions, labels).statistic),
        }
    return correlations | {"rmse": float(root_mean_squared_error(labels, predictions))}


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], dict[str, float]]] = {
    "single_label_classification": classification_metrics,
    "multi_label_classification": multilabel_metrics,
    "regression": regression_metrics,
}


METRIC_NAMES = {
    "single_label_classification": ("accuracy", "macro_f1", "nll", "brier", "ece", "adaptive_ece"),
    "multi_label_classification": ("micro_f1", "macro_f1", "subset_accuracy", "lrap", "nll", "brier", "label_ece"),
    "regression": ("pearson", "spearman", "rmse"),
}


# What tells a better model, for names after `dev_` is taken off.
HIGHER_IS_BETTER = {
    "accuracy*": True,
    "*f1": True,
    "subset_accuracy": True,
    "lrap*": True,
    "pearson*": True,
    "spearman*": True,
    "ood_auroc_*": True,
    "loss": False,
    "test_loss": False,
    "path_loss": False,
    "nll*": False,
    "brier*": False,
    "*ece*": False,
    "rmse": False,
    "flips_*": False,
    "ood_fpr95_*": False,
    "memorised": False,
    "gradient_norm": False,
}


def higher_is_better(metric: str) -> bool | None:
    """The direction of a metric.

    Args:
        metric (`str`): a name, such as `"nll_scaled"`, `"accuracy_dropout_0.1"` or `"dev_accuracy"`; `dev_` in front
            changes nothing.

    Returns:
        `bool | None`: None for what is neither good nor bad by itself, such as `temperature` or `train_loss`.
    """
    name = metric.removeprefix("dev_")
    return next((up for pattern, up in HIGHER_IS_BETTER.items() if fnmatchcase(name, pattern)), None)


def check_metric_name(problem_type: str, name: str, field: str = "metric_for_best_model") -> None:
    """Raises `ValueError` where `name`, with or without `eval_`, is not what an evaluation returns."""
    names = ("loss", *METRIC_NAMES[problem_type])
    if name.removeprefix("eval_") not in names:
        raise ValueError(
            f"{field}={name!r}: no such metric of {problem_type.replace('_', ' ')}."
            f"{nearest(name.removeprefix('eval_'), names)} Metrics: {', '.join(names)}."
        )


def compute_metrics_for(problem_type: str) -> Callable[[EvalPrediction], dict[str, float]]:
    """The `compute_metrics` for a `Trainer`.

    Args:
        problem_type (`str`): `"single_label_classification"`, `"multi_label_classification"` or `"regression"`.

    Raises:
        ValueError: for another problem type.
    """
    if problem_type not in METRICS:
        raise ValueError(
            f"problem_type={problem_type!r}: expected one of {', '.join(METRICS)}.{nearest(problem_type, METRICS)}"
        )
    metrics = METRICS[problem_type]

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        return metrics(first_output(prediction.predictions), np.asarray(prediction.label_ids))

    return compute_metrics


def first_output(outputs: Any, labels: Any = None) -> Any:
    """The logits among a model's outputs: T5 and BART return more. Also a `preprocess_logits_for_metrics`."""
    return outputs[0] if isinstance(outputs, tuple) else outputs


def _shapes(expected: str, scores: np.ndarray, labels: np.ndarray) -> str:
    return f"expected {expected}; got shapes {scores.shape} and {labels.shape}."
