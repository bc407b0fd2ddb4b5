"""What a run says at its end, or where it ends early. Imports no torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def one_line_errors(after_interruption: str = "") -> Iterator[None]:
    """Input that cannot work ends the process with status 2 and a line that says why; Ctrl-C with 130."""
    with interruptible(advice=after_interruption):
        try:
            yield
        except (ValueError, OSError) as error:
            _say(f"error: {' '.join(str(error).split())}")
            raise SystemExit(2) from error


@contextmanager
def interruptible(output_dir: str | None = None, advice: str = "") -> Iterator[None]:
    """Ctrl-C ends the process with status 130 and a line; it says how to go on where `output_dir` allows it."""
    try:
        yield
    except KeyboardInterrupt as error:
        from hf_mixup.checkpoints import last_checkpoint

        if output_dir is not None and last_checkpoint(output_dir):
            advice = "continue with --resume_from_checkpoint true"
        _say("interrupted" + (f"; {advice}" if advice else ""))
        raise SystemExit(130) from error


def format_table(results: dict[str, Any]) -> str:
    """The metrics of `results` in two columns, one line each."""
    timing = ("loss", "runtime", "samples_per_second", "steps_per_second", "epoch", "model_preparation_time")
    rows = [(name, value) for name, value in results["metrics"].items() if name not in timing]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {'-' if value is None else f'{value:.4f}':>8}" for name, value in rows]
    title = f"{results['split']}, {results['rows'][results['split']]} rows"
    return "\n".join(["", title, "-" * (width + 10), *lines])


def _say(line: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr)
