"""What does not go with unlabelled rows, said before the first step."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from transformers.utils import logging

from hf_mixup.config.checks import allow_only
from hf_mixup.config.mixup_config import OUTSIDE, PARTNERS, MixupConfig
from hf_mixup.config.unlabeled_config import UnlabeledConfig
from hf_mixup.forward.anatomy.host import labels_tokens
from hf_mixup.forward.anatomy.inputs import model_config, root_of
from hf_mixup.training.averaging import NONE
from hf_mixup.training.label_columns import check_label_columns
from hf_mixup.training.trainer_checks import overrides_loss
from hf_mixup.training.unlabeled_rows import given_guesses, is_stream

logger = logging.get_logger(__name__)

NOT_SEVERAL = (
    "needs one label per text (single_label_classification). With several, nearly all guesses would be that a label "
    "is absent, and the model would learn to give none."
)
NOT_SCORES = "needs classes to guess, and the model predicts scores (regression)."
# What a mixed pass of labelled and unlabelled rows cannot be.
JOINED: dict[str, tuple[Any, ...]] = {
    "clean_weight": (0.0,),
    "partner": tuple(name for name in PARTNERS if name not in (*OUTSIDE, "margin", "lisa", "near_label")),
}
# Of whom the partner is another one after the draw, nothing else may depend on it.
APART: dict[str, tuple[Any, ...]] = {
    "partner": ("random",),
    "label_rule": ("lambda", "own", "larger"),
    "interpolation": ("line", "dimensions"),
    "self_pairs": (True,),
}


def check_unlabeled(trainer: Any) -> None:
    """Raise `ValueError` for a trainer that cannot learn from unlabelled rows."""
    about = model_config(trainer.model)
    if about.num_labels == 1 or about.problem_type == "regression":
        raise ValueError(f"unlabeled_dataset: {NOT_SCORES}")
    if about.problem_type not in (None, "single_label_classification"):
        raise ValueError(f"unlabeled_dataset: {NOT_SEVERAL}")
    if labels_tokens(root_of(trainer.model)):
        raise ValueError("unlabeled_dataset: not with labels per token.")
    if trainer.compute_loss_func is not None or overrides_loss(type(trainer)) or "compute_loss" in vars(trainer):
        raise ValueError("unlabeled_dataset: not with a compute_loss_func or a compute_loss of your own.")
    if trainer.args.auto_find_batch_size:
        raise ValueError("unlabeled_dataset: not with auto_find_batch_size, which leaves the size of their batches.")


def check_given(dataset: Any, num_labels: int, collator: Any) -> None:
    """Raise `ValueError` if a row of a data set that can be read as a whole does not hold class probabilities."""
    list(check_label_columns({"unlabeled_dataset": dataset}, partial(given_guesses, num_labels=num_labels), collator))


def check_views(rows: Any, views: Any) -> None:
    """Raise `ValueError` for views that cannot be of the same rows."""
    if views is None:
        return
    if rows is None:
        raise ValueError("unlabeled_views: other words for the rows of unlabeled_dataset, which is not given.")
    if is_stream(rows) != is_stream(views):
        raise ValueError(
            "unlabeled_views: one of unlabeled_dataset and unlabeled_views is a stream; expected both or none."
        )
    if not is_stream(rows) and len(rows) != len(views):
        raise ValueError(f"unlabeled_views: {len(views)} rows for the {len(rows)} of unlabeled_dataset.")


def without_missing_mask(unlabeled: UnlabeledConfig, tokenizer: Any) -> UnlabeledConfig:
    """The same, with no tokens masked if there is no token for it; then a warning says so."""
    if not unlabeled.mask or getattr(tokenizer, "mask_token_id", None) is not None:
        return unlabeled
    why = (
        "there is no tokenizer; give it as processing_class" if tokenizer is None else "the tokenizer has no such token"
    )
    logger.warning("unlabeled.mask=%s: no tokens are masked: %s.", unlabeled.mask, why)
    return replace(unlabeled, mask=0.0)


def average_guesses(unlabeled: UnlabeledConfig, averaging: str | None) -> bool:
    """Whether the moving average of the weights guesses. Raises `ValueError` if there is to be none."""
    if unlabeled.guesses != "average" or not unlabeled.weight:
        return False
    if averaging == NONE:
        raise ValueError("averaging='none': the average guesses (guesses='average'); say guesses='model' as well.")
    return True


def check_joined(config: MixupConfig, unlabeled: UnlabeledConfig) -> None:
    """Raise `ValueError` for a config by which labelled and unlabelled rows cannot be mixed in one pass."""
    allow_only(config, JOINED, "not with unlabeled_dataset")
    if unlabeled.partners == "apart":
        allow_only(config, APART, "not with unlabeled.partners='apart'")
