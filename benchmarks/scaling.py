"""One training step on two processes under DistributedDataParallel, with mixup on and off in turn.

    python benchmarks/scaling.py                          # the recipe fixed
    python benchmarks/scaling.py --mixup tmix --rounds 50 --batch_size 16 --length 64

Two processes talk through gloo, with one thread each. Every round times both kinds of step on the same batch, the first
of them drawn by lot, so that a machine that slows down slows both. Printed is the median over rounds of the ratio of
the two times, with its quartiles: what mixup costs, waiting for the other process included.
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from transformers import HfArgumentParser
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parent))
from step_time import Batch, load_model

from hf_mixup import Mixup

WORLD = 2


@dataclass
class Options:
    """What is measured."""

    model: str = "demo:minilm"
    mixup: str = "fixed"
    rounds: int = 30
    warmup: int = 3
    batch_size: int = 8
    length: int = 32
    seed: int = 0


def main() -> None:
    (options,) = HfArgumentParser(Options, description=__doc__).parse_args_into_dataclasses()
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(on_rank, (options, folder), nprocs=WORLD)


def on_rank(rank: int, options: Options, folder: str) -> None:
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=WORLD)
    ratios = measure(make_step(rank, options), rank, options)
    if rank == 0:
        low, middle, high = statistics.quantiles(ratios, n=4)
        shape = f"{options.batch_size} x {options.length}"
        print(f"{options.mixup}, {options.model}, {shape} on each of {distributed.get_world_size()} processes:")
        print(f"mixup on / off: {middle:.3f} ({low:.3f}-{high:.3f}), {options.rounds} rounds")
    distributed.destroy_process_group()


def make_step(rank: int, options: Options) -> Callable[[Batch, torch.Tensor, bool], None]:
    """A function that takes one optimiser step, mixed or clean."""
    torch.manual_seed(options.seed)
    model = load_model(options.model).train()
    mixup = Mixup(model, options.mixup, options.seed, rank)
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step(batch: Batch, labels: torch.Tensor, is_mixed: bool) -> None:
        clean_logits, plan = None, mixup.draw(batch, labels=labels) if is_mixed else None
        if plan is None:
            logits = wrapped(**batch).logits
        else:
            with mixup.apply(plan, batch):
                logits = wrapped(**batch).logits
            if mixup.needs_clean_pass(plan):
                clean_logits = wrapped(**batch).logits
        mixup.loss(logits, labels, plan, clean_logits=clean_logits).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(step: Callable[[Batch, torch.Tensor, bool], None], rank: int, options: Options) -> list[float]:
    """The ratio of the times of both kinds of step, in each round."""
    # Every rank takes the same kind of step at the same time, on texts of its own.
    order, texts = random.Random(options.seed), torch.Generator().manual_seed(options.seed + rank)
    ratios = []
    for number in range(options.warmup + options.rounds):
        batch, labels = make_batch(options, texts)
        seconds = {}
        for is_mixed in order.sample([True, False], 2):
            distributed.barrier()
            start = time.perf_counter()
            step(batch, labels, is_mixed)
            distributed.barrier()
            seconds[is_mixed] = time.perf_counter() - start
        if number >= options.warmup:
            ratios.append(seconds[True] / seconds[False])
    return ratios


def make_batch(options: Options, generator: torch.Generator) -> tuple[Batch, torch.Tensor]:
    """Texts of a quarter of the length to all of it, and their labels."""
    lengths = torch.randint(options.length // 4, options.length + 1, (options.batch_size, 1), generator=generator)
    lengths[0] = options.length
    mask = (torch.arange(options.length) < lengths).long()
    ids = torch.randint(1000, 20000, mask.shape, generator=generator) * mask
    labels = torch.randint(0, 2, (options.batch_size,), generator=generator)
    return {"input_ids": ids, "attention_mask": mask}, labels


if __name__ == "__main__":
    main()
