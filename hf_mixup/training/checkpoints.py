"""The output folder before a run: what is there already, and from which checkpoint to resume."""

from __future__ import annotations

import logging
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import TrainingArguments
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from hf_mixup.training.averaging import STATE_NAME
from hf_mixup.training.state import memory_file, read_json, read_ranks, state_file

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
            Or for a checkpoint that was written in part only.
        FileNotFoundError: for a checkpoint that is not there.
    """
    folder, resume = Path(str(args.output_dir)), str(args.resume_from_checkpoint or "false")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output_dir={str(folder)!r} is a file; choose a folder.")
    if resume.lower() == "true":
        return newest_whole(folder, saves_shards(args))
    if resume.lower() != "false":
        if not Path(resume).is_dir():
            raise FileNotFoundError(f"resume_from_checkpoint={resume!r}: no such folder; expected one, or true.")
        check_whole(resume, saves_shards(args))
        return resume
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        resuming = "resume with --resume_from_checkpoint true, " if last_checkpoint(folder) else ""
        raise ValueError(
            f"output_dir={str(folder)!r} is not empty; choose another, {resuming}or give --overwrite_output_dir true."
        )
    return None


def saves_shards(args: TrainingArguments) -> bool:
    """Whether FSDP or DeepSpeed saves the checkpoints, by the arguments or by Accelerate's launcher."""
    launched = (os.environ.get(f"ACCELERATE_USE_{name}", "") for name in ("FSDP", "DEEPSPEED"))
    return bool(args.fsdp or args.deepspeed) or any(value.lower() in ("1", "true") for value in launched)


def checkpoint_to_resume(
    given: str | os.PathLike | bool | None,
    output_dir: str,
    model: nn.Module | None,
    is_sharded: bool,
    rank: int | None = None,
) -> str | None:
    """The checkpoint that a training resumes from, checked before anything of it is loaded.

    Args:
        given (`str` or `bool`, *optional*): as `Trainer.train` takes it: a folder, or true for the newest whole one.
        output_dir (`str`): the output folder.
        model (`nn.Module`, *optional*): the model that is to be loaded; `None` if it is made later.
        is_sharded (`bool`): whether FSDP or DeepSpeed saved it, and checks its tensors by itself.
        rank (`int`, *optional*): the only process whose files are looked for, if every node saves its own.

    Raises:
        ValueError: for a checkpoint that is not whole, or does not fit the model.
        FileNotFoundError: if there is none.
    """
    if not given:
        return None
    folder = newest_whole(output_dir, is_sharded, rank) if given is True else os.fspath(given)
    if given is not True:
        check_whole(folder, is_sharded, rank)
    if not is_sharded and model is not None:
        check_fits(folder, model)
    return folder


def check_whole(folder: str | Path, is_sharded: bool = False, rank: int | None = None) -> None:
    """Raise `ValueError` for a checkpoint of which something is missing or was written in part.

    `is_sharded` and `rank` are those of `checkpoint_to_resume`.
    """
    problem = problem_of(folder, is_sharded, rank)
    if problem is not None:
        raise ValueError(f"resume_from_checkpoint={str(folder)!r} is no whole checkpoint: {problem}.")


def problem_of(folder: str | Path, is_sharded: bool = False, rank: int | None = None) -> str | None:
    """What of a checkpoint is missing or cannot be read; `None` for a whole one."""
    folder = Path(folder)
    if not folder.is_dir():
        return "no such folder"
    # The file that is written last comes first: without it nothing else need be there.
    if not (folder / LAST_FILE).is_file():
        return f"{LAST_FILE} is missing"
    try:
        read_json(folder / LAST_FILE)
        count = read_ranks(folder) or 0
        ranks = range(count) if rank is None or not count else [rank]
        states = {number: read_json(state_file(folder, number)) for number in ranks}
        for path in [] if is_sharded else _weight_files(folder):
            with safe_open(path, "pt"):
                pass
    except ValueError as error:
        return str(error).removesuffix(".")
    except (OSError, SafetensorError) as error:
        return f"{path.name} cannot be read ({error})"
    archives = [memory_file(folder, number) for number in ranks if states[number]["has_memory"]]
    archives += folder.glob(STATE_NAME)
    if not is_sharded:
        random = [folder / ("rng_state.pth" if count == 1 else f"rng_state_{number}.pth") for number in ranks]
        archives += [folder / "optimizer.pt", folder / "scheduler.pt", *random]
        if not any(next(folder.rglob(kind), None) for kind in ("*.safetensors", "*model*.bin")):
            return "its weights are missing"
    for path in archives:
        if not path.is_file():
            why = " (with save_only_model there is nothing to resume: start from its weights)"
            return f"{path.name} is missing{why if path.name == 'optimizer.pt' else ''}"
        if not zipfile.is_zipfile(path):
            return f"{path.name} cannot be read (it is cut off)"
    return None


def check_fits(folder: str | Path, model: nn.Module) -> None:
    """Refuse a checkpoint of another model, which Trainer would load as far as the names agree.

    Raises:
        ValueError: with the first weight that is not in both in the same shape.
    """
    if type(model).load_state_dict is not nn.Module.load_state_dict:
        # It has rules of its own.
        return
    own, saved = model.state_dict(), dict(_saved_shapes(Path(folder)))
    unfit = f"resume_from_checkpoint={str(folder)!r}: does not fit this model, and Trainer would load only what does"
    for name, shape in saved.items():
        if name not in own or tuple(own[name].shape) != shape:
            here = tuple(own[name].shape) if name in own else "not there"
            raise ValueError(f"{unfit}: {name} is {shape} in the checkpoint, {here} in the model.")
    # Weights that are tied are saved once.
    known = {own[name].data_ptr() for name in saved}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if saved and name not in saved and parameter.data_ptr() not in known:
            raise ValueError(f"{unfit}: {name} is not in the checkpoint.")


def _saved_shapes(folder: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    for path in _weight_files(folder):
        if not path.name.startswith("adapter"):
            with safe_open(path, "pt") as weights:
                for name in weights.keys():  # noqa: SIM118 - not a dict
                    yield name, tuple(weights.get_slice(name).get_shape())


def _weight_files(folder: Path) -> list[Path]:
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if index.is_file():
        return [folder / name for name in sorted(set(read_json(index)["weight_map"].values()))]
    return [path for name in (SAFE_WEIGHTS_NAME, "adapter_model.safetensors") if (path := folder / name).is_file()]


def last_checkpoint(folder: str | Path) -> str | None:
    """The newest checkpoint in a folder that looks whole, in whatever way it was saved."""
    return next((str(path) for path in _checkpoints(Path(folder)) if problem_of(path, is_sharded=True) is None), None)


def newest_whole(folder: str | Path, is_sharded: bool = False, rank: int | None = None) -> str:
    """The checkpoint to resume from in an output folder: the newest that is whole.

    Raises:
        FileNotFoundError: if there is none, with what is wrong with those that are there.
    """
    skipped: list[str] = []
    for path in _checkpoints(Path(folder)):
        problem = problem_of(path, is_sharded, rank)
        if problem is None:
            if skipped:
                logger.warning("Skipped %s; resuming from %s.", ", ".join(skipped), path)
            return str(path)
        skipped.append(f"{path.name}: {problem}")
    reason = f" ({', '.join(skipped)})" if skipped else ""
    raise FileNotFoundError(
        f"resume_from_checkpoint='true': no{' whole' if skipped else ''} checkpoint in "
        f"output_dir={str(folder)!r}{reason}."
    )


def _checkpoints(folder: Path) -> list[Path]:
    """Newest first."""
    paths = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted((path for path in paths if path.is_dir()), key=lambda path: -int(path.name.split("-")[1]))
