"""The texts of a run become tokens of its model, and tags those of its sub-words."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hf_mixup.cli.train.data import TextData
from hf_mixup.cli.train.run_fields import TEXTS, TOKENS, DataArguments
from hf_mixup.config.tags import ENDINGS, tag_parts
from hf_mixup.loss.task import IGNORED
from hf_mixup.training.groups import number_groups
from hf_mixup.training.metric_names import has_entities

logger = logging.getLogger(__name__)

# Takes rows, and what the tokenizer is to do with their length.
Encoder = Callable[[Mapping[str, list[Any]], Mapping[str, Any]], dict[str, Any]]


def encode(
    data: TextData, tokenizer: PreTrainedTokenizerBase, data_args: DataArguments, group_column: str | None = None
) -> dict[str, Dataset]:
    """Tokenise every split.

    Args:
        data (`TextData`): two text columns are encoded as a pair; of lists of tokens, the first sub-word of each has
            its tag as a label, and all others -100.
        tokenizer (`PreTrainedTokenizerBase`): its `model_max_length` caps `max_seq_length`.
        data_args (`DataArguments`): `max_seq_length` in tokens, `pad_to_max_length`, `label_all_tokens`,
            `overwrite_cache`.
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
    length = {"truncation": True, "max_length": max_length}
    length["padding"] = "max_length" if data_args.pad_to_max_length else False
    encoder = ENCODERS[data.task](data, tokenizer, data_args)
    kept = (["labels"], ["labels", group_column])
    encoded = {
        name: rows.map(
            encoder,
            fn_kwargs={"length": length},
            batched=True,
            remove_columns=[column for column in rows.column_names if column not in kept[name == "train"]],
            load_from_cache_file=not data_args.overwrite_cache,
            desc=f"tokenising {name}",
        )
        for name, rows in splits.items()
    }
    if data.task == TOKENS:
        cut = {"max_length": max_length, "all_tokens": data_args.label_all_tokens}
        encoded = {name: _with_a_label(name, rows, splits[name], **cut) for name, rows in encoded.items()}
    return encoded


def _text_encoder(data: TextData, tokenizer: PreTrainedTokenizerBase, data_args: DataArguments) -> Encoder:
    columns = data.text_columns

    def tokenize(rows: Mapping[str, list[Any]], length: Mapping[str, Any]) -> dict[str, Any]:
        return {**tokenizer(*(rows[column] for column in columns), **length), "labels": rows["labels"]}

    return tokenize


def _token_encoder(data: TextData, tokenizer: PreTrainedTokenizerBase, data_args: DataArguments) -> Encoder:
    following = inside_tags(data.label_names) if data_args.label_all_tokens else [IGNORED] * len(data.label_names)
    (column,) = data.text_columns

    def tokenize(rows: Mapping[str, list[Any]], length: Mapping[str, Any]) -> dict[str, Any]:
        encoded = tokenizer(rows[column], is_split_into_words=True, **length)
        tags = enumerate(rows["labels"])
        return {**encoded, "labels": [align_labels(encoded.word_ids(row), own, following) for row, own in tags]}

    return tokenize


ENCODERS = {TEXTS: _text_encoder, TOKENS: _token_encoder}


def align_labels(words: Sequence[int | None], labels: Sequence[int], following: Sequence[int]) -> list[int]:
    """A label for each sub-word, as transformers' run_ner.py gives them.

    Args:
        words (`Sequence[int | None]`): the number of the word that a sub-word is of; `None` for special tokens, whose
            label is -100.
        labels (`Sequence[int]`): of the words; the first sub-word has that of its word.
        following (`Sequence[int]`): by a label, that of the other sub-words.
    """
    aligned = []
    for place, word in enumerate(words):
        if word is None:
            aligned.append(IGNORED)
        else:
            is_first = place == 0 or words[place - 1] != word
            aligned.append(labels[word] if is_first else following[labels[word]])
    return aligned


def inside_tags(names: Sequence[str]) -> list[int]:
    """By the index of a tag, that of the tokens that go on with it: `I-` for `B-` if there is one, else the same.

    Raises:
        ValueError: for tags that say where an entity ends, which would end more than once.
    """
    parts = [tag_parts(name) for name in names]
    ending = [name for name, (place, _) in zip(names, parts, strict=True) if place and place in ENDINGS]
    if ending and has_entities(names):
        raise ValueError(f"label_all_tokens=True: needs tags in IOB, and there is {ending[0]!r}; leave it out.")
    inside = {kind: number for number, (place, kind) in enumerate(parts) if place == "I"}
    return [inside.get(kind, number) if place == "B" else number for number, (place, kind) in enumerate(parts)]


def _with_a_label(name: str, rows: Dataset, words: Dataset, max_length: int, all_tokens: bool) -> Dataset:
    """The rows that have a label at all; a warning counts the tags that tokenising left out."""
    counts = [sum(label != IGNORED for label in labels) for labels in rows["labels"][:]]
    tags = sum(map(len, words["labels"][:]))
    if sum(counts) < tags and not all_tokens:
        logger.warning(
            "%s: %d of %d tags are left out: their tokens are beyond max_seq_length=%d, or nothing to the tokenizer.",
            *(name, tags - sum(counts), tags, max_length),
        )
    # A batch of such rows has no loss.
    return rows if all(counts) else rows.select([place for place, count in enumerate(counts) if count])
