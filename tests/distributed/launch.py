"""Run a function on two processes that talk through gloo, and get back what each rank returns."""

import faulthandler
import gc
import multiprocessing
import os
import tempfile
import time
from pathlib import Path

import torch
from torch import distributed
from torch.multiprocessing import start_processes

WORLD = 2
# Processes of it are forked from a server that has imported these once.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["hf_mixup", "hf_mixup.cli.compare.compare", "tests.resume_worker", "torch.distributed.fsdp"]
)


def on_two_ranks(function, *args, timeout=150):
    """What `function(*args)` returns on each of two ranks, in their order.

    Raises:
        ProcessRaisedException: with the traceback of a rank that failed.
        TimeoutError: with the stacks of the ranks that hang, which are killed.
    """
    with tempfile.TemporaryDirectory() as folder:
        context = start_processes(
            _rank, (function, args, folder, timeout), WORLD, join=False, start_method="forkserver"
        )
        deadline = time.monotonic() + timeout
        while not context.join(max(deadline - time.monotonic(), 0), grace_period=5):
            if time.monotonic() >= deadline:
                raise TimeoutError(_end(context.processes, Path(folder)))
        returned = [torch.load(file, weights_only=False) for file in sorted(Path(folder).glob("returned-*"))]
    assert len(returned) == WORLD, f"{len(returned)} of {WORLD} ranks reported"
    return returned


def begin():
    """What a process of the server does first, to be like any other."""
    # Otherwise the workers of its data loaders come from a server of their own, which imports everything anew.
    multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(1)
    # What was imported is left out of the garbage that Trainer collects before each training.
    gc.freeze()


def _rank(rank, function, args, folder, timeout):
    with open(f"{folder}/stacks-{rank}", "w") as stacks:
        faulthandler.dump_traceback_later(0.9 * timeout, file=stacks)
        begin()
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "GLOO_SOCKET_IFNAME": "lo", "ACCELERATE_USE_CPU": "1"}
        who = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": WORLD, "LOCAL_WORLD_SIZE": WORLD}
        os.environ.update(where | {name: str(value) for name, value in who.items()})
        distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=WORLD)
        present = torch.ones(())
        distributed.all_reduce(present)
        assert distributed.get_world_size() == present == WORLD
        returned = function(*args)
        torch.save(returned, f"{folder}/returned-{rank}")
        distributed.destroy_process_group()
        faulthandler.cancel_dump_traceback_later()


def _end(processes, folder):
    hanging = [rank for rank, process in enumerate(processes) if process.is_alive()]
    for rank in hanging:
        processes[rank].kill()
        processes[rank].join()
    stacks = "\n".join(f"-- Rank {rank} hangs:\n{(folder / f'stacks-{rank}').read_text()}" for rank in hanging)
    return f"{len(hanging)} of {WORLD} ranks did not return in time.\n{stacks}"
