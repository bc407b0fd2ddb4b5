"""One optimiser step of MixupTrainer at each site against plain Trainer, side by side in one process.

    python benchmarks/step_time.py --rounds 30 --batch_size 32 --length 64

Every round times one step of every contender on the same batch, in an order drawn anew, so that a machine that slows
down slows all of them. Printed is the median over rounds of the ratio to plain Trainer, with its quartiles.
"""

from __future__ import annotations

import argparse
import copy
import random
import statistics
import tempfile
import time

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, Trainer, TrainingArguments

from hf_mixup import MixupConfig, MixupTrainer
from hf_mixup.config import SITES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo:minilm", help="demo:minilm, a folder, or a hub name")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--padding", choices=["mixed", "none"], default="mixed", help="texts of mixed or of one length")
    options = parser.parse_args()
    model = load_model(options.model)
    contenders = {"plain Trainer": stepper(copy.deepcopy(model), None), "MixupTrainer, off": stepper(model, "off")}
    for site in (site for site in SITES if site != "input"):
        contenders[site] = stepper(copy.deepcopy(model), MixupConfig(site=site))
    times = measure(contenders, model.config.vocab_size, options)
    report(times, options)


def load_model(name: str) -> torch.nn.Module:
    if name.startswith("demo:"):
        from hf_mixup.demo import model_path

        name = model_path(name)
    config = AutoConfig.from_pretrained(name, num_labels=2)
    return AutoModelForSequenceClassification.from_pretrained(name, config=config)


def stepper(model: torch.nn.Module, mixup: MixupConfig | str | None):
    """A function that takes one optimiser step on a batch, with everything that Trainer does around it."""
    arguments = TrainingArguments(tempfile.mkdtemp(), report_to=[], max_steps=1)
    if mixup is None:
        trainer = Trainer(model=model, args=arguments)
    else:
        trainer = MixupTrainer(model=model, args=arguments, mixup=None if mixup == "off" else mixup)
    trainer.create_optimizer()
    wrapped, optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
    trainer.current_gradient_accumulation_steps = 1

    def step(batch: dict[str, torch.Tensor]) -> None:
        trainer.training_step(wrapped, dict(batch))
        optimizer.step()
        wrapped.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return step


def make_batch(vocab: int, options: argparse.Namespace) -> dict[str, torch.Tensor]:
    shape = (options.batch_size, options.length)
    lengths = torch.full((options.batch_size, 1), options.length)
    if options.padding == "mixed":
        lengths = torch.randint(options.length // 4, options.length + 1, (options.batch_size, 1))
        lengths[0] = options.length
    mask = (torch.arange(options.length) < lengths).long()
    labels = torch.randint(0, 2, (options.batch_size,))
    return {"input_ids": torch.randint(1000, vocab, shape) * mask, "attention_mask": mask, "labels": labels}


def measure(contenders: dict, vocab: int, options: argparse.Namespace) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for round_number in range(options.rounds + 2):
        batch = make_batch(vocab, options)
        for name in random.sample(list(contenders), len(contenders)):
            start = time.perf_counter()
            contenders[name](batch)
            if round_number >= 2:
                times[name].append(time.perf_counter() - start)
    return times


def report(times: dict[str, list[float]], options: argparse.Namespace) -> None:
    baseline = times["plain Trainer"]
    shape = f"{options.batch_size} x {options.length} tokens, padding: {options.padding}"
    print(f"{options.model}, {shape}, {options.rounds} rounds, {torch.get_num_threads()} threads")
    print(f"{'':20} {'median s':>9} {'ratio':>7} {'quartiles':>15}")
    for name, seconds in times.items():
        ratios = [own / plain for own, plain in zip(seconds, baseline, strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4)
        print(f"{name:20} {statistics.median(seconds):9.3f} {median:7.3f} {low:7.3f}-{high:.3f}")


if __name__ == "__main__":
    main()
