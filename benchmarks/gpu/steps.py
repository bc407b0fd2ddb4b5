"""A step of MixupTrainer beside one of Trainer, in one process on one model: time, peak memory, and waits."""

from __future__ import annotations

import random
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from profiling import peak_memory
from step_time import SITES, Kind, Options, arguments, mixing_at, stepper
from transformers import Trainer

from benchmarks.gpu.models import HAS_GPU, NO_GPU, Batch, Row, Setting, batches, build, inputs_on_device
from hf_mixup import MixupConfig, MixupTrainer

Step = Callable[[Batch], None]
PLAIN = "plain Trainer"
ENDS: dict[str, Kind] = {PLAIN: Trainer, "mixup off": None}
ROUNDS = 40


def at_sites(*sites: str, layers: list[int | str] | None = None, **changes: object) -> dict[str, Kind]:
    """A contender for each site."""
    kinds = {site: mixing_at(site, layers if site == "hidden" else None) for site in sites or SITES}
    return ENDS | {site: replace(config, **changes) for site, config in kinds.items()}  # type: ignore[arg-type]


def compared(setting: Setting, kinds: dict[str, Kind], seconds: float) -> list[Row]:
    """A row for each contender; times and memory are also ratios to plain Trainer."""
    options, model = setting.options(), build(setting)
    new_batch = batches(setting, model.config.vocab_size)
    run = steps_of(model, kinds, options)
    taken = paired_seconds(run, new_batch, options.warmup, 3 if setting.small else ROUNDS, seconds)
    batch = new_batch()
    memory = {name: max(peak_memory(step, batch) for _ in range(3)) for name, step in run.items()} if HAS_GPU else {}
    waits = {name: waits_of(step, batch) for name, step in run.items()} if HAS_GPU else {}
    rows = []
    for name, own in taken.items():
        row = {"site": name, "ms": 1e3 * statistics.median(own), "rounds": len(own)} | ratio(own, taken[PLAIN])
        if HAS_GPU:
            row |= {"memory": memory[name] / memory[PLAIN], "mib": memory[name] / 2**20}
        rows.append(row | (added_waits(waits, name) if HAS_GPU else {"memory": NO_GPU, "waits": NO_GPU}))
    return rows


def steps_of(model: torch.nn.Module, kinds: dict[str, Kind], options: Options) -> dict[str, Step]:
    """A step of each contender, on one model and one optimizer."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    # This puts the autocast around the model, and compiles it.
    wrapped = Trainer(model=model, args=arguments(options)).accelerator.prepare_model(model)
    return {name: stepper(model, wrapped, optimizer, kind, options) for name, kind in kinds.items()}


def paired_seconds(
    run: dict[str, Step], new_batch: Callable[[], Batch], warmup: int, rounds: int, seconds: float
) -> dict[str, list[float]]:
    """Times of one step of each in every round, in an order drawn anew, until the rounds or the seconds are over."""
    taken: dict[str, list[float]] = {name: [] for name in run}
    start = None
    for number in range(warmup + rounds):
        batch = new_batch()
        if number == warmup:
            start = time.monotonic()
        if start is not None and number - warmup >= 3 and time.monotonic() - start > seconds:
            break
        for name in random.sample(list(run), len(run)):
            begin = time.perf_counter()
            run[name](batch)  # ends with all of it done on the device
            if start is not None:
                taken[name].append(time.perf_counter() - begin)
    return taken


def ratio(own: list[float], plain: list[float]) -> Row:
    """The median over rounds of the ratio to plain Trainer, and its quartiles."""
    low, middle, high = statistics.quantiles([one / other for one, other in zip(own, plain, strict=True)], n=4)
    return {"time": middle, "low": low, "high": high}


def waits_of(step: Step, batch: Batch, repeats: int = 3) -> list[str]:
    """Where a step waits for the GPU; the longest list of a few steps."""
    found = []
    torch.cuda.set_sync_debug_mode("warn")
    try:
        for _ in range(repeats):
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                step(batch)
            found.append([f"{Path(warning.filename).name}:{warning.lineno}" for warning in seen if is_wait(warning)])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return max(found, key=len)


def is_wait(warning: warnings.WarningMessage) -> bool:
    return "called a synchronizing CUDA operation" in str(warning.message)


def added_waits(waits: dict[str, list[str]], name: str) -> Row:
    """How many waits a step has beyond those of plain Trainer, and where."""
    number, plain = len(waits[name]), len(waits[PLAIN])
    if name == PLAIN:
        return {"waits": number, "where": waits[name]}
    return {
        "waits": number - plain,
        "bound": 0,
        "passed": number <= plain,
        "where": [place for place in waits[name] if place not in waits[PLAIN]],
    }


def no_wait(setting: Setting, config: MixupConfig) -> list[Row]:
    """Whether a mixed forward and backward pass runs where any wait is an error."""
    from transformers import masking_utils

    model = build(setting).train()
    trainer = MixupTrainer(model=model, args=arguments(setting.options()), mixup=config)
    batch = batches(setting, model.config.vocab_size)()
    on_device = inputs_on_device(batch) | {"labels": batch["labels"].to(model.device)}
    asks = masking_utils._ignore_bidirectional_mask_sdpa
    # transformers asks once a pass, mixup or not, whether there is any padding.
    masking_utils._ignore_bidirectional_mask_sdpa = lambda *args, **kwargs: False
    try:
        trainer.compute_loss(model, on_device).backward()  # the first batch is looked at
        if HAS_GPU:
            torch.cuda.set_sync_debug_mode("error")
        for _ in range(3):
            trainer.compute_loss(model, on_device).backward()
    finally:
        masking_utils._ignore_bidirectional_mask_sdpa = asks
        if HAS_GPU:
            torch.cuda.set_sync_debug_mode("default")
    return [{"site": config.site} | ({"value": "no wait", "passed": True} if HAS_GPU else {"absent": NO_GPU})]
