"""The temperature that a model keeps in its config, applied to its logits or made part of its weights."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from hf_mixup.config.checks import number
from hf_mixup.forward.anatomy.anatomy import Anatomy
from hf_mixup.forward.anatomy.calling import probe_batch
from hf_mixup.forward.anatomy.host import is_whole
from hf_mixup.forward.anatomy.inputs import model_config
from hf_mixup.forward.anatomy.probe import trace
from hf_mixup.forward.anatomy.probe_batch import undisturbed

# The field of the config. Another than `temperature`, which is of generation.
FIELD = "calibration_temperature"

Logits = TypeVar("Logits", np.ndarray, Tensor)


def stored_temperature(model_or_config: nn.Module | PretrainedConfig) -> float:
    """The temperature in a config: `calibration_temperature`, 1 if it has none. Raises `ValueError` unless above 0."""
    config = model_config(model_or_config) if isinstance(model_or_config, nn.Module) else model_or_config
    return number(open_low=True)(FIELD, getattr(config, FIELD, 1.0))


def scaled_logits(logits: Logits, model_or_config: nn.Module | PretrainedConfig) -> Logits:
    """Logits divided by the temperature that `store_temperature` left in the config.

    ```python
    probabilities = scaled_logits(model(**batch).logits, model).softmax(-1)
    ```

    Args:
        logits (`torch.Tensor` or `np.ndarray`): scores before softmax or sigmoid, shape (examples, classes).
        model_or_config (`nn.Module` or `PretrainedConfig`): the model that they are of, or its config.

    Returns:
        `torch.Tensor` or `np.ndarray`: the logits of calibrated probabilities; the same if no temperature is stored.

    Raises:
        ValueError: for a temperature that is not above 0.
    """
    return logits / stored_temperature(model_or_config)


def fold_temperature(model: nn.Module) -> None:
    """Divide the last linear layer by the stored temperature, so that the model alone gives calibrated probabilities.

    A `pipeline("text-classification")` of the model that is saved then needs no hf_mixup. The field in the config is 1
    after that. It is exact up to the rounding of the weights.

    ```python
    store_temperature(model, logits, labels)
    fold_temperature(model)
    model.save_pretrained("calibrated")
    ```

    Args:
        model (`nn.Module`): a classifier whose logits are the output of a linear layer; it is changed.

    Raises:
        ValueError: if the logits are not, or the model cannot run the probe that finds that out.
    """
    temperature = stored_temperature(model)
    if temperature == 1:
        return
    with torch.no_grad():
        for parameter in _last_linear(model).parameters():
            parameter.div_(temperature)
    setattr(model_config(model), FIELD, 1.0)


def _last_linear(model: nn.Module) -> nn.Linear:
    """The linear layer whose output the logits are: they are half as large if its parameters are."""
    anatomy, count = trace(model), model_config(model).num_labels
    linear = [module for module in anatomy.root.modules() if isinstance(module, nn.Linear)]
    with undisturbed(anatomy.root), torch.no_grad():
        batch = probe_batch(anatomy.root)
        logits = anatomy.float_logits(batch)
        for module in reversed(linear):
            if module.out_features == count and _halves(module, anatomy, batch, logits):
                return module
    raise ValueError(
        f"{type(anatomy.root).__name__}: its logits are not the output of a linear layer with {count} outputs, so a "
        "temperature cannot be folded into it; divide its logits by scaled_logits(logits, model)."
    )


def _halves(module: nn.Linear, anatomy: Anatomy, batch: dict[str, Tensor], logits: Tensor) -> bool:
    """Whether halving the parameters of a module, which rounds nothing, halves the logits."""
    parameters = list(module.parameters())
    if not all(is_whole(parameter) and parameter.is_floating_point() for parameter in parameters):
        return False
    before = [parameter.clone() for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.div_(2)
        return torch.allclose(2 * anatomy.float_logits(batch), logits, rtol=1e-4, atol=1e-4 * float(logits.abs().max()))
    finally:
        for parameter, value in zip(parameters, before, strict=True):
            parameter.copy_(value)
