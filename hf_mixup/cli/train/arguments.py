"""How a YAML file and a command line become the fields of a training run."""

import itertools
import json
import os
import re
from argparse import Action, ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers import HfArgumentParser, TrainingArguments

from hf_mixup.cli.mixup_help import mixup_help
from hf_mixup.cli.train.run_fields import DataArguments, ModelArguments
from hf_mixup.cli.train.training_dry_run import construction_errors
from hf_mixup.cli.train.training_options import check_options, field_name
from hf_mixup.config.checks import nearest
from hf_mixup.config.files import load_yaml, read_mapping
from hf_mixup.config.mixup_config import MixupConfig
from hf_mixup.config.recipes import beside_unlabeled, changed_config, resolve_config

# How Python writes that there is no value.
NONE = "None"
# How the fields of the field `unlabeled` begin.
UNLABELED = "unlabeled."
# Fields that may be a path, in which ~ is the home folder.
PATHS = (
    *("model_name_or_path", "config_name", "tokenizer_name", "cache_dir", "dataset_name", "train_file"),
    *("validation_file", "test_file", "unlabeled_file", "output_dir", "resume_from_checkpoint"),
)


class _HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    pass


class _Parser(HfArgumentParser):
    def error(self, message: str) -> Any:
        wrong = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message)
        choices = [] if wrong is None else re.findall(r"[^\s',]+", wrong[2])
        longer = [choice for choice in choices if wrong and choice.startswith(wrong[1])]
        advice = f" Did you mean {longer[0]!r}?" if longer else nearest(wrong[1], choices) if wrong else ""
        raise ValueError(message + (f".{advice}" if advice else ""))


def parse(argv: Sequence[str]) -> tuple[ModelArguments, DataArguments, TrainingArguments]:
    """Read the fields of a run from a YAML file, a command line, or both.

    Args:
        argv (`Sequence[str]`): optionally the path of a YAML file first, then `--field value` pairs, which win.
            `--mixup.alpha 0.2` sets one field of the mixup config.

    Returns:
        `tuple[ModelArguments, DataArguments, TrainingArguments]`: the `mixup` of the first is a recipe, a path,
        `"none"` or a dict of `MixupConfig` fields.

    Raises:
        ValueError: for an unknown field, a value of the wrong type, or a file that is not a mapping.
        FileNotFoundError: for a missing YAML file.
    """
    argv = list(argv)
    values = read_yaml(argv.pop(0)) if argv and not argv[0].startswith("-") else {}
    return parse_fields(values, argv)


def parse_fields(
    values: Mapping[str, Any], argv: Sequence[str] = ()
) -> tuple[ModelArguments, DataArguments, TrainingArguments]:
    """As `parse`, for a mapping of fields, `mixup.alpha` among them, with the options of a command line on top."""
    values, argv = dict(values), list(argv)
    dotted = [(name.removeprefix("mixup."), values.pop(name)) for name in list(values) if name.startswith("mixup.")]
    groups: list[Any] = [ModelArguments, DataArguments, TrainingArguments]
    parser = _Parser(
        groups,
        usage="hf-mixup train CONFIG.yaml [--any_field value ...]",
        description=mixup_help(),
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    known = {option[2:]: action for action in parser._actions for option in action.option_strings}
    argv, mixup_options = _split_mixup(argv)
    _check_names([*values, *_option_names(argv)], known)
    optional = {name for name, action in known.items() if action.default is None}
    values = {name: value for name, value in values.items() if not (value == NONE and name in optional)}
    argv = _without_none(argv, optional)
    in_file = [(name, json.dumps(value, default=str)) for name, value in dotted]
    mixup = _merge_mixup(values.pop("mixup", "default"), [*in_file, *mixup_options])
    arguments = [part for name, value in values.items() for part in _to_argv(name, value, known[name])]
    given = {field_name(name) for name in _option_names([*arguments, *argv])}
    with construction_errors(given):
        model_args, data_args, training_args, extra = parser.parse_args_into_dataclasses(
            arguments + argv, look_for_args_file=False, return_remaining_strings=True
        )
    if extra:
        raise ValueError(f"unexpected {extra[0]!r}; after the YAML file, options are written --field value.")
    model_args.mixup = mixup
    for group, name in itertools.product((model_args, data_args, training_args), PATHS):
        if isinstance(getattr(group, name, None), str):
            setattr(group, name, os.path.expanduser(getattr(group, name)))
    check_options(training_args, given)
    # Without an accelerator there is nothing to pin memory for, and PyTorch warns.
    if "dataloader_pin_memory" not in given and not torch.accelerator.is_available():
        training_args.dataloader_pin_memory = False
    return model_args, data_args, training_args


def read_yaml(path: str) -> dict[str, Any]:
    """The mapping in a YAML file. Raises `FileNotFoundError`, or `ValueError` if it is not a mapping."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected the YAML file of a run.")
    return read_mapping(file, "field names to values")


@contextmanager
def mixup_errors() -> Iterator[None]:
    """Errors about a field of `MixupConfig` name it as a run does: `mixup.alpha`."""
    try:
        yield
    except ValueError as error:
        starts = [field.name for field in fields(MixupConfig) if re.match(rf"{field.name}\b", str(error))]
        if not starts:
            raise
        raise ValueError(f"mixup.{error}") from error


def _without_none(argv: Sequence[str], optional: Collection[str]) -> list[str]:
    """The words without options that are given as `None`, as Python writes it, where that is their default."""
    kept: list[str] = []
    for word in argv:
        option = kept[-1] if word == NONE and kept else word.removesuffix(f"={NONE}")
        if option.removeprefix("--") in optional and (word == NONE or option != word):
            kept = kept[:-1] if word == NONE else kept
        else:
            kept.append(word)
    return kept


def _option_names(argv: Sequence[str]) -> list[str]:
    return [part[2:].partition("=")[0] for part in argv if part.startswith("--")]


def _check_names(names: Sequence[str], known: Mapping[str, Action]) -> None:
    for name in names:
        if name not in known:
            is_of_mixup = name in {field.name for field in fields(MixupConfig)}
            advice = f" Did you mean 'mixup.{name}'?" if is_of_mixup else nearest(name, known)
            raise ValueError(f"unknown field {name!r}.{advice}")


def _to_argv(name: str, value: Any, action: Action) -> list[str]:
    """One YAML value as command-line words, so that argparse gives it the type of its field."""
    if value is None:
        return []
    if isinstance(value, list):
        words = [_word(item) for item in value]
        return [f"--{name}", *words] if action.nargs == "+" else [f"--{name}={','.join(words)}"]
    # YAML reads an unquoted no as false.
    if value is False and "no" in (action.choices or ()):
        value = "no"
    return [f"--{name}={_word(value)}"]


def _word(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (Mapping, bool)) else str(value)


def _split_mixup(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Take `--mixup VALUE` and `--mixup.field VALUE` out of the command line, in their order."""
    rest: list[str] = []
    options: list[tuple[str, str]] = []
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if name != "--mixup" and not name.startswith("--mixup."):
            rest.append(word)
            continue
        if not equals:
            value = next(words, "--")
        if value.startswith("--"):
            raise ValueError(f"{name[2:]}: expected a value after {name}.")
        options.append((name.removeprefix("--mixup").removeprefix("."), value))
    return rest, options


def _merge_mixup(spec: Any, options: Sequence[tuple[str, str]]) -> Any:
    """The mixup of the file, or the last `--mixup`, with the fields of `--mixup.field` on top."""
    spec = next((value for name, value in reversed(options) if not name), spec)
    changes = {name: _yaml_value(f"mixup.{name}", value) for name, value in options if name}
    spec = changes.pop("recipe", spec)
    if not changes:
        return spec
    with mixup_errors():
        config = resolve_config(beside_unlabeled(spec) if any(map(_is_of_unlabeled, changes)) else spec)
    if config is None:
        raise ValueError(f"mixup.{next(iter(changes))}: mixup is none; choose one with --mixup, for example default.")
    unlabeled = {name.partition(".")[2]: changes.pop(name) for name in list(changes) if name.startswith(UNLABELED)}
    if unlabeled:
        changes["unlabeled"] = {**(changes.get("unlabeled") or {}), **unlabeled}
    return changed_config(config, changes)


def _is_of_unlabeled(name: str) -> bool:
    return name == "unlabeled" or name.startswith(UNLABELED)


def _yaml_value(name: str, text: str) -> Any:
    try:
        return load_yaml(text)
    except ValueError as error:
        raise ValueError(f"{name}={text!r}: not a YAML value: {error}") from error
