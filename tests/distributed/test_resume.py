"""A process is killed, the job is started again: it ends with the weights of the uninterrupted one, to the bit."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.hosts import LOADS_TO_CPU_0
from tests.plain_config import PLAIN
from tests.resume_worker import SAVE_STEPS, train

ROOT = Path(__file__).parents[2]
# Batches of one, accumulated, read by workers: what large models are trained with.
MIXUP = PLAIN | {"site": "hidden", "partner": "previous_batch", "memory": 3, "prob": 0.8}
OPTIONS = {"gradient_accumulation_steps": 2, "dataloader_num_workers": 1}
KILLS = [(1, SAVE_STEPS + 1), (0, SAVE_STEPS + 3), (1, 2 * SAVE_STEPS + 2)]


def finish(ranks, folder, resume=None):
    """Run to the end; one process alone right here, which saves its start."""
    if ranks == 1:
        train(folder, resume, mixup=MIXUP, batch=1, **OPTIONS)
        return ""
    process = run(ranks, folder, *(["--resume"] if resume else []))
    assert process.returncode == 0, process.stderr
    return process.stderr


def run(ranks, folder, *options):
    launcher = [] if ranks == 1 else ["torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks), "-m"]
    given = ["--mixup", json.dumps(MIXUP), "--batch", "1", "--options", json.dumps(OPTIONS), *map(str, options)]
    command = [sys.executable, "-m", *launcher, "tests.resume_worker", str(folder), *given]
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)


def final_weights(folder):
    return (folder / "final" / "model.safetensors").read_bytes()


def newest(folder):
    return max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two processes"])
def uninterrupted(request, tmp_path_factory):
    if request.param > 1 and LOADS_TO_CPU_0:
        pytest.skip("this transformers cannot resume several processes on a CPU")
    folder = tmp_path_factory.mktemp("uninterrupted")
    finish(request.param, folder)
    saved = folder / f"checkpoint-{SAVE_STEPS}"
    ranks = [json.loads(path.read_text())["ranks"] for path in saved.glob("mixup_state_*")]
    assert ranks == [request.param] * request.param
    assert len([*saved.glob("mixup_memory_*")]) == request.param
    return request.param, folder


@pytest.mark.parametrize(("rank", "step"), KILLS)
def test_a_killed_and_resumed_job_ends_with_the_same_weights(uninterrupted, tmp_path, rank, step):
    ranks, folder = uninterrupted
    process = run(ranks, tmp_path, "--kill-at", step, "--kill-rank", min(rank, ranks - 1))
    assert process.returncode != 0 and not (tmp_path / "final").exists(), process.stderr
    assert newest(tmp_path).name == f"checkpoint-{step - step % SAVE_STEPS}"
    finish(ranks, tmp_path, resume=True)
    assert final_weights(tmp_path) == final_weights(folder)


def test_without_the_memory_the_weights_are_others(uninterrupted, tmp_path):
    ranks, folder = uninterrupted
    shutil.copytree(folder / f"checkpoint-{SAVE_STEPS}", tmp_path / f"checkpoint-{SAVE_STEPS}")
    for path in tmp_path.glob("checkpoint-*/mixup_memory_*"):
        torch.save({}, path)
    finish(ranks, tmp_path, resume=True)
    assert final_weights(tmp_path) != final_weights(folder)


def test_a_checkpoint_of_which_one_rank_is_cut_off_is_passed_over(uninterrupted, tmp_path, caplog):
    ranks, folder = uninterrupted
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "final")
    last = newest(tmp_path)
    state = last / f"mixup_state_{ranks - 1}.json"
    state.write_text(state.read_text()[:-9])
    with caplog.at_level(logging.WARNING, "hf_mixup.training.checkpoints"):
        said = finish(ranks, tmp_path, resume=True) + caplog.text
    assert f"Skipped {last.name}: " in said and f"{state.name}: cannot be read" in said
    assert final_weights(tmp_path) == final_weights(folder)
