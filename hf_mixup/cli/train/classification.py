"""Fine-tune a text classifier with mixup: the steps of `hf-mixup train` and of `examples/run_classification.py`."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import (
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.utils.logging import set_verbosity_error

from hf_mixup.cli.terminal import DIVERGED, format_table
from hf_mixup.cli.train.arguments import DataArguments, ModelArguments, mixup_errors
from hf_mixup.cli.train.data import TextData, load_splits
from hf_mixup.cli.train.named_classifier import build_model, head_labels
from hf_mixup.config.files import write_whole
from hf_mixup.config.mixup_config import MixupConfig
from hf_mixup.config.recipes import resolve_config
from hf_mixup.evaluation.metrics import compute_metrics_for, first_output
from hf_mixup.evaluation.temperature import scaled_metrics, store_temperature
from hf_mixup.training.checkpoints import check_output_dir
from hf_mixup.training.groups import number_groups
from hf_mixup.training.metric_names import check_metric_name
from hf_mixup.training.trainer import MixupTrainer

logger = logging.getLogger(__name__)


@dataclass
class Run:
    """A training run that is ready to start.

    Args:
        trainer (`Trainer`): a `MixupTrainer` with model, tokenised data and metrics.
        data (`TextData`): the checked data, as text.
        splits (`dict[str, Dataset]`): the same, tokenised.
        mixup (`MixupConfig`, *optional*): `None` if mixup is off.
        checkpoint (`str`, *optional*): the folder to resume from.
        fits_temperature (`bool`, defaults to `False`): whether to `calibrate` the model after training.
    """

    trainer: Trainer
    data: TextData
    splits: dict[str, Dataset]
    mixup: MixupConfig | None
    checkpoint: str | None
    fits_temperature: bool = False


def prepare(model_args: ModelArguments, data_args: DataArguments, args: TrainingArguments) -> Run:
    """Everything before the first step; all checks are made here. `do_train` and its like are not needed in `args`.

    Raises:
        ValueError: for input that cannot work; the message names the field, the value and what is allowed.
        FileNotFoundError: for a missing file.
    """
    quiet_other_processes(args)
    with mixup_errors():
        mixup = resolve_config(model_args.mixup)
    checkpoint = check_output_dir(args, data_args.overwrite_output_dir)
    set_seed(args.seed)
    with args.main_process_first(desc="reading the data"):
        data = load_data(model_args, data_args, args)
    model, tokenizer = build_model(model_args, data)
    with args.main_process_first(desc="tokenising the data"), mixup_errors():
        splits = encode(data, tokenizer, data_args, None if mixup is None else mixup.group_column)
    with mixup_errors():
        trainer = build_trainer(model, tokenizer, splits, args, mixup, data.problem_type, model_args)
    return Run(trainer, data, splits, mixup, checkpoint, model_args.fit_temperature)


def build_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    splits: dict[str, Dataset],
    args: TrainingArguments,
    mixup: MixupConfig | None,
    problem_type: str,
    model_args: ModelArguments,
) -> MixupTrainer:
    """The trainer of a run, with its metrics; from `build_model` and `encode`."""
    return MixupTrainer(
        model=model,
        args=args,
        mixup=mixup,
        nonfinite_loss=model_args.nonfinite_loss,
        averaging=model_args.averaging,
        ema_decay=model_args.ema_decay,
        train_dataset=splits["train"],
        eval_dataset=splits.get("validation"),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=compute_metrics_for(problem_type),
        preprocess_logits_for_metrics=first_output,
    )


def finish(run: Run) -> dict[str, Any]:
    """Train the run that `prepare` made, save the plain model and the tokenizer, and `report`."""
    run.trainer.train(resume_from_checkpoint=run.checkpoint)
    if run.fits_temperature:
        calibrate(run.trainer, run.splits["validation"], run.data.problem_type)
    run.trainer.save_model()
    run.trainer.save_state()
    return report(run.trainer, run.data, run.splits, run.mixup)


def calibrate(trainer: Trainer, rows: Dataset, problem_type: str) -> None:
    """Fit a temperature on rows that were not trained on and keep it in the config of the model, before it is saved.

    Later evaluations also return `temperature` and the metrics that it changes, with `_scaled` after their names.
    """
    assert trainer.model is not None and trainer.compute_metrics is not None
    held_out, unscaled = trainer.predict(rows), trainer.compute_metrics  # type: ignore[arg-type]
    temperature = store_temperature(trainer.model, first_output(held_out.predictions), np.asarray(held_out.label_ids))

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        logits, labels = first_output(prediction.predictions), np.asarray(prediction.label_ids)
        scaled = scaled_metrics(logits, labels, problem_type, temperature)
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
    split = "test" if "test" in splits else "validation"
    metrics = trainer.evaluate(splits[split], metric_key_prefix=split)
    training = next((entry for entry in reversed(trainer.state.log_history) if "train_runtime" in entry), {})
    results = {
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
    results = known_to_json(results)
    if trainer.is_world_process_zero():
        text = json.dumps(results, indent=2, ensure_ascii=False)
        with write_whole(Path(str(trainer.args.output_dir), "results.json")) as part:
            part.write_text(text + "\n", encoding="utf-8")
        print(format_table(results))
        if results["diverged"]:
            print(DIVERGED.format(split=split), file=sys.stderr)
    return results


def quiet_other_processes(args: TrainingArguments) -> None:
    """Only the first process of several speaks."""
    if args.process_index != 0:
        logging.getLogger("hf_mixup").setLevel(logging.ERROR)
        set_verbosity_error()


def load_data(model_args: ModelArguments, data_args: DataArguments, args: TrainingArguments) -> TextData:
    """The checked splits of a run, with class indices in the order of the model's own head if it has one.

    Raises:
        ValueError: for data that cannot be trained on, or a `metric_for_best_model` or temperature that they do not
            have; the message names the field, the value and what is allowed.
    """
    evaluates = args.eval_strategy != "no" or model_args.fit_temperature
    data = load_splits(
        data_args,
        cache_dir=model_args.cache_dir,
        token=model_args.token,
        known_labels=head_labels(model_args),
        needs_validation=evaluates,
    )
    if model_args.fit_temperature and data.problem_type == "regression":
        raise ValueError("fit_temperature=True: needs classes, and the labels are scores (regression).")
    check_measurable(data, data_args, evaluates)
    if args.metric_for_best_model:
        check_metric_name(data.problem_type, args.metric_for_best_model)
    return data


def check_measurable(data: TextData, data_args: DataArguments, evaluates: bool) -> None:
    """Raise `ValueError` if there are too few rows for the table at the end, or for evaluations on the way."""
    fewest = 2 if data.problem_type == "regression" else 1
    measured = {"test" if "test" in data.splits else "validation"} | ({"validation"} if evaluates else set())
    for name in sorted(measured):
        count = data.splits[name].num_rows
        if count < fewest:
            given = getattr(data_args, f"{name}_file")
            raise ValueError(f"{name}_file={given!r}: {count} row to measure on; a correlation needs two.")


def encode(
    data: TextData, tokenizer: PreTrainedTokenizerBase, data_args: DataArguments, group_column: str | None = None
) -> dict[str, Dataset]:
    """Tokenise every split.

    Args:
        data (`TextData`): two text columns are encoded as a pair.
        tokenizer (`PreTrainedTokenizerBase`): its `model_max_length` caps `max_seq_length`.
        data_args (`DataArguments`): `max_seq_length` in tokens, `pad_to_max_length`, `overwrite_cache`.
        group_column (`str`, *optional*): the column of the training rows that stays, numbered, for partners by group.

    Raises:
        ValueError: if the training rows have no such column.
    """
    splits = data.splits
    if group_column is not None:
        splits = splits | {"train": number_groups(splits["train"], group_column, data.text_columns)}
    max_length = min(data_args.max_seq_length, tokenizer.model_max_length)
    if max_length < data_args.max_seq_length:
        logger.warning("max_seq_length=%d: the model takes %d tokens.", data_args.max_seq_length, max_length)
    padding = "max_length" if data_args.pad_to_max_length else False

    def tokenize(rows: dict[str, list[Any]]) -> dict[str, Any]:
        texts = [rows[column] for column in data.text_columns]
        return {**tokenizer(*texts, truncation=True, max_length=max_length, padding=padding), "labels": rows["labels"]}

    kept = (["labels"], ["labels", group_column])
    return {
        name: rows.map(
            tokenize,
            batched=True,
            remove_columns=[column for column in rows.column_names if column not in kept[name == "train"]],
            load_from_cache_file=not data_args.overwrite_cache,
            desc=f"tokenising {name}",
        )
        for name, rows in splits.items()
    }


def known_to_json(value: Any) -> Any:
    """The same with what JSON knows: numbers that are not finite become `None`, at any depth."""
    if isinstance(value, Mapping):
        return {name: known_to_json(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [known_to_json(one) for one in value]
    return None if isinstance(value, Real) and not math.isfinite(value) else value
