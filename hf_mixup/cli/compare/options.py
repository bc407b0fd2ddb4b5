"""What a command line says of a comparison, on top of its YAML file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from hf_mixup.cli.compare.grid import Comparison
from hf_mixup.cli.train.arguments import read_yaml
from hf_mixup.config.files import load_yaml

OWN = {item.name for item in fields(Comparison)}
# Of the comparison's own fields; those of its runs are text, too, unless they say otherwise.
TEXTS = ("outliers", "output_dir", "select_by")
LISTS = ("methods", "seeds", "train_sizes", "label_noise", "measures")
# What a field takes the place of: data of the other kind, and what was said of the dataset that was named.
OF_DATASET = (
    *("dataset_config_name", "train_split_name", "validation_split_name", "test_split_name", "unlabeled_split_name"),
)
REPLACED = {
    "train_file": ("dataset_name", *OF_DATASET),
    "dataset_name": ("train_file", "validation_file", "test_file", "unlabeled_file", *OF_DATASET),
}


def read_comparison(path: str, words: Sequence[str] = (), changes: Mapping[str, Any] | None = None) -> Comparison:
    """The comparison of a YAML file and a command line.

    Args:
        path (`str`): the file.
        words (`Sequence[str]`): options after it, `--field value`, of the comparison or of its runs. `--train_file`
            takes the place of a dataset in the file, and `--dataset_name` of files.
        changes (`Mapping[str, Any]`, *optional*): fields that have their types already.

    Raises:
        ValueError: for what is no option, and as `Comparison` does.
        FileNotFoundError: for a missing YAML file.
    """
    given = read_options(words) | dict(changes or {})
    replaced = {other for name, others in REPLACED.items() if name in given for other in others}
    in_file = {name: value for name, value in read_yaml(path).items() if name not in replaced}
    return Comparison.from_dict(in_file | given)


def read_options(words: Sequence[str]) -> dict[str, Any]:
    """`--field value`, `--field=value`, `--field a b` for a list, and `--field` alone, which is true."""
    found: dict[str, list[str]] = {}
    open_to: list[str] | None = None
    for word in words:
        if word.startswith("--") and word != "--":
            option, equals, value = word[2:].partition("=")
            values = found[option.replace("-", "_")] = [value] if equals else []
            open_to = None if equals else values
        elif open_to is None:
            raise ValueError(f"unexpected {word!r}; after the YAML file, options are written --field value.")
        else:
            open_to.append(word)
    return {name: _value(name, values) for name, values in found.items()}


def _value(name: str, words: Sequence[str]) -> Any:
    if name in TEXTS and len(words) == 1:
        return words[0]
    if name in LISTS and words == [""]:
        return []
    values = [_typed(word, name in OWN) for word in words] or [True]
    is_list = len(values) > 1 or (name in LISTS and not isinstance(values[0], (list, dict)))
    return values if is_list else values[0]


def _typed(word: str, as_yaml: bool) -> Any:
    """A word as YAML has it; for a field of the runs only if that is what it says, as 007 is the name of a model."""
    try:
        value = load_yaml(word)
    except ValueError:
        return word
    return value if as_yaml or word in ("true", "false", repr(value)) else word


def read_part(text: str | None) -> tuple[int, int]:
    """Which part of how many `--part 3/16` means; without it the one of one. Raises `ValueError` for anything else."""
    numbers = re.fullmatch(r"([0-9]+)/([0-9]+)", "1/1" if text is None else text)
    part, parts = map(int, numbers.groups()) if numbers else (0, 0)
    if not 1 <= part <= parts:
        raise ValueError(f"part={text!r}: expected a part and how many there are, from 1/16 to 16/16 for sixteen.")
    return part, parts
