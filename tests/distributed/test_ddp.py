"""Under DistributedDataParallel: two ranks with half a batch each do what one process does with all of it."""

from itertools import product

import pytest
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from hf_mixup import Mixup
from tests.distributed.halves import (
    LABELS,
    SEED,
    SITES,
    assert_close,
    gradients,
    gradients_of_one_process,
    half_batch,
    mixed_loss,
    steady_model,
    told,
    union,
    whole_batch,
)
from tests.distributed.launch import on_two_ranks
from tests.plain_config import PLAIN

FAMILIES = ("bert", "llama", "bart")
CASES = list(product(FAMILIES, SITES))
RANDOM_LAYERS = PLAIN | {"site": "hidden", "layers": [0, 1, 2]}
STEPS = 6


def step_of_half_a_batch(family, config, steps=1):
    """The plan and the averaged gradients of each of a few passes on this rank's texts."""
    rank, model = distributed.get_rank(), steady_model(family)
    mixup = Mixup(model, config, seed=SEED, rank=rank)
    wrapped = DistributedDataParallel(model, find_unused_parameters=False)
    batch, seen = half_batch(rank), []
    for _ in range(steps):
        plan = mixup.draw(batch)
        mixed_loss(mixup, wrapped, batch, LABELS[rank], plan).backward()
        seen.append((plan, gradients(model)))
        wrapped.zero_grad()
    return seen


def every_step():
    steps = {(family, site): step_of_half_a_batch(family, SITES[site])[0] for family, site in CASES}
    return steps, step_of_half_a_batch("bert", RANDOM_LAYERS, STEPS)


@pytest.fixture(scope="module")
def ranks():
    return on_two_ranks(every_step)


@pytest.mark.parametrize("family, site", CASES)
def test_averaged_gradients_are_those_of_the_whole_batch_under_both_plans(ranks, family, site):
    (first, averaged), (second, same) = (steps[family, site] for steps, _ in ranks)
    assert_close(averaged, same, tolerance=0)
    assert not torch.equal(first.lam, second.lam)
    expected = gradients_of_one_process(family, SITES[site], whole_batch(), LABELS.flatten(), union((first, second)))
    assert_close(averaged, expected)


def test_ranks_may_draw_different_layers_and_every_parameter_is_used(ranks):
    steps = list(zip(*(random_layers for _, random_layers in ranks), strict=True))
    assert len(steps) == STEPS
    assert any(first.layer != second.layer for (first, _), (second, _) in steps)
    for (first, averaged), (second, _) in steps:
        alone = [
            gradients_of_one_process("bert", RANDOM_LAYERS, half_batch(rank), LABELS[rank], plan)
            for rank, plan in enumerate((first, second))
        ]
        assert_close(averaged, {name: (alone[0][name] + alone[1][name]) / 2 for name in averaged})


def test_a_second_launch_draws_the_same_plans_and_each_rank_its_own(ranks):
    again = on_two_ranks(step_of_half_a_batch, "bert", RANDOM_LAYERS, STEPS)
    plans = [[told(plan) for plan, _ in random_layers] for _, random_layers in ranks]
    assert [[told(plan) for plan, _ in steps] for steps in again] == plans
    assert all(first != second for first, second in zip(*plans, strict=True))
