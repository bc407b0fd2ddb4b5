"""Which rows a run is trained and measured on."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from datasets import Dataset
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from hf_mixup.cli.compare.runs import Cell
from hf_mixup.cli.train.classification import load_data
from hf_mixup.cli.train.data import TextData, first_rows, hold_out
from hf_mixup.cli.train.probabilities import most_probable
from hf_mixup.cli.train.run_fields import DataArguments, ModelArguments

logger = logging.getLogger(__name__)

# A correlation needs two.
FEWEST = 2


def read_data(model_args: ModelArguments, data_args: DataArguments, args: TrainingArguments) -> TextData:
    """The splits of a comparison: of a long development or test split a random part, and no text of them to train on.

    What is missing is held out of the training rows, a tenth of what is left each time, the same in every run.

    Raises:
        ValueError: for test rows that were given without labels, or fewer than two rows to measure on.
    """
    # Development rows are needed in any case: to pick variants and to fit the temperature.
    args.eval_strategy = IntervalStrategy.EPOCH
    whole = replace(data_args, max_train_samples=None, max_eval_samples=None, max_predict_samples=None)
    data = load_data(model_args, whole, args)
    if "test" not in data.splits:
        data = with_test_split(data, data_args)
    limits = {"validation": data_args.max_eval_samples, "test": data_args.max_predict_samples}
    held_out = {name: first_rows(data.splits[name].shuffle(seed=0), limit) for name, limit in limits.items()}
    for name, rows in held_out.items():
        if rows.num_rows < FEWEST:
            raise ValueError(
                f"{name}_file: {rows.num_rows} row to measure on; there must be {FEWEST}, and should be many."
            )
    return replace(data, splits={"train": without(data, held_out.values())} | held_out)


def with_test_split(data: TextData, data_args: DataArguments) -> TextData:
    """Hold out test rows whose texts are not in the development split."""
    for field in ("test_file", "test_split_name"):
        if getattr(data_args, field) is not None:
            raise ValueError(f"{field}={getattr(data_args, field)!r}: has no labels, and a comparison needs them.")
    apart = data.splits | {"train": without(data, [data.splits["validation"]])}
    held_out = hold_out(apart, "test", data.problem_type, data_args.shuffle_seed)
    return replace(data, splits=held_out)


def digest(data: TextData) -> str:
    """SHA-256 of the texts and labels of every split, in their order."""
    found = hashlib.sha256()
    for name, split in sorted(data.splits.items()):
        rows = zip(*(split[column][:] for column in (*data.text_columns, "labels")), strict=True)
        found.update(repr((name, list(rows))).encode())
    return found.hexdigest()


def without(data: TextData, held_out: Iterable[Dataset]) -> Dataset:
    """The training rows whose text is in none of the splits that are held out."""
    train = data.splits["train"]
    known = {text for split in held_out for text in spelled(split, data.text_columns)}
    kept = [index for index, text in enumerate(spelled(train, data.text_columns)) if text not in known]
    if len(kept) < train.num_rows:
        logger.warning("%d training rows are left out: their texts are held out as well.", train.num_rows - len(kept))
    return train.select(kept)


def spelled(rows: Dataset, columns: Sequence[str]) -> list[tuple[str, ...]]:
    """The texts of each row, whatever their case and blanks."""
    texts = [[" ".join(text.lower().split()) for text in rows[column]] for column in columns]
    return list(zip(*texts, strict=True))


def training_data(data: TextData, cell: Cell, balanced: bool = True) -> tuple[TextData, np.ndarray]:
    """The data with the training rows of the cell's seed and size; and which of their labels were replaced.

    Raises:
        ValueError: if there are not as many rows.
    """
    generator = np.random.default_rng([cell.seed, cell.train_size])
    rows = draw_rows(data, cell.train_size, generator, balanced)
    train, flipped = flip_labels(data.splits["train"].select(rows), data, cell.label_noise, generator)
    return replace(data, splits=data.splits | {"train": train}), flipped


def draw_rows(data: TextData, size: int, generator: np.random.Generator, balanced: bool = True) -> np.ndarray:
    """Which training rows: `size` of each class, or `size` in all if not balanced or if rows have no single class."""
    train = data.splits["train"]
    if not balanced or data.problem_type != "single_label_classification":
        if size > train.num_rows:
            raise ValueError(f"train_sizes={size}: there are {train.num_rows} training rows.")
        return generator.permutation(train.num_rows)[:size]
    labels, drawn = most_probable(train), []
    for number, name in enumerate(data.label_names):
        own = np.flatnonzero(labels == number)
        if len(own) < size:
            raise ValueError(f"train_sizes={size}: class {name!r} has {len(own)} training rows, so at most that.")
        drawn.append(generator.permutation(own)[:size])
    return np.concatenate(drawn)


def flip_labels(
    train: Dataset, data: TextData, share: float, generator: np.random.Generator
) -> tuple[Dataset, np.ndarray]:
    """Replace the labels of a share of the rows by another class; and say of which, `(rows,)`, boolean."""
    flipped = np.zeros(train.num_rows, dtype=bool)
    if not share:
        return train, flipped
    if data.problem_type != "single_label_classification":
        raise ValueError(f"label_noise={share}: needs classes, not {data.problem_type.replace('_', ' ')}.")
    flipped[generator.permutation(train.num_rows)[: round(share * train.num_rows)]] = True
    labels = np.asarray(train["labels"])
    if labels.ndim == 2:
        raise ValueError(f"label_noise={share}: needs one class per training row, not probabilities of classes.")
    others = (labels + generator.integers(1, len(data.label_names), len(labels))) % len(data.label_names)
    feature = train.features["labels"]
    mixed = np.where(flipped, others, labels)
    return train.remove_columns("labels").add_column("labels", mixed).cast_column("labels", feature), flipped
