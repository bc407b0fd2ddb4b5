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
    """The metrics of `results` in two columns, one line each; a dash for what is not finite."""
    timing = ("loss", "runtime", "samples_per_second", "steps_per_second", "epoch", "model_preparation_time")
    measured = {name: value for name, value in results["metrics"].items() if "mem_" not in name}
    rows = [(name, value) for name, value in measured.items() if name not in timing]
    width = max((len(name) for name, _ in rows), default=0)
    lines = [f"{name:<{width}}  {'-' if value is None else f'{value:.4f}':>8}" for name, value in rows]
    title = f"{results['split']}, {results['rows'][results['split']]} rows"
    return "\n".join(["", title, "-" * (width + 10), *lines])


def _say(line: str, is_shared: bool = True) -> None:
    rank = os.environ.get("RANK", "0")
    # All processes make the same checks of what was given, so one of them says what they found.
    if rank == "0" or not is_shared:
        print(line if rank == "0" else f"process {rank}: {line}", file=sys.stderr)
