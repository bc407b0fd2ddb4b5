"""One run of a comparison: train on a few rows, pick a variant by the development split, measure on the test split."""

from __future__ import annotations

import itertools
import json
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel, PrinterCallback, TrainingArguments, set_seed
from transformers.trainer_utils import IntervalStrategy

from hf_mixup.cli.compare.grid import EARLY_STOPPING, RESEED, STEPS_FACTOR, Comparison, of_the_run
from hf_mixup.cli.compare.measures import further_metrics, kept_predictions, metrics_of, predict
from hf_mixup.cli.compare.moments import STOPS, BestWeights, LearningCurve, ranked, unlabeled_curve
from hf_mixup.cli.compare.rows import read_data, training_data
from hf_mixup.cli.compare.runs import PREDICTIONS, RESULT, Cell
from hf_mixup.cli.train.arguments import mixup_errors, parse_fields
from hf_mixup.cli.train.classification import build_model, build_trainer
from hf_mixup.cli.train.data import UNLABELED, TextData, texts_of
from hf_mixup.cli.train.encoding import encode
from hf_mixup.cli.train.probabilities import check_guesses
from hf_mixup.cli.train.results import known_to_json
from hf_mixup.cli.train.run_fields import DataArguments, ModelArguments
from hf_mixup.config.files import write_whole
from hf_mixup.config.mixup_config import AUTO, MixupConfig
from hf_mixup.config.recipes import resolve_config
from hf_mixup.evaluation.calibration import reliability
from hf_mixup.evaluation.predictions import CHECKS
from hf_mixup.evaluation.temperature import fit_temperature, scaled_metrics
from hf_mixup.mixup import Mixup
from hf_mixup.training.groups import number_groups
from hf_mixup.training.metric_names import check_metric_name
from hf_mixup.training.trainer import MixupTrainer
from hf_mixup.training.unlabeled_checks import NOT_SCORES, NOT_SEVERAL, average_guesses, check_joined

logger = logging.getLogger(__name__)

# The model arguments by which its trainings differ, not the model.
NOT_OF_THE_MODEL = ("mixup", "nonfinite_loss", "averaging", "ema_decay")

# The tasks whose texts or tokens have one class each.
ONE_CLASS = ("single_label_classification", "token_classification")


@dataclass
class Trained:
    """A variant after its training.

    Args:
        trainer (`MixupTrainer`): with the trained model.
        splits (`dict[str, Dataset]`): tokenised; the training rows with the labels that were trained on.
        learning (`dict[str, list]`): `step`, `train_loss` and `dev_loss`, of clean batches.
        train_loss (`float`): of a clean batch of training rows, of the weights that are measured.
        dev_metrics (`dict[str, float]`): with `loss`.
        dev_logits (`np.ndarray`), dev_labels (`np.ndarray`): of the development split.
        fields (`dict`): what makes the variant.
        mixup (`MixupConfig`, *optional*): what was asked for.
        seconds (`float`): of the training, with what is measured on the way.
    """

    trainer: MixupTrainer
    splits: dict[str, Dataset]
    learning: dict[str, list[float]]
    train_loss: float
    dev_metrics: dict[str, float]
    dev_logits: np.ndarray
    dev_labels: np.ndarray
    fields: dict[str, Any]
    mixup: MixupConfig | None
    seconds: float = 0.0


def run_cell(comparison: Comparison, cell: Cell, folder: Path) -> dict[str, Any]:
    """Train, measure, and write `predictions.npz` and, last and at once, `result.json`; return what that holds."""
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    shared = parse_fields(comparison.run | {"output_dir": str(folder)})
    data, flipped = training_data(read_data(*shared), cell, *drawn_by(comparison))
    best = None
    for fields in comparison.methods[cell.method]:
        best = better(best, train_variant(comparison, cell, fields, data, folder), comparison.select_by)
    assert best is not None
    result = asdict(cell) | {"variant": best.fields, "mixup": None if best.mixup is None else best.mixup.to_dict()}
    result |= {"problem_type": data.problem_type, "label_names": data.label_names}
    metrics, curves, predictions = measure(best, data, flipped)
    more, more_curves = further_metrics(comparison, best.trainer, data, shared[1], cell.seed)
    curves = {"learning": best.learning} | curves | more_curves
    result |= {"metrics": known_to_json(metrics | more), "curves": known_to_json(curves)}
    result["train"] = {"steps": best.trainer.state.global_step, "train_seconds": best.seconds}
    result["train"] |= {"seconds": round(time.perf_counter() - start, 1)}
    np.savez_compressed(folder / PREDICTIONS, **predictions)  # type: ignore[arg-type]
    with write_whole(folder / RESULT) as part:
        part.write_text(json.dumps(result, indent=1), encoding="utf-8")
    return result


def drawn_by(comparison: Comparison) -> tuple[bool, int | None, bool]:
    """What of a comparison says which rows `training_data` draws."""
    return comparison.balanced, comparison.unlabeled, comparison.small_validation


def run_fields(comparison: Comparison, cell: Cell, variant: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The fields of one training run, as `hf-mixup train` takes them."""
    fixed = {
        "seed": cell.seed + variant.get(RESEED, 0),
        "output_dir": str(folder / "training"),
        "save_strategy": "no",
        "report_to": "none",
    }
    quiet = {"disable_tqdm": True, "logging_strategy": "no", "eval_strategy": "no"}
    return {**comparison.run, **of_the_run(variant), **fixed, **quiet}


def train_variant(comparison: Comparison, cell: Cell, variant: dict[str, Any], data: TextData, folder: Path) -> Trained:
    """Train one variant on the rows of the cell."""
    model_args, data_args, args = parse_fields(run_fields(comparison, cell, variant, folder))
    with mixup_errors():
        mixup = resolve_config(model_args.mixup)
    if mixup is not None and mixup.strength == AUTO and mixup.check_rows is None:
        # Every method has the development split, for its temperature.
        mixup.check_rows = data.splits["validation"].num_rows
    factor = variant.get(STEPS_FACTOR, 1)
    args.max_steps = max(1, round(factor * args.max_steps)) if args.max_steps > 0 else args.max_steps
    args.num_train_epochs *= factor
    if mixup is None or mixup.unlabeled is None:
        data = replace(data, splits={name: rows for name, rows in data.splits.items() if name != UNLABELED})
    else:
        args.logging_strategy, args.logging_steps = IntervalStrategy.STEPS, 1 / STOPS
    set_seed(args.seed)
    model, tokenizer = build_model(model_args, data)
    splits = encode(data, tokenizer, data_args, None if mixup is None else mixup.group_column)
    with mixup_errors():
        trainer = build_trainer(model, tokenizer, splits, args, mixup, data.problem_type, model_args)
    curve = LearningCurve(trainer, splits, data.problem_type)
    trainer.add_callback(curve)
    trainer.remove_callback(PrinterCallback)
    if variant.get(EARLY_STOPPING):
        trainer.add_callback(BestWeights(trainer, splits["validation"], comparison.select_by))
    seconds = trainer.train().metrics["train_runtime"]
    held_out = predict(trainer, splits["validation"])
    metrics = metrics_of(trainer, *held_out)
    asked = mixup
    if mixup is not None and trainer.mixup is not None:
        asked = replace(trainer.mixup.config, unlabeled=mixup.unlabeled)
    train_loss = curve.loss("train_loss")
    return Trained(trainer, splits, curve.learning, train_loss, metrics, *held_out, variant, asked, seconds)


def better(best: Trained | None, other: Trained, metric: str | None) -> Trained:
    """The variant that does better on the development split; one that has diverged is the worst."""

    def rank(one: Trained) -> tuple[bool, float]:
        return math.isfinite(one.dev_metrics["loss"]), ranked(one.dev_metrics, metric)

    return other if best is None or rank(other) > rank(best) else best


def measure(best: Trained, data: TextData, flipped: np.ndarray) -> tuple[dict[str, float], dict, dict[str, np.ndarray]]:
    """Metrics of the test split, raw and with a temperature fitted on development data; curves; and predictions."""
    kind, trainer = data.problem_type, best.trainer
    logits, labels = predict(trainer, best.splits["test"])
    metrics = metrics_of(trainer, logits, labels)
    losses = {"train_loss": best.train_loss, "test_loss": metrics.pop("loss")}
    metrics |= {f"dev_{name}": value for name, value in best.dev_metrics.items()} | losses
    metrics["generalisation_gap"] = metrics["test_loss"] - metrics["train_loss"]
    guessed = unlabeled_curve(trainer)
    curves: dict[str, Any] = {"unlabeled": guessed} if guessed else {}
    if "accuracy" in guessed:
        metrics["unlabeled_accuracy"] = guessed["accuracy"][-1] if math.isfinite(metrics["test_loss"]) else math.nan
    auto = None if trainer.mixup is None else trainer.mixup.planner.auto_strength
    if auto is not None:
        metrics["mixup_strength"], curves["strength"] = auto.value, [check._asdict() for check in auto.checks]
    if kind != "regression":
        temperature = fit_temperature(best.dev_logits, best.dev_labels, kind)
        metrics |= {"temperature": temperature} | scaled_metrics(logits, labels, kind, temperature, data.label_names)
    if kind in ONE_CLASS:
        scores, classes = CHECKS[kind](logits, labels)
        curves["reliability"] = reliability(scores, classes)
        curves["reliability_scaled"] = reliability(scores / temperature, classes)
    if flipped.any():
        wrong = predict(trainer, best.splits["train"].select(np.flatnonzero(flipped)))
        metrics["memorised"] = metrics_of(trainer, *wrong)["accuracy"]
    dev = kept_predictions("dev", best.dev_logits, best.dev_labels, data)
    return metrics, curves, kept_predictions("test", logits, labels, data) | dev


def check_runs(comparison: Comparison) -> TextData:
    """Make every check that a run of the grid makes before its first step.

    Raises:
        ValueError: for what cannot work; the message names the method and the field.
    """
    folder = Path(comparison.output_dir)
    model_args, data_args, args = parse_fields(comparison.run | {"output_dir": comparison.output_dir})
    data = read_data(model_args, data_args, args)
    check_unlabeled(comparison, data, data_args.unlabeled_source)
    for size, noise in itertools.product(comparison.train_sizes, comparison.label_noise):
        training_data(data, Cell(comparison.baseline, size, noise, comparison.seeds[0]), *drawn_by(comparison))
    if comparison.select_by:
        check_metric_name(data.problem_type, comparison.select_by, "select_by", data.label_names)
    if comparison.outliers is not None:
        if data.problem_type != "single_label_classification":
            raise ValueError(
                f"outliers={comparison.outliers!r}: needs classes, not {data.problem_type.replace('_', ' ')}."
            )
        texts_of(comparison.outliers)
    shared = build_model(model_args, data)[0]
    for method, variants in comparison.methods.items():
        for variant in variants:
            try:
                given = parse_fields(run_fields(comparison, comparison.cells()[0], variant, folder))
                same = {name: getattr(model_args, name) for name in NOT_OF_THE_MODEL}
                own = replace(given[0], **same) != model_args
                check_variant(comparison, data, *given, build_model(given[0], data)[0] if own else shared)
            except ValueError as error:
                raise ValueError(f"methods: {method}: {error}") from error
    warn_of_unused(comparison, data_args.unlabeled_source)
    return data


def check_unlabeled(comparison: Comparison, data: TextData, source: str) -> None:
    """Raise `ValueError` for rows without labels that cannot be."""
    if comparison.unlabeled is not None:
        if source:
            raise ValueError(
                f"unlabeled={comparison.unlabeled}: not with {source}; max_unlabeled_samples limits these."
            )
        if data.problem_type != "single_label_classification":
            raise ValueError(f"unlabeled={comparison.unlabeled}: {NOT_SEVERAL if data.label_names else NOT_SCORES}")


def warn_of_unused(comparison: Comparison, source: str) -> None:
    """Say that there are rows without labels, and no method that uses them. All variants have passed their checks."""
    source = source if comparison.unlabeled is None else f"unlabeled={comparison.unlabeled}"
    variants = itertools.chain(*comparison.methods.values())
    mixups = (resolve_config(parse_fields(comparison.run | of_the_run(one))[0].mixup) for one in variants)
    if source and all(mixup is None or mixup.unlabeled is None for mixup in mixups):
        logger.warning("%s: no method uses them; one whose mixup has a field unlabeled does.", source)


def check_variant(
    comparison: Comparison,
    data: TextData,
    model_args: ModelArguments,
    data_args: DataArguments,
    args: TrainingArguments,
    model: PreTrainedModel,
) -> None:
    """Raise `ValueError` for a variant that cannot be trained."""
    if args.label_smoothing_factor and data.problem_type not in ONE_CLASS:
        raise ValueError(f"label_smoothing_factor={args.label_smoothing_factor} needs single classes.")
    with mixup_errors():
        mixup = resolve_config(model_args.mixup)
        if mixup is None:
            return
        if mixup.group_column is not None:
            number_groups(data.splits["train"], mixup.group_column, data.text_columns)
        if mixup.unlabeled is not None:
            if comparison.unlabeled is None and not data_args.unlabeled_source:
                raise ValueError(
                    "unlabeled: needs texts without labels; give unlabeled: 1000 beside methods, unlabeled_file or "
                    "unlabeled_split_name."
                )
            check_guesses(mixup.unlabeled, data.splits.get(UNLABELED))
            average_guesses(mixup.unlabeled, model_args.averaging)
            check_joined(mixup, mixup.unlabeled)
        Mixup(model, replace(mixup, unlabeled=None))
