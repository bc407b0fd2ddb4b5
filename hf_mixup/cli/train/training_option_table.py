"""The decision about every option of `transformers.TrainingArguments`; `docs/training_options.md` is made of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from transformers import TrainingArguments

from hf_mixup.config import checks
from hf_mixup.config.checks import Check
from hf_mixup.training.trainer_seams import RECOMPUTES

# Takes the options and the names that the user wrote.
Used = Callable[[TrainingArguments, set[str]], bool]
WORKS, REFUSED, NO_EFFECT = "works", "refused", "no effect"
# Of the schedules, these two follow a metric.
FOLLOW_A_METRIC = ("reduce_lr_on_plateau", "greedy")
NO_WARMUP = ("constant", *FOLLOW_A_METRIC)
NO_KWARGS = ("constant", "constant_with_warmup")
LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True)
class Option:
    """What is decided about one option.

    Args:
        why (`str`): the values that are refused and the reason; or why the option has no effect.
        check (`Check`, *optional*): raises `ValueError` for a value that cannot work.
        used (`Callable`, *optional*): whether the other options let this one have an effect; if not, it is refused
            when it is given, with `why`.
        compare (`str`): why a comparison refuses the option when it is given; empty if it is as in a training.
        decision (`str`): for a training: `"works"`, `"refused"` (any value but the default, or `check` says which) or
            `"no effect"` (accepted, and nothing that is asked for gets lost).
    """

    why: str = ""
    check: Check | None = None
    used: Used | None = None
    compare: str = ""
    decision: str = WORKS


def _all(names: str, option: Option) -> dict[str, Option]:
    return dict.fromkeys(names.split(), option)


def _refused(why: str, default: Any) -> Option:
    def check(name: str, value: Any) -> None:
        if value != default:
            raise ValueError(f"{name}={value!r}: {why}.")

    return Option(why, check, decision=REFUSED)


def _interval(name: str, value: Any) -> None:
    if not 0 < value < 1 and not (value >= 1 and value % 1 == 0):
        raise ValueError(f"{name}={value!r}: expected a whole number of 1 or more, or a share of the steps below 1.")


def _share(name: str, value: Any) -> None:
    """From 0, with 1 left out."""
    if not 0 <= value < 1:
        raise ValueError(f"{name}={value!r}: expected a number >= 0 and < 1.")


def _mapping(name: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name}={value!r}: expected a mapping, on the command line a JSON object.")


def _seed(name: str, value: Any) -> None:
    if not 0 <= value <= LARGEST_SEED:
        raise ValueError(f"{name}={value!r}: expected a whole number from 0 to {LARGEST_SEED}.")


def _steps(name: str, value: Any) -> None:
    if value != -1 and value < 1:
        raise ValueError(f"{name}={value!r}: expected a whole number of 1 or more, or -1 for num_train_epochs.")


def _warmup(name: str, value: Any) -> None:
    if value != 0:
        _interval(name, value)


def _evaluates(args: TrainingArguments, given: set[str]) -> bool:
    return args.eval_strategy != "no" or "eval_strategy" in given


def _is_reached(args: TrainingArguments, given: set[str]) -> bool:
    ends = {"steps": args.max_steps, "epoch": args.num_train_epochs if args.max_steps < 0 else -1}
    end = ends.get(str(getattr(args.eval_strategy, "value", args.eval_strategy)), -1)
    return _evaluates(args, given) and (end < 0 or args.eval_delay < end)


_NO_LOGS = "a comparison writes no logs; leave it out"
_NO_EVALUATION = "a comparison evaluates at moments of its own; leave it out"
_NO_CHECKPOINTS = "a comparison keeps no checkpoints and no models; leave it out"
_ONE_PROCESS = "each run of a comparison is one process"
_NO_METRIC = "a comparison has no evaluations that it could follow"
_LAST = "select_by picks variants, and weights with early_stopping: true; leave it out"
_IN_ORDER = "a comparison draws its batches at random and measures rows in their order"

_WARMUP = Option(
    "whole steps or a share of them; refused with schedules that have no warm-up",
    _warmup,
    lambda args, _: not args.warmup_steps or args.lr_scheduler_type not in NO_WARMUP,
)

# Some are not in every version of transformers.
OPTIONS: dict[str, Option] = {
    "output_dir": Option(),
    **_all("per_device_train_batch_size per_device_eval_batch_size", Option("1 or more", checks.count(1))),
    "num_train_epochs": Option(
        "more than 0 and finite; max_steps, if it is given, wins",
        used=lambda args, _: args.max_steps > 0 or 0 < args.num_train_epochs < math.inf,
    ),
    "max_steps": Option("1 or more, or -1 for num_train_epochs", _steps),
    "learning_rate": Option("a finite number from 0", checks.number()),
    "lr_scheduler_type": Option("one that follows a metric goes by the direction of the metric", compare=_NO_METRIC),
    "lr_scheduler_kwargs": Option(
        "what the schedule takes; constant schedules take nothing",
        _mapping,
        used=lambda args, _: args.lr_scheduler_type not in NO_KWARGS,
    ),
    "warmup_steps": _WARMUP,
    "warmup_ratio": replace(_WARMUP, why="warmup_steps of transformers before 5.15"),
    "optim": Option("if the package that it needs is installed"),
    "optim_args": Option("what the optimizer takes"),
    **_all("weight_decay max_grad_norm", Option("a finite number from 0", checks.number())),
    **_all("adam_beta1 adam_beta2", Option("from 0 to below 1, with an Adam", _share)),
    "adam_epsilon": Option("more than 0, with an Adam", checks.number(open_low=True)),
    "optim_target_modules": Option(
        "used by GaLore and APOLLO only", used=lambda args, _: args.optim.startswith(("galore", "apollo"))
    ),
    "gradient_accumulation_steps": Option("1 or more", checks.count(1)),
    "average_tokens_across_devices": Option(
        "losses are means over the labelled texts, or tokens, of all processes", decision=NO_EFFECT
    ),
    "label_smoothing_factor": Option("from 0 to 1", checks.number(high=1)),
    **_all("bf16 fp16 bf16_full_eval fp16_full_eval tf32", Option("if the hardware has it")),
    **_all("activation_checkpointing gradient_checkpointing", Option()),
    **_all(
        "activation_checkpointing_kwargs gradient_checkpointing_kwargs",
        Option(
            "used with activation_checkpointing (transformers before 5.23: gradient_checkpointing) only",
            _mapping,
            used=lambda args, _: getattr(args, RECOMPUTES),
        ),
    ),
    **_all("torch_compile torch_compile_backend torch_compile_mode", Option("what `torch.compile` takes")),
    "use_liger_kernel": Option("if liger-kernel is installed; not tried"),
    "liger_kernel_config": Option("has no written form", decision=REFUSED),
    "use_cache": Option("for models that generate", decision=NO_EFFECT),
    "neftune_noise_alpha": Option("a finite number from 0", checks.number()),
    "torch_empty_cache_steps": Option("1 or more", checks.count(1)),
    "auto_find_batch_size": Option(compare="methods must share their batch size"),
    **_all("logging_strategy logging_first_step", Option(compare=_NO_LOGS)),
    "logging_steps": Option("whole steps or a share of them, 0.05 by default", _interval, compare=_NO_LOGS),
    "log_on_each_node": Option(),
    "logging_dir": Option("of transformers before 5.15", compare=_NO_LOGS),
    "logging_nan_inf_filter": Option("on the logged loss only", decision=NO_EFFECT),
    "include_num_input_tokens_seen": Option("true or false", compare=_NO_LOGS),
    **_all("log_level log_level_replica disable_tqdm", Option()),
    "report_to": Option("if the package is installed", compare=_NO_LOGS),
    **_all("run_name project", Option("names for the services in report_to", compare=_NO_LOGS, decision=NO_EFFECT)),
    **_all(
        "trackio_space_id trackio_bucket_id trackio_static_space_id",
        Option(
            "used with report_to: trackio only",
            used=lambda args, _: "trackio" in (args.report_to or ()),
            compare=_NO_LOGS,
        ),
    ),
    "eval_strategy": Option(compare=_NO_EVALUATION),
    "eval_steps": Option(
        "used with eval_strategy: steps; whole steps or a share", _interval, _evaluates, _NO_EVALUATION
    ),
    "eval_delay": Option(
        "used with an eval_strategy, and less than the training", checks.number(), _is_reached, compare=_NO_EVALUATION
    ),
    "prediction_loss_only": _refused("the evaluation at the end needs predictions", False),
    "eval_on_start": Option(
        "used with an eval_strategy",
        used=lambda args, _: not args.eval_on_start or args.eval_strategy != "no",
        compare=_NO_EVALUATION,
    ),
    "eval_do_concat_batches": _refused("the evaluation at the end needs the predictions of all batches in one", True),
    "eval_use_gather_object": Option(),
    "eval_accumulation_steps": Option("1 or more", checks.count(1)),
    "include_for_metrics": _refused("the metrics use neither inputs nor losses", []),
    "batch_eval_metrics": _refused("calibration and F1 need the predictions of all batches at once", False),
    "save_only_model": Option(compare=_NO_CHECKPOINTS),
    "save_strategy": Option(
        "best needs an eval_strategy",
        used=lambda args, _: args.save_strategy != "best" or args.eval_strategy != "no",
        compare=_NO_CHECKPOINTS,
    ),
    "save_steps": Option("whole steps or a share of them", _interval, compare=_NO_CHECKPOINTS),
    "save_on_each_node": Option(compare=_NO_CHECKPOINTS),
    "save_total_limit": Option("1 or more", checks.count(1), compare=_NO_CHECKPOINTS),
    "enable_jit_checkpoint": Option(compare=_NO_CHECKPOINTS),
    "push_to_hub": Option("if the hub can be reached", compare=_NO_CHECKPOINTS),
    **_all(
        "hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision",
        Option(
            "used with push_to_hub only",
            used=lambda args, given: args.push_to_hub or "push_to_hub" in given,
            compare=_NO_CHECKPOINTS,
        ),
    ),
    "load_best_model_at_end": Option(compare="say early_stopping: true, beside methods for all of them"),
    "metric_for_best_model": Option("a metric of the table at the end", compare=_LAST),
    "greater_is_better": Option(
        "used with metric_for_best_model only, whose direction is known: refused if it contradicts",
        used=lambda args, _: args.metric_for_best_model is not None,
        compare=_LAST,
    ),
    **_all(
        "ignore_data_skip restore_callback_states_from_checkpoint",
        Option("for resume_from_checkpoint", compare=_NO_CHECKPOINTS),
    ),
    "full_determinism": Option(),
    **_all("seed data_seed", Option("from 0 to 2**32 - 1", _seed, compare="see seeds")),
    "use_cpu": Option(),
    "accelerator_config": Option("what Accelerate takes"),
    "parallelism_config": Option("has no written form; use `accelerate launch`", decision=REFUSED),
    "dataloader_drop_last": Option("for training batches; evaluation never drops rows"),
    "dataloader_num_workers": Option("0 or more", checks.count(0)),
    "dataloader_pin_memory": Option(),
    "dataloader_persistent_workers": Option(),
    "dataloader_prefetch_factor": Option("1 or more, with dataloader_num_workers", checks.count(1)),
    "dataloader_multiprocessing_context": Option(
        "used with dataloader_num_workers only", used=lambda args, _: args.dataloader_num_workers > 0
    ),
    "dataloader_in_order": Option(compare=_IN_ORDER),
    "remove_unused_columns": Option(),
    "label_names": _refused("the labels of a run are always labels; label_column_name says where they are", ["labels"]),
    "train_sampling_strategy": Option(compare=_IN_ORDER),
    "length_column_name": _refused("lengths are always those of the tokenised texts", "length"),
    **_all(
        "ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout",
        Option("for several processes; a single one does not use it"),
    ),
    "fsdp": Option("with several processes", compare=_ONE_PROCESS),
    "fsdp_config": Option("used with fsdp only", used=lambda args, _: bool(args.fsdp), compare=_ONE_PROCESS),
    "deepspeed": Option("if deepspeed is installed", compare=_ONE_PROCESS),
    "debug": Option("tpu_metrics_debug with torch_xla"),
    "skip_memory_metrics": Option(compare=_NO_LOGS),
    **_all(
        "do_train do_eval do_predict",
        Option("false is refused: every run trains and then evaluates", decision=NO_EFFECT),
    ),
    "resume_from_checkpoint": Option(compare="start the comparison again instead"),
    "local_rank": Option("the launcher says it", decision=NO_EFFECT),
}
