"""The output folder before a run: what is there already, and from which checkpoint to go on."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import TrainingArguments

logger = logging.getLogger(__name__)

# What Trainer writes last, so that a folder without it is half a checkpoint.
LAST_FILE = "trainer_state.json"


def check_output_dir(args: TrainingArguments, overwrite: bool) -> str | None:
    """Refuse to write over earlier work.

    Args:
        args (`TrainingArguments`): `resume_from_checkpoint` is a folder, or `"true"` for the last one in `output_dir`.
        overwrite (`bool`): whether an `output_dir` that is not empty is allowed.

    Returns:
        `str | None`: the checkpoint folder to resume from.

    Raises:
        ValueError: for an `output_dir` that is a file, or not empty without `overwrite` or a checkpoint to resume from.
        FileNotFoundError: for a checkpoint that is not there, or was written in part only.
    """
    folder, resume = Path(str(args.output_dir)), str(args.resume_from_checkpoint or "false")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output_dir={str(folder)!r} is a file; choose a folder.")
    if resume.lower() == "true":
        return _last(folder)
    if resume.lower() != "false":
        if not Path(resume).is_dir():
            raise FileNotFoundError(f"resume_from_checkpoint={resume!r}: no such folder; expected one, or true.")
        if not Path(resume, LAST_FILE).is_file():
            raise FileNotFoundError(f"resume_from_checkpoint={resume!r}: {LAST_FILE} is missing; no whole checkpoint.")
        return resume
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        resuming = "resume with --resume_from_checkpoint true, " if last_checkpoint(folder) else ""
        raise ValueError(
            f"output_dir={str(folder)!r} is not empty; choose another, {resuming}or give --overwrite_output_dir true."
        )
    return None


def last_checkpoint(folder: str | Path) -> str | None:
    """The newest whole checkpoint in a folder."""
    return next((str(path) for path in _checkpoints(Path(folder)) if (path / LAST_FILE).is_file()), None)


def _last(folder: Path) -> str:
    last, skipped = last_checkpoint(folder), []
    for path in _checkpoints(folder):
        if str(path) == last:
            break
        skipped.append(path.name)
    given = f"resume_from_checkpoint='true': no{' whole' if skipped else ''} checkpoint in output_dir={str(folder)!r}"
    if last is None:
        reason = f" ({', '.join(skipped)}: {LAST_FILE} is missing)" if skipped else ""
        raise FileNotFoundError(f"{given}{reason}.")
    if skipped:
        logger.warning("Skipped %s, written in part only; resuming from %s.", ", ".join(skipped), last)
    return last


def _checkpoints(folder: Path) -> list[Path]:
    """Newest first."""
    paths = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted((path for path in paths if path.is_dir()), key=lambda path: -int(path.name.split("-")[1]))
