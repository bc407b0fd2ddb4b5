"""Fine-tune a classifier of texts or tokens with mixup: the steps of `hf-mixup train` and of `examples/`."""

from __future__ import annotations

import copy
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import (
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import SaveStrategy
from transformers.utils.logging import set_verbosity_error

from hf_mixup.cli.terminal import writable
from hf_mixup.cli.train.arguments import mixup_errors
from hf_mixup.cli.train.data import UNLABELED, TextData, load_splits
from hf_mixup.cli.train.encoding import encode
from hf_mixup.cli.train.named_classifier import build_model, head_labels, label_names
from hf_mixup.cli.train.probabilities import check_guesses
from hf_mixup.cli.train.progress import library_bars, shown_progress, shows_bars, speaks
from hf_mixup.cli.train.results import MeasureBefore, calibrate, measure, show_results, write_results
from hf_mixup.cli.train.run_fields import DataArguments, ModelArguments
from hf_mixup.cli.train.run_text import length_and_mixup, model_and_data, what_is_next
from hf_mixup.config.mixup_config import MixupConfig
from hf_mixup.config.recipes import beside_unlabeled, resolve_config
from hf_mixup.config.unlabeled_config import UnlabeledConfig
from hf_mixup.evaluation.metrics import compute_metrics_for, first_output
from hf_mixup.forward.anatomy.unsupported import refuse_kernel, refuse_without_accelerator
from hf_mixup.training.checkpoints import check_output_dir
from hf_mixup.training.metric_names import check_metric_name
from hf_mixup.training.trainer import MixupTrainer

logger = logging.getLogger(__name__)

# So many texts are tokenised before anybody asks how far it is.
QUICK = 50_000
# The folder of the training with mixup off, in that of the run.
WITHOUT = "mixup_off"


@dataclass
class Run:
    """A training run that is ready to start.

    Args:
        trainer (`MixupTrainer`): with model, tokenised data and metrics.
        data (`TextData`): the checked data, as text.
        splits (`dict[str, Dataset]`): the same, tokenised.
        mixup (`MixupConfig`, *optional*): `None` if mixup is off.
        checkpoint (`str`, *optional*): the folder to resume from.
        model_args (`ModelArguments`), data_args (`DataArguments`): what it was made of.
    """

    trainer: MixupTrainer
    data: TextData
    splits: dict[str, Dataset]
    mixup: MixupConfig | None
    checkpoint: str | None
    model_args: ModelArguments
    data_args: DataArguments


def prepare(model_args: ModelArguments, data_args: DataArguments, args: TrainingArguments) -> Run:
    """Everything before the first step; all checks are made here. `do_train` and its like are not needed in `args`.

    Raises:
        ValueError: for input that cannot work; the message names the field, the value and what is allowed.
        FileNotFoundError: for a missing file.
    """
    quiet_other_processes(args)
    with mixup_errors():
        given = model_args.mixup
        mixup = resolve_config(beside_unlabeled(given) if data_args.unlabeled_source else given)
    if mixup is not None and data_args.unlabeled_source:
        mixup.unlabeled = mixup.unlabeled or UnlabeledConfig()
    elif mixup is not None and mixup.unlabeled is not None:
        raise ValueError("mixup.unlabeled: needs texts without labels; give unlabeled_file or unlabeled_split_name.")
    refuse_without_accelerator(model_args.attn_implementation)
    if mixup is not None and model_args.attn_implementation is not None:
        refuse_kernel(model_args.attn_implementation)
    checkpoint = check_output_dir(args, data_args.overwrite_output_dir)
    set_seed(args.seed)
    with library_bars(shows_bars(args)):
        with args.main_process_first(desc="reading the data"):
            data = load_data(model_args, data_args, args, says_labels=False)
        if mixup is not None and mixup.unlabeled is not None:
            with mixup_errors():
                check_guesses(mixup.unlabeled, data.splits.get(UNLABELED))
        model, tokenizer = build_model(model_args, data)
    is_long = sum(rows.num_rows for rows in data.splits.values()) > QUICK
    with library_bars(is_long and shows_bars(args)), args.main_process_first(desc="tokenising"), mixup_errors():
        splits = encode(data, tokenizer, data_args, None if mixup is None else mixup.group_column)
    with mixup_errors():
        trainer = build_trainer(model, tokenizer, splits, args, mixup, data.problem_type, model_args)
    is_plain = trainer.mixup is None and trainer.unlabeled_dataset is None
    if model_args.baseline and (is_plain or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        why = "mixup is off already" if is_plain else "not with FSDP or DeepSpeed"
        raise ValueError(f"baseline=True: {why}; leave it out.")
    return Run(trainer, data, splits, mixup, checkpoint, model_args, data_args)


def build_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    splits: dict[str, Dataset],
    args: TrainingArguments,
    mixup: MixupConfig | None,
    problem_type: str,
    model_args: ModelArguments,
    class_weights: Any = None,
) -> MixupTrainer:
    """The trainer of a run, with its metrics; from `build_model` and `encode`."""
    is_of_tokens = problem_type == "token_classification"
    return MixupTrainer(
        model=model,
        args=args,
        mixup=mixup,
        class_weights=class_weights,
        nonfinite_loss=model_args.nonfinite_loss,
        averaging=model_args.averaging,
        ema_decay=model_args.ema_decay,
        train_dataset=splits["train"],
        eval_dataset=splits.get("validation"),
        unlabeled_dataset=splits.get(UNLABELED),
        processing_class=tokenizer,
        data_collator=(DataCollatorForTokenClassification if is_of_tokens else DataCollatorWithPadding)(tokenizer),
        compute_metrics=compute_metrics_for(problem_type, label_names(model.config)),
        preprocess_logits_for_metrics=first_output,
    )


def finish(run: Run) -> dict[str, Any]:
    """Train the run that `prepare` made, save the plain model and its tokenizer, print a table, write `results.json`.

    Returns:
        `dict[str, Any]`: what `results.json` holds: see `report`; `before`, the metrics of the untrained model, if
            they are cheap; and `baseline`, what `train_without_mixup` found, if it was asked for.
    """
    trainer, args, parts, spec = run.trainer, run.trainer.args, (run.data, run.splits), run.model_args.mixup
    spec = spec if trainer.unlabeled_dataset is None else beside_unlabeled(spec)
    if speaks(args):
        print(writable(model_and_data(trainer, *parts, run.model_args, run.data_args)), flush=True)
    with shown_progress(trainer, announce=lambda: length_and_mixup(trainer, spec, run.mixup)):
        before = MeasureBefore(trainer, run.splits)
        trainer.add_callback(before)
        trainer.train(resume_from_checkpoint=run.checkpoint)
        if run.model_args.fit_temperature:
            calibrate(trainer, run.splits["validation"], run.data.problem_type)
        trainer.save_model()
        trainer.save_state()
        results = measure(trainer, *parts, run.mixup) | ({"before": before.metrics} if before.metrics else {})
    write_results(trainer, results)
    try:
        if run.model_args.baseline:
            results["baseline"] = train_without_mixup(run)
            write_results(trainer, results)
    finally:
        show_results(trainer, results)
    if speaks(args):
        print(writable(what_is_next(trainer, run.data, run.model_args.baseline)), flush=True)
    return results


def train_without_mixup(run: Run) -> dict[str, Any]:
    """The same training with mixup off, after that of the run: same seed, rows with a label, and updates.

    Its model is not kept.

    Returns:
        `dict[str, Any]`: its `metrics` and `train`, as in the results of the run.
    """
    trainer: Any = run.trainer
    trainer.optimizer = trainer.lr_scheduler = None
    trainer.accelerator.free_memory()
    args = copy.copy(trainer.args)
    was_there = Path(args.output_dir, WITHOUT).exists()
    args.output_dir, args.report_to, args.push_to_hub = str(Path(args.output_dir, WITHOUT)), [], False
    if not args.load_best_model_at_end:
        args.save_strategy = SaveStrategy.NO
    rows, config = trainer.trained_rows, None if trainer.mixup is None else trainer.mixup.config
    group = None if config is None else config.group_column
    splits = run.splits | {"train": rows if group is None else rows.remove_columns(group)}
    name = WITHOUT.replace("_", " ") if splits.pop(UNLABELED, None) is None else "baseline"
    set_seed(args.seed)
    with library_bars(False):
        model, tokenizer = build_model(run.model_args, run.data)
    weights = None if config is None else config.class_weights
    other = build_trainer(model, tokenizer, splits, args, None, run.data.problem_type, run.model_args, weights)
    with shown_progress(other, name):
        other.train()
        if run.model_args.fit_temperature:
            calibrate(other, splits["validation"], run.data.problem_type)
        found = measure(other, run.data, splits, None)
    if not was_there and args.process_index == 0:
        # The checkpoints among which the best model was looked for.
        shutil.rmtree(args.output_dir, ignore_errors=True)
    return {name: found[name] for name in ("metrics", "train")}


def quiet_other_processes(args: TrainingArguments) -> None:
    """Only the first process of several speaks, and it as much as a given `log_level` says."""
    if args.log_level != "passive":
        logging.getLogger("hf_mixup").setLevel(args.get_process_log_level())
    if args.process_index != 0:
        logging.getLogger("hf_mixup").setLevel(logging.ERROR)
        set_verbosity_error()


def load_data(
    model_args: ModelArguments, data_args: DataArguments, args: TrainingArguments, says_labels: bool = True
) -> TextData:
    """The checked splits of a run, with class indices in the order of the model's own head if it has one.

    If `says_labels`, a line says what was made of the label column.

    Raises:
        ValueError: for data that cannot be trained on, or a `metric_for_best_model` or temperature that they do not
            have; the message names the field, the value and what is allowed.
    """
    evaluates = args.eval_strategy != "no" or model_args.fit_temperature
    data = load_splits(
        data_args,
        cache_dir=model_args.cache_dir,
        token=model_args.token,
        known_labels=head_labels(model_args, data_args.task),
        needs_validation=evaluates,
    )
    if says_labels:
        logger.warning("%s", data.labels)
    if model_args.fit_temperature and data.problem_type == "regression":
        raise ValueError("fit_temperature=True: needs classes, and the labels are scores (regression).")
    check_measurable(data, data_args, evaluates)
    if args.metric_for_best_model:
        check_metric_name(data.problem_type, args.metric_for_best_model, label_names=data.label_names)
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
