"""What an optimizer, a schedule or a package of a training would say, heard before anything is loaded."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from accelerate.utils import GradientAccumulationPlugin
from torch.utils.checkpoint import checkpoint
from transformers import Trainer, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks, is_deepspeed_available
from transformers.optimization import GreedyLR, get_scheduler
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames, ParallelMode
from transformers.utils import is_liger_kernel_available, is_torch_xla_available

from hf_mixup.training.trainer_seams import RECOMPUTES

WRONG = (ImportError, OSError, RuntimeError, TypeError, ValueError, KeyError, AttributeError, AssertionError)
# Fields that TrainingArguments parses itself, from text or a file; what it says does not name them.
PARSED = (
    *("accelerator_config", "deepspeed", "fsdp", "fsdp_config", "lr_scheduler_kwargs"),
    *("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"),
)
# transformers builds these from the model.
LOW_RANK, NEEDS_MODEL = ("galore", "apollo"), ("galore", "apollo", "lomo", "adalomo")
OF_TORCH = ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop")
ADAM_FIELDS = {"adam_beta1": "betas", "adam_beta2": "betas", "adam_epsilon": "eps"}
# A length that no warm-up exceeds, if the real one depends on the data.
MANY_STEPS = 10**6


@contextmanager
def construction_errors(given: set[str]) -> Iterator[None]:
    """Any error of `TrainingArguments(...)` becomes a `ValueError` that names a field that was given."""
    if "deepspeed" in given and not is_deepspeed_available():
        raise ValueError("deepspeed: not installed; run `pip install deepspeed`.")
    try:
        yield
    except WRONG as error:
        parsed = [name for name in PARSED if name in given]
        named = not parsed or any(name in str(error) for name in given)
        raise ValueError(str(error) if named else f"{', '.join(parsed)}: {error}") from error


def check_optimizer(args: TrainingArguments, given: set[str]) -> None:
    """Build the optimizer and the schedule of a run for one small weight.

    Args:
        args (`TrainingArguments`): the options.
        given (`set[str]`): the names that the user wrote.

    Raises:
        ValueError: for what cannot be built, a package that is not installed, or an option that would be ignored.
    """
    name = OptimizerNames(args.optim).value
    if name.startswith(LOW_RANK) and args.optim_target_modules is None:
        raise ValueError(f"optim={name!r}: needs optim_target_modules, such as all-linear.")
    if args.optim_args is not None and not all(part.count("=") == 1 for part in args.optim_args.split(",")):
        raise ValueError(f"optim_args={args.optim_args!r}: expected key=value, or several with commas between them.")
    try:
        kind, kwargs = Trainer.get_optimizer_cls_and_kwargs(args)
    except WRONG as error:
        if name.startswith(NEEDS_MODEL) and not isinstance(error, ImportError):
            return
        field = f"optim={name!r}" + ("" if args.optim_args is None else f", optim_args={args.optim_args!r}")
        raise ValueError(f"{field}: {error}") from error
    for field, kwarg in ADAM_FIELDS.items():
        if field in given and kwarg not in kwargs:
            raise ValueError(f"{field}={getattr(args, field)}: not used by optim={name!r}.")
    if name in OF_TORCH:
        _refuse_unused_optim_args(args, name, kwargs)
    with _naming(f"optim={name!r}, optim_args={args.optim_args!r}"):
        optimizer = kind([torch.nn.Parameter(torch.zeros(2, 2))], **kwargs)
    _check_schedule(args, optimizer)


def _refuse_unused_optim_args(args: TrainingArguments, name: str, kwargs: dict[str, Any]) -> None:
    """An argument makes no difference if the optimizer does not know it."""
    parts = (args.optim_args or "").replace(" ", "").split(",")
    for index, part in enumerate(parts if args.optim_args else []):
        without = copy.copy(args)
        without.optim_args = ",".join(parts[:index] + parts[index + 1 :])
        if Trainer.get_optimizer_cls_and_kwargs(without)[1] == kwargs:
            raise ValueError(f"optim_args={args.optim_args!r}: {part} is not used by optim={name!r}.")


def _check_schedule(args: TrainingArguments, optimizer: torch.optim.Optimizer) -> None:
    name, steps = SchedulerType(args.lr_scheduler_type).value, args.max_steps if args.max_steps > 0 else MANY_STEPS
    with _naming(f"lr_scheduler_type={name!r}, lr_scheduler_kwargs={args.lr_scheduler_kwargs!r}"):
        schedule = get_scheduler(
            args.lr_scheduler_type,
            optimizer,
            num_warmup_steps=args.get_warmup_steps(steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=args.lr_scheduler_kwargs,  # type: ignore[arg-type]
        )
    if isinstance(schedule, GreedyLR) and min(schedule.min_lrs) > args.learning_rate:
        raise ValueError(
            f"lr_scheduler_type={name!r}: never goes below min_lr={min(schedule.min_lrs)}, which is more than "
            f"learning_rate={args.learning_rate}; give a smaller min_lr in lr_scheduler_kwargs."
        )


def check_reporting(args: TrainingArguments) -> None:
    """Raise `ValueError` if a service of `report_to` is not known, or its package is not installed."""
    for service in args.report_to or ():
        with _naming(f"report_to={service!r}"):
            get_reporting_integration_callbacks([service])[0]()


def check_torch(args: TrainingArguments) -> None:
    """Raise `ValueError` for kernels, compilers or checkpointing that a training would fail with."""
    if args.use_liger_kernel and not is_liger_kernel_available():
        raise ValueError("use_liger_kernel=True: not installed; run `pip install liger-kernel`.")
    if "tpu_metrics_debug" in args.debug and not is_torch_xla_available():
        raise ValueError("debug='tpu_metrics_debug': torch_xla is not installed.")
    if args.fsdp and not args.fsdp_config.get("xla") and args.parallel_mode != ParallelMode.DISTRIBUTED:  # type: ignore[union-attr]
        raise ValueError("fsdp=True: needs several processes; start it with `accelerate launch` or `torchrun`.")
    if args.torch_compile:
        backend, mode = args.torch_compile_backend or "inductor", args.torch_compile_mode
        with _naming(f"torch_compile_backend={backend!r}, torch_compile_mode={mode!r}"):
            torch.compile(torch.nn.Identity(), backend=backend, mode=mode)
    kwargs: Any = getattr(args, f"{RECOMPUTES}_kwargs")
    if kwargs is not None:
        with _naming(f"{RECOMPUTES}_kwargs={kwargs!r}"):
            checkpoint(torch.neg, torch.ones(1, requires_grad=True), **{"use_reentrant": False, **kwargs})


def check_accelerator(args: TrainingArguments) -> None:
    """Raise `ValueError` for an `accelerator_config` that a training or an evaluation would fail with."""
    config, world = cast(AcceleratorConfig, args.accelerator_config), args.world_size
    with _naming(f"accelerator_config: gradient_accumulation_kwargs={config.gradient_accumulation_kwargs!r}"):
        GradientAccumulationPlugin(**{"num_steps": 1, **(config.gradient_accumulation_kwargs or {})})
    if not config.even_batches and world > 1:
        raise ValueError("accelerator_config: even_batches=False: an evaluation needs as many rows of every process.")
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size"):
        if config.split_batches and getattr(args, name) % world:
            raise ValueError(
                f"{name}={getattr(args, name)}: accelerator_config has split_batches, so it must be a multiple of the "
                f"{world} processes."
            )


@contextmanager
def _naming(field: str) -> Iterator[None]:
    try:
        yield
    except WRONG as error:
        raise ValueError(f"{field}: {' '.join(str(error).split())}") from error
