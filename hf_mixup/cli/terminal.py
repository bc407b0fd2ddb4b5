"""What a run says at its end, or when it ends early. Imports no torch."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from textwrap import shorten
from typing import Any

from hf_mixup.config.extras import install_advice

# Whether `--debug` was given.
SHOW_TRACEBACK: ContextVar[bool] = ContextVar("show_traceback", default=False)

DIVERGED = (
    "error: the model has diverged: its loss on the {split} rows is not finite, so there is nothing to measure; "
    "lower learning_rate, or raise warmup_steps."
)
# What names its field by itself; other errors come from libraries.
EXPECTED = (ValueError, OSError, FloatingPointError)
LONGEST_LINE = 1000
# What an evaluation returns besides metrics.
TIMING = ("loss", "runtime", "samples_per_second", "steps_per_second", "epoch", "model_preparation_time")


@contextmanager
def one_line_errors(after_interruption: str = "") -> Iterator[None]:
    """Whatever goes wrong ends the process with status 2 and a line that says why; Ctrl-C with 130.

    `--debug` on the command line prints the traceback before it.
    """
    with interruptible(advice=after_interruption):
        try:
            yield
        except Exception as error:
            if SHOW_TRACEBACK.get():
                traceback.print_exc()
            _say(f"error: {in_one_line(error)}", is_shared=isinstance(error, (ValueError, ImportError)))
            raise SystemExit(2) from error


def in_one_line(error: BaseException) -> str:
    """What an error says, with its type if it is not one that names the field."""
    advice = install_advice(error) if isinstance(error, ModuleNotFoundError) else None
    words = advice or shorten(" ".join(str(error).split()), LONGEST_LINE, placeholder=" ...")
    if words == advice or (isinstance(error, EXPECTED) and words):
        return words
    if type(error).__name__ == "OutOfMemoryError":
        return f"per_device_train_batch_size: out of memory; lower it, or raise gradient_accumulation_steps. {words}"
    return f"{type(error).__name__}: {words or 'no message'} (--debug shows where)"


@contextmanager
def interruptible(output_dir: str | None = None, advice: str = "") -> Iterator[None]:
    """Ctrl-C ends the process with status 130 and a line, which says how to resume if `output_dir` allows it."""
    try:
        yield
    except KeyboardInterrupt as error:
        if output_dir is not None:
            from hf_mixup.training.checkpoints import last_checkpoint

            advice = "continue with --resume_from_checkpoint true" if last_checkpoint(output_dir) else advice
        _say("interrupted" + (f"; {advice}" if advice else ""))
        raise SystemExit(130) from error


def format_table(results: dict[str, Any]) -> str:
    """The metrics of `results`, a line each, beside those before training and of the baseline if they are there.

    A dash stands for what is not finite or was not measured.
    """
    other = "baseline" if "unlabeled" in results["rows"] else "mixup off"
    columns = {"before": results.get("before"), "after": results["metrics"], other: results.get("baseline")}
    columns[other] = columns[other] and columns[other]["metrics"]
    shown = {name: metrics for name, metrics in columns.items() if metrics is not None}
    names = [name for name in results["metrics"] if name not in TIMING and "mem_" not in name]
    title = f"{results['split']}, {results['rows'][results['split']]} rows"
    width = max(map(len, [*names, title if len(shown) > 1 else ""]))
    head = "".join(f"  {name:>9}" for name in shown) if len(shown) > 1 else ""
    lines = [f"{name:<{width}}" + "".join(_cell(metrics.get(name)) for metrics in shown.values()) for name in names]
    return "\n".join(["", f"{title:<{width}}{head}".rstrip(), "-" * (width + 11 * len(shown)), *lines])


def _cell(value: float | None) -> str:
    return f"  {'-' if value is None else f'{value:.4f}':>9}"


def writable(text: str) -> str:
    """The text with the characters that standard output can write."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)


def _say(line: str, is_shared: bool = True) -> None:
    rank = os.environ.get("RANK", "0")
    # All processes make the same checks of what was given, so one of them says what they found.
    if rank == "0" or not is_shared:
        print(line if rank == "0" else f"process {rank}: {line}", file=sys.stderr)
