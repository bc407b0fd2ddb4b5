"""FSDP2 with one process: a mixture of a model in shards is that of the whole model, and what a step costs."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable

import torch
from step_time import SITES
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers.modeling_layers import GradientCheckpointingLayer

from benchmarks.gpu.exactness import mixed_logits, mixing
from benchmarks.gpu.models import DEVICE, HAS_GPU, Batch, Row, Setting, batches, build, inputs_on_device
from benchmarks.gpu.steps import paired_seconds, ratio
from hf_mixup import Mixup

PLAIN, BOUND = "plain", 1e-4


def sharded(setting: Setting, seconds: float) -> list[Row]:
    """For each site, the error against the whole model, then the times of a step."""
    meeting = f"file://{tempfile.mkdtemp()}/meeting"
    distributed.init_process_group("nccl" if HAS_GPU else "gloo", meeting, rank=0, world_size=1)
    try:
        return [*errors(setting), *times(setting, seconds)]
    finally:
        distributed.destroy_process_group()


def in_shards(setting: Setting) -> torch.nn.Module:
    """Every block and the root in shards of their own."""
    model = build(setting)
    mesh = init_device_mesh(DEVICE, (1,))
    for part in [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]:
        fully_shard(part, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def errors(setting: Setting) -> list[Row]:
    whole, model = build(setting).eval(), in_shards(setting).eval()
    batch = inputs_on_device(batches(setting, whole.config.vocab_size)())
    lam, rows = torch.linspace(0, 1, len(batch["input_ids"])), []
    for site in SITES:
        with torch.no_grad():
            expected, found = (mixed_logits(each, mixing(each, site), batch, site, lam) for each in (whole, model))
        error = float((found - expected).abs().max() / (expected - expected.roll(1, 0)).abs().max())
        rows.append({"site": site, "value": error, "bound": BOUND, "passed": error <= BOUND})
    return rows


def times(setting: Setting, seconds: float) -> list[Row]:
    model, options = in_shards(setting).train(), setting.options()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    kinds = {PLAIN: None, **{site: mixing(model, site) for site in ("embeddings", "hidden")}}
    run = {name: step_of(model, optimizer, mixup) for name, mixup in kinds.items()}
    new_batch = batches(setting, model.config.vocab_size)
    taken = paired_seconds(run, new_batch, options.warmup, 3 if setting.small else 20, seconds)
    return [
        {"site": f"a step, {name}", "ms": 1e3 * statistics.median(own), "rounds": len(own)} | ratio(own, taken[PLAIN])
        for name, own in taken.items()
    ]


def step_of(model: torch.nn.Module, optimizer: torch.optim.Optimizer, mixup: Mixup | None) -> Callable[[Batch], None]:
    def step(batch: Batch) -> None:
        inputs, labels = inputs_on_device(batch), batch["labels"].to(DEVICE)
        if mixup is None:
            model(**inputs, labels=labels).loss.backward()
        else:
            plan = mixup.draw(inputs)
            with mixup.apply(plan, inputs):
                logits = model(**inputs).logits
            mixup.loss(logits, labels, plan).backward()
        optimizer.step()
        optimizer.zero_grad()
        if HAS_GPU:
            torch.cuda.synchronize()

    return step
