"""What ends a run early becomes one line and an exit status. Imports no torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hf_mixup.checkpoints import last_checkpoint


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Input that cannot work ends the process with status 2 and a line that says why; Ctrl-C with 130."""
    with interruptible():
        try:
            yield
        except (ValueError, OSError) as error:
            _say(f"error: {' '.join(str(error).split())}")
            raise SystemExit(2) from error


@contextmanager
def interruptible(output_dir: str | None = None) -> Iterator[None]:
    """Ctrl-C ends the process with status 130 and a line; it says how to go on where `output_dir` allows it."""
    try:
        yield
    except KeyboardInterrupt as error:
        can_resume = output_dir is not None and last_checkpoint(output_dir)
        _say("interrupted" + ("; continue with --resume_from_checkpoint true" if can_resume else ""))
        raise SystemExit(130) from error


def _say(line: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr)
