"""One training that may be killed and resumed, in a process of its own or by torchrun on several:
`python -m tests.resume_worker FOLDER [--kill-at STEP --kill-rank RANK | --resume] [--mixup JSON] [--batch N]`.
"""

import argparse
import json
import os
import signal

import torch
from transformers import TrainerCallback

from tests.distributed.launch import SERVER, begin
from tests.plain_config import PLAIN
from tests.toy_runs import examples, make_trainer
from tests.zoo import toy_model

STEPS, SAVE_STEPS, STEPS_PER_EPOCH = 14, 5, 10
MIXUP = PLAIN | {"site": "hidden", "alpha": 1.0, "prob": 0.8, "warmup_batches": 12}


class Kill(TrainerCallback):
    def __init__(self, step, rank=0):
        self.step, self.rank = step, rank

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step and args.process_index == self.rank:
            os.kill(os.getpid(), signal.SIGKILL)


def train(folder, resume=None, kill=None, mixup=MIXUP, batch=4, steps_per_epoch=STEPS_PER_EPOCH, **options):
    """Train a BERT with dropout on shuffled batches, save the weights in `folder`/final, and return the trainer."""
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    trainer = make_trainer(
        folder,
        toy_model("bert"),
        mixup=mixup,
        rows=examples(ranks * batch * steps_per_epoch),
        callbacks=[] if kill is None else [kill],
        per_device_train_batch_size=batch,
        max_steps=STEPS,
        save_strategy="steps",
        save_steps=SAVE_STEPS,
        **options,
    )
    assert trainer.args.world_size == ranks
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model(os.path.join(folder, "final"))
    return trainer


def in_a_new_process(*args, **options):
    """The exit code of `train` in a process of its own."""
    process = SERVER.Process(target=_begin_and_train, args=args, kwargs=options)
    process.start()
    process.join(300)
    return process.exitcode


def _begin_and_train(*args, **options):
    begin()
    train(*args, **options)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--kill-at", type=int)
    parser.add_argument("--kill-rank", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--mixup", type=json.loads, default=MIXUP)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--options", type=json.loads, default={})
    given = parser.parse_args()
    torch.set_num_threads(1)
    kill = None if given.kill_at is None else Kill(given.kill_at, given.kill_rank)
    train(given.folder, given.resume or None, kill, given.mixup, given.batch, **given.options)
