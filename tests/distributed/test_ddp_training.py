"""MixupTrainer on two ranks: its trainings are those of one process that takes the batches of both."""

import tempfile
from collections import Counter

import pytest
import torch
from torch import distributed
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForTokenClassification

from hf_mixup import Mixup, MixupTrainer
from hf_mixup.cli.inspect.toy import toy_model as any_toy_model
from hf_mixup.training.trainer_seams import DDP_WRITES_BUFFERS
from tests.distributed.halves import assert_close, mixed_loss, steady_model, told
from tests.distributed.launch import WORLD, on_two_ranks
from tests.plain_config import plain_config
from tests.toy_runs import CLASSES, NO_DROPOUT, arguments, collate, examples, make_trainer

STEPS, ACCUMULATED, RATE, SEED = 3, 2, 0.05, 7
ONE_PASS = ("tmix", "embed_mix", "manifold", "c_mixup", "span_mix")
# A clean pass besides the mixed one; the second also a gradient before it, the third a memory of each text.
TWO_PASSES = ("reg_mixup", "ssmix", "aum_guided")
RECIPES = (*ONE_PASS, *TWO_PASSES)
TOKENS, MIXED_TOKENS = "tokens", "mixed tokens"
OPTIONS = {
    "max_steps": STEPS,
    "gradient_accumulation_steps": ACCUMULATED,
    "per_device_train_batch_size": 4,
    "optim": "sgd",
    "learning_rate": RATE,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "report_to": "none",
    "seed": SEED,
}


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
        if recipe in (TOKENS, MIXED_TOKENS):
            trainer = token_trainer(folder, recipe)
        else:
            trainer = make_trainer(folder, steady_model("bert"), mixup=recipe, rows=examples(32), **OPTIONS)
        batches, plans = keep_plans(trainer.mixup) if trainer.mixup else ([], [])
        steps = keep_steps(trainer)
        with Collectives() as collectives:
            trainer.train()
    return {
        "wrapper": type(trainer.model_wrapped).__name__,
        "worlds": [trainer.args.world_size, trainer.accelerator.num_processes, distributed.get_world_size()],
        "batches": batches,
        "steps": steps,
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


def keep_steps(trainer):
    """A list that the batches of each optimizer step are added to."""
    steps, take = [], trainer.get_batch_samples

    def keep(*args, **kwargs):
        samples, items = take(*args, **kwargs)
        steps.append([dict(sample) for sample in samples])
        return samples, items

    trainer.get_batch_samples = keep
    return steps


def token_model():
    return any_toy_model("bert", auto=AutoModelForTokenClassification, **NO_DROPOUT).train()


def token_trainer(folder, recipe):
    rows = examples(32)
    for number, row in enumerate(rows):
        inside = [token % CLASSES if number % 5 else -100 for token in row["input_ids"][1:-1]]
        row["labels"] = [-100, *inside, -100]
    return MixupTrainer(
        token_model(),
        arguments(folder, **OPTIONS),
        train_dataset=rows,
        data_collator=collate_tokens,
        mixup=plain_config() if recipe == MIXED_TOKENS else None,
    )


def collate_tokens(rows):
    longest = max(len(row["labels"]) for row in rows)
    return collate([row | {"labels": row["labels"] + [-100] * (longest - len(row["labels"]))} for row in rows])


def every_training():
    return {recipe: train(recipe) for recipe in (None, *RECIPES, TOKENS, MIXED_TOKENS)}


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


def tokens_in_one_process(mixups, model, steps_of_ranks):
    """The weights of a plain loop in which each labeled token of an optimizer step counts as much."""
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for batches_of_ranks in zip(*steps_of_ranks, strict=True):
        total = sum((batch["labels"] != -100).sum() for batches in batches_of_ranks for batch in batches)
        for rank, batches in enumerate(batches_of_ranks):
            for batch in batches:
                inputs = {name: value for name, value in batch.items() if name != "labels"}
                labels, count = batch["labels"], (batch["labels"] != -100).sum()
                if mixups:
                    plan = mixups[rank].draw(inputs, labels=labels)
                    loss = mixed_loss(mixups[rank], model, inputs, labels, plan) * count
                else:
                    loss = F.cross_entropy(model(**inputs).logits.mT, labels, reduction="sum")
                (loss / total).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


@pytest.mark.parametrize("recipe", (TOKENS, MIXED_TOKENS))
def test_each_labeled_token_of_both_ranks_counts_as_much(ranks, recipe):
    steps = [training[recipe]["steps"] for training in ranks]
    counts = [[sum(int((batch["labels"] != -100).sum()) for batch in step) for step in own] for own in steps]
    assert len(counts[0]) == STEPS and all(first != second for first, second in zip(*counts, strict=True))
    model = token_model()
    mixups = [Mixup(model, plain_config(), seed=SEED, rank=rank) for rank in range(WORLD)]
    weights = tokens_in_one_process(mixups if recipe == MIXED_TOKENS else [], model, steps)
    assert_close(ranks[0][recipe]["weights"], weights)


@pytest.mark.parametrize("recipe", (None, *RECIPES, TOKENS, MIXED_TOKENS))
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


def test_mixed_tokens_train_another_model_and_ask_for_no_more(ranks):
    for trainings in ranks:
        mixed, clean = trainings[MIXED_TOKENS], trainings[TOKENS]
        assert max((mixed["weights"][name] - value).abs().max() for name, value in clean["weights"].items()) > 1e-3
        assert mixed["collectives"] == clean["collectives"]


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
