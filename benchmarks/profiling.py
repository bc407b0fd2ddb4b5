"""What one step needs besides time: its peak memory, and the part of its time that is mixup's own."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from hf_mixup import mixup as mixup_module
from hf_mixup.forward.hooks import READ_AT_SITE, READOUTS, SITES, Hooks
from hf_mixup.mixup import Mixup
from hf_mixup.training.logs import MixupLogs

Step = Callable[[dict[str, torch.Tensor]], None]
# Everything of hf_mixup that a step of MixupTrainer runs through, none of it inside another.
PARTS: list[tuple[Any, str]] = [
    (mixup_module, "begin"),
    *[(Mixup, name) for name in ("draw", "targets")],
    (Hooks, "register"),
    (MixupLogs, "add"),
]
HOOKS = {kind for table in (SITES, READOUTS, READ_AT_SITE) for kinds in table.values() for kind in kinds}
PARTS += [(kind, name) for kind in HOOKS for name in vars(kind) if name.startswith(("before_", "after_"))]
# What the backward pass of an interpolation consists of; the models measured have no other such nodes.
BACKWARD = ("LerpBackward0", "IndexSelectBackward0")


def peak_memory(step: Step, batch: dict[str, torch.Tensor]) -> int:
    """Bytes that a step allocates at most at one time, beyond what is there before it."""
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(batch)
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step(batch)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(trace))
        events = [event for event in json.loads(trace.read_text())["traceEvents"] if event["name"] == "[memory]"]
    allocated = peak = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        allocated += event["args"]["Bytes"]
        peak = max(peak, allocated)
    return peak


def parts_time(step: Step, batch: dict[str, torch.Tensor], repeats: int = 5) -> tuple[float, float]:
    """Seconds that mixup's own parts take in a step, forward and backward, and those of `draw`; on a GPU, its own."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    with ExitStack() as patches, profile(activities=activities) as recorded:
        for owner, name in PARTS:
            patches.enter_context(patch.object(owner, name, named(getattr(owner, name))))
        for _ in range(repeats):
            step(batch)
    total = drawing = 0.0
    for row in recorded.key_averages():
        is_backward = row.key.startswith("autograd::engine::evaluate_function") and row.key.endswith(BACKWARD)
        if row.key.startswith("mixup ") or is_backward:
            own = row.device_time_total if torch.cuda.is_available() else row.cpu_time_total
            total += own
            drawing += own * (row.key == "mixup draw")
    return total / repeats / 1e6, drawing / repeats / 1e6


def named(function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with record_function(f"mixup {function.__name__}"):
            return function(*args, **kwargs)

    return wrapped
