"""What metrics are made of: predictions and labels that fit each other, and whether a model has diverged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

# The label by which transformers leaves a row out.
IGNORED = -100


def diverged(logits: Any) -> bool:
    """Whether any of the numbers is nan or infinite: the argmax of nan is class 0, so such logits predict nothing.

    ```python
    >>> diverged(np.array([0.5, np.nan]))
    True
    ```

    Args:
        logits (`np.ndarray` or `torch.Tensor` on the CPU): of any shape.
    """
    return not np.isfinite(np.asarray(logits)).all()


def single_label(logits: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """Logits (examples, classes) in float64 and class indices (examples,) in int64, without rows labeled -100.

    Raises:
        ValueError: for shapes that do not belong together, a label that is neither a class index nor -100, or no
            examples.
    """
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise ValueError(_shapes("logits (examples, classes), labels (examples,)", logits, labels))
    classes = logits.shape[1]
    _refuse(~np.isin(labels, [IGNORED, *range(classes)]), labels, f"0 to {classes - 1}, or {IGNORED} to leave it out")
    kept = labels != IGNORED
    if not kept.any():
        raise ValueError(f"labels: {IGNORED} in every row; expected at least one example that is not left out.")
    return logits[kept], labels[kept].astype(np.int64)


def labelled_tokens(logits: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """Logits (tokens, classes) in float64 and class indices (tokens,) of the tokens of all texts that have a label.

    Args:
        logits (`np.ndarray`): shape (examples, length, classes).
        labels (`np.ndarray`): class indices, shape (examples, length); tokens labeled -100 are left out.

    Raises:
        ValueError: for shapes that do not belong together, a label that is neither a class index nor -100, or no
            token with a label.
    """
    logits, labels = np.asarray(logits), np.asarray(labels)
    if logits.ndim != 3 or labels.shape != logits.shape[:2] or not labels.size:
        raise ValueError(_shapes("logits (examples, length, classes), labels (examples, length)", logits, labels))
    kept = labels != IGNORED
    if not kept.any():
        raise ValueError(f"labels: {IGNORED} for every token; expected at least one token that is not left out.")
    return single_label(logits[kept], labels[kept])


def several_labels(logits: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels of 0 or 1, both (examples, labels) in float64.

    Raises:
        ValueError: for shapes that do not belong together, a label that is not 0 or 1, or no examples.
    """
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if logits.ndim != 2 or labels.shape != logits.shape or not len(labels):
        raise ValueError(_shapes("logits and labels (examples, labels)", logits, labels))
    _refuse(~np.isin(labels, (0, 1)), labels, "0 or 1")
    return logits, labels


def one_score(predictions: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true scores, both (examples,) in float64, from shapes (examples,) or (examples, 1).

    Raises:
        ValueError: for shapes that do not belong together, a label that is not finite, or fewer than two examples.
    """
    predictions, labels = np.asarray(predictions, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    shapes = ((labels.size,), (labels.size, 1))
    if labels.size < 2 or predictions.shape not in shapes or labels.shape not in shapes:
        raise ValueError(_shapes("one score per example, two examples or more", predictions, labels))
    predictions, labels = predictions.reshape(-1), labels.reshape(-1)
    _refuse(~np.isfinite(labels), labels, "a finite number")
    return predictions, labels


CHECKS: dict[str, Callable[[Any, Any], tuple[np.ndarray, np.ndarray]]] = {
    "single_label_classification": single_label,
    "multi_label_classification": several_labels,
    "regression": one_score,
    "token_classification": labelled_tokens,
}


def _refuse(wrong: np.ndarray, labels: np.ndarray, allowed: str) -> None:
    """Raises `ValueError` for the first label that is `wrong`."""
    places = np.argwhere(wrong)
    if len(places):
        raise ValueError(f"labels: {labels[tuple(places[0])]} in row {places[0][0]}; expected {allowed}.")


def _shapes(expected: str, scores: np.ndarray, labels: np.ndarray) -> str:
    return f"expected {expected}; got shapes {scores.shape} and {labels.shape}."
