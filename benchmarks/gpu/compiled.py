"""A compiled model: the time of a step with mixup, and what is compiled again once every graph is there."""

from __future__ import annotations

import statistics

import torch
from torch._dynamo.utils import counters

from benchmarks.gpu.models import Row, Setting, batches, build
from benchmarks.gpu.steps import PLAIN, at_sites, paired_seconds, ratio, steps_of


def compiled(setting: Setting, seconds: float) -> list[Row]:
    """A row for plain Trainer and for each site; recompilations are those of all together."""
    options, model = setting.options(compile=True), build(setting)
    try:
        run = steps_of(model, at_sites("embeddings", "hidden", layers=[1]), options)
        new_batch = batches(setting, model.config.vocab_size)
        paired_seconds(run, new_batch, 0, 3, 0.0)
        before = counters["stats"]["unique_graphs"]
        taken = paired_seconds(run, new_batch, options.warmup, 3 if setting.small else 40, seconds)
        again = counters["stats"]["unique_graphs"] - before
    finally:
        torch._dynamo.reset()
        restore_tf32()
    rows = [
        {"site": name, "ms": 1e3 * statistics.median(own), "rounds": len(own)} | ratio(own, taken[PLAIN])
        for name, own in taken.items()
    ]
    return [*rows, {"site": "compiled again", "value": again, "bound": 0, "graphs": before, "passed": again == 0}]


def restore_tf32() -> None:
    """Trainer turns TF32 on for a compiled model; what comes after it is measured without."""
    if getattr(torch.backends, "fp32_precision", None) is not None:
        torch.backends.fp32_precision = "none"
