"""What a type checker says of calls of the public names; mypy reads this file, and nothing runs it.

A comment that ignores an error is one itself if there is no error.
"""

from typing import Any

from transformers import PreTrainedModel, Trainer, TrainingArguments
from typing_extensions import assert_type

from hf_mixup import Mixup, MixupCollator, MixupConfig, MixupMixin, MixupModel, MixupTrainer, inspect_model
from hf_mixup.config.recipes import RecipeName


def calls(model: PreTrainedModel, args: TrainingArguments, rows: Any, recipe: RecipeName, name: str) -> None:
    assert_type(MixupTrainer(model, args, None, rows, mixup="tmix"), MixupTrainer)
    MixupTrainer(model=model, args=args, train_dataset=rows, mixup=recipe, of_a_newer_trainer=1)
    MixupTrainer(model=model, mixup=MixupConfig(alpha=0.2), averaging="ema", class_weights=[1.0, 2.0])
    # Paths are strings, so a name that is no recipe is an error when it runs, with the nearest name.
    MixupTrainer(model=model, mixup="tmx")
    MixupTrainer(model=model, mixup=name)
    MixupTrainer(model=model, mixup={"alpha": 0.2})
    MixupTrainer(model=model, mixup=None)
    MixupTrainer(model=model, mixup=3)  # type: ignore[arg-type]
    MixupTrainer(model=3)  # type: ignore[arg-type]
    MixupTrainer(model, args, None, rows, averaging=3)  # type: ignore[arg-type]
    MixupTrainer(model, args, None, rows, None, None, None, None, None, None, (None, None), None, None, "tmix")  # type: ignore[call-arg]
    Mixup(model, "tmix")
    Mixup(model, None)  # type: ignore[arg-type]
    MixupCollator(rows, "span_mix", num_labels=2)
    MixupModel(model, "tmix")
    inspect_model(model)


class Weighted(Trainer):
    def __init__(self, *args: Any, weight: float, **kwargs: Any) -> None: ...


class Mine(MixupMixin, Weighted):
    pass


def mixin_calls(model: PreTrainedModel) -> None:
    Mine(model=model, weight=1.0, mixup="tmix")
    Mine(model=model, mixup=3)  # type: ignore[arg-type]
