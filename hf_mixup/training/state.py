"""What of mixup goes into a checkpoint: one file for each process, and one more if examples are remembered."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch

from hf_mixup.config.files import write_whole
from hf_mixup.config.mixup_config import MixupConfig
from hf_mixup.config.setting import changed_fields
from hf_mixup.mixup import Mixup

logger = logging.getLogger(__name__)

CONFIG_NAME = "mixup_config.yaml"


def state_file(folder: str | Path, rank: int) -> Path:
    """From where the plans of a process resume."""
    return Path(folder) / f"mixup_state_{rank}.json"


def memory_file(folder: str | Path, rank: int) -> Path:
    """The examples that a process remembers, for `partner="previous_batch"`."""
    return Path(folder) / f"mixup_memory_{rank}.pt"


def save_state(folder: str | Path, mixup: Mixup, rank: int, ranks: int) -> None:
    """Write what `load_state` reads; each file appears whole or not at all.

    Args:
        folder (`str` or `Path`): the checkpoint.
        mixup (`Mixup`): of this process.
        rank, ranks (`int`): the number of this process, and of processes.
    """
    state = mixup.state_dict()
    memory = state.pop("memory", None)
    if memory is not None:
        with write_whole(memory_file(folder, rank)) as part:
            torch.save(memory, part)
    text = json.dumps({"ranks": ranks, "has_memory": memory is not None, "plans": state})
    with write_whole(state_file(folder, rank)) as part:
        part.write_text(text, encoding="utf-8")


def load_state(folder: str | Path, mixup: Mixup, rank: int, ranks: int, config: MixupConfig) -> None:
    """Continue where `save_state` left off; with a warning, anew if the checkpoint was saved without mixup or by
    another number of processes.

    Raises:
        ValueError: for files that cannot be read.
    """
    saved = read_ranks(folder)
    if saved is None:
        logger.warning("%s holds no mixup state: it was saved without mixup, so plans start anew.", folder)
        return
    if saved != ranks:
        logger.warning("%s was saved by %d processes and is resumed by %d, so plans start anew.", folder, saved, ranks)
        # A warm-up that is over does not begin again, and a strength that was found is kept.
        mixup.planner.load_progress(read_json(state_file(folder, 0))["plans"])
        if mixup.planner.auto_strength is not None:
            # That of one process of others.
            mixup.planner.auto_strength.trained = None
        return
    _warn_of_changes(folder, config)
    saved_state = read_json(state_file(folder, rank))
    state = saved_state["plans"]
    if saved_state["has_memory"]:
        state["memory"] = read_tensors(memory_file(folder, rank))
    mixup.load_state_dict(state)


def read_ranks(folder: str | Path) -> int | None:
    """The number of processes that saved a checkpoint; `None` if it holds nothing of mixup."""
    path = next(Path(folder).glob("mixup_state_*.json"), None)
    if path is None:
        return None
    state = read_json(path)
    if not {"ranks", "has_memory", "plans"} <= set(state):
        raise ValueError(f"{path}: cannot be read (it is not what is saved here).")
    return int(state["ranks"])


def read_json(path: Path) -> dict[str, Any]:
    """Raises `ValueError` for a file that is not whole."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error}).") from error


def read_tensors(path: Path) -> dict[str, Any]:
    """Raises `ValueError` for a file that is not whole."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path}: cannot be read ({error}).") from error


def _warn_of_changes(folder: str | Path, config: MixupConfig) -> None:
    path = Path(folder) / CONFIG_NAME
    if not path.is_file():
        return
    before = MixupConfig.from_file(path)
    names = changed_fields(before, config)
    changed = [f"{name}={getattr(config, name)!r} (was {getattr(before, name)!r})" for name in names]
    if changed:
        logger.warning("Resuming %s with another mixup config: %s.", folder, ", ".join(changed))
