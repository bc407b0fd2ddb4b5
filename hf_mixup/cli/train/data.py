"""The data of a run: files or a dataset in, checked splits with encoded labels out."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, load_dataset
from sklearn.model_selection import train_test_split

from hf_mixup.cli import demo
from hf_mixup.cli.terminal import in_one_line
from hf_mixup.cli.train import text_data, token_data
from hf_mixup.cli.train.files import SUFFIXES, FileFormat, read_file
from hf_mixup.cli.train.label_task import some
from hf_mixup.cli.train.labels import LabelColumn, hidden_labels, is_unlabelled
from hf_mixup.cli.train.probabilities import as_classes, given_probabilities, most_probable
from hf_mixup.cli.train.run_fields import TEXTS, TOKENS, DataArguments
from hf_mixup.config.checks import nearest
from hf_mixup.training.unlabeled_checks import NOT_SCORES, NOT_SEVERAL

logger = logging.getLogger(__name__)

HELD_OUT = 0.1
# The split of the texts without labels.
UNLABELED = "unlabeled"
# Modules of the same functions.
TASKS: dict[str, Any] = {TEXTS: text_data, TOKENS: token_data}


@dataclass
class TextData:
    """Splits that are ready to be tokenised.

    Args:
        splits (`dict[str, Dataset]`): `"train"`, and `"validation"`, `"test"` and `"unlabeled"` if there are any; text
            columns and `labels`: class indices, 0/1 floats per class (multi-label) or floats (regression); of class
            probabilities lists of floats to train on, and class indices elsewhere; of tokens a list of class indices.
            Unlabelled rows have a class index, which is not learned, or -100; or class probabilities.
        text_columns (`list[str]`): one column, or the two of a text pair; of tokens the column of their lists.
        problem_type (`str`): as in a transformers config, or `"token_classification"`.
        label_names (`list[str]`): the classes in the order of their indices; empty for regression.
        dropped (`dict[str, list[int]]`): per split, the rows without text, counted from 1.
        labels (`str`): what was made of the label column, in words.
    """

    splits: dict[str, Dataset]
    text_columns: list[str]
    problem_type: str
    label_names: list[str]
    dropped: dict[str, list[int]]
    labels: str = ""

    @property
    def task(self) -> str:
        """`"texts"` or `"tokens"`."""
        return TOKENS if self.problem_type == "token_classification" else TEXTS


def load_splits(
    data_args: DataArguments,
    cache_dir: str | None = None,
    token: str | None = None,
    known_labels: Sequence[str] | None = None,
    needs_validation: bool = True,
) -> TextData:
    """Read and check the data of a run.

    Args:
        data_args (`DataArguments`): what to read.
        cache_dir (`str`, *optional*): where the data as read are kept, defaults to the cache of `datasets`.
        token (`str`, *optional*): for private hub datasets.
        known_labels (`Sequence[str]`, *optional*): class names of the model; the data's must be among them.
        needs_validation (`bool`, defaults to `True`): hold out 10 % of the training rows if there is no validation
            split. Without any test split they are held out in any case.

    Raises:
        ValueError: for data that cannot be trained on; the message names the field, the value and what is allowed.
        FileNotFoundError: for a missing file or dataset.
    """
    task = TASKS[data_args.task]
    raw = _read_files(data_args, cache_dir)
    if not data_args.train_file:
        raw |= _read_dataset(data_args, cache_dir, token)
    texts, label = _columns(raw["train"], data_args)
    if "test" in raw and label in raw["train"].column_names and is_unlabelled(raw["test"], label, raw["train"]):
        logger.warning("test: no row has a label, so the test data are left out.")
        del raw["test"]
    for name, split in raw.items():
        labels = [label] * (name != UNLABELED)
        _check_columns(split, name, texts, labels, task.FIELD)
        task.check_types(split, name, texts, *labels)
    kept, dropped = _drop_missing(raw, texts, task)
    unlabeled = kept.pop(UNLABELED, None)
    columns = {name: LabelColumn(label, name, split, dropped[name]) for name, split in kept.items()}
    problem_type, encoded, names = task.encode_labels(columns, texts, data_args, known_labels)
    if unlabeled is not None:
        if problem_type != "single_label_classification":
            raise ValueError(f"{data_args.unlabeled_source}: {NOT_SEVERAL if names else NOT_SCORES}")
        column = LabelColumn(label, UNLABELED, unlabeled, dropped[UNLABELED])
        given = given_probabilities(column, names)
        encoded[UNLABELED] = hidden_labels(column, names) if given is None else given
    line = task.labels_line(label, problem_type, names, encoded["train"]["labels"], data_args)
    if "validation" not in encoded and (needs_validation or "test" not in encoded):
        encoded = hold_out(encoded, "validation", problem_type, data_args.shuffle_seed)
    if data_args.shuffle_train_dataset:
        encoded = {**encoded, "train": encoded["train"].shuffle(seed=data_args.shuffle_seed)}
    limits = {"train": data_args.max_train_samples, "validation": data_args.max_eval_samples}
    limits |= {"test": data_args.max_predict_samples, UNLABELED: data_args.max_unlabeled_samples}
    splits = {name: first_rows(split, limits[name]) for name, split in encoded.items()}
    task.check_classes(splits["train"], label, names)
    return TextData(splits, texts, problem_type, names, dropped, line)


def _read_files(data_args: DataArguments, cache_dir: str | None) -> DatasetDict:
    fields = {split: f"{split}_file" for split in ("train", "validation", "test", UNLABELED)}
    paths = {split: (field, getattr(data_args, field)) for split, field in fields.items()}
    task, given = TASKS[data_args.task], data_args.file_format
    texts = task.usual_columns(data_args)
    labels = [data_args.label_column_name] if data_args.label_column_name else [*task.LABEL_COLUMNS]
    needed = {split: [*texts, *(labels * (split != UNLABELED))] for split in paths}
    return DatasetDict(
        {
            split: read_file(name, path, given, cache_dir, needed[split], of_tokens=data_args.task == TOKENS)
            for split, (name, path) in paths.items()
            if path
        }
    )


def texts_of(source: str) -> list[str]:
    """The texts of a file or dataset, without its labels: of its test split if it has one.

    Raises:
        ValueError: if it has no column of texts by one of the usual names.
    """
    if Path(source).suffix.lower() in SUFFIXES:
        rows = read_file("outliers", source, FileFormat())
    else:
        splits = demo.load_dataset(source) if source.startswith(demo.PREFIX) else load_dataset(source)
        rows = splits[next((name for name in ("test", "validation", "train") if name in splits), next(iter(splits)))]
    names = [name for guess in text_data.TEXT_COLUMNS for name in guess if name in rows.column_names]
    if not names:
        raise ValueError(f"outliers={source!r}: none of its columns is named text, sentence or sentence1.")
    return [text for text in rows[names[0]] if text and text.strip()]


def _read_dataset(data_args: DataArguments, cache_dir: str | None, token: str | None) -> DatasetDict:
    source = str(data_args.dataset_name)
    if source.startswith(demo.PREFIX):
        splits = demo.load_dataset(source)
    else:
        try:
            splits = load_dataset(source, data_args.dataset_config_name, cache_dir=cache_dir, token=token)
        except Exception as error:
            raise ValueError(f"dataset_name={source!r}: cannot be loaded: {in_one_line(error)}") from error
    chosen = DatasetDict()
    for name in ("train", "validation", "test", UNLABELED):
        given = getattr(data_args, f"{name}_split_name")
        if name == UNLABELED and not given:
            continue
        if (given or name) in splits:
            chosen[name] = splits[given or name]
        elif given or name == "train":
            raise ValueError(
                f"{name}_split_name={given or name!r}: no such split in {source}."
                f"{nearest(given or name, splits)} Splits: {', '.join(splits)}."
            )
        if name in chosen and not chosen[name].num_rows:
            raise ValueError(f"dataset_name={source!r}: split {given or name!r} has no rows.")
    return chosen


def _columns(train: Dataset, data_args: DataArguments) -> tuple[list[str], str]:
    present, task = train.column_names, TASKS[data_args.task]
    texts, usual = task.input_columns(present, data_args), task.LABEL_COLUMNS
    label = data_args.label_column_name or next((name for name in usual if name in present), usual[0])
    if label in texts:
        raise ValueError(f"label_column_name={label!r} is also in {task.FIELD}.")
    if "labels" in texts:
        raise ValueError(f"{task.FIELD}='labels': a run calls its labels so; give the text column another name.")
    return texts, label


def _check_columns(split: Dataset, name: str, texts: Sequence[str], labels: Sequence[str], of_texts: str) -> None:
    for column in (*texts, *labels):
        field = "label_column_name" if column in labels else of_texts
        if column not in split.column_names:
            raise ValueError(
                f"{field}={column!r}: no such column in the {name} data.{nearest(column, split.column_names)} "
                f"Columns: {', '.join(split.column_names)}."
            )


def _drop_missing(raw: DatasetDict, texts: Sequence[str], task: Any) -> tuple[dict[str, Dataset], dict[str, list[int]]]:
    kept, dropped = {}, {}
    for name, split in raw.items():
        columns = [split[column][:] for column in texts]
        whole = [all(map(task.has_input, row)) for row in zip(*columns, strict=True)]
        dropped[name] = [number for number, fine in enumerate(whole, start=1) if not fine]
        if not any(whole):
            raise ValueError(f"{task.FIELD}={','.join(texts)!r}: no row of the {name} data has {task.INPUT}.")
        if dropped[name]:
            logger.warning(
                "%s: dropped %d of %d rows %s: row %s, counted from 1 without the header.",
                *(name, len(dropped[name]), len(whole), task.LACKING, some(dropped[name])),
            )
        kept[name] = split.select(np.flatnonzero(whole)) if dropped[name] else split
    return kept, dropped


def hold_out(splits: dict[str, Dataset], name: str, problem_type: str, seed: int) -> dict[str, Dataset]:
    """Take a tenth of the training rows for a split that is missing.

    Args:
        splits (`dict[str, Dataset]`): `"train"`, and others.
        name (`str`): of the new split, `"validation"` or `"test"`.
        problem_type (`str`): as in a transformers config; with one class per text the classes keep their shares, where
            there are rows enough for that.
        seed (`int`): of the draw.

    Raises:
        ValueError: if there is but one row.
    """
    train = splits["train"]
    labels = most_probable(train).tolist() if problem_type == "single_label_classification" else None
    # A correlation needs two.
    count = max(2 if problem_type == "regression" else 1, round(HELD_OUT * train.num_rows))
    # Stratification needs room for every class on both sides.
    if labels and (min(Counter(labels).values()) < 2 or count < len(set(labels))):
        labels = None
    if train.num_rows <= count:
        raise ValueError(f"{name}_file: none given, and too few training rows to hold some out ({train.num_rows}).")
    rest, held_out = train_test_split(np.arange(train.num_rows), test_size=count, random_state=seed, stratify=labels)
    logger.warning("No %s data: %d of %d training rows are held out for it.", name, count, train.num_rows)
    held_out_rows = as_classes(train.select(np.sort(held_out)), problem_type)
    return {**splits, "train": train.select(np.sort(rest)), name: held_out_rows}


def first_rows(rows: Dataset, count: int | None) -> Dataset:
    """The first `count` rows, or all if there are fewer or `count` is `None`."""
    return rows.select(range(min(count or rows.num_rows, rows.num_rows)))
