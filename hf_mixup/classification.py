"""Fine-tune a text classifier with mixup: the steps of `hf-mixup train` and of `examples/run_classification.py`."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils.logging import set_verbosity_error

from hf_mixup import MixupTrainer, demo
from hf_mixup.arguments import DataArguments, ModelArguments
from hf_mixup.config import MixupConfig, resolve_config
from hf_mixup.data import TextData, load_splits
from hf_mixup.evaluation import compute_metrics_for
from hf_mixup.evaluation.metrics import first_output

logger = logging.getLogger(__name__)


@dataclass
class Run:
    """A training run that is ready to start.

    Args:
        trainer (`Trainer`): a `MixupTrainer` with model, tokenised data and metrics.
        data (`TextData`): the checked data, as text.
        splits (`dict[str, Dataset]`): the same, tokenised.
        mixup (`MixupConfig`, *optional*): `None` where mixup is off.
        checkpoint (`str`, *optional*): the folder to resume from.
    """

    trainer: Trainer
    data: TextData
    splits: dict[str, Dataset]
    mixup: MixupConfig | None
    checkpoint: str | None


def prepare(model_args: ModelArguments, data_args: DataArguments, args: TrainingArguments) -> Run:
    """Everything before the first step; all checks are made here.

    Args:
        model_args (`ModelArguments`): the model and the mixup.
        data_args (`DataArguments`): the data.
        args (`TrainingArguments`): the training. `do_train`, `do_eval` and `do_predict` are not needed.

    Raises:
        ValueError: for input that cannot work; the message names the field, the value and what is allowed.
        FileNotFoundError: for a missing file.
    """
    if args.process_index != 0:
        logging.getLogger("hf_mixup").setLevel(logging.ERROR)
        set_verbosity_error()
    mixup = resolve_config(model_args.mixup)
    checkpoint = check_output_dir(args, data_args.overwrite_output_dir)
    set_seed(args.seed)
    with args.main_process_first(desc="reading the data"):
        data = load_data(model_args, data_args, args)
    model, tokenizer = build_model(model_args, data)
    with args.main_process_first(desc="tokenising the data"):
        splits = encode(data, tokenizer, data_args)
    trainer = MixupTrainer(
        model=model,
        args=args,
        mixup=mixup,
        train_dataset=splits["train"],
        eval_dataset=splits.get("validation"),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=compute_metrics_for(data.problem_type),
        preprocess_logits_for_metrics=first_output,
    )
    return Run(trainer, data, splits, mixup, checkpoint)


def finish(run: Run) -> dict[str, Any]:
    """Train, save the plain model and the tokenizer, and report.

    Args:
        run (`Run`): from `prepare`.

    Returns:
        `dict[str, Any]`: what `report` returns.
    """
    run.trainer.train(resume_from_checkpoint=run.checkpoint)
    run.trainer.save_model()
    run.trainer.save_state()
    return report(run.trainer, run.data, run.splits, run.mixup)


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
        "metrics": {name.removeprefix(f"{split}_"): _finite(value) for name, value in metrics.items()},
        "train": {name: _finite(value) for name, value in training.items()},
        "rows": {name: rows.num_rows for name, rows in splits.items()},
        "dropped_rows": {name: len(rows) for name, rows in data.dropped.items()},
        "problem_type": data.problem_type,
        "label_names": data.label_names,
        "mixup": mixup and mixup.to_dict(),
        "seed": trainer.args.seed,
    }
    if trainer.is_world_process_zero():
        text = json.dumps(results, indent=2, ensure_ascii=False)
        Path(str(trainer.args.output_dir), "results.json").write_text(text + "\n", encoding="utf-8")
        print(format_table(results))
    return results


def check_output_dir(args: TrainingArguments, overwrite: bool) -> str | None:
    """Refuse to write over earlier work.

    Args:
        args (`TrainingArguments`): `resume_from_checkpoint` is a folder, or `"true"` for the last one in `output_dir`.
        overwrite (`bool`): whether an `output_dir` that is not empty is allowed.

    Returns:
        `str | None`: the checkpoint folder to resume from.

    Raises:
        ValueError: for an `output_dir` that is not empty without `overwrite` or a checkpoint to resume from.
        FileNotFoundError: for a checkpoint that is not there.
    """
    folder, resume = Path(str(args.output_dir)), str(args.resume_from_checkpoint or "false")
    if resume.lower() == "true":
        last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
        if last is None:
            raise FileNotFoundError(f"resume_from_checkpoint={resume!r}: no checkpoint in output_dir={str(folder)!r}.")
        return last
    if resume.lower() != "false":
        if not Path(resume).is_dir():
            raise FileNotFoundError(f"resume_from_checkpoint={resume!r}: no such folder; expected one, or true.")
        return resume
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not overwrite:
        raise ValueError(
            f"output_dir={str(folder)!r} is not empty; choose another, resume with --resume_from_checkpoint true, "
            "or give --overwrite_output_dir true."
        )
    return None


def load_data(model_args: ModelArguments, data_args: DataArguments, args: TrainingArguments) -> TextData:
    """The checked splits of a run, with class indices in the order of the model's own head where it has one.

    Raises:
        ValueError: for data that cannot be trained on; the message names the field, the value and what is allowed.
    """
    return load_splits(
        data_args,
        cache_dir=model_args.cache_dir,
        token=model_args.token,
        known_labels=head_labels(model_args),
        needs_validation=args.eval_strategy != "no",
    )


def head_labels(model_args: ModelArguments) -> list[str] | None:
    """The class names of a model that already is a classifier; `None` for one that gets a new head."""
    config = AutoConfig.from_pretrained(_config_path(model_args), **_loading(model_args))
    is_classifier = any("ForSequenceClassification" in name for name in config.architectures or ())
    if not is_classifier or model_args.ignore_mismatched_sizes or config.num_labels < 2:
        return None
    return [config.id2label[number] for number in range(config.num_labels)]


def build_model(model_args: ModelArguments, data: TextData) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The classifier for the data, and its tokenizer.

    Args:
        model_args (`ModelArguments`): which.
        data (`TextData`): gives the problem type and the class names, which end in the model's `id2label`.

    Raises:
        ValueError: for a tokenizer that has neither a padding nor an end-of-text token.
    """
    path = model_path(model_args)
    names = data.label_names or ["LABEL_0"]
    config = AutoConfig.from_pretrained(
        _config_path(model_args),
        num_labels=len(names),
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
        problem_type=data.problem_type,
        **_loading(model_args),
    )
    tokenizer = AutoTokenizer.from_pretrained(model_args.tokenizer_name or path, **_loading(model_args))
    model = AutoModelForSequenceClassification.from_pretrained(
        path, config=config, ignore_mismatched_sizes=model_args.ignore_mismatched_sizes, **_loading(model_args)
    )
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ValueError(f"tokenizer_name={model_args.tokenizer_name or path!r}: no pad token, nor an eos token.")
        tokenizer.pad_token = tokenizer.eos_token
        logger.warning("The tokenizer has no pad token: its eos token %r serves as one.", tokenizer.eos_token)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def encode(data: TextData, tokenizer: PreTrainedTokenizerBase, data_args: DataArguments) -> dict[str, Dataset]:
    """Tokenise every split.

    Args:
        data (`TextData`): two text columns are encoded as a pair.
        tokenizer (`PreTrainedTokenizerBase`): its `model_max_length` caps `max_seq_length`.
        data_args (`DataArguments`): `max_seq_length` in tokens, `pad_to_max_length`, `overwrite_cache`.
    """
    max_length = min(data_args.max_seq_length, tokenizer.model_max_length)
    if max_length < data_args.max_seq_length:
        logger.warning("max_seq_length=%d: the model takes %d tokens.", data_args.max_seq_length, max_length)
    padding = "max_length" if data_args.pad_to_max_length else False

    def tokenize(rows: dict[str, list[Any]]) -> dict[str, Any]:
        texts = [rows[column] for column in data.text_columns]
        return {**tokenizer(*texts, truncation=True, max_length=max_length, padding=padding), "labels": rows["labels"]}

    return {
        name: rows.map(
            tokenize,
            batched=True,
            remove_columns=[column for column in rows.column_names if column != "labels"],
            load_from_cache_file=not data_args.overwrite_cache,
            desc=f"tokenising {name}",
        )
        for name, rows in data.splits.items()
    }


def format_table(results: dict[str, Any]) -> str:
    """The metrics of `results` in two columns, one line each."""
    timing = ("loss", "runtime", "samples_per_second", "steps_per_second", "epoch", "model_preparation_time")
    rows = [(name, value) for name, value in results["metrics"].items() if name not in timing]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {'-' if value is None else f'{value:.4f}':>8}" for name, value in rows]
    title = f"{results['split']}, {results['rows'][results['split']]} rows"
    return "\n".join(["", title, "-" * (width + 10), *lines])


def model_path(model_args: ModelArguments) -> str:
    """`model_name_or_path`, or the folder of the demo model that it names."""
    name = str(model_args.model_name_or_path)
    return demo.model_path(name) if name.startswith(demo.PREFIX) else name


def _config_path(model_args: ModelArguments) -> str:
    return model_args.config_name or model_path(model_args)


def _loading(model_args: ModelArguments) -> dict[str, Any]:
    return {
        "cache_dir": model_args.cache_dir,
        "revision": model_args.model_revision,
        "token": model_args.token,
        "trust_remote_code": model_args.trust_remote_code,
    }


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
