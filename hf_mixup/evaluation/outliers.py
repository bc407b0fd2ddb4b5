"""Does the model know what it has not seen: texts of the task against texts of another, by two scores."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.special import logsumexp, softmax
from sklearn.metrics import roc_auc_score, roc_curve

from hf_mixup.evaluation.predictions import diverged

# Higher for what looks familiar. The energy score is the negative energy at temperature 1.
SCORES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "softmax": lambda logits: softmax(logits, axis=1).max(axis=1),
    "energy": lambda logits: logsumexp(logits, axis=1),
}


def outlier_metrics(inside_logits: np.ndarray, outside_logits: np.ndarray) -> dict[str, float]:
    """How well confidence separates examples of the task from others; examples of the task are the positive class.

    ```python
    >>> inside, outside = np.array([[4.0, 0.0], [3.0, 0.0]]), np.array([[0.5, 0.0], [3.5, 0.0]])
    >>> outlier_metrics(inside, outside)["ood_auroc_softmax"]
    0.75
    ```

    Args:
        inside_logits (`np.ndarray`): scores before the softmax for examples of the task, shape (examples, classes).
        outside_logits (`np.ndarray`): the same model's scores for other examples, shape (other examples, classes).

    Returns:
        `dict[str, float]`: for the largest softmax probability (Hendrycks and Gimpel, 2017; `softmax`) and the energy
        score (Liu et al., 2020; `energy`): `ood_auroc_<score>`, the area under the ROC curve (0.5 is chance), and
        `ood_fpr95_<score>`, the share of other examples taken for the task's at the highest threshold that keeps 95 %
        of the task's. Both 0 to 1. Each is nan if a logit of either side is not finite.

    Raises:
        ValueError: if either side has no examples, or the classes differ in number.
    """
    inside, outside = (np.asarray(logits, dtype=np.float64) for logits in (inside_logits, outside_logits))
    if inside.ndim != 2 or outside.ndim != 2 or inside.shape[1] != outside.shape[1] or not inside.size * outside.size:
        raise ValueError(f"expected logits (examples, classes) twice; got shapes {inside.shape} and {outside.shape}.")
    familiar = np.repeat([1, 0], [len(inside), len(outside)])
    both = np.concatenate([inside, outside])
    if diverged(both):
        return {f"ood_{way}_{name}": math.nan for way in MEASURES for name in SCORES}
    scores = {name: score(both) for name, score in SCORES.items()}
    return {f"ood_{way}_{name}": float(of(familiar, scores[name])) for way, of in MEASURES.items() for name in scores}


def _fpr95(familiar: np.ndarray, score: np.ndarray) -> float:
    # The thresholds that roc_curve drops by default may hold the one that is sought.
    false_positive, true_positive, _ = roc_curve(familiar, score, drop_intermediate=False)
    return false_positive[np.argmax(true_positive >= 0.95)]


MEASURES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {"auroc": roc_auc_score, "fpr95": _fpr95}
