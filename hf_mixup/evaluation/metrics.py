"""Metrics of a set of predictions: arrays in, a dict of floats out."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.special import expit, softmax
from scipy.stats import ConstantInputWarning, pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, label_ranking_average_precision_score, root_mean_squared_error
from torch.nn import functional as F
from transformers import EvalPrediction

from hf_mixup.config.checks import choice
from hf_mixup.evaluation.calibration import adaptive_ece, aurc, binary_ece, ece
from hf_mixup.evaluation.entities import entity_metrics
from hf_mixup.evaluation.predictions import IGNORED, diverged, labelled_tokens, one_score, several_labels, single_label
from hf_mixup.training.metric_names import METRIC_NAMES, has_entities, metric_names


def classification_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Metrics of single-label predictions.

    ```python
    >>> metrics = classification_metrics(np.array([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]]), np.array([0, 1, 1]))
    >>> round(metrics["accuracy"], 3), round(metrics["ece"], 3)
    (0.667, 0.447)
    ```

    Args:
        logits (`np.ndarray`): scores before the softmax, shape (examples, classes).
        labels (`np.ndarray`): class indices, shape (examples,); rows labeled -100 are left out.

    Returns:
        `dict[str, float]`: `accuracy`; `macro_f1`, over the classes that occur in labels or predictions; `nll`, the
        mean negative log-likelihood in nats; `brier`, the squared distance between probabilities and one-hot labels,
        summed over classes (0 to 2); `ece`, the expected calibration error over 15 equal-width bins, and
        `adaptive_ece`, over 15 bins with the same number of examples (both 0 to 1). The adaptive bins hold at least 10
        examples, so below 150 there are fewer of them, and examples of equal confidence share a bin; `aurc`, the area
        under the risk-coverage curve: the mean error rate of the most confident examples (0 to 1). Every metric is
        nan if a logit is not finite.

    Raises:
        ValueError: for shapes that do not belong together, labels that are no class indices, or no examples.
    """
    logits, labels = single_label(logits, labels)
    if diverged(logits):
        return unmeasured("single_label_classification")
    # Softmax first: torchmetrics would take logits that lie in [0, 1] for probabilities.
    probabilities = softmax(logits, axis=1)
    predicted = probabilities.argmax(axis=1)
    confidence, correct = probabilities.max(axis=1), predicted == labels
    one_hot = np.eye(logits.shape[1])[labels]
    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        "macro_f1": float(f1_score(labels, predicted, average="macro", zero_division=0)),
        "nll": float(F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels))),
        "brier": float(np.square(probabilities - one_hot).sum(axis=1).mean()),
        "ece": ece(probabilities, labels),
        "adaptive_ece": adaptive_ece(confidence, correct),
        "aurc": aurc(confidence, correct),
    }


def multilabel_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Metrics of multi-label predictions; a label is predicted if its probability exceeds one half.

    ```python
    >>> metrics = multilabel_metrics(np.array([[2.0, -1.0], [-1.0, 3.0]]), np.array([[1, 0], [1, 1]]))
    >>> metrics["micro_f1"], metrics["subset_accuracy"]
    (0.8, 0.5)
    ```

    Args:
        logits (`np.ndarray`): scores before the sigmoid, shape (examples, labels).
        labels (`np.ndarray`): 0 or 1 per label, same shape.

    Returns:
        `dict[str, float]`: `micro_f1`; `macro_f1`, over all labels; `subset_accuracy`, the share of examples with
        every label right; `lrap`, the label-ranking average precision, which needs no threshold (0 to 1); `nll`, the
        binary cross-entropy in nats, and `brier`, the squared error of the probabilities, both means over examples
        and labels; `label_ece`, the mean over labels of the calibration error of the label's probability, over 15
        equal-width bins (0 to 1). Every metric is nan if a logit is not finite.

    Raises:
        ValueError: for shapes that do not belong together, labels other than 0 and 1, or no examples.
    """
    logits, labels = several_labels(logits, labels)
    if diverged(logits):
        return unmeasured("multi_label_classification")
    predicted, truth, probabilities = (logits > 0).astype(int), labels.astype(int), expit(logits)
    return {
        "micro_f1": float(f1_score(truth, predicted, average="micro", zero_division=0)),
        "macro_f1": float(f1_score(truth, predicted, average="macro", zero_division=0)),
        "subset_accuracy": float((truth == predicted).all(axis=1).mean()),
        "lrap": float(label_ranking_average_precision_score(truth, logits)),
        "nll": float(F.binary_cross_entropy_with_logits(torch.from_numpy(logits), torch.from_numpy(labels))),
        "brier": float(np.square(probabilities - labels).mean()),
        "label_ece": float(np.mean([binary_ece(*label) for label in zip(probabilities.T, truth.T, strict=True)])),
    }


def regression_metrics(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Metrics of predicted scores.

    ```python
    >>> metrics = regression_metrics(np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 3.0]))
    >>> round(metrics["pearson"], 3), round(metrics["rmse"], 3)
    (0.982, 0.577)
    ```

    Args:
        predictions (`np.ndarray`): shape (examples,) or (examples, 1), in the unit of the labels.
        labels (`np.ndarray`): shape (examples,) or (examples, 1).

    Returns:
        `dict[str, float]`: `pearson` and `spearman` correlations (nan if either side is constant) and `rmse`, the
        root mean squared error in the unit of the labels. Every metric is nan if a prediction is not finite.

    Raises:
        ValueError: for shapes that do not belong together, labels that are not finite, or fewer than two examples.
    """
    predictions, labels = one_score(predictions, labels)
    if diverged(predictions):
        return unmeasured("regression")
    with warnings.catch_warnings():
        # The nan says it, and before the first update all scores may be equal.
        warnings.simplefilter("ignore", ConstantInputWarning)
        pearson, spearman = pearsonr(predictions, labels).statistic, spearmanr(predictions, labels).statistic
    rmse = root_mean_squared_error(labels, predictions)
    return {"pearson": float(pearson), "spearman": float(spearman), "rmse": float(rmse)}


def token_metrics(logits: np.ndarray, labels: np.ndarray, label_names: Sequence[str]) -> dict[str, float]:
    """Metrics of a tag per token.

    ```python
    >>> logits = np.array([[[0.0, 3.0, 0.0], [0.0, 0.0, 2.0], [1.0, 0.0, 0.0]]])
    >>> metrics = token_metrics(logits, np.array([[1, 2, -100]]), ["O", "B-place", "I-place"])
    >>> metrics["f1"], round(metrics["entity_ece"], 3)
    (1.0, 0.284)
    ```

    Args:
        logits (`np.ndarray`): scores before the softmax, shape (examples, length, classes).
        labels (`np.ndarray`): class indices, shape (examples, length); tokens labeled -100 are left out.
        label_names (`Sequence[str]`): the tags in the order of their indices.

    Returns:
        `dict[str, float]`: `f1`, `precision` and `recall` of entities, as seqeval counts them; `accuracy`, `nll`,
        `brier` and `ece` over the tokens, as in `classification_metrics`; and `entity_ece`, the calibration error of
        the predicted entities, whose probability is the product of those of their tags (see `entity_metrics`). If no
        tag is of the form `B-type` or `I-type`, as with parts of speech, `accuracy`, `macro_f1`, `nll`, `brier` and
        `ece`. Every metric is nan if a logit of a token with a label is not finite.

    Raises:
        ValueError: for shapes that do not belong together, labels that are no class indices, no label, or other than
            one name per class.
    """
    scores, classes = labelled_tokens(logits, labels)
    if len(label_names) != scores.shape[1]:
        raise ValueError(
            f"label_names: {len(label_names)} names; expected one for each of the {scores.shape[1]} classes."
        )
    names = metric_names("token_classification", label_names)
    if diverged(scores):
        return dict.fromkeys(names, math.nan)
    found = classification_metrics(scores, classes)
    if has_entities(label_names):
        texts = np.nonzero(np.asarray(labels) != IGNORED)[0]
        found |= entity_metrics(softmax(scores, axis=1), classes, texts, label_names)
    return {name: found[name] for name in names}


def unmeasured(problem_type: str) -> dict[str, float]:
    """The metrics of a model that has diverged: nan, each of them."""
    return dict.fromkeys(METRIC_NAMES[problem_type], math.nan)


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], dict[str, float]]] = {
    "single_label_classification": classification_metrics,
    "multi_label_classification": multilabel_metrics,
    "regression": regression_metrics,
}


def metrics_for(
    problem_type: str, label_names: Sequence[str] | None = None
) -> Callable[[np.ndarray, np.ndarray], dict[str, float]]:
    """The metrics of a problem type, from logits and labels; arguments and errors as for `compute_metrics_for`."""
    choice(*METRIC_NAMES)("problem_type", problem_type)
    if problem_type != "token_classification":
        return METRICS[problem_type]
    if not label_names:
        raise ValueError(
            "label_names: needed with token_classification; expected the tags in the order of their indices."
        )
    return partial(token_metrics, label_names=label_names)


def compute_metrics_for(
    problem_type: str, label_names: Sequence[str] | None = None
) -> Callable[[EvalPrediction], dict[str, float]]:
    """The `compute_metrics` for a `Trainer`.

    ```python
    metrics = compute_metrics_for("single_label_classification")
    trainer = MixupTrainer(model=model, args=args, train_dataset=train_dataset, compute_metrics=metrics)
    trainer.evaluate(eval_dataset)["eval_nll"]
    ```

    Args:
        problem_type (`str`): `"single_label_classification"`, `"multi_label_classification"`, `"regression"` or
            `"token_classification"`.
        label_names (`Sequence[str]`, *optional*): the tags in the order of their indices, which tokens need, as the
            tags say where an entity begins.

    Raises:
        ValueError: for another problem type, or tokens without the names of their tags.
    """
    metrics = metrics_for(problem_type, label_names)

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        return metrics(first_output(prediction.predictions), np.asarray(prediction.label_ids))

    return compute_metrics


def first_output(outputs: Any, labels: Any = None) -> Any:
    """The logits among a model's outputs: T5 and BART return more. Also a `preprocess_logits_for_metrics`.

    ```python
    >>> first_output((np.ones((2, 3)), "hidden states")).shape
    (2, 3)
    ```
    """
    return outputs[0] if isinstance(outputs, tuple) else outputs
