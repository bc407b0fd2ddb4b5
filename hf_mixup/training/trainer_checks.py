"""What a `MixupTrainer` refuses before the first step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datasets import Dataset
from transformers import TrainingArguments
from transformers.utils import logging

from hf_mixup.config.mixup_config import AUTO, MixupConfig
from hf_mixup.forward.anatomy.inputs import model_config
from hf_mixup.mixup import Mixup
from hf_mixup.training.collator import MixupCollator
from hf_mixup.training.groups import check_groups
from hf_mixup.training.metric_names import METRIC_NAMES, higher_is_better
from hf_mixup.training.model import mixup_models

logger = logging.get_logger(__name__)

NOTHING_MIXED = (
    "mixup is set, but no training step came to MixupMixin, so nothing would be mixed: a training_step of your own "
    "stands before it. Call super().training_step in it, or say mixup=None."
)
NOTHING_RAN = (
    "mixup is set, but compute_loss did not call the model that it was given, so nothing would be mixed. Call that "
    "model in it, or say mixup=None."
)


def has_partners(config: MixupConfig, args: TrainingArguments) -> bool:
    """Whether a batch has partners: a batch of one has none, unless they are of its text, or of other batches."""
    reach = args.world_size if config.partner == "all_ranks" else 1
    return args.train_batch_size * reach > 1 or config.partner in ("previous_batch", "same_text")


def check_model(mixup: Mixup, args: TrainingArguments) -> None:
    """Check that the model can be mixed, if there is anything to mix; else say that there is not."""
    if has_partners(mixup.config, args):
        mixup.check()
    else:
        logger.warning(
            "per_device_train_batch_size=1: a batch of one has no partners, so nothing will be mixed; there is "
            "partner='previous_batch' for that."
        )


def overrides_loss(kind: type) -> bool:
    """Whether a class of trainers has a `compute_loss` that is neither Trainer's nor of this package."""
    return overrides(kind, "compute_loss")


def overrides(kind: type, *names: str) -> bool:
    """Whether a class of trainers has a method of one of these names that is neither Trainer's nor of this package."""
    own = [cls for cls in kind.__mro__ if not cls.__module__.startswith(("hf_mixup.", "transformers."))]
    return any(name in vars(cls) for cls in own for name in names)


def check_trainer(trainer: Any, has_weights: bool) -> None:
    """Refuse what cannot work with mixup on or off. Raises `ValueError`."""
    if isinstance(trainer.data_collator, MixupCollator):
        raise ValueError(
            "data_collator: a MixupCollator mixes by itself: give MixupTrainer the plain collator, or a plain "
            "Trainer data_collator=collator, callbacks=[collator] and compute_loss_func=collator.loss."
        )
    follow_metric(trainer)
    if has_weights and trainer.compute_loss_func is not None:
        raise ValueError("class_weights: not used by a compute_loss_func of your own; weigh the classes there.")
    about = model_config(trainer.model)
    is_single_label = about.num_labels > 1 and about.problem_type in (None, "single_label_classification")
    smoothing = trainer.args.label_smoothing_factor
    if smoothing and trainer.compute_loss_func is None and not is_single_label:
        raise ValueError(
            f"label_smoothing_factor={smoothing} needs single-label classification; "
            f"this model has num_labels={about.num_labels}, problem_type={about.problem_type!r}."
        )


def refuse_teacher_of_tokens(teacher: Any) -> None:
    """Raise `ValueError` for a teacher of a model that labels tokens."""
    if teacher is not None:
        raise ValueError("teacher: not with labels per token.")


def check_metric(trainer: Any) -> None:
    """Refuse a metric that no evaluation will return, which Trainer finds at the first one."""
    name = metric_name(trainer)
    own = (cls for cls in type(trainer).__mro__ if not cls.__module__.startswith(("hf_mixup.", "transformers.")))
    is_own = any({"evaluate", "evaluation_loop"} & set(vars(cls)) for cls in own)
    if name is None or name.endswith("loss") or trainer.compute_metrics is not None or is_own:
        return
    if trainer.args.eval_strategy != "no":
        raise ValueError(
            f"metric_for_best_model={name!r}: there is no compute_metrics that would return it; "
            "hf_mixup.evaluation.compute_metrics_for(problem_type) makes one."
        )


def follow_metric(trainer: Any) -> None:
    """Make `greater_is_better` that of a metric of this package, which transformers takes for "higher is better"."""
    args, name = trainer.args, metric_name(trainer)
    if not args.greater_is_better or name is None:
        return
    if higher_is_better(name) is False and any(name in names for names in METRIC_NAMES.values()):
        args.greater_is_better = False
        logger.warning(
            "metric_for_best_model=%r is better when it is lower: greater_is_better is set to False. Give a metric of "
            "your own that is not another name.",
            name,
        )


def metric_name(trainer: Any) -> str | None:
    """`metric_for_best_model` without `eval_` and without the name of one of several evaluation sets."""
    name = trainer.args.metric_for_best_model
    if name is None:
        return None
    name = name.removeprefix("eval_")
    keys = sorted(trainer.eval_dataset, key=len, reverse=True) if isinstance(trainer.eval_dataset, Mapping) else ()
    return next((name.removeprefix(f"{key}_") for key in keys if name.startswith(f"{key}_")), name)


def mixes_nothing(trainer: Any, config: MixupConfig) -> bool:
    """Whether the strength follows confidence and the model has none, because it predicts scores; then it says so."""
    about = model_config(trainer.model)
    is_regression = about.problem_type == "regression" or (about.problem_type is None and about.num_labels == 1)
    if config.strength != AUTO or not is_regression:
        return False
    logger.warning(
        "mixup: scores have no confidence that strength='auto' could follow, so nothing is mixed. To mix them, give a "
        "strength from 0 to 1, or a recipe that has one, such as mixup='tmix' or 'c_mixup'."
    )
    return True


def check_mixing(trainer: Any, config: MixupConfig) -> None:
    """Refuse what cannot be mixed. Raises `ValueError`."""
    if mixup_models(trainer.model):
        raise ValueError(
            "The model is or holds a MixupModel, which mixes by itself: give MixupTrainer the plain model."
        )
    if trainer.args.n_gpu > 1:
        raise ValueError(
            f"{trainer.args.n_gpu} GPUs without a launcher: nn.DataParallel splits each batch after its partners are "
            "drawn. Start the script with `accelerate launch` or `torchrun`, or set CUDA_VISIBLE_DEVICES=0."
        )
    if config.group_column is not None and isinstance(trainer.train_dataset, Dataset):
        check_groups(trainer.train_dataset, config.group_column)
    if config.clean_weight and trainer.compute_loss_func is not None:
        raise ValueError("clean_weight: not used by a compute_loss_func of your own; leave one of the two out.")
