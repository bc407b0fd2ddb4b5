"""How what mixup adds to a step grows with batch, length, width and depth: time and bytes of its own parts.

    python benchmarks/growth.py

A BERT with random weights is trained on padded texts, mixed at its embeddings; one size at a time is doubled and
doubled again. The time is that of mixup's own parts, forward and backward, since the difference of two steps is smaller
than their spread; the bytes are those that the operations of a mixed step write beyond those of a clean one.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForSequenceClassification

sys.path.insert(0, str(Path(__file__).parent))
from profiling import parts_time
from step_time import Batch, Options, make_batch, mixing_at, stepper

BASE = {"batch": 16, "length": 64, "width": 256, "depth": 4}


class BytesWritten(TorchDispatchMode):
    """Adds up the bytes of every result that is not a view."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if isinstance(output, torch.Tensor) and not func.is_view:
            self.total += output.nbytes
        return output


def main() -> None:
    print(f"Sizes that are not named: {BASE}; CPU, {torch.get_num_threads()} threads\n")
    print("| | ms a step | ms added | MiB written, added | MiB of a plain step |")
    print("|---|---|---|---|---|")
    report("all as named", BASE)
    for name, size in BASE.items():
        for factor in (2, 4):
            report(f"{name} {size * factor}", BASE | {name: size * factor})


def report(title: str, sizes: dict[str, int]) -> None:
    options = Options(batch_size=sizes["batch"], length=sizes["length"])
    torch.manual_seed(0)
    batch = make_batch(2000, options)
    model = random_bert(sizes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    mixed, clean = (stepper(model, model, optimizer, kind, options) for kind in (mixing_at("embeddings"), None))
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        mixed(batch)
        seconds.append(time.perf_counter() - start)
    written, plain = bytes_written(mixed, batch), bytes_written(clean, batch)
    cells = [
        statistics.median(seconds) * 1e3,
        parts_time(mixed, batch)[0] * 1e3,
        (written - plain) / 2**20,
        plain / 2**20,
    ]
    print("|", " | ".join([title, *[f"{cell:.1f}" for cell in cells]]), "|", flush=True)


def random_bert(sizes: dict[str, int]) -> torch.nn.Module:
    config = AutoConfig.for_model(
        "bert",
        vocab_size=2000,
        hidden_size=sizes["width"],
        num_hidden_layers=sizes["depth"],
        num_attention_heads=4,
        intermediate_size=4 * sizes["width"],
        num_labels=2,
    )
    return AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")


def bytes_written(step: Any, batch: Batch) -> int:
    with BytesWritten() as counted:
        step(batch)
    return counted.total


if __name__ == "__main__":
    main()
