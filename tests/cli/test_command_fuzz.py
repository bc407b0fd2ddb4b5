"""Random YAML files over all fields: each run ends well, or with one line and no traceback."""

import contextlib
import io
import os
import random
import re
from dataclasses import fields
from enum import EnumMeta
from pathlib import Path

import pytest
import torch
import yaml
from transformers import TrainingArguments

from hf_mixup.cli.main import main
from hf_mixup.cli.train.run_fields import DataArguments, ModelArguments
from hf_mixup.config.mixup_config import MixupConfig
from hf_mixup.config.recipes import recipe_names
from hf_mixup.config.unlabeled_config import UnlabeledConfig
from tests.plain_config import CHOICES
from tests.toy_text import save_toy_model, write_csv, write_reviews

FEW, MANY = 60, 2_000
# How long a run takes, and where it is written, is the test's to say; torch.compile alone takes half a minute.
OURS = ("max_steps", "num_train_epochs", "output_dir", "cache_dir", "torch_compile", "torch_compile_backend")
OURS = (*OURS, "torch_compile_mode", "overwrite_output_dir", "dataloader_num_workers", "push_to_hub")
NUMBERS = (0, 1, 2, 3, 8, -1, 0.5, 1e-3, 1e-6, 1.5, 100, 1e25, float("nan"), float("inf"), "5e-5", "2")
WORDS = ("", "none", "None", "true", "no", "steps", "epoch", "best", "all", "auto", "text", "label", "accuracy", "nll")
WORDS = (
    *WORDS,
    "linear",
    "cosine",
    "adamw_torch",
    "sgd",
    "eager",
    "sdpa",
    "utf-8",
    "é",
    "a b",
    "~/x",
    "0",
    ",",
    ";",
    "|",
)
ODD = (None, True, False, [], {}, [1, 2], ["a", None], {"a": 1}, {"num_cycles": 2}, [0.5], -(10**30), 10**30)
MIXUP = [field.name for field in fields(MixupConfig)]
UNLABELED = [field.name for field in fields(UnlabeledConfig)]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A run of two steps, files that some YAML files name, and one of texts without labels."""
    folder = tmp_path_factory.mktemp("fuzz")
    texts = write_csv(folder / "texts.csv", ["text"], [[f"a film {n}"] for n in range(9)])
    pairs = write_csv(folder / "scores.csv", ["text", "label"], [(f"a film {n}", n / 7) for n in range(24)])
    return {
        "model_name_or_path": save_toy_model(folder / "toy"),
        "train_file": write_reviews(folder / "train.csv", 24),
        "cache_dir": str(folder / "cache"),
        "output_dir": str(folder / "out"),
        "overwrite_output_dir": True,
        "max_steps": 2,
        "per_device_train_batch_size": 8,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }, ({"train_file": pairs}, texts)


def value_of(draw, field):
    """Half of the time a value that may well work, else anything."""
    kind = str(field.type)
    choices = [item.value for item in field.type] if isinstance(field.type, EnumMeta) else []
    plain = {"bool": (True, False), "int": (1, 2, 3, 16), "float": (0.0, 0.1, 1e-3), "str": ("text", "label", "none")}
    fitting = [values for name, values in plain.items() if name in kind]
    fitting += [[field.default]] if isinstance(field.default, (str, int, float, bool, type(None))) else []
    if draw.random() < 0.5 and (choices or fitting):
        return draw.choice(choices or draw.choice(fitting))
    return draw.choice(draw.choice([ODD, NUMBERS, WORDS, *fitting]))


def mixup_of(draw):
    if draw.random() < 0.4:
        return draw.choice([*recipe_names(), "none", "None", "tmx", "absent.yaml", True, False, None, 3, [], ""])
    names = draw.sample(MIXUP, draw.randint(1, 3))
    values = (*NUMBERS, *ODD, "7/12", [0, 1], [-1], {0: 0, 0.5: 1}, [1.0, 2.0])
    return {name: draw.choice([*CHOICES.get(name, ()), *values]) for name in names}


def unlabeled_of(draw):
    names = draw.sample(UNLABELED, draw.randint(0, 2))
    plain = ("none", "labels", "average", "model", "apart", "squared_error", [1, 3], 0.2, 1)
    return {name: draw.choice([*NUMBERS, *ODD, *plain, *plain]) for name in names}


def random_run(seed, base, others):
    draw, (other, texts) = random.Random(seed), others
    known = [field for group in (ModelArguments, DataArguments, TrainingArguments) for field in fields(group)]
    known = [field for field in known if field.init and field.name not in (*OURS, "mixup")]
    values = base | (other if draw.random() < 0.3 else {})
    values |= {field.name: value_of(draw, field) for field in draw.sample(known, draw.choice((0, 1, 1, 2, 3)))}
    values |= {"mixup": mixup_of(draw)} if draw.random() < 0.3 else {"mixup": {"site": "embeddings"}}
    if draw.random() < 0.2:
        values["unlabeled_file"] = texts
        if draw.random() < 0.5 and isinstance(values["mixup"], dict):
            values["mixup"] |= {"unlabeled": unlabeled_of(draw)}
    return values


@contextlib.contextmanager
def as_before():
    """Options that change the process, such as the environment or determinism, are undone."""
    environment, grad = dict(os.environ), torch.is_grad_enabled()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        torch.use_deterministic_algorithms(False)
        torch.set_grad_enabled(grad)
        torch.set_default_dtype(torch.float32)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def run(command, values, folder):
    """The exit status of a run, and its errors."""
    path = Path(folder, "run.yaml")
    path.write_text(yaml.safe_dump(values))
    printed = io.StringIO()
    with as_before(), contextlib.redirect_stderr(printed), contextlib.redirect_stdout(io.StringIO()):
        status = main([command, str(path)])
    return status, printed.getvalue()


def check(seed, base, tmp_path):
    values = random_run(seed, *base)
    results = Path(values["output_dir"], "results.json")
    results.unlink(missing_ok=True)
    try:
        status, printed = run("train", values, tmp_path)
    except BaseException as error:
        raise AssertionError(f"seed {seed}: {values}") from error
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in printed and status in (0, 1, 2), (seed, values, printed)
    assert len(errors) == (status != 0), (seed, values, status, printed)
    assert results.is_file() == (status != 2), (seed, values, status, printed)
    # What a library says without a field is what the checks before it have missed.
    assert not errors or not re.match(r"error: \w+(Error|Exception): ", errors[0]), (seed, values, errors)
    return status


def fuzz(seeds, base, tmp_path):
    statuses = [check(seed, base, tmp_path) for seed in seeds]
    assert 0.05 < statuses.count(0) / len(statuses) < 0.95


def test_few_random_runs(base, tmp_path):
    fuzz(range(FEW), base, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_many_random_runs(base, tmp_path, part):
    fuzz(range(FEW + part, FEW + MANY, 8), base, tmp_path)


METHODS = (
    *(["none", "tmix"], ["none"], ["none", "tmx"], ["none", "none"], {"none": None, "a": {"mixup": {"alpha": 0.3}}}),
    *({"none": None, "a": {"mixup": {"unlabeled": {}}}}, {"none": None, "a": {"mixup": "none", "steps_factor": 0.5}}),
    *({"none": None, "a": {"max_steps": 3}}, {"none": None, "tmix": [{"learning_rate": 1e25}]}, "none", 3, None),
)
OWN = {
    "methods": METHODS,
    "seeds": ([0], [0, 1], [0, 0], 3, [-1], ["a"], None),
    "train_sizes": ([4], [2, 4], [500], [0], 4, ["x"]),
    "label_noise": ([0.0], [0.5], [2], 0.1, ["x"]),
    "select_by": (None, "nll", "acuracy", "rmse", 3),
    "measures": ([], ["boundary"], ["boundry"], "boundary", [3]),
    "measured_samples": (4, 1, "x", 10**9),
    "outliers": (None, "absent.csv", "~/absent.csv", 3),
    "workers": (1, 0, "x", None),
    "unlabeled": (4, 0, 500, "x", None, {"ratio": 2}),
    "small_validation": (True, None, "x"),
    "early_stopping": (True, False, None, 3),
    "mixup": ("tmix",),
    "seed": (1,),
}


def random_comparison(seed, base, other, folder):
    draw = random.Random(seed)
    values = {name: value for name, value in base.items() if name != "overwrite_output_dir"} | {
        **{"methods": ["none", "tmix"], "train_sizes": [4], "seeds": [0], "measures": [], "workers": 1},
        "output_dir": str(folder / f"compared{seed}"),
    }
    values |= {name: draw.choice(OWN[name]) for name in draw.sample([*OWN], draw.choice((0, 1, 1, 2)))}
    known = [field for field in fields(TrainingArguments) if field.init and field.name not in OURS]
    return values | {field.name: value_of(draw, field) for field in draw.sample(known, draw.choice((0, 0, 1)))}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60))
def test_random_comparisons(base, tmp_path, seed):
    values = random_comparison(seed, *base, tmp_path)
    status, printed = run("compare", values, tmp_path)
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in printed and status in (0, 2), (values, printed)
    assert len(errors) == (status == 2), (values, printed)
    assert not errors or not re.match(r"error: \w+(Error|Exception): ", errors[0]), (values, errors)
