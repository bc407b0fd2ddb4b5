"""The data of `task: tokens`: lists of tokens, and of a tag for each, as for named entities or parts of speech."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from datasets import ClassLabel, Dataset, List, Value

from hf_mixup.cli.train.label_task import doubts_about, in_model_order, in_order, quoted
from hf_mixup.cli.train.labels import LabelColumn, plain, refuse_one_class, refuse_unseen
from hf_mixup.cli.train.run_fields import DataArguments
from hf_mixup.config.tags import PLACED

# The field that names the columns, what they hold, and what a row without it is called.
FIELD, INPUT, LACKING = "token_column_name", "tokens", "without tokens"
# What is taken if no column is named, the first that is there.
TOKEN_COLUMNS = ("tokens", "words")
LABEL_COLUMNS = ("ner_tags", "tags", "pos_tags", "chunk_tags", "labels")
# Empty lists have the type null.
TEXT = ("string", "large_string", "null")


def input_columns(present: Sequence[str], data_args: DataArguments) -> list[str]:
    """The column of the tokens among those that are `present`: the one named, or the usual one."""
    usual = next((name for name in TOKEN_COLUMNS if name in present), TOKEN_COLUMNS[0])
    return [data_args.token_column_name or usual]


def usual_columns(data_args: DataArguments) -> list[str]:
    """The columns that may hold the tokens of a file, which must not be left out."""
    return [data_args.token_column_name] if data_args.token_column_name else [*TOKEN_COLUMNS]


def check_types(split: Dataset, name: str, texts: Sequence[str], label: str | None = None) -> None:
    """Raise `ValueError` unless the columns hold lists: of text, and of names or numbers."""
    expected: dict[str, tuple[str, str, tuple[str, ...]]] = {texts[0]: (FIELD, "lists of text", TEXT)}
    if label is not None:
        expected[label] = ("label_column_name", "lists of names or numbers of tags", (*TEXT, "int", "uint"))
    for column, (field, wanted, kinds) in expected.items():
        feature = split.features[column]
        inner = getattr(feature, "feature", None)
        kind = str(getattr(inner or feature, "dtype", "nested"))
        if inner is None or not kind.startswith(kinds):
            found = f"lists of {kind}" if inner else kind
            raise ValueError(f"{field}={column!r}: the {name} data hold {found} there; expected {wanted}.")


def has_input(tokens: Sequence[str] | None) -> bool:
    """Whether a cell has a token."""
    return any(token and token.strip() for token in tokens or ())


def encode_labels(
    columns: Mapping[str, LabelColumn], texts: Sequence[str], data_args: DataArguments, known: Sequence[str] | None
) -> tuple[str, dict[str, Dataset], list[str]]:
    """The problem type, the splits with lists of class indices as `labels`, and the names of the tags.

    Args:
        columns (`Mapping[str, LabelColumn]`): by the name of the split; tags are those of `"train"`.
        texts (`Sequence[str]`): the column of the tokens.
        data_args (`DataArguments`): not used.
        known (`Sequence[str]`, *optional*): the tags of the model, of which the data's must be a part.

    Raises:
        ValueError: for a row with more or fewer tags than tokens, a tag that is missing, or that the training data or
            the model lack.
    """
    train = columns["train"]
    rows = {name: _tags(column, texts[0]) for name, column in columns.items()}
    if isinstance(train.feature, ClassLabel):
        names = list(train.feature.names)
    else:
        names = in_order(chain.from_iterable(rows["train"]))
        doubts_about(train.label, names, sum(map(len, rows["train"])))
    if known is not None:
        names = in_model_order(train.label, names, known)
    index = {name: number for number, name in enumerate(names)}
    encoded = {}
    for name, column in columns.items():
        refuse_unseen(column, set(chain.from_iterable(rows[name])), names)
        encoded[name] = column.replaced([[index[tag] for tag in tags] for tags in rows[name]], List(Value("int64")))
    return "token_classification", encoded, names


def labels_line(
    label: str, problem_type: str, names: Sequence[str], labels: Sequence[Any], data_args: DataArguments
) -> str:
    """What was made of the label column, in one line."""
    line = f"label column {label!r}: {len(names)} tags of {sum(map(len, labels)):,} tokens"
    kinds = sorted({name[2:] for name in names if PLACED.match(name)})
    if kinds:
        return f"{line}, entities of {len(kinds)} type{'s' * (len(kinds) != 1)} ({quoted(kinds, 10)})"
    return f"{line} ({quoted(names, 10)})"


def check_classes(train: Dataset, label: str, names: Sequence[str]) -> None:
    """Raises `ValueError` unless two tags or more occur in the encoded `train`."""
    refuse_one_class(sorted(set(chain.from_iterable(train["labels"][:]))), label, names)


def _tags(column: LabelColumn, tokens: str) -> list[list[str]]:
    """The names of the tags in every row, one for each token."""
    feature, rows = column.feature, []
    pairs = zip(column.split[tokens][:], column.cells, strict=True)
    for number, (words, cell) in column.numbered(list(pairs)):
        tags = [tag.strip() if isinstance(tag, str) else tag for tag in cell or ()]
        where = f"row {number} of the {column.name} data"
        if len(tags) != len(words):
            raise column.error(f"{where} has {len(words)} tokens and {len(tags)} tags; expected as many.")
        for place, (word, tag) in enumerate(zip(words, tags, strict=True), start=1):
            if word is None or tag in (None, "") or (isinstance(tag, int) and tag < 0):
                raise column.error(f"{where} has the token {word!r} with the tag {tag!r} at place {place}.")
        rows.append([feature.int2str(tag) if isinstance(feature, ClassLabel) else plain(tag) for tag in tags])
    return rows
