"""The parts of the benchmark on a GPU; each returns rows with what was found, or why it is absent."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from transformers import AutoModelForSequenceClassification, BertConfig, Trainer

from hf_mixup import Mixup, MixupPlan

sys.path.insert(0, str(Path(__file__).parents[1]))
from profiling import peak_memory
from step_time import SITES, Options, arguments, contenders, make_batch, measure, mixing_at, stepper

Row = dict[str, Any]
ROOT = Path(__file__).parents[2]
HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"
NO_GPU = "needs a GPU"
# The largest error that counts as exact, relative to how much the logits of the texts differ.
BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


def gpu_tests(small: bool, seconds: float) -> list[Row]:
    """The tests of the suite that are skipped without a GPU."""
    what = "tests that need a GPU"
    if not HAS_GPU:
        return [{"what": what, "absent": NO_GPU}]
    files = [path for path in (ROOT / "tests").rglob("test_*.py") if f'reason="{NO_GPU}' in path.read_text("utf-8")]
    found = Path(tempfile.mkdtemp()) / "found.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-k", "gpu", f"--junitxml={found}", *map(str, files)]
    try:
        subprocess.run(command, cwd=ROOT, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return [{"what": what, "passed": False, "value": f"not done after {seconds:.0f} s"}]
    if not found.exists():
        return [{"what": what, "passed": False, "value": "pytest did not start"}]
    suite = ElementTree.parse(found).getroot()[0]
    tests, failed, errors, skipped = (int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped"))
    ran_well = tests - failed - errors - skipped
    return [{"what": what, "value": f"{ran_well} of {tests}", "passed": ran_well == tests > 0}]


def exactness(small: bool, seconds: float) -> list[Row]:
    """At lambda 1 the logits are the clean ones and at lambda 0 those of the partner, on a model of BERT's size."""
    rows: list[Row] = []
    for (dtype, bound), attention in product(BOUNDS.items(), ("eager", "sdpa")):
        model = bert(small, attention).eval()
        batch = texts(model, small)
        autocast = torch.autocast(DEVICE, dtype, enabled=dtype != torch.float32)
        errors = {site: error_at_ends(model, batch, site, autocast) for site in (SITES[-2:] if small else SITES)}
        worst, setting = max(errors.values()), f"{attention}, {str(dtype).removeprefix('torch.')}"
        rows.append({"what": "error at lambda 0 and 1", "setting": setting, "value": worst, "bound": bound})
        rows[-1] |= {"sites": errors, "passed": worst <= bound}
    return rows


def error_at_ends(model: Any, batch: dict[str, torch.Tensor], site: str, autocast: torch.autocast) -> float:
    """The largest difference from the logits that are expected, relative to how much those of the texts differ."""
    layer = 1 if site == "hidden" else None
    mixup = Mixup(model, mixing_at(site, [layer] if layer else None))
    with torch.no_grad(), autocast:
        clean = model(**batch).logits.float()
        other, size, errors = clean.roll(1, 0), len(clean), []
        for lam, expected in ((1.0, clean), (0.0, other)):
            plan = MixupPlan(torch.arange(size).roll(1), torch.full((size,), lam), site, layer)
            with mixup.apply(plan, batch):
                errors.append((model(**batch).logits.float() - expected).abs().max())
    return float(max(errors) / (clean - other).abs().max())


def bert(small: bool, attention: str = "sdpa") -> torch.nn.Module:
    """A model of the size of bert-base, with random weights large enough that texts matter."""
    torch.manual_seed(0)
    shape = (
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64} if small else {}
    )
    config = BertConfig(num_labels=2, initializer_range=0.05, vocab_size=2000 if small else 30522, **shape)
    return AutoModelForSequenceClassification.from_config(config, attn_implementation=attention).to(DEVICE)


def texts(model: Any, small: bool) -> dict[str, torch.Tensor]:
    """Padded texts of different lengths."""
    batch = make_batch(model.config.vocab_size, sizes(small))
    return {name: batch[name].to(DEVICE) for name in ("input_ids", "attention_mask")}


def sizes(small: bool, **changes: Any) -> Options:
    rounds, size, length = (3, 4, 16) if small else (30, 32, 128)
    options = Options(rounds=rounds, warmup=2 if small else 5, batch_size=size, length=length, **changes)
    return replace(options, contenders="tmix") if small else options


def steps(small: bool, seconds: float) -> list[Row]:
    """Time, peak memory and waits of a step with mixup, against one of plain Trainer in the same process."""
    rows = []
    for name, bf16 in (("fp32", False), ("bf16", True)):
        # Trainer takes bf16 on a GPU alone.
        rows += (
            [{"what": "a step", "setting": name, "absent": NO_GPU}] if bf16 and not HAS_GPU else compared(small, bf16)
        )
    return rows


def compared(small: bool, bf16: bool) -> list[Row]:
    options, model, rows = sizes(small, bf16=bf16), bert(small), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    # This puts the autocast around the model.
    wrapped = Trainer(model=model, args=arguments(options)).accelerator.prepare_model(model)
    run = {name: stepper(model, wrapped, optimizer, kind, options) for name, kind in contenders(options).items()}
    taken = measure(run, model.config.vocab_size, options)
    batch = make_batch(model.config.vocab_size, options)
    memory = {name: peak_memory(step, batch) for name, step in run.items()}
    for name, step in run.items():
        ratio = statistics.median(one / plain for one, plain in zip(taken[name], taken["plain Trainer"], strict=True))
        row = {
            "what": f"a step, {name}",
            "setting": "bf16" if bf16 else "fp32",
            "ms": 1e3 * statistics.median(taken[name]),
        }
        relative = {"time": ratio, "memory": memory[name] / memory["plain Trainer"]}
        rows.append(row | relative | {"waits": waits_of(step, batch) if HAS_GPU else NO_GPU})
    return rows


def waits_of(step: Callable[[dict[str, torch.Tensor]], None], batch: dict[str, torch.Tensor]) -> int:
    """How often a step waits for the GPU; some of it is Trainer's own, see the row of plain Trainer."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing CUDA operation" in str(warning.message) for warning in seen)


PARTS = (exactness, steps, gpu_tests)
