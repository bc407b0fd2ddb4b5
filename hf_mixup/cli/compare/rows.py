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
from hf_mixup.cli.train.data import UNLABELED, TextData, first_rows, hold_out
from hf_mixup.cli.train.probabilities import as_classes, most_probable
from hf_mixup.cli.train.run_fields import DataArguments, ModelArguments

logger = logging.getLogger(__name__)

# A correlation needs two.
FEWEST = 2
# Seeds go with a number for what is drawn beside the training rows.
OTHERS, VALIDATION = 1, 2


def read_data(model_args: ModelArguments, data_args: DataArguments, args: TrainingArguments) -> TextData:
    """The splits of a comparison: of a long development or test split a random part, and no text of them to train on.

    What is missing is held out of the training rows, a tenth of what is left each time, the same in every run.

    Raises:
        ValueError: for test rows that were given without labels, or fewer than two rows to measure on.
    """
    # Development rows are needed in any case: to pick variants and to fit the temperature.
    args.eval_strategy = IntervalStrategy.EPOCH
    whole = replace(data_args, max_train_samples=None, max_eval_samples=None, max_predict_samples=None)
    whole.max_unlabeled_samples = None
    data = load_data(model_args, whole, args)
    if "test" not in data.splits:
        data = with_test_split(data, data_args)
    measured = {"validation": data_args.max_eval_samples, "test": data_args.max_predict_samples}
    held_out = {name: first_rows(data.splits[name].shuffle(seed=0), limit) for name, limit in measured.items()}
    kept = {name: without(data, held_out.values(), name) for name in ("train", UNLABELED) if name in data.splits}
    if UNLABELED in kept:
        kept[UNLABELED] = first_rows(kept[UNLABELED].shuffle(seed=0), data_args.max_unlabeled_samples)
    for name, rows in held_out.items():
        if rows.num_rows < FEWEST:
            raise ValueError(
                f"{name}_file: {rows.num_rows} row to measure on; there must be {FEWEST}, and should be many."
            )
    return replace(data, splits=kept | held_out)


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


def without(data: TextData, held_out: Iterable[Dataset], name: str = "train") -> Dataset:
    """The rows of a split whose text is in none of the splits that are held out."""
    rows, word = data.splits[name], "training" if name == "train" else name
    known = {text for split in held_out for text in spelled(split, data.text_columns)}
    kept = [index for index, text in enumerate(spelled(rows, data.text_columns)) if text not in known]
    if len(kept) < rows.num_rows:
        logger.warning("%d %s rows are left out: their texts are held out as well.", rows.num_rows - len(kept), word)
    return rows.select(kept)


def spelled(rows: Dataset, columns: Sequence[str]) -> list[tuple[str, ...]]:
    """The texts of each row, whatever their case and blanks; tokens as a text."""
    cells = [[[cell] if isinstance(cell, str) else cell for cell in rows[column]] for column in columns]
    texts = [[" ".join(" ".join(words).lower().split()) for words in column] for column in cells]
    return list(zip(*texts, strict=True))


def training_data(
    data: TextData, cell: Cell, balanced: bool = True, unlabeled: int | None = None, small_validation: bool = False
) -> tuple[TextData, np.ndarray]:
    """The data with the training rows of the cell's seed and size; and which of their labels were replaced.

    Args:
        data (`TextData`): of `read_data`.
        cell (`Cell`): whose method makes no difference.
        balanced (`bool`), unlabeled (`int`, *optional*), small_validation (`bool`): see `Comparison`.

    Raises:
        ValueError: if there are not as many rows.
    """
    generator = np.random.default_rng([cell.seed, cell.train_size])
    rows = draw_rows(data, cell.train_size, generator, balanced)
    train, flipped = flip_labels(data.splits["train"].select(rows), data, cell.label_noise, generator)
    splits = data.splits | {"train": train}
    if unlabeled is not None:
        splits[UNLABELED] = other_rows(data, rows, unlabeled, cell)
    if small_validation:
        generator = np.random.default_rng([cell.seed, cell.train_size, VALIDATION])
        few = draw_rows(data, cell.train_size, generator, balanced, "validation")
        if len(few) < FEWEST:
            raise ValueError(
                f"small_validation=True: train_sizes={cell.train_size} leaves {len(few)} row to measure on."
            )
        splits["validation"] = data.splits["validation"].select(few)
    return replace(data, splits=splits), flipped


def other_rows(data: TextData, rows: np.ndarray, count: int, cell: Cell) -> Dataset:
    """Training rows that are not among `rows`, drawn by the seed, with their classes for comparison."""
    train = data.splits["train"]
    drawn = np.random.default_rng([cell.seed, OTHERS]).permutation(train.num_rows)
    left = drawn[~np.isin(drawn, rows)]
    if len(left) < count:
        raise ValueError(
            f"unlabeled={count}: beside train_sizes={cell.train_size} there are {len(left)} training rows, so at most "
            "that."
        )
    return as_classes(train.select(left[:count]), data.problem_type)


def draw_rows(
    data: TextData, size: int, generator: np.random.Generator, balanced: bool = True, name: str = "train"
) -> np.ndarray:
    """Which training rows: `size` of each class, or `size` in all if not balanced or if rows have no single class.

    Of another split as many, or what there is of a class.
    """
    split = data.splits[name]
    if not balanced or data.problem_type != "single_label_classification":
        if size > split.num_rows and name == "train":
            raise ValueError(f"train_sizes={size}: there are {split.num_rows} training rows.")
        return generator.permutation(split.num_rows)[:size]
    labels, drawn = most_probable(split), []
    for number, name_of_class in enumerate(data.label_names):
        own = np.flatnonzero(labels == number)
        if len(own) < size and name == "train":
            raise ValueError(
                f"train_sizes={size}: class {name_of_class!r} has {len(own)} training rows, so at most that."
            )
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
