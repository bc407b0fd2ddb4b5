"""The classifier of texts or tokens and its tokenizer, from their names; what does not fit the data is refused."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_mixup.cli import demo
from hf_mixup.cli.terminal import in_one_line
from hf_mixup.cli.train.data import TextData
from hf_mixup.cli.train.prior_bias import start_at_priors
from hf_mixup.cli.train.run_fields import TEXTS, TOKENS, ModelArguments
from hf_mixup.cli.train.tokenizer_checks import begin_words_with_blanks, check_tokenizer, lacks_blanks, longest_text
from hf_mixup.evaluation.stored_temperature import FIELD
from hf_mixup.forward.anatomy.host import LOAD_REPORT, LOADING_LOGGER

logger = logging.getLogger(__name__)

# By the task: what the class of a model with a head is called, and the class that builds one.
HEADS = {
    TEXTS: ("ForSequenceClassification", AutoModelForSequenceClassification),
    TOKENS: ("ForTokenClassification", AutoModelForTokenClassification),
}
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def head_labels(model_args: ModelArguments, task: str) -> list[str] | None:
    """The class names of a model that already is a classifier for the task; `None` for one that gets a new head."""
    config = _own_config(model_args)
    return label_names(config) if keeps_head(model_args, config, task) and config.num_labels > 1 else None


def label_names(config: Any) -> list[str]:
    """The class names in a config, in the order of their indices."""
    return [config.id2label[number] for number in range(config.num_labels)]


def _own_config(model_args: ModelArguments) -> Any:
    with _naming("config_name" if model_args.config_name else "model_name_or_path", _config_path(model_args)):
        return AutoConfig.from_pretrained(_config_path(model_args), **_loading(model_args))


def is_classifier(config: Any, task: str) -> bool:
    """Whether a model with this config has a head for the classes or scores of the task."""
    return any(HEADS[task][0] in name for name in config.architectures or ())


def keeps_head(model_args: ModelArguments, config: Any, task: str) -> bool:
    """Whether a model with this config is a classifier that has to keep its head."""
    return is_classifier(config, task) and not model_args.ignore_mismatched_sizes


def gets_new_head(model_args: ModelArguments, labels: int, task: str) -> bool:
    """Whether the model of a run gets a new head: it has none, or one for another number of labels."""
    config = _own_config(model_args)
    return not is_classifier(config, task) or config.num_labels != labels


def build_model(model_args: ModelArguments, data: TextData) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The classifier for the data, and its tokenizer.

    Args:
        model_args (`ModelArguments`): which.
        data (`TextData`): gives the problem type and the class names, which end in the model's `id2label`.

    Raises:
        ValueError: for a tokenizer that has neither a padding nor an end-of-text token, or does not belong to the model
            or the texts; for a head that does not fit the labels; for `prior_bias` if the model has no bias that
            could start there.
    """
    path = model_path(model_args)
    tokenizer_name = model_args.tokenizer_name or path
    tokenizer = load_tokenizer(model_args, tokenizer_name, data.task)
    model, new = _load_model(model_args, data, path)
    if model_args.prior_bias:
        start_at_priors(model, new, data.splits["train"], data.problem_type)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ValueError(f"tokenizer_name={tokenizer_name!r}: no pad token, nor an eos token.")
        tokenizer.pad_token = tokenizer.eos_token
        logger.warning("The tokenizer has no pad token: its eos token %r serves as one.", tokenizer.eos_token)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    columns = [data.splits["train"][column][:] for column in data.text_columns]
    texts = [[" ".join(words) for words in columns[0]]] if data.task == TOKENS else columns
    check_tokenizer(tokenizer_name, tokenizer, model, texts)
    limit = longest_text(model)
    if limit is not None:
        tokenizer.model_max_length = min(tokenizer.model_max_length, limit)
    return model, tokenizer


def load_tokenizer(model_args: ModelArguments, name: str, task: str) -> PreTrainedTokenizerBase:
    """The tokenizer; for lists of words, one that knows the word of a token, and begins each as it does after a blank.

    Raises:
        ValueError: for a tokenizer that cannot be loaded, or does not know of words.
    """
    with _naming("tokenizer_name", name):
        tokenizer = AutoTokenizer.from_pretrained(name, **_loading(model_args))
        if task == TOKENS and lacks_blanks(tokenizer):
            tokenizer = AutoTokenizer.from_pretrained(name, **_loading(model_args), add_prefix_space=True)
            begin_words_with_blanks(tokenizer)
    if task == TOKENS and not tokenizer.is_fast:
        raise ValueError(
            f"tokenizer_name={name!r}: {type(tokenizer).__name__} does not say which word a token is of, which "
            f"task: {TOKENS} needs; name a fast tokenizer (is_fast) of the model."
        )
    return tokenizer


def _load_model(model_args: ModelArguments, data: TextData, path: str) -> tuple[PreTrainedModel, set[str]]:
    """The model, and the names of its parameters that are new."""
    names = data.label_names or ["LABEL_0"]
    own = _own_config(model_args)
    if keeps_head(model_args, own, data.task) and own.num_labels != len(names):
        found = f"{len(names)} classes" if data.label_names else "scores (regression)"
        raise ValueError(
            f"model_name_or_path={model_args.model_name_or_path!r}: its head has num_labels={own.num_labels}, but the "
            f"labels are {found}; ignore_mismatched_sizes: true gives it a new head, do_regression says what the "
            "labels are."
        )
    config = AutoConfig.from_pretrained(
        _config_path(model_args),
        num_labels=len(names),
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
        # That of tokens is not one of transformers.
        problem_type=None if data.task == TOKENS else data.problem_type,
        **_loading(model_args),
    )
    # That of the weights before this training.
    vars(config).pop(FIELD, None)
    options = _loading(model_args) | {"ignore_mismatched_sizes": model_args.ignore_mismatched_sizes}
    if model_args.attn_implementation:
        options["attn_implementation"] = model_args.attn_implementation
    with (
        _naming("model_name_or_path", path, attn_implementation=model_args.attn_implementation),
        _reporting(gets_head=not keeps_head(model_args, own, data.task)) as loading,
    ):
        model, loaded = HEADS[data.task][1].from_pretrained(path, config=config, output_loading_info=True, **options)
        new = {*loaded["missing_keys"], *(name for name, *_ in loaded["mismatched_keys"])}
        # Models of tokens have no pooler.
        unexpected = {name for name in loaded["unexpected_keys"] if data.task == TEXTS or "pooler" not in name}
        loading |= {"backbone": f"{model.base_model_prefix}.", "new": new, "unexpected": unexpected}
    return model, new


@contextmanager
def _reporting(gets_head: bool) -> Iterator[dict[str, Any]]:
    """Hold back what transformers reports of loading, unless it is about more than the new head.

    The block fills the dict: the `backbone` of the names of its parameters, the `new` ones and the `unexpected` ones.
    """
    held: list[logging.LogRecord] = []
    found: dict[str, Any] = {}

    def passes(record: logging.LogRecord) -> bool:
        is_report = LOAD_REPORT in record.getMessage()
        held.extend([record] * is_report)
        return not is_report

    LOADING_LOGGER.addFilter(passes)
    try:
        yield found
    finally:
        LOADING_LOGGER.removeFilter(passes)
        is_head = gets_head and found and not found["unexpected"] and found["backbone"] != "."
        if not is_head or any(name.startswith(found["backbone"]) for name in found["new"]):
            for record in held:
                # transformers colors it, whatever it is written to.
                record.msg, record.args = ESCAPES.sub("", record.getMessage()), ()
                LOADING_LOGGER.handle(record)


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


@contextmanager
def _naming(field: str, path: str, attn_implementation: str | None = None) -> Iterator[None]:
    """Errors of what transformers loads name the field that asked for it."""
    try:
        yield
    except OSError as error:
        reason = (str(error).splitlines() or [""])[0]
        where = "" if Path(path).is_dir() else "no such folder, and the hub cannot be reached or has no such model: "
        raise FileNotFoundError(f"{field}={path!r}: {where}{reason}") from error
    except Exception as error:
        # A kernel without its package, or that the model does not have.
        if attn_implementation and ("attention" in str(error).lower() or "attn" in str(error).lower()):
            cure = "; eager and sdpa need neither a package nor a GPU"
            raise ValueError(f"attn_implementation={attn_implementation!r}: {in_one_line(error)}{cure}") from error
        raise ValueError(f"{field}={path!r}: cannot be loaded: {in_one_line(error)}") from error
