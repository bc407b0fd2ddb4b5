"""A process is killed, the job is started again: it ends with the weights of the uninterrupted one, to the bit."""

import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from tests.distributed.launch import on_two_ranks
from tests.hosts import LOADS_TO_CPU_0
from tests.plain_config import PLAIN
from tests.resume_worker import SAVE_STEPS, Kill, in_a_new_process, train

ROOT = Path(__file__).parents[2]
# Batches of one, accumulated, read by workers: what large models are trained with.
MIXUP = PLAIN | {"site": "hidden", "partner": "previous_batch", "memory": 3, "prob": 0.8}
OPTIONS = {"gradient_accumulation_steps": 2, "dataloader_num_workers": 1}
KILLS = [(1, SAVE_STEPS + 1), (0, SAVE_STEPS + 3), (1, 2 * SAVE_STEPS + 2)]


def train_and_tell(folder, *args):
    """What this process says of the checkpoints while it trains."""
    said = io.StringIO()
    logging.getLogger("hf_mixup.training.checkpoints").addHandler(logging.StreamHandler(said))
    train(folder, *args, mixup=MIXUP, batch=1, **OPTIONS)
    return said.getvalue()


def finish(ranks, folder, resume=None):
    """Run to the end; one process alone right here, which saves its start."""
    return train_and_tell(folder, resume) if ranks == 1 else "".join(on_two_ranks(train_and_tell, folder, resume))


def run_until_killed(ranks, folder, kill):
    if ranks == 1:
        assert in_a_new_process(folder, kill=kill, mixup=MIXUP, batch=1, **OPTIONS) == -signal.SIGKILL
        return
    # The rank that is left may be the first to end, without the other.
    with pytest.raises((ProcessExitedException, ProcessRaisedException)):
        on_two_ranks(train_and_tell, folder, None, kill)


def launched(folder, *options):
    """The process of torchrun that trains on two ranks."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
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
    run_until_killed(ranks, tmp_path, Kill(step, min(rank, ranks - 1)))
    assert not (tmp_path / "final").exists()
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


def test_a_checkpoint_of_which_one_rank_is_cut_off_is_passed_over(uninterrupted, tmp_path):
    ranks, folder = uninterrupted
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "final")
    last = newest(tmp_path)
    state = last / f"mixup_state_{ranks - 1}.json"
    state.write_text(state.read_text()[:-9])
    said = finish(ranks, tmp_path, resume=True)
    assert f"Skipped {last.name}: " in said and f"{state.name}: cannot be read" in said
    assert final_weights(tmp_path) == final_weights(folder)


@pytest.mark.slow
@pytest.mark.skipif(LOADS_TO_CPU_0, reason="this transformers cannot resume several processes on a CPU")
def test_a_job_of_torchrun_is_killed_and_resumed_alike(tmp_path):
    (rank, step), (whole, killed) = KILLS[0], (tmp_path / name for name in ("whole", "killed"))
    process = launched(whole)
    assert process.returncode == 0, process.stderr
    process = launched(killed, "--kill-at", step, "--kill-rank", rank)
    assert process.returncode != 0 and not (killed / "final").exists(), process.stderr
    process = launched(killed, "--resume")
    assert process.returncode == 0, process.stderr
    assert final_weights(killed) == final_weights(whole)
