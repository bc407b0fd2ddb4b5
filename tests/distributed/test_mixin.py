"""A trainer with a loss of its own on two ranks: its training is that of one process with the batches of both."""

import tempfile

import pytest
import torch
from torch import distributed
from torch.nn import functional as F
from transformers import Trainer

from hf_mixup import Mixup, MixupMixin
from tests.distributed.halves import assert_close, steady_model, told
from tests.distributed.launch import WORLD, on_two_ranks
from tests.distributed.test_ddp_training import ACCUMULATED, RATE, SEED, STEPS, keep_plans
from tests.plain_config import PLAIN
from tests.toy_runs import arguments, collate, examples

MIXED = PLAIN | {"site": "hidden", "layers": [1], "alpha": 1.0}
WEIGHTS = torch.tensor([1.0, 2.0, 5.0])


def weighted(logits, labels):
    return F.cross_entropy(logits, labels, weight=WEIGHTS)


class Weighted(Trainer):
    loss_is_scaled_for_ga = False

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        return (weighted(outputs.logits, labels), outputs) if return_outputs else weighted(outputs.logits, labels)


class First(MixupMixin, Weighted):
    pass


class Second(Weighted, MixupMixin):
    pass


KINDS = (First, Second)


def train(kind):
    with tempfile.TemporaryDirectory() as folder:
        args = arguments(
            folder,
            max_steps=STEPS,
            gradient_accumulation_steps=ACCUMULATED,
            per_device_train_batch_size=4,
            optim="sgd",
            learning_rate=RATE,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            report_to="none",
            seed=SEED,
        )
        model = steady_model("bert")
        trainer = kind(model=model, args=args, train_dataset=examples(32), data_collator=collate, mixup=MIXED)
        batches, plans = keep_plans(trainer.mixup)
        trainer.train()
    assert type(trainer.model_wrapped).__name__ == "DistributedDataParallel"
    assert distributed.get_world_size() == trainer.args.world_size == WORLD
    return {
        "batches": batches,
        "plans": [told(plan) for plan in plans],
        "weights": {name: value.clone() for name, value in trainer.model.state_dict().items()},
    }


def every_training():
    return {kind.__name__: train(kind) for kind in KINDS}


@pytest.fixture(scope="module")
def ranks():
    return on_two_ranks(every_training)


@pytest.mark.parametrize("kind", [kind.__name__ for kind in KINDS])
def test_the_training_is_that_of_one_process_with_the_batches_and_plans_of_both(ranks, kind):
    trainings = [training[kind] for training in ranks]
    model = steady_model("bert")
    mixups = [Mixup(model, MIXED, seed=SEED, rank=rank) for rank in range(WORLD)]
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for number, batches in enumerate(zip(*(training["batches"] for training in trainings), strict=True), start=1):
        for rank, (batch, labels) in enumerate(batches):
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            plan = mixups[rank].draw(inputs, labels=labels, one_lambda=True)
            assert told(plan) == trainings[rank]["plans"][number - 1]
            with mixups[rank].apply(plan, inputs):
                logits = model(**inputs).logits
            lam, partners = plan.lam[0], labels[plan.partner]
            loss = lam * weighted(logits, labels) + (1 - lam) * weighted(logits, partners)
            (loss / (WORLD * ACCUMULATED)).backward()
        if number % ACCUMULATED == 0:
            optimizer.step()
            optimizer.zero_grad()
    assert number == STEPS * ACCUMULATED
    assert_close(trainings[0]["weights"], trainings[1]["weights"], tolerance=0)
    assert_close(trainings[0]["weights"], model.state_dict())
    assert trainings[0]["plans"] != trainings[1]["plans"]
