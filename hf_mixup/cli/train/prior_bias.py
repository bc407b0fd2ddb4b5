"""A new head that starts from how frequent the labels are, and need not learn that first."""

from __future__ import annotations

from collections.abc import Collection
from itertools import chain

import torch
from datasets import Dataset
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled

from hf_mixup.training.label_columns import class_counts


def start_at_priors(model: PreTrainedModel, new_parameters: Collection[str], rows: Dataset, problem_type: str) -> None:
    """Set the bias of a new head to what the labels are on average, in place.

    With labels as rare as one in 28 (multi-label) or far from 0 (scores), a head that starts at 0 first learns their
    mean, through all layers below, and these may no longer tell one text from another after it. The idea is that of Lin
    et al., 2017 (Focal Loss for Dense Object Detection, 3.3).

    Args:
        model (`PreTrainedModel`): a classifier as `from_pretrained` returns it.
        new_parameters (`Collection[str]`): the names of the parameters that were not loaded.
        rows (`Dataset`): the training rows; `labels` are as `label_priors` takes them, of tokens lists of class
            indices.
        problem_type (`str`): as in a transformers config, or `"token_classification"`.

    Raises:
        ValueError: if the model has no bias of one value per label that is new, or several (the heads of most decoders
            have none); under DeepSpeed ZeRO-3, which shards the head while it is loaded.
    """
    if is_deepspeed_zero3_enabled():
        raise ValueError("prior_bias=True: not under DeepSpeed ZeRO-3, which shards the head while it is loaded.")
    labels = rows["labels"][:]
    if problem_type == "token_classification":
        labels = [*chain.from_iterable(labels)]
    priors = label_priors(torch.tensor(labels), model.config.num_labels or 1, problem_type)
    new = {name: value for name, value in model.named_parameters() if name in new_parameters}
    biases = {name: value for name, value in new.items() if name.endswith("bias") and value.shape == priors.shape}
    if len(biases) != 1:
        made = ", ".join(sorted(new)) or "no parameters: it has its head already"
        raise ValueError(
            f"prior_bias=True: expected one new bias of shape ({len(priors)},) in {type(model).__name__}, "
            f"found {', '.join(biases) or 'none'}; new are {made}."
        )
    with torch.no_grad():
        biases.popitem()[1].copy_(priors)


def label_priors(labels: torch.Tensor, num_labels: int, problem_type: str) -> torch.Tensor:
    """The logits, or scores, that fit the labels best without any input.

    Args:
        labels (`torch.Tensor` of shape `(rows,)` or `(rows, num_labels)`): class indices or probabilities, 0/1 per
            class, or scores.
        num_labels (`int`): number of classes or scores.
        problem_type (`str`): as in a transformers config.

    Returns:
        `torch.Tensor` of shape `(num_labels,)`: log of the share of each class, log-odds of each label (half a row is
        added to every count, as a class may have none), or the mean scores.
    """
    if problem_type == "regression":
        return labels.float().reshape(len(labels), -1).mean(0)
    if problem_type == "multi_label_classification":
        return torch.logit((labels.float().sum(0) + 0.5) / (len(labels) + 1))
    counts = torch.tensor(class_counts(labels, num_labels)) + 0.5
    return (counts / counts.sum()).log()
