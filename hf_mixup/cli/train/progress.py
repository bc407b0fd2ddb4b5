"""What is shown while a run loads and trains: one bar on a terminal, else a short line at each log."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import datasets
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import TrainerCallback, TrainingArguments
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from hf_mixup.cli.terminal import TIMING, writable
from hf_mixup.training.trainer_seams import without_rows

# An evaluation that takes longer has a bar of its own as long as it lasts, in seconds.
PATIENCE = 3.0
# Of an evaluation on the way, for a line of less than 100 characters.
MOST_METRICS = 5
# What a line shows beside the loss, if it is logged.
SHOWN = {"mixup_strength": "mixup strength", "unlabeled_accuracy": "guesses right"}


def speaks(args: TrainingArguments) -> bool:
    """Whether this process tells the user what it does: the first of several, unless `log_level` is error or above."""
    return args.process_index == 0 and args.get_process_log_level() <= logging.WARNING


def shows_bars(args: TrainingArguments) -> bool:
    """Whether there is a terminal for bars, and nobody said that there should be none."""
    if not speaks(args) or args.disable_tqdm or not is_progress_bar_enabled() or not sys.stdout.isatty():
        return False
    # Some terminals that are only recorded have no width.
    return os.get_terminal_size(sys.stdout.fileno()).columns > 0


@contextmanager
def library_bars(shown: bool) -> Iterator[None]:
    """Inside of the block, transformers shows no bars, and datasets and the hub only if `shown`."""
    hosts, data, hub = is_progress_bar_enabled(), datasets.are_progress_bars_disabled(), are_progress_bars_disabled()
    disable_progress_bar()
    (enable_progress_bars if shown and not hub else disable_progress_bars)()
    (datasets.enable_progress_bars if shown and not data else datasets.disable_progress_bars)()
    try:
        yield
    finally:
        if hosts:
            enable_progress_bar()
        (disable_progress_bars if hub else enable_progress_bars)()
        (datasets.disable_progress_bars if data else datasets.enable_progress_bars)()


class Progress(TrainerCallback):
    """Shows how far a training is, with its running loss and the strength of mixup if that is `auto`.

    Args:
        is_live (`bool`): whether standard output is a terminal, for a bar; else there is a line at each log.
        name (`str`): what is trained, if it is not the model of the run.
        announce (`Callable`, *optional*): gives the text that is printed when the training begins.
    """

    def __init__(self, is_live: bool, name: str = "", announce: Callable[[], str] | None = None) -> None:
        self.is_live, self.name, self.announce = is_live, name, announce
        self._prefix = f"{name}: " if name else ""
        self.bar: tqdm | None = None
        self.evaluation: tqdm | None = None
        self.start: float | None = None
        self.first = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say what begins."""
        self.first = state.global_step
        if self.announce is not None:
            self._say(self.announce())

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar before the first step, at the step at which a resumed training is."""
        if self.start is not None:
            return
        self.start = time.monotonic()
        if self.is_live:
            shape = {"initial": self.first, "total": state.max_steps, "dynamic_ncols": True, "unit": "update"}
            self.bar = tqdm(desc=self.name or "training", file=sys.stdout, **shape)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar."""
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Show the running loss, and what an evaluation on the way found."""
        logs = logs or {}
        found = {name.removeprefix("eval_"): value for name, value in logs.items() if name.startswith("eval_")}
        if found:
            self._say(f"{self._prefix}update {state.global_step}: evaluation: {_numbers(found)}")
        if "loss" not in logs:
            return
        said = f"loss {logs['loss']:.4f}"
        for name, words in SHOWN.items():
            said += f", {words} {logs[name]:.2f}" if name in logs else ""
        if self.bar is not None:
            self.bar.set_postfix_str(said)
        else:
            done = max(state.global_step - self.first, 1)
            left = (time.monotonic() - (self.start or 0)) / done * (state.max_steps - state.global_step)
            self._say(
                f"{self._prefix}update {state.global_step} of {state.max_steps}: {said}, "
                f"{tqdm.format_interval(left)} left"
            )

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        """Show a bar of an evaluation that takes its time."""
        if self.is_live and hasattr(eval_dataloader, "__len__"):
            if self.evaluation is None:
                shape = {"total": len(eval_dataloader), "leave": False, "delay": PATIENCE, "dynamic_ncols": True}
                self.evaluation = tqdm(desc="evaluating", file=sys.stdout, **shape)
            self.evaluation.update()

    def on_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Close the bar of an evaluation."""
        if self.evaluation is not None:
            self.evaluation.close()
        self.evaluation = None

    on_predict = on_evaluate

    def close(self) -> None:
        """Close all bars, also if the training ended early."""
        self.on_evaluate()
        if self.bar is not None:
            self.bar.close()
        self.bar = None

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Close all bars."""
        self.close()

    def _say(self, line: str) -> None:
        tqdm.write(writable(line), file=sys.stdout)
        sys.stdout.flush()


def _numbers(found: dict[str, Any]) -> str:
    metrics = [f"{name} {value:.4f}" for name, value in found.items() if name not in TIMING]
    return ", ".join(metrics[:MOST_METRICS])


@contextmanager
def shown_progress(trainer: Any, name: str = "", announce: Callable[[], str] | None = None) -> Iterator[None]:
    """Inside of the block, `Progress` stands in the place of Trainer's own bars and rows; arguments as for that."""
    args, is_live = trainer.args, shows_bars(trainer.args)
    progress = Progress(is_live, name, announce)
    without_rows(trainer)
    if speaks(args):
        trainer.add_callback(progress)
    loggers = [logging.getLogger(), logging.getLogger("transformers")]
    try:
        with library_bars(is_live), logging_redirect_tqdm(loggers) if is_live else nullcontext():
            yield
    finally:
        progress.close()
        if speaks(args):
            trainer.remove_callback(progress)
