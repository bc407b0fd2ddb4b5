"""Temperature scaling: one number, fitted on held-out data, that divides all logits (Guo et al., 2017)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import nn
from torch.nn import functional as F

from hf_mixup.config.checks import choice, number
from hf_mixup.evaluation.metrics import metrics_for
from hf_mixup.evaluation.predictions import CHECKS, diverged
from hf_mixup.evaluation.stored_temperature import FIELD
from hf_mixup.forward.anatomy.host import is_adapter
from hf_mixup.forward.anatomy.inputs import model_config
from hf_mixup.loss.task import problem_type_of

LOWEST, HIGHEST = 0.05, 20.0

# Dividing logits by a positive number leaves predictions and ranks of classes alone: only these change.
SCALED = ("nll", "brier", "ece", "adaptive_ece", "aurc", "label_ece", "entity_ece")

LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    "single_label_classification": F.cross_entropy,
    "multi_label_classification": F.binary_cross_entropy_with_logits,
    "token_classification": F.cross_entropy,
}


def fit_temperature(logits: np.ndarray, labels: np.ndarray, problem_type: str) -> float:
    """The temperature with the smallest negative log-likelihood.

    ```python
    >>> logits, labels = np.array([[4.0, 0.0], [0.0, 4.0], [4.0, 0.0], [4.0, 0.0]]), np.array([0, 1, 0, 1])
    >>> round(fit_temperature(logits, labels, "single_label_classification"), 2)
    3.64
    ```

    Args:
        logits (`np.ndarray`): scores of held-out examples before softmax or sigmoid, shape (examples, classes); of
            tokens (examples, length, classes).
        labels (`np.ndarray`): class indices, shape (examples,), of which rows with -100 are left out; for several
            labels 0 or 1, shape (examples, classes); of tokens class indices, shape (examples, length), without those
            with -100.
        problem_type (`str`): `"single_label_classification"`, `"multi_label_classification"` or
            `"token_classification"`.

    Returns:
        `float`: from 0.05 to 20; above 1 if the model is too sure. It goes to 0.05 if every prediction is right.
        nan if a logit is not finite.

    Raises:
        ValueError: for another problem type, shapes that do not belong together, labels of other values, or no
            examples.
    """
    choice(*LOSSES)("problem_type", problem_type)
    logits, labels = CHECKS[problem_type](logits, labels)
    if diverged(logits):
        return math.nan
    scores, targets = torch.from_numpy(logits), torch.from_numpy(labels)

    def loss(log_temperature: float) -> float:
        return float(LOSSES[problem_type](scores / math.exp(log_temperature), targets))

    bounds = (math.log(LOWEST), math.log(HIGHEST))
    return math.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x)


def store_temperature(model: nn.Module, logits: np.ndarray, labels: np.ndarray) -> float:
    """Fit a temperature and keep it in the config of the model, as `calibration_temperature`.

    `save_pretrained` saves it, `scaled_logits` applies it, `fold_temperature` makes it part of the weights. It is that
    of these weights: after further training it has to be fitted again.

    ```python
    prediction = trainer.predict(eval_dataset)
    store_temperature(model, prediction.predictions, prediction.label_ids)
    ```

    Args:
        model (`nn.Module`): a classifier of one or several labels, or of tokens.
        logits, labels (`np.ndarray`): what it says of held-out examples, and their labels, as in `fit_temperature`;
            `Trainer.predict` returns them.

    Returns:
        `float`: the temperature; nan, which is not kept, if a logit is not finite.

    Raises:
        ValueError: as `fit_temperature`, for regression, and for a model with adapters, which are saved without config.
    """
    if any(map(is_adapter, model.modules())):
        raise ValueError(
            "The model has adapters, which PEFT saves without the config that a temperature is kept in: merge them "
            "first, model = model.merge_and_unload(), or keep the number of fit_temperature yourself."
        )
    config = model_config(model)
    is_tokens = np.ndim(logits) == 3
    kind = "token_classification" if is_tokens else problem_type_of(config, torch.as_tensor(labels))
    temperature = fit_temperature(logits, labels, kind)
    if math.isfinite(temperature):
        setattr(config, FIELD, temperature)
    return temperature


def scaled_metrics(
    logits: np.ndarray,
    labels: np.ndarray,
    problem_type: str,
    temperature: float,
    label_names: Sequence[str] | None = None,
) -> dict[str, float]:
    """The metrics that a temperature changes.

    ```python
    >>> logits, labels = np.array([[4.0, 0.0], [0.0, 4.0], [4.0, 0.0], [4.0, 0.0]]), np.array([0, 1, 0, 1])
    >>> round(scaled_metrics(logits, labels, "single_label_classification", 3.64)["ece_scaled"], 2)
    0.0
    ```

    Args:
        logits, labels (`np.ndarray`), problem_type (`str`): as in `fit_temperature`.
        temperature (`float`): what the logits are divided by, > 0; or nan, as `fit_temperature` gives it.
        label_names (`Sequence[str]`, *optional*): the tags of tokens, as in `compute_metrics_for`.

    Returns:
        `dict[str, float]`: `nll_scaled` and `brier_scaled`, with `ece_scaled`, `adaptive_ece_scaled` and
        `aurc_scaled`, with `label_ece_scaled` for several labels, or with `ece_scaled` and `entity_ece_scaled` for
        tokens. Each is nan if a logit or the temperature is not finite.

    Raises:
        ValueError: for another problem type, a temperature that is not above 0, or shapes that do not belong together.
    """
    choice(*LOSSES)("problem_type", problem_type)
    if not (isinstance(temperature, Real) and math.isnan(temperature)):
        temperature = number(open_low=True)("temperature", temperature)
    metrics = metrics_for(problem_type, label_names)(np.asarray(logits, dtype=np.float64) / temperature, labels)
    return {f"{name}_scaled": value for name, value in metrics.items() if name in SCALED}
