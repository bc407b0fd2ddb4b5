"""One training that may be killed and resumed: `python -m tests.resume_worker FOLDER [--kill-at STEP | --resume]`."""

import argparse
import os
import signal

import torch
from transformers import TrainerCallback

from tests.toy_runs import examples, make_trainer
from tests.zoo import toy_model

STEPS, SAVE_STEPS, STEPS_PER_EPOCH = 14, 5, 10


class Kill(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def train(folder, resume=None, kill_at=None):
    """Train a BERT with dropout on shuffled batches, save the weights in `folder`/final, and return the trainer."""
    trainer = make_trainer(
        folder,
        toy_model("bert"),
        mixup={"site": "hidden", "alpha": 1.0, "prob": 0.8},
        rows=examples(4 * STEPS_PER_EPOCH),
        callbacks=[] if kill_at is None else [Kill(kill_at)],
        per_device_train_batch_size=4,
        max_steps=STEPS,
        save_strategy="steps",
        save_steps=SAVE_STEPS,
    )
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model(os.path.join(folder, "final"))
    return trainer


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--kill-at", type=int)
    parser.add_argument("--resume", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    train(given.folder, given.resume or None, given.kill_at)
