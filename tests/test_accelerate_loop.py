"""The two loops of `examples/`: they differ in the lines of mixup only, accumulate rightly and resume exactly."""

import difflib
import json
import runpy
from pathlib import Path

import datasets
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from hf_mixup import Mixup
from tests.toy_runs import NO_DROPOUT, same_weights, swap_neighbours
from tests.toy_text import save_toy_model, write_reviews

EXAMPLES = Path(__file__).parents[1] / "examples"
LOOP, PLAIN = "accelerate_loop.py", "accelerate_loop_plain.py"


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Runs a loop in this process; returns the model that it saved, and what it printed."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    files = {
        "model_name_or_path": save_toy_model(tmp_path / "toy"),
        "train_file": write_reviews(tmp_path / "train.csv", 32),
        "validation_file": write_reviews(tmp_path / "dev.csv", 10, seed=1),
    }

    def run(name, folder, **options):
        given = files | {"output_dir": str(tmp_path / folder), "batch_size": 8, "learning_rate": 5e-3} | options
        words = [word for field, value in given.items() for word in (f"--{field}", str(value))]
        monkeypatch.setattr("sys.argv", [name, *words])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / folder)
        return model, capsys.readouterr().out

    return run


def test_the_loops_differ_in_the_lines_of_mixup_only():
    plain, mixed = ((EXAMPLES / name).read_text().splitlines() for name in (PLAIN, LOOP))
    lines = list(difflib.unified_diff(plain, mixed, n=0, lineterm=""))[2:]
    added, removed = ([line for line in lines if line[0] == sign] for sign in "+-")
    assert (len(added), len(removed)) == (8, 2)
    assert all("mixup" in line or "logits = model(**batch).logits" in line for line in added)


@pytest.mark.parametrize("name", [LOOP, PLAIN])
def test_a_loop_trains_and_resumes_to_the_same_bits(run, tmp_path, name):
    whole, printed = run(name, "whole", num_epochs=3)
    assert printed.count("1 processes: accuracy") == 3
    # The run that is resumed has the same length: the learning rate depends on it.
    resumed, printed = run(name, "resumed", num_epochs=3, resume_from=tmp_path / "whole/epoch_1")
    assert printed.count("accuracy") == 2
    assert same_weights(whole, resumed)


@pytest.mark.filterwarnings("error:This plan mixes the labels")
def test_the_loop_mixes(run):
    mixed, _ = run(LOOP, "mixed")
    plain, _ = run(PLAIN, "plain")
    assert not same_weights(mixed, plain)


def test_accumulated_batches_make_the_same_step(run, monkeypatch, tmp_path):
    monkeypatch.setattr(Mixup, "draw", lambda self, batch, **kwargs: swap_neighbours(batch))
    config = tmp_path / "toy/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | NO_DROPOUT))
    # Unlike AdamW, which would hide a loss that is too large by a factor.
    monkeypatch.setattr(torch.optim, "AdamW", torch.optim.SGD)
    whole, _ = run(LOOP, "whole", batch_size=8, learning_rate=0.5)
    parts, _ = run(LOOP, "parts", batch_size=4, accumulation_steps=2, learning_rate=0.5)
    start, _ = run(LOOP, "start", learning_rate=0.0)
    assert not same_weights(whole, start)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
