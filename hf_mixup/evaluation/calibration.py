"""Whether probabilities mean what they say: calibration errors, reliability diagrams, and risk by coverage."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.special import softmax
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from hf_mixup.evaluation.predictions import diverged, single_label

ECE_BINS = 15
# What an adaptive bin holds at least: the accuracy of one example is 0 or 1, which says nothing about calibration.
BIN_EXAMPLES = 10
# Confidences that differ by less are equal: rows with the same logits may differ in their last bits.
DECIMALS = 12
# torchmetrics bins in float32 and gives a probability of exactly 1 a bin of its own, a 16th.
BELOW_ONE = float(np.nextafter(np.float32(1), np.float32(0)))


def ece(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error over 15 equal-width bins, from probabilities (examples, classes) and class indices."""
    scores, classes = torch.from_numpy(probabilities.clip(max=BELOW_ONE)), torch.from_numpy(labels).long()
    return float(multiclass_calibration_error(scores, classes, num_classes=scores.shape[1], n_bins=ECE_BINS))


def binary_ece(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Calibration error over 15 equal-width bins of the probability of one label; both arguments (examples,)."""
    scores = torch.from_numpy(probabilities.astype(np.float32).clip(max=BELOW_ONE))
    return float(binary_calibration_error(scores, torch.from_numpy(truth.copy()), n_bins=ECE_BINS))


def adaptive_ece(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Calibration error over bins with the same number of examples, which the order of the examples does not change.

    Args:
        confidence (`np.ndarray`): probability of the predicted class, shape (examples,).
        correct (`np.ndarray`): whether it is the right one, shape (examples,).

    Returns:
        `float`: 0 to 1. There are 15 bins, or fewer so that each holds at least 10 examples, and at least one bin.
        Examples of equal confidence share a bin, so bins differ in size where many are equal.
    """
    _, block, counts = np.unique(confidence.round(DECIMALS), return_inverse=True, return_counts=True)
    gaps = np.bincount(block, weights=correct - confidence)
    return float(np.abs(np.add.reduceat(gaps, _bin_starts(counts.tolist()))).sum() / len(confidence))


def aurc(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Area under the risk-coverage curve: the error rate of the most confident examples, a mean over their number.

    Args:
        confidence (`np.ndarray`): probability of the predicted class, shape (examples,).
        correct (`np.ndarray`): whether it is the right one, shape (examples,).

    Returns:
        `float`: 0 to 1. Examples of equal confidence count as in the mean over their orders.
    """
    _, block, counts = np.unique(-confidence.round(DECIMALS), return_inverse=True, return_counts=True)
    risk = np.bincount(block, weights=1 - correct) / counts
    return float((np.repeat(risk, counts).cumsum() / np.arange(1, len(block) + 1)).mean())


def _bin_starts(counts: list[int]) -> list[int]:
    """The first block of each bin; `counts` are the examples of each block of equal confidence, none is divided."""
    left, filled, starts = sum(counts), 0, [0]
    bins = min(ECE_BINS, left // BIN_EXAMPLES)
    for place, count in enumerate(counts, 1):
        filled += count
        if bins > 1 and filled >= left / bins:
            left, filled = left - filled, 0
            # After a large block there may be too few for the bins that were planned, or for any.
            bins = min(bins - 1, left // BIN_EXAMPLES)
            starts += [place] if bins else []
    return starts


def reliability(logits: np.ndarray, labels: np.ndarray) -> dict[str, list[Any]]:
    """What a reliability diagram shows: accuracy by confidence, the probability of the predicted class.

    ```python
    >>> bins = reliability(np.array([[2.0, 0.0], [3.0, 0.0], [3.1, 0.0]]), np.array([0, 0, 1]))
    >>> bins["accuracy"][13:], bins["count"][13:]
    ([1.0, 0.5], [1, 2])
    ```

    Args:
        logits (`np.ndarray`): scores before the softmax, shape (examples, classes).
        labels (`np.ndarray`): class indices, shape (examples,); rows labeled -100 are left out.

    Returns:
        `dict[str, list]`: `confidence` and `accuracy`, the means over the examples of each of 15 equal-width bins from
        0 to 1 (None if a bin is empty), and `count`, the examples in it. All bins are empty if a logit is not
        finite.

    Raises:
        ValueError: for shapes that do not belong together, labels that are no class indices, or no examples.
    """
    logits, labels = single_label(logits, labels)
    if diverged(logits):
        return {"confidence": [None] * ECE_BINS, "accuracy": [None] * ECE_BINS, "count": [0] * ECE_BINS}
    probabilities = softmax(logits, axis=1)
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1)
    members = [bins == number for number in range(ECE_BINS)]
    return {
        "confidence": [float(confidence[member].mean()) if member.any() else None for member in members],
        "accuracy": [float(correct[member].mean()) if member.any() else None for member in members],
        "count": [int(member.sum()) for member in members],
    }
