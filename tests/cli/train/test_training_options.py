"""The options of TrainingArguments: each is decided, and what is refused is refused before anything is loaded."""

import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml
from transformers import TrainingArguments
from transformers.optimization import GreedyLR

from hf_mixup.cli.compare.grid import Comparison
from hf_mixup.cli.main import main
from hf_mixup.cli.train.arguments import parse_fields, read_yaml
from hf_mixup.cli.train.training_dry_run import construction_errors
from hf_mixup.cli.train.training_option_table import NO_EFFECT, OPTIONS, REFUSED, WORKS
from hf_mixup.cli.train.training_options import check_options, field_name
from hf_mixup.training.trainer_seams import RECOMPUTES
from tests.distributed.launch import on_two_ranks
from tests.hosts import LACKING
from tests.toy_text import save_toy_model, write_reviews

ROOT = Path(__file__).parents[3]
FIELDS = {item.name: item for item in fields(TrainingArguments)}
RUN = {"model_name_or_path": "model", "train_file": "train.csv", "output_dir": "out", "use_cpu": True, "max_steps": 3}
EVALUATED = {"eval_strategy": "steps", "eval_steps": 1}
MIN_LR = {"min_lr": 1e-7}
COMPARISON = {"output_dir": "out", "methods": ["none", "tmix"], "train_sizes": [20]}

# Fields of a run, and what the error says.
REFUSED_RUNS = [
    ({"per_device_train_batch_size": 0}, "expected a whole number of 1"),
    ({"per_device_eval_batch_size": -1}, "expected a whole number of 1"),
    ({"gradient_accumulation_steps": 0}, "expected a whole number of 1"),
    ({"gradient_accumulation_steps": -1}, "expected a whole number of 1"),
    ({"num_train_epochs": 0, "max_steps": None}, "more than 0"),
    ({"num_train_epochs": "nan", "max_steps": None}, "more than 0"),
    ({"max_steps": 0}, "or -1 for num_train_epochs"),
    ({"learning_rate": "nan"}, "a finite number"),
    ({"learning_rate": "inf"}, "a finite number"),
    ({"weight_decay": -1}, "a finite number"),
    ({"max_grad_norm": "nan"}, "a finite number"),
    ({"adam_beta1": 1}, "< 1"),
    ({"adam_beta2": "nan"}, "< 1"),
    ({"adam_epsilon": 0}, "> 0"),
    ({"adam_beta1": 0.5, "optim": "sgd"}, "not used by optim='sgd'"),
    ({"adam_epsilon": 0.5, "optim": "adafactor"}, "not used by optim='adafactor'"),
    ({"label_smoothing_factor": "nan"}, "<= 1"),
    ({"neftune_noise_alpha": -5}, "a finite number"),
    ({"warmup_steps": 2.5}, "a share of the steps"),
    ({"warmup_steps": 2, "lr_scheduler_type": "constant"}, "no warm-up"),
    ({"lr_scheduler_kwargs": {"num_cycles": 2}, "lr_scheduler_type": "constant"}, "take nothing"),
    ({"lr_scheduler_kwargs": {"foo": 1}}, "unexpected keyword argument 'foo'"),
    ({"lr_scheduler_kwargs": "foo"}, "expected a mapping"),
    ({"lr_scheduler_kwargs": "{foo"}, "Expecting property name"),
    ({"lr_scheduler_type": "cosine_with_min_lr"}, "min_lr_rate should be set"),
    ({"lr_scheduler_type": "warmup_stable_decay"}, "num_decay_steps"),
    ({"lr_scheduler_type": "polynomial", "learning_rate": 1e-8}, "lr_end"),
    ({"lr_scheduler_type": "greedy", **EVALUATED}, "never goes below min_lr=0.001"),
    ({"optim_args": "momentum"}, "expected key=value"),
    ({"optim_args": "momentum=0.9"}, "momentum=0.9 is not used by optim='adamw_torch_fused'"),
    ({"optim_args": "momentum=0.9,alpha=1", "optim": "sgd"}, "alpha=1 is not used by optim='sgd'"),
    ({"optim_args": "momentum=high", "optim": "sgd"}, "could not convert"),
    ({"optim": "galore_adamw"}, "needs optim_target_modules"),
    ({"optim_target_modules": ["all-linear"]}, "GaLore and APOLLO"),
    ({f"{RECOMPUTES}_kwargs": {"use_reentrant": False}}, "used with activation_checkpointing"),
    ({f"{RECOMPUTES}_kwargs": {"foo": 1}, RECOMPUTES: True}, "unexpected keyword"),
    ({"torch_compile_mode": "foo"}, "Unrecognized mode=foo"),
    ({"torch_compile_backend": "foo", "torch_compile": True}, "Invalid backend"),
    ({"liger_kernel_config": {"rope": True}}, "invalid dict value"),
    ({"parallelism_config": "foo"}, "invalid ParallelismConfig value"),
    ({"logging_steps": -1}, "a share of the steps"),
    ({"eval_steps": 5}, "used with eval_strategy"),
    ({"eval_steps": -1, "eval_strategy": "steps"}, "a share of the steps"),
    ({"eval_delay": 1}, "used with an eval_strategy"),
    ({"eval_delay": 3, **EVALUATED}, "less than the training"),
    ({"eval_on_start": True}, "used with an eval_strategy"),
    ({"prediction_loss_only": True}, "needs predictions"),
    ({"eval_do_concat_batches": False}, "all batches in one"),
    ({"batch_eval_metrics": True}, "all batches at once"),
    ({"include_for_metrics": ["inputs"]}, "neither inputs nor losses"),
    ({"eval_accumulation_steps": 0}, "expected a whole number of 1"),
    ({"label_names": ["target"]}, "always labels"),
    ({"length_column_name": "input_ids"}, "tokenised texts"),
    ({"save_steps": 0}, "a share of the steps"),
    ({"save_total_limit": 0}, "expected a whole number of 1"),
    ({"save_strategy": "best", "metric_for_best_model": "loss"}, "best needs an eval_strategy"),
    ({"greater_is_better": True, **EVALUATED}, "used with metric_for_best_model"),
    ({"hub_model_id": "me/model"}, "push_to_hub only"),
    ({"trackio_space_id": "me/space"}, "trackio only"),
    ({"seed": -1}, "from 0 to 4294967295"),
    ({"data_seed": 2**70}, "from 0 to 4294967295"),
    ({"accelerator_config": {"foo": True}}, "unexpected keyword argument 'foo'"),
    ({"accelerator_config": {"gradient_accumulation_kwargs": {"foo": 4}}}, "unexpected keyword argument 'foo'"),
    ({"accelerator_config": "missing.json"}, "No such file"),
    ({"dataloader_num_workers": -1}, "expected a whole number of 0"),
    ({"dataloader_prefetch_factor": 2}, "dataloader_num_workers > 0"),
    ({"dataloader_prefetch_factor": 0, "dataloader_num_workers": 1}, "expected a whole number of 1"),
    ({"dataloader_multiprocessing_context": "spawn"}, "dataloader_num_workers only"),
    ({"fsdp": "full_shard"}, "needs several processes"),
    ({"fsdp_config": {"min_num_params": 1}}, "fsdp only"),
    ({"do_train": False}, "every run trains"),
    ({"do_eval": False}, "every run trains"),
    ({"do_predict": False}, "every run trains"),
]
# What a package that the test environment does not have is needed for.
NEEDS_A_PACKAGE = [
    ({"report_to": "wandb"}, "wandb"),
    ({"report_to": ["tensorboard"]}, "tensorboard"),
    ({"report_to": "foo"}, "is not supported"),
    ({"optim": "adamw_bnb_8bit"}, "bitsandbytes"),
    ({"optim": "galore_adamw", "optim_target_modules": ["all-linear"]}, "galore_torch"),
    ({"optim": "lomo"}, "lomo"),
    ({"optim": "schedule_free_adamw"}, "schedulefree"),
    ({"use_liger_kernel": True}, "liger-kernel"),
    ({"deepspeed": "zero2.json"}, "deepspeed"),
    ({"debug": "tpu_metrics_debug"}, "torch_xla"),
]


def checked(**values):
    """The options of a run after their checks."""
    given = RUN | values
    with construction_errors(set(given)):
        args = parse_fields(given)[2]
    check_options(args, {name for name, value in given.items() if value is not None})
    return args


def test_every_option_is_decided():
    missing, gone = FIELDS.keys() - OPTIONS, OPTIONS.keys() - FIELDS
    assert not missing, f"new in transformers: {missing}; try each, then decide it in training_option_table.py"
    assert gone == LACKING, f"no longer in transformers: {gone}; take it out of training_option_table.py"


def test_a_refusal_says_why_and_every_decision_is_one_of_three():
    assert {option.decision for option in OPTIONS.values()} == {WORKS, REFUSED, NO_EFFECT}
    assert all(option.why for option in OPTIONS.values() if option.decision != WORKS or option.used)


def test_every_option_that_is_refused_is_tried():
    tried = {name for values, _ in REFUSED_RUNS for name in values}
    assert {name for name, option in OPTIONS.items() if option.decision == REFUSED} <= tried


def markdown_table() -> str:
    lines = ["| option | `hf-mixup train` | `hf-mixup compare` |", "|---|---|---|"]
    for name, option in OPTIONS.items():
        train = f"{option.decision}: {option.why}" if option.why else option.decision
        compare = f"refused: {option.compare}" if option.compare else "as in train"
        lines.append(f"| `{name}` | {train} | {compare} |")
    return "\n".join(lines) + "\n"


def test_the_docs_have_the_table():
    text = (ROOT / "docs" / "training_options.md").read_text(encoding="utf-8")
    assert text.endswith(f"\n\n{markdown_table()}"), "stale: run python -m tests.cli.train.test_training_options"


@pytest.mark.parametrize(("values", "reason"), REFUSED_RUNS + NEEDS_A_PACKAGE, ids=str)
def test_what_cannot_work_is_refused_by_name(values, reason):
    if LACKING & values.keys():
        pytest.skip("another version of transformers has it")
    with pytest.raises(ValueError) as error:
        checked(**values)
    said = str(error.value)
    assert next(iter(values)) in said.replace("-", "_") and reason in said


def said_on_two_ranks():
    """What is refused if there are two processes."""
    said = []
    for config, batch in (({"even_batches": False}, 8), ({"split_batches": True}, 3), ({"split_batches": True}, 4)):
        try:
            checked(accelerator_config=config, per_device_eval_batch_size=batch)
            said.append("")
        except ValueError as error:
            said.append(str(error))
    return said


def test_batches_that_two_processes_cannot_share_are_refused():
    uneven, odd, even = on_two_ranks(said_on_two_ranks)[0]
    assert uneven.startswith("accelerator_config: even_batches=False")
    assert odd.startswith("per_device_eval_batch_size=3") and odd.endswith("a multiple of the 2 processes.")
    assert not even


def test_the_defaults_and_plain_wishes_pass():
    checked()
    checked(lr_scheduler_type="cosine", lr_scheduler_kwargs={"num_cycles": 2}, warmup_steps=0.1)
    checked(optim="sgd", optim_args="momentum=0.9,nesterov=true")
    checked(save_strategy="no", save_steps=5, eval_strategy="no", eval_steps=5, metric_for_best_model="loss")
    checked(do_train=True, do_eval=True, do_predict=True, report_to="none", greater_is_better=None)
    checked(**EVALUATED, eval_delay=2, push_to_hub=True, hub_model_id="me/model", dataloader_drop_last=True)


def test_a_negated_option_is_the_field_it_sets():
    assert field_name("no-eval-do-concat-batches") == "eval_do_concat_batches"
    assert field_name("logging-steps") == "logging_steps"


@pytest.mark.parametrize(("metric", "up"), [("nll", False), ("eval_ece", False), ("accuracy", True), ("loss", False)])
def test_the_best_model_goes_by_the_direction_of_the_metric(metric, up):
    args = checked(**EVALUATED, metric_for_best_model=metric)
    assert args.greater_is_better is up
    assert checked(**EVALUATED, metric_for_best_model=metric, greater_is_better=up).greater_is_better is up
    with pytest.raises(ValueError, match=f"greater_is_better={not up}: {metric} is better when it is"):
        checked(**EVALUATED, metric_for_best_model=metric, greater_is_better=not up)


@pytest.mark.parametrize("schedule", ["reduce_lr_on_plateau", "greedy"])
@pytest.mark.parametrize(("metric", "mode"), [("accuracy", "max"), ("nll", "min"), (None, "min")])
def test_a_schedule_that_follows_a_metric_goes_by_its_direction(schedule, metric, mode):
    own = MIN_LR if schedule == "greedy" else {}
    values = {**EVALUATED, "lr_scheduler_type": schedule, "metric_for_best_model": metric}
    assert checked(**values, lr_scheduler_kwargs=own).lr_scheduler_kwargs == own | {"mode": mode}
    wrong = {"mode": "min" if mode == "max" else "max"}
    with pytest.raises(ValueError, match="lr_scheduler_kwargs=.* is better when it is"):
        checked(**values, lr_scheduler_kwargs=own | wrong)


def test_the_floor_of_the_greedy_schedule_is_that_of_transformers():
    weight = torch.nn.Parameter(torch.zeros(1))
    assert GreedyLR(torch.optim.SGD([weight], lr=1e-5)).min_lrs == [1e-3]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"eval_strategy": "steps"}, "moments of its own"),
        ({"eval-on-start": True}, "moments of its own"),
        ({"save_strategy": "epoch"}, "no checkpoints"),
        ({"push_to_hub": True}, "no checkpoints"),
        ({"logging_steps": 5}, "no logs"),
        ({"report_to": "wandb"}, "no logs"),
        ({"skip_memory_metrics": False}, "no logs"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "no evaluations"),
        ({"train_sampling_strategy": "group_by_length"}, "rows in their order"),
        ({"no_dataloader_in_order": False}, "rows in their order"),
        ({"auto_find_batch_size": True}, "share their batch size"),
        ({"greater_is_better": True}, "select_by"),
        ({"fsdp": "full_shard"}, "one process"),
        ({"max-train-samples": 5}, "the comparison sets it"),
    ],
)
def test_a_comparison_refuses_what_it_would_ignore(values, reason):
    (name,) = values
    with pytest.raises(ValueError, match=f"{name}=.*{reason}"):
        Comparison.from_dict(COMPARISON | values)
    with pytest.raises(ValueError, match=f"{name}=.*in the method 'mine'"):
        Comparison.from_dict(COMPARISON | {"methods": {"none": None, "mine": {"mixup": "tmix", **values}}})


def test_a_comparison_takes_what_it_does_anyway():
    quiet = yaml.safe_load("{eval_strategy: no, save_strategy: no, logging_strategy: no, report_to: none}")
    same = {"lr_scheduler_type": "cosine", "push_to_hub": False, "eval_on_start": None, "disable_tqdm": True}
    assert Comparison.from_dict(COMPARISON | quiet | same).run == quiet | same


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "compare").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_comparisons_of_this_repository_pass(file):
    comparison = Comparison.from_dict(read_yaml(str(file)))
    given = {**comparison.run, "output_dir": "out"}
    args = parse_fields(given)[2]
    check_options(args, set(given))


# Options of which it is not plain that nothing gets lost; the weights are those of the plain run, and so the metrics.
SAME_RESULT = [
    {"dataloader_num_workers": 1, "dataloader_prefetch_factor": 2},
    {"eval_accumulation_steps": 1, "eval_use_gather_object": True},
    {"per_device_eval_batch_size": 5, "auto_find_batch_size": True, "torch_empty_cache_steps": 1},
    {"accelerator_config": {"dispatch_batches": True, "split_batches": True}},
    {"save_strategy": "best", "metric_for_best_model": "nll", "save_only_model": True},
    {"remove_unused_columns": False, "skip_memory_metrics": False, "logging_first_step": True},
    {RECOMPUTES: True, "use_cache": True, "include_num_input_tokens_seen": True},
]
# Others, which train to other weights.
OTHER_RESULT = [
    {"train_sampling_strategy": "group_by_length"},
    {"lr_scheduler_type": "reduce_lr_on_plateau", "metric_for_best_model": "accuracy"},
    {"lr_scheduler_type": "greedy", "lr_scheduler_kwargs": MIN_LR},
    # An evaluation takes numbers from the stream that orders the batches.
    {"eval_on_start": True},
    {"optim": "adafactor", "neftune_noise_alpha": 5},
]
SLOW = [
    *({"optim": name} for name in ("adamw_torch", "sgd", "adagrad", "rmsprop")),
    *({"lr_scheduler_type": name} for name in ("cosine", "polynomial", "inverse_sqrt", "cosine_with_restarts")),
    *({name: True} for name in ("bf16", "bf16_full_eval", "fp16_full_eval", "enable_jit_checkpoint")),
    {"train_sampling_strategy": "batch_rebalance"},
    {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 1}},
    {"debug": "underflow_overflow", "logging_nan_inf_filter": False},
]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Runs `hf-mixup train` with some options, and returns what it wrote."""
    folder = tmp_path_factory.mktemp("options")
    files = {name: write_reviews(folder / f"{name}.csv", count, seed=count) for name, count in ROWS.items()}
    shared = {f"{name}_file": file for name, file in files.items()}
    shared |= {"model_name_or_path": save_toy_model(folder / "model"), "cache_dir": str(folder / "cache")}
    quiet = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "learning_rate": 1e-3}

    def run(options):
        out = folder / f"out{len(list(folder.iterdir()))}"
        config = folder / "config.yaml"
        config.write_text(yaml.safe_dump(RUN | EVALUATED | quiet | shared | {"output_dir": str(out)} | options))
        assert main(["train", str(config)]) == 0
        return json.loads((out / "results.json").read_text())

    return run


ROWS = {"train": 40, "validation": 11, "test": 13}


@pytest.fixture(scope="module")
def plain(results):
    return results({})


@pytest.mark.parametrize("options", SAME_RESULT, ids=str)
def test_options_that_take_nothing_from_the_result(results, plain, options):
    found = results(options)
    assert found["rows"] == ROWS
    for name in ("accuracy", "nll", "ece"):
        assert found["metrics"][name] == pytest.approx(plain["metrics"][name], abs=1e-5)


def run_to_the_end(results, options):
    metrics = results(options)["metrics"]
    # A share of all 13 rows.
    assert metrics["accuracy"] * ROWS["test"] == pytest.approx(round(metrics["accuracy"] * ROWS["test"]))
    assert metrics["nll"] is not None


@pytest.mark.parametrize("options", OTHER_RESULT, ids=str)
def test_options_that_change_the_training(results, options):
    run_to_the_end(results, options)


@pytest.mark.slow
@pytest.mark.parametrize("options", SLOW, ids=str)
def test_more_options_that_change_the_training(results, options):
    run_to_the_end(results, options)


if __name__ == "__main__":
    path = ROOT / "docs" / "training_options.md"
    prose = path.read_text(encoding="utf-8").split("\n| option")[0].rstrip("\n")
    path.write_text(f"{prose}\n\n{markdown_table()}", encoding="utf-8")
