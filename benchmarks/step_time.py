"""One optimiser step of MixupTrainer against one of plain Trainer, side by side in one process.

    python benchmarks/step_time.py                            # every site
    python benchmarks/step_time.py --contenders recipes       # or some by name: c_mixup,ssmix
    python benchmarks/step_time.py --contenders references    # and mixup as the papers' own code does it
    python benchmarks/step_time.py --tags 13                  # a token classifier
    python benchmarks/step_time.py --length 128 --padding none --bf16 --compile --output steps.csv

Every round times one step of every contender on the same batch, in an order drawn anew, so that a machine that slows
down slows all of them. Printed are, for each contender: the median time of a step; the median over rounds of its ratio
to plain Trainer, with its quartiles, and the ratio of the medians; tokens a second; the ratio of peak memory; the time
that mixup's own parts take, forward and backward, and of these the drawing of the plan.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
)

sys.path.insert(0, str(Path(__file__).parent))
from profiling import parts_time, peak_memory
from references import REFERENCES

from hf_mixup import MixupConfig, MixupTrainer
from hf_mixup.config.recipes import recipe_names, resolve_config

Batch = dict[str, torch.Tensor]
Kind = MixupConfig | type[Trainer] | None
SITES = ("word_embeddings", "embeddings", "hidden", "pooled")


def _option(default: Any, text: str, choices: list[str] | None = None) -> Any:
    return field(default=default, metadata={"help": text} | ({"choices": choices} if choices else {}))


@dataclass
class Options:
    """What is measured."""

    model: str = _option("demo:minilm", "demo:minilm, a folder, or a hub name.")
    contenders: str = _option(
        "sites", "What runs beside plain Trainer: sites, recipes, references, or recipes by name."
    )
    rounds: int = _option(30, "How often each contender is timed.")
    warmup: int = _option(2, "Rounds before that, not timed.")
    batch_size: int = 32
    length: int = _option(64, "Tokens of the longest text.")
    padding: str = field(
        default="mixed", metadata={"help": "Texts of mixed or of one length.", "choices": ["mixed", "none"]}
    )
    bf16: bool = _option(False, "Train under bf16 autocast.")
    compile: bool = _option(False, "Train compiled; hidden states are then mixed at one layer.")
    tags: int = _option(0, "Number of tags of a token classifier; 0 for two classes of texts.")
    seed: int = 0
    output: str | None = _option(None, "CSV file that every timing is appended to.")

    @property
    def title(self) -> str:
        switches = [name for name in ("bf16", "compile") if getattr(self, name)]
        shape = f"{self.batch_size} x {self.length}"
        tags = [f"{self.tags} tags"] * bool(self.tags)
        return ", ".join([self.model, shape, f"padding {self.padding}", *tags, *switches, f"{self.rounds} rounds"])


def main() -> None:
    (options,) = HfArgumentParser(Options, description=__doc__).parse_args_into_dataclasses()
    random.seed(options.seed)
    torch.manual_seed(options.seed)
    model = load_model(options.model, options.tags)
    # One model and one optimizer for all: where their memory happens to lie is worth a percent or two.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    wrapped = Trainer(model=model, args=arguments(options)).accelerator.prepare_model(model)
    steps = {name: stepper(model, wrapped, optimizer, kind, options) for name, kind in contenders(options).items()}
    vocab = model.config.vocab_size
    seconds = measure(steps, vocab, options)
    report(steps, seconds, make_batch(vocab, options), options)
    if options.output:
        save(seconds, options)


def load_model(name: str, tags: int) -> torch.nn.Module:
    if name.startswith("demo:"):
        from hf_mixup.cli.demo import model_path

        name = model_path(name)
    if tags:
        names = {tag: "O" if tag == 0 else f"{'BI'[(tag - 1) % 2]}-{(tag - 1) // 2}" for tag in range(tags)}
        config = AutoConfig.from_pretrained(name, num_labels=tags, id2label=names)
        return AutoModelForTokenClassification.from_pretrained(name, config=config)
    two_classes = AutoConfig.from_pretrained(name, num_labels=2)
    return AutoModelForSequenceClassification.from_pretrained(name, config=two_classes)


def contenders(options: Options) -> dict[str, Kind]:
    """Name of each contender, and its mixup or the trainer that it runs; `None` is MixupTrainer with mixup off."""
    chosen: dict[str, Kind] = {"plain Trainer": Trainer, "mixup off": None}
    if options.contenders == "sites":
        one_layer: list[int | str] | None = [2] if options.compile else None
        return chosen | {site: mixing_at(site, one_layer if site == "hidden" else None) for site in SITES}
    if options.contenders == "references":
        return chosen | {name: recipe_for_texts(name) for name in ("tmix", "sent_mixup")} | REFERENCES
    names = [name for name in recipe_names() if mixes_texts(name)]
    if options.contenders != "recipes":
        names = options.contenders.split(",")
    recipes = {name: recipe_for_texts(name) for name in names}
    if "ssmix" in recipes:
        recipes["ssmix, no clean terms"] = replace(recipes["ssmix"], clean_weight=0.0)
    return chosen | recipes


def mixes_texts(name: str) -> bool:
    """Whether a recipe mixes texts with one label each, and needs no texts without."""
    recipe = resolve_config(name)
    assert recipe is not None
    of_tokens = recipe.partner == "same_text" or recipe.interpolation == "entity_span"
    return name not in ("input_mixup", "cutmix") and recipe.unlabeled is None and not of_tokens


def mixing_at(site: str, layers: list[int | str] | None = None) -> MixupConfig:
    """One lambda per example at a site, from the first batch on."""
    return MixupConfig(site=site, layers=layers, alpha=0.4, dominant=False, warmup_batches=0)


def recipe_for_texts(name: str) -> MixupConfig:
    """A recipe as it is in the middle of a training, where it mixes."""
    recipe = resolve_config(name)
    assert recipe is not None
    counts = [3.0, 1.0] if recipe.label_rule == "remix" else None
    return replace(recipe, schedule=None, ramp="linear", warmup_batches=0, class_counts=counts)


def arguments(options: Options) -> TrainingArguments:
    return TrainingArguments(
        tempfile.mkdtemp(), report_to=[], max_steps=1, bf16=options.bf16, torch_compile=options.compile
    )


def stepper(
    model: torch.nn.Module,
    wrapped: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    kind: Kind,
    options: Options,
) -> Callable[[Batch], None]:
    """A function that takes one optimiser step on a batch, with everything that Trainer does around it."""
    if isinstance(kind, type):
        trainer = kind(model=model, args=arguments(options), optimizers=(optimizer, None))
    else:
        trainer = MixupTrainer(model=model, args=arguments(options), mixup=kind, optimizers=(optimizer, None))
    trainer.current_gradient_accumulation_steps = 1

    needs_groups = isinstance(kind, MixupConfig) and kind.partner == "lisa"

    def step(batch: Batch) -> None:
        trainer.training_step(wrapped, {name: batch[name] for name in batch if name != "group" or needs_groups})
        optimizer.step()
        wrapped.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return step


def make_batch(vocab: int, options: Options) -> Batch:
    shape = (options.batch_size, options.length)
    lengths = torch.full((options.batch_size, 1), options.length)
    if options.padding == "mixed":
        lengths = torch.randint(options.length // 4, options.length + 1, (options.batch_size, 1))
        lengths[0] = options.length
    mask = (torch.arange(options.length) < lengths).long()
    labels, group = torch.randint(0, 2, (2, options.batch_size))
    ids = torch.randint(1000, vocab, shape) * mask
    if options.tags:
        # Half of the tokens have the tag of what is no entity.
        tags = torch.randint(0, options.tags, shape) * torch.randint(0, 2, shape)
        labels = tags.masked_fill(mask == 0, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "group": group}


def measure(steps: dict[str, Callable[[Batch], None]], vocab: int, options: Options) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in range(options.warmup + options.rounds):
        batch = make_batch(vocab, options)
        for name in random.sample(list(steps), len(steps)):
            start = time.perf_counter()
            steps[name](batch)
            if round_number >= options.warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def report(
    steps: dict[str, Callable[[Batch], None]], seconds: dict[str, list[float]], batch: Batch, options: Options
) -> None:
    plain = seconds["plain Trainer"]
    tokens = int(batch["attention_mask"].sum())
    memory = {name: peak_memory(step, batch) for name, step in steps.items()}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    print(f"\n{options.title}; {device}, torch {torch.__version__}\n")
    print(
        "| | ms a step | ratio (quartiles) | ratio of medians | tokens/s | peak memory | mixup's parts, ms | draw, ms |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, own in seconds.items():
        low, middle, high = statistics.quantiles([a / b for a, b in zip(own, plain, strict=True)], n=4)
        median = statistics.median(own)
        has_parts = not options.compile and not name.startswith("reference")
        cells = [
            name,
            f"{median * 1e3:.1f}",
            f"{middle:.3f} ({low:.3f}-{high:.3f})",
            f"{median / statistics.median(plain):.3f}",
            f"{tokens / median:,.0f}",
            f"{memory[name] / memory['plain Trainer']:.3f}",
            *(f"{part * 1e3:.1f}" if has_parts else "" for part in parts_time(steps[name], batch)),
        ]
        print("|", " | ".join(cells), "|", flush=True)


def save(seconds: dict[str, list[float]], options: Options) -> None:
    rows = (
        pd.DataFrame(seconds)
        .rename_axis("round")
        .reset_index()
        .melt("round", var_name="contender", value_name="seconds")
    )
    rows.insert(0, "setting", options.title)
    path = Path(str(options.output))
    rows.to_csv(path, mode="a", header=not path.exists(), index=False, float_format="%.5f")


if __name__ == "__main__":
    main()
