"""What a training run found: metrics, `results.json`, and the table at the end."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import EvalPrediction, Trainer, TrainerCallback

from hf_mixup.cli.terminal import DIVERGED, format_table, writable
from hf_mixup.cli.train.data import TextData
from hf_mixup.cli.train.named_classifier import label_names
from hf_mixup.config.files import write_whole
from hf_mixup.config.mixup_config import MixupConfig
from hf_mixup.evaluation.metrics import first_output
from hf_mixup.evaluation.temperature import scaled_metrics, store_temperature
from hf_mixup.training.trainer_seams import same_random_state

# An untrained model is measured on so many rows at most, as more of them would cost a part of the training.
MOST_BEFORE = 2000


def calibrate(trainer: Trainer, rows: Dataset, problem_type: str) -> None:
    """Fit a temperature on rows that were not trained on and keep it in the config of the model, before it is saved.

    Later evaluations also return `temperature` and the metrics that it changes, with `_scaled` after their names.
    """
    assert trainer.model is not None and trainer.compute_metrics is not None
    held_out, unscaled = trainer.predict(rows), trainer.compute_metrics  # type: ignore[arg-type]
    names = label_names(trainer.model.config)
    temperature = store_temperature(trainer.model, first_output(held_out.predictions), np.asarray(held_out.label_ids))

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        logits, labels = first_output(prediction.predictions), np.asarray(prediction.label_ids)
        scaled = scaled_metrics(logits, labels, problem_type, temperature, names)
        return unscaled(prediction) | {"temperature": temperature} | scaled

    trainer.compute_metrics = compute_metrics


def report(trainer: Trainer, data: TextData, splits: dict[str, Dataset], mixup: MixupConfig | None) -> dict[str, Any]:
    """Evaluate on the test split, else on the validation split; print a table and write `results.json`.

    Args:
        trainer (`Trainer`): after training.
        data (`TextData`): the data, for the record.
        splits (`dict[str, Dataset]`): the data, tokenised.
        mixup (`MixupConfig`, *optional*): the mixup, for the record.

    Returns:
        `dict[str, Any]`: what `results.json` in the output folder holds; a number that is not finite is `None`.
    """
    results = measure(trainer, data, splits, mixup)
    write_results(trainer, results)
    show_results(trainer, results)
    return results


def measured_split(splits: Mapping[str, Dataset]) -> str:
    """The split that the table is about."""
    return "test" if "test" in splits else "validation"


def measure(trainer: Trainer, data: TextData, splits: dict[str, Dataset], mixup: MixupConfig | None) -> dict[str, Any]:
    """What `results.json` holds; arguments and return value as for `report`."""
    split = measured_split(splits)
    metrics = trainer.evaluate(splits[split], metric_key_prefix=split)
    training = next((entry for entry in reversed(trainer.state.log_history) if "train_runtime" in entry), {})
    return known_to_json(
        {
            "split": split,
            "metrics": {name.removeprefix(f"{split}_"): value for name, value in metrics.items()},
            "train": training,
            "rows": {name: rows.num_rows for name, rows in splits.items()},
            "dropped_rows": {name: len(rows) for name, rows in data.dropped.items()},
            "problem_type": data.problem_type,
            "label_names": data.label_names,
            "mixup": mixup and mixup.to_dict(),
            "seed": trainer.args.seed,
            "diverged": not math.isfinite(metrics[f"{split}_loss"]),
        }
    )


def write_results(trainer: Trainer, results: Mapping[str, Any]) -> None:
    """Write `results.json` into the output folder, from the first process."""
    if trainer.is_world_process_zero():
        text = json.dumps(results, indent=2, ensure_ascii=False)
        with write_whole(Path(str(trainer.args.output_dir), "results.json")) as part:
            part.write_text(text + "\n", encoding="utf-8")


def show_results(trainer: Trainer, results: dict[str, Any]) -> None:
    """Print the table, from the first process."""
    if trainer.is_world_process_zero():
        print(writable(format_table(results)))
        if results["diverged"]:
            print(DIVERGED.format(split=results["split"]), file=sys.stderr)


def known_to_json(value: Any) -> Any:
    """The same with what JSON knows: numbers that are not finite become `None`, at any depth."""
    if isinstance(value, Mapping):
        return {name: known_to_json(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [known_to_json(one) for one in value]
    return None if isinstance(value, Real) and not math.isfinite(value) else value


class MeasureBefore(TrainerCallback):
    """Measures a model at the start of its training, which is as without that, unless there are many rows.

    Inside of the training, because accelerate does not wrap a model for DDP that was evaluated before.

    Args:
        trainer (`Trainer`): that is about to train.
        splits (`Mapping[str, Dataset]`): the data, tokenised.
    """

    metrics: dict[str, Any] | None = None

    def __init__(self, trainer: Trainer, splits: Mapping[str, Dataset]) -> None:
        self.trainer, self.split = trainer, measured_split(splits)
        self.rows = splits[self.split]

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure, unless a training is resumed."""
        if state.global_step or self.rows.num_rows > MOST_BEFORE:
            return
        with same_random_state(args.device):
            found = self.trainer.predict(self.rows, metric_key_prefix=self.split).metrics or {}  # type: ignore[arg-type]
        self.metrics = known_to_json({name.removeprefix(f"{self.split}_"): value for name, value in found.items()})
