"""The loop of `examples/accelerate_loop.py` on two real processes, started by the two commands of the docs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.toy_runs import same_weights
from tests.toy_text import reviews, save_toy_model, write_reviews

ROOT = Path(__file__).parents[2]
ACCELERATE = ["accelerate.commands.launch", "--config_file", "configs/accelerate/cpu_2proc.yaml"]
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
HELD_OUT = 11


@pytest.fixture
def run(tmp_path):
    """Launches the loop; returns the model that it saved, and the accuracies that it printed."""
    options = {
        "model_name_or_path": save_toy_model(tmp_path / "toy"),
        "train_file": write_reviews(tmp_path / "train.csv", 48),
        "validation_file": write_reviews(tmp_path / "dev.csv", HELD_OUT, seed=1),
        "batch_size": 4,
        "accumulation_steps": 2,
        "num_epochs": 2,
        "learning_rate": 5e-3,
    }
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    environment["HF_DATASETS_CACHE"] = str(tmp_path / "cache")

    def run(launcher, folder, **more):
        given = options | {"output_dir": tmp_path / folder} | more
        words = [word for field, value in given.items() for word in (f"--{field}", str(value))]
        command = [sys.executable, "-m", *launcher, "examples/accelerate_loop.py", *words]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=150)
        assert done.returncode == 0, done.stderr[-3000:]
        rates = re.findall(r"^epoch \d, 2 processes: accuracy (\S+)$", done.stdout, re.MULTILINE)
        return AutoModelForSequenceClassification.from_pretrained(tmp_path / folder), [float(rate) for rate in rates]

    return run


def accuracy(model, folder):
    """Of the one model, in one process, each text counted once."""
    texts, labels = zip(*reviews(HELD_OUT, seed=1), strict=True)
    with torch.no_grad():
        logits = model(**AutoTokenizer.from_pretrained(folder)(list(texts), padding=True, return_tensors="pt")).logits
    return (logits.argmax(-1) == torch.tensor(labels)).float().mean().item()


def test_two_processes_train_and_resume_to_the_same_bits(run, tmp_path):
    whole, rates = run(ACCELERATE, "whole")
    assert len(rates) == 2
    assert rates[-1] == pytest.approx(accuracy(whole, tmp_path / "whole"), abs=1e-4)
    streams = [torch.load(tmp_path / f"whole/epoch_1/mixup_{rank}.pt") for rank in range(2)]
    assert streams[0] != streams[1]
    resumed, rates = run(TORCHRUN, "resumed", resume_from=tmp_path / "whole/epoch_1")
    assert len(rates) == 1
    assert same_weights(whole, resumed)
