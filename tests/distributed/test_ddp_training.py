"""MixupTrainer on two ranks: its trainings are those of one process that takes the batches of both."""

import tempfile
from collections import Counter

import pytest
import torch
from torch import distributed
from torch.utils._python_dispatch import TorchDispatchMode

from hf_mixup import Mixup
from hf_mixup.training.trainer_seams import DDP_WRITES_BUFFERS
from tests.distributed.halves import assert_close, mixed_loss, steady_model, told
from tests.distributed.launch import WORLD, on_two_ranks
from tests.toy_runs import examples, make_trainer

STEPS, ACCUMULATED, RATE, SEED = 3, 2, 0.05, 7
ONE_PASS = ("tmix", "embed_mix", "manifold", "c_mixup", "span_mix")
# A clean pass besides the mixed one; the second also a gradient before it, the third a memory of each text.
TWO_PASSES = ("reg_mixup", "ssmix", "aum_guided")
RECIPES = (*ONE_PASS, *TWO_PASSES)


class Collectives(TorchDispatchMode):
    """Counts what is asked of the process group, also by DDP."""

    def __init__(self):
        super().__init__()
        self.asked = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator.namespace == "c10d":
            self.asked[operator.name()] += 1
        return operator(*args, **(kwargs or {}))


def train(recipe):
    """What one training did on this rank: the kind of wrapper, batches, plans, weights, collectives."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(
            folder,
            steady_model("bert"),
            mixup=recipe,
            rows=examples(32),
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
        batches, plans = keep_plans(trainer.mixup) if recipe else ([], [])
        with Collectives() as collectives:
            trainer.train()
    return {
        "wrapper": type(trainer.model_wrapped).__name__,
        "worlds": [trainer.args.world_size, trainer.accelerator.num_processes, distributed.get_world_size()],
        "batches": batches,
        "plans": [told(plan) for plan in plans],
        "weights": {name: value.clone() for name, value in trainer.model.state_dict().items()},
        "collectives": collectives.asked,
    }


def keep_plans(mixup):
    """Lists that the batches and plans of a training are added to."""
    batches, plans, draw = [], [], mixup.draw

    def keep(batch, *args, labels, **kwargs):
        batches.append((dict(batch), labels))
        plans.append(draw(batch, *args, labels=labels, **kwargs))
        return plans[-1]

    mixup.draw = keep
    return batches, plans


def every_training():
    return {recipe: train(recipe) for recipe in (None, *RECIPES)}


@pytest.fixture(scope="module")
def ranks():
    return on_two_ranks(every_training)


def in_one_process(recipe, batches_of_ranks):
    """The plans of each rank and the weights of a plain loop over the batches of both."""
    model = steady_model("bert")
    mixups = [Mixup(model, recipe, seed=SEED, rank=rank) for rank in range(WORLD)]
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    plans = [[] for _ in range(WORLD)]
    for number, batches in enumerate(zip(*batches_of_ranks, strict=True), start=1):
        for rank, (inputs, labels) in enumerate(batches):
            plan = mixups[rank].draw(inputs, labels=labels)
            plans[rank].append(told(plan))
            (mixed_loss(mixups[rank], model, inputs, labels, plan) / (WORLD * ACCUMULATED)).backward()
        if number % ACCUMULATED == 0:
            optimizer.step()
            optimizer.zero_grad()
    return plans, model.state_dict()


@pytest.mark.parametrize("recipe", (None, *RECIPES))
def test_two_ranks_train_wrapped_and_end_with_the_same_weights(ranks, recipe):
    first, second = (trainings[recipe] for trainings in ranks)
    for training in (first, second):
        assert training["wrapper"] == "DistributedDataParallel"
        assert training["worlds"] == [WORLD] * 3
    assert_close(first["weights"], second["weights"], tolerance=0)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_training_is_that_of_one_process_with_the_batches_and_plans_of_both(ranks, recipe):
    trainings = [training[recipe] for training in ranks]
    plans, weights = in_one_process(recipe, [training["batches"] for training in trainings])
    assert [len(own) for own in plans] == [STEPS * ACCUMULATED] * WORLD
    assert [training["plans"] for training in trainings] == plans
    assert plans[0] != plans[1]
    assert_close(trainings[0]["weights"], weights)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_mixed_training_is_another_one_than_a_clean_one(ranks, recipe):
    mixed, clean = (ranks[0][kind]["weights"] for kind in (recipe, None))
    assert max((mixed[name] - clean[name]).abs().max() for name in clean) > 1e-3


@pytest.mark.parametrize("recipe", RECIPES)
def test_mixup_adds_no_collective(ranks, recipe):
    for trainings in ranks:
        mixed, clean = (Counter(trainings[kind]["collectives"]) for kind in (recipe, None))
        assert clean["c10d::allreduce_"] >= STEPS
        if recipe in TWO_PASSES:
            # DDP broadcasts the buffers of the model before each forward pass, with torch < 2.13 in the first one only.
            is_more = mixed.pop("c10d::broadcast_") > clean.pop("c10d::broadcast_")
            assert is_more != DDP_WRITES_BUFFERS
        assert mixed == clean
