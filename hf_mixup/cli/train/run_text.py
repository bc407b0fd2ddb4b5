"""What a run says of itself: what it trains, on what, for how long and how it is mixed; and at the end what is next."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import Dataset

from hf_mixup.cli.train.data import UNLABELED, TextData
from hf_mixup.cli.train.named_classifier import gets_new_head
from hf_mixup.cli.train.run_fields import TEXTS, TOKENS, DataArguments, ModelArguments
from hf_mixup.config.mixup_config import AUTO, MixupConfig
from hf_mixup.config.recipes import recipe_names, resolve_config
from hf_mixup.config.setting import changed_fields
from hf_mixup.loss.task import IGNORED
from hf_mixup.training.metric_names import has_entities
from hf_mixup.training.trainer_checks import has_partners

WIDTH, INDENT = 100, 8
# Who guesses the classes of texts without labels.
GUESSERS = {
    "average": "the moving average of the weights",
    "model": "the model itself",
    "given": "whoever gave their probabilities",
}
PIPELINES = {TEXTS: "text-classification", TOKENS: "token-classification"}
PARTNERS = {
    "random": "a random text of the batch",
    "same_class": "a text of the same class",
    "other_class": "a text of another class",
    "near_label": "a text of a near label",
    "balanced": "a text of a class drawn evenly",
    "lisa": "a text of the same label or group",
    "margin": "an easier or harder text",
    "near_length": "a text of about as many tokens",
    "near_text": "a near text of the batch, or any",
    "same_text": "another token of the same text",
    "previous_batch": "a text of the batches before",
    "all_ranks": "a random text of the global batch",
}
SITES = {
    "input": "at the input",
    "word_embeddings": "at the word embeddings",
    "embeddings": "at the input of the first layer",
    "pooled": "at the input of the last linear layer",
}


def model_and_data(
    trainer: Any, data: TextData, splits: Mapping[str, Dataset], given: ModelArguments, of: DataArguments
) -> str:
    """Two lines: which model, and on what it is trained and measured; and a third, what is done without labels.

    Args:
        trainer (`Trainer`): before training.
        data (`TextData`), splits (`Mapping[str, Dataset]`): the data, as text and tokenised.
        given (`ModelArguments`), of (`DataArguments`): what they were made of.
    """
    model = trainer.model
    count = sum(weight.numel() for weight in model.parameters())
    size = f"{count / 1e6:.1f} million" if count >= 1e5 else f"{count:,}"
    head = "a new head" if gets_new_head(given, model.config.num_labels, data.task) else "the head that it has"
    rows = ", ".join(f"{split.num_rows:,} {name}" for name, split in splits.items() if name != UNLABELED) + " rows"
    rows += f", {splits[UNLABELED].num_rows:,} without labels" if UNLABELED in splits else ""
    source = of.dataset_name or of.train_file
    lines = {
        "Model": f"{given.model_name_or_path}, {type(model).__name__} with {size} parameters, {head}",
        "Data": f"{source}, {rows}; {data.labels}",
    }
    if UNLABELED in splits:
        lines["Guesses"] = _guess_words(trainer, np.asarray(splits[UNLABELED]["labels"]))
    return "\n".join(_line(name, text) for name, text in lines.items())


def length_and_mixup(trainer: Any, spec: Any, mixup: MixupConfig | None) -> str:
    """Two lines: how long a training takes, and how it is mixed.

    Args:
        trainer (`MixupTrainer`): at the start of its training.
        spec (`str` or `Mapping`), mixup (`MixupConfig`, *optional*): what the user said of mixup, and what it means.
    """
    args, state = trainer.args, trainer.state
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    rows = trainer.trained_rows.num_rows
    epochs = state.max_steps * batch / rows
    times = f"{epochs:.1f}" if epochs >= 1 else f"{epochs:.2f}"
    length = f"{state.max_steps:,} updates of {batch} rows, {times} epochs of {rows:,} rows"
    done = f"; {state.global_step:,} are done" if state.global_step else ""
    return "\n".join(
        [_line("Length", f"{length}, on {args.device}{done}"), _line("Mixup", _mixup_words(trainer, spec, mixup))]
    )


def what_is_next(trainer: Any, data: TextData, shows_baseline: bool) -> str:
    """Where everything was saved, how the model is loaded, and the command to try next."""
    folder = str(trainer.args.output_dir)
    text = '{"text": "...", "text_pair": "..."}' if len(data.text_columns) == 2 else '"..."'
    options = json.dumps(folder, ensure_ascii=False)
    if data.task == TOKENS and has_entities(data.label_names):
        options += ', aggregation_strategy="simple"'
    following = []
    if trainer.unlabeled_dataset is not None and not shows_baseline:
        following += ["--baseline true trains once more, with mixup off and labelled rows only"]
    elif _mixes(trainer) and not shows_baseline:
        following += ["--baseline true trains once more with mixup off, to see what mixup did"]
    following += ["hf-mixup compare CONFIG.yaml compares methods over seeds (docs/comparison.md)"]
    return "\n".join(
        [
            "",
            _line("Saved", f"{folder}: the model, its tokenizer, results.json"),
            f"{'Use':<{INDENT}}from transformers import pipeline",
            f'{"":<{INDENT}}pipeline("{PIPELINES[data.task]}", {options})({text})',
            _line("Next", "; ".join(following)),
        ]
    )


def _guess_words(trainer: Any, labels: np.ndarray) -> str:
    """Who guesses the classes of rows without labels, of how many, and when; and what is done with labels, if any."""
    config = trainer.unlabeled
    known = int((labels != IGNORED).sum()) if labels.ndim == 1 else 0
    if not config.weight:
        return "none: mixup.unlabeled.weight is 0"
    who = GUESSERS[config.guesses]
    when = f"after {config.begins:.0%} of the training" if config.begins else "from the start"
    compared = f"; {known:,} have a label, which is compared with the guess and not learned" if known else ""
    return f"{config.ratio:g} per labelled row, of the classes of texts without labels, by {who}, {when}{compared}"


def _mixes(trainer: Any) -> bool:
    """Whether anything could be mixed: a strength that follows held-out rows has some, and batches have partners."""
    if trainer.mixup is None or not has_partners(trainer.mixup.config, trainer.args):
        return False
    return trainer.mixup.config.strength != AUTO or bool(_checks(trainer))


def _line(name: str, text: str) -> str:
    return textwrap.fill(
        f"{name:<{INDENT}}{text}", WIDTH, subsequent_indent=" " * INDENT, break_on_hyphens=False, break_long_words=False
    )


def _mixup_words(trainer: Any, spec: Any, given: MixupConfig | None) -> str:
    if trainer.mixup is None or given is None:
        return "none"
    config: MixupConfig = trainer.mixup.config
    if not has_partners(config, trainer.args):
        return "none: a batch of one has no partners; add --mixup.partner previous_batch"
    name = spec if isinstance(spec, str) else _recipe(given)
    site = SITES.get(config.site) or _layers(config, trainer.mixup.prepare().depth)
    how = f"with {PARTNERS[config.partner]}, {site}"
    if config.interpolation == "entity_span":
        how = f"an entity of {PARTNERS[config.partner]} in the place of one"
    if config.strength != AUTO:
        return f"{name} - {how}" + ("" if config.strength == 1 else f", at strength {config.strength:g}")
    checks, follows = _checks(trainer), f"{name} - as much as held-out predictions ask for"
    if not checks:
        return f"{follows}, but none are checked, so nothing is mixed; add --eval_strategy epoch"
    return f"{follows}, checked {' and '.join(checks)}; {how}"


def _recipe(config: MixupConfig) -> str:
    """The recipe that a config is the nearest to, and what is different."""
    changes = {name: changed_fields(resolve_config(name), config) for name in recipe_names()}
    name = min(changes, key=lambda name: len(changes[name]))
    own = ", ".join(f"{field} {getattr(config, field)}" for field in changes[name] if field != "unlabeled")
    return f"{name} with {own}" if own else name


def _layers(config: MixupConfig, depth: int) -> str:
    layers = config.resolve_layers(depth)
    *others, last = map(str, layers)
    listed = f"{', '.join(others)} or {last}" if others else last
    return "after any layer" if len(layers) == depth > 1 else f"after layer {listed}"


def _checks(trainer: Any) -> list[str]:
    rows, checks = trainer.check_rows, []
    if trainer.args.eval_strategy != "no":
        checks.append("at each evaluation")
    if rows is not None and rows.rows is not None:
        where = "held-out training" if trainer.eval_dataset is None else "validation"
        checks.append(f"{rows.checks} times on {len(rows.rows)} {where} rows")
    return checks
