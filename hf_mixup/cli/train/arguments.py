"""The fields of a training run, and how a YAML file and a command line become them."""

import itertools
import json
import os
import re
from argparse import Action, ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from transformers import HfArgumentParser, TrainingArguments

from hf_mixup.cli.mixup_help import mixup_help
from hf_mixup.cli.train.delimited import DELIMITERS
from hf_mixup.cli.train.files import FileFormat
from hf_mixup.cli.train.training_dry_run import construction_errors
from hf_mixup.cli.train.training_options import check_options, field_name
from hf_mixup.config.checks import choice, count, nearest
from hf_mixup.config.files import load_yaml, read_mapping
from hf_mixup.config.mixup_config import MixupConfig
from hf_mixup.config.recipes import resolve_config
from hf_mixup.training.averaging import check_averaging
from hf_mixup.training.loss_watch import POLICIES

# How Python writes that there is no value.
NONE = "None"
# Fields that may be a path, in which ~ is the home folder.
PATHS = (
    *("model_name_or_path", "config_name", "tokenizer_name", "cache_dir", "dataset_name", "train_file"),
    *("validation_file", "test_file", "output_dir", "resume_from_checkpoint"),
)


def _help(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class ModelArguments:
    """Which model is fine-tuned, and with which mixup. The help of each field says what it means."""

    model_name_or_path: str | None = _help(None, "A folder, a hub name, or demo:minilm (needs the demo extra).")
    config_name: str | None = _help(None, "Folder or hub name of the config, if not the model's.")
    tokenizer_name: str | None = _help(None, "Folder or hub name of the tokenizer, if not the model's.")
    cache_dir: str | None = _help(None, "Folder for downloaded models and for the data as read.")
    model_revision: str = _help("main", "Branch, tag or commit of a hub model.")
    token: str | None = _help(None, "Token for private hub repositories.")
    trust_remote_code: bool = _help(False, "Run model code that comes from the hub.")
    ignore_mismatched_sizes: bool = _help(False, "Give a classifier whose head does not fit the labels a new one.")
    attn_implementation: str | None = _help(None, "eager, sdpa, flex_attention or a flash kernel; by default its own.")
    prior_bias: bool = _help(False, "Start the bias of a new head from how frequent the labels are, or their mean.")
    nonfinite_loss: str = _help("warn", "At the first training loss that is not finite: warn, stop or ignore.")
    averaging: str | None = _help(None, "ema: evaluate and save the moving average of the weights. none: no average.")
    ema_decay: float | None = _help(None, "Largest decay of that average; 0.999 by default.")
    fit_temperature: bool = _help(False, "Fit a temperature on the validation rows after training, and keep it.")
    baseline: bool = _help(False, "Train once more with mixup off, and show what that gives beside it.")
    mixup: dict[str, Any] | str | None = _help(
        "default", "A recipe, a YAML path or none; in a YAML file also a mapping of MixupConfig fields."
    )

    def __post_init__(self) -> None:
        if not self.model_name_or_path:
            raise ValueError("model_name_or_path is missing: a folder, a hub name, or demo:minilm.")
        choice(*POLICIES)("nonfinite_loss", self.nonfinite_loss)
        check_averaging(self.averaging, self.ema_decay)


@dataclass
class DataArguments:
    """What is trained and evaluated on. The help of each field says what it means."""

    dataset_name: str | None = _help(None, "A hub name, a folder, or demo:rotten_tomatoes, demo:bbc_news (demo extra).")
    dataset_config_name: str | None = _help(None, "Configuration of the dataset.")
    train_file: str | None = _help(None, "CSV, TSV, JSON, JSONL or Parquet file to train on.")
    validation_file: str | None = _help(None, "File for evaluation during training; else a tenth is held out.")
    test_file: str | None = _help(None, "File for the evaluation at the end; else the validation data serve.")
    train_split_name: str | None = _help(None, "Split of dataset_name to train on; train by default.")
    validation_split_name: str | None = _help(None, "Split of dataset_name; validation by default, if there is one.")
    test_split_name: str | None = _help(None, "Split of dataset_name; test by default, if there is one.")
    text_column_names: str | None = _help(
        None, "Text column, or two for pairs: left,right or a YAML list; text by default."
    )
    label_column_name: str | None = _help(None, "Label column; label or labels by default.")
    label_delimiter: str | None = _help(None, "What separates several class names in one cell (multi-label).")
    csv_delimiter: str | None = _help(None, "What separates the cells of CSV files: , by default, a tab in .tsv.")
    csv_quoting: str | None = _help(
        None, 'minimal: cells may stand in quotation marks; none: these are text; backslash: \\" stands for one.'
    )
    encoding: str | None = _help(None, "Encoding of CSV and JSON files, such as cp1252 or utf-16; UTF-8 by default.")
    do_regression: bool | None = _help(None, "Labels are numbers to predict; by default if some are decimal.")
    max_seq_length: int = _help(128, "Longer texts are truncated to this many tokens.")
    pad_to_max_length: bool = _help(False, "Pad to max_seq_length, not to the longest text of a batch.")
    max_train_samples: int | None = _help(None, "Train on the first n rows only.")
    max_eval_samples: int | None = _help(None, "Validate on the first n rows only.")
    max_predict_samples: int | None = _help(None, "Test on the first n rows only.")
    shuffle_train_dataset: bool = _help(False, "Shuffle the training rows before max_train_samples are taken.")
    shuffle_seed: int = _help(42, "Seed of that shuffle, and of the rows that are held out.")
    overwrite_cache: bool = _help(False, "Tokenise again, even if the tokenised data are cached.")
    overwrite_output_dir: bool = _help(False, "Allow an output_dir that is not empty.")

    def __post_init__(self) -> None:
        if (self.dataset_name is None) == (self.train_file is None):
            raise ValueError("dataset_name, train_file: give one of the two.")
        if self.dataset_name is not None and (self.validation_file or self.test_file):
            raise ValueError("validation_file and test_file go with train_file, not with dataset_name.")
        for name in ("max_seq_length", "max_train_samples", "max_eval_samples", "max_predict_samples"):
            if getattr(self, name) is not None:
                count(1)(name, getattr(self, name))
        self._check_file_format()

    def _check_file_format(self) -> None:
        files = [name for name in (self.train_file, self.validation_file, self.test_file) if name is not None]
        delimited = any(Path(name).suffix.lower() in DELIMITERS for name in files)
        for name in (name for name in asdict(self.file_format) if getattr(self, name) is not None):
            if not files or (name != "encoding" and not delimited):
                raise ValueError(f"{name}={getattr(self, name)!r}: there is no file that it applies to.")

    @property
    def file_format(self) -> FileFormat:
        """How the files are read."""
        return FileFormat(self.csv_delimiter, self.csv_quoting, self.encoding)


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
        config = resolve_config(spec)
    if config is None:
        raise ValueError(f"mixup.{next(iter(changes))}: mixup is none; choose one with --mixup, for example default.")
    return {**config.to_dict(), **changes}


def _yaml_value(name: str, text: str) -> Any:
    try:
        return load_yaml(text)
    except ValueError as error:
        raise ValueError(f"{name}={text!r}: not a YAML value: {error}") from error
