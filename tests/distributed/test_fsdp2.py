"""Under FSDP2 (`fully_shard`): a model in shards mixes as the whole one does."""

from itertools import product

import pytest
import torch
from torch import distributed
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForSequenceClassification
from transformers.modeling_layers import GradientCheckpointingLayer

from hf_mixup import Mixup
from tests.distributed.halves import (
    LABELS,
    SEED,
    SITES,
    assert_as_in_one_process,
    half_batch,
    mixed_pass,
    steady_model,
)
from tests.distributed.launch import WORLD, on_two_ranks
from tests.hosts import full_gradient

FAMILIES = ("bert", "llama", "t5", "deberta-v2")


def shard(model):
    """Every block and the root in shards of their own."""
    mesh = init_device_mesh("cpu", (WORLD,))
    blocks = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    assert blocks
    for part in (*blocks, model):
        fully_shard(part, mesh=mesh)
        assert isinstance(part, FSDPModule)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    return model


def mixup_then_shards(model, config):
    mixup = Mixup(model, config, seed=SEED, rank=distributed.get_rank())
    return mixup, shard(model)


def shards_then_mixup(model, config):
    return Mixup(shard(model), config, seed=SEED, rank=distributed.get_rank()), model


def shards_that_are_filled_after_mixup(whole, config):
    """A model too large for one process: made on the meta device, and never whole."""
    with torch.device("meta"):
        model = shard(AutoModelForSequenceClassification.from_config(whole.config).train())
    mixup = Mixup(model, config, seed=SEED, rank=distributed.get_rank())
    model.to_empty(device="cpu")
    set_model_state_dict(model, whole.state_dict(), options=StateDictOptions(full_state_dict=True))
    for name, buffer in model.named_buffers():
        buffer.copy_(whole.get_buffer(name))
    return mixup, model


WAYS = {way.__name__: way for way in (mixup_then_shards, shards_then_mixup, shards_that_are_filled_after_mixup)}
ZERO_HEAD = " with a zero head"
# Two recipes with a clean pass besides the mixed one; the second also with a gradient before it.
CASES = [
    *product(FAMILIES, SITES, ("mixup_then_shards", "shards_then_mixup")),
    *product(FAMILIES, ["embeddings"], ["shards_that_are_filled_after_mixup"]),
    *product(("bert", "llama"), ("reg_mixup", "ssmix"), ("mixup_then_shards", "shards_then_mixup")),
    *product(["bert" + ZERO_HEAD], ["embeddings"], WAYS),
]


def model_of(kind):
    """A family's model, or one whose head is all zeros, as a new one may be."""
    model = steady_model(kind.removesuffix(ZERO_HEAD))
    if kind.endswith(ZERO_HEAD):
        torch.nn.init.zeros_(model.classifier.weight)
    return model


def step(kind, config, way):
    """The plan, the logits and the gradients, put together of their shards, of a pass on this rank's texts."""
    rank = distributed.get_rank()
    mixup, model = WAYS[way](model_of(kind), config)
    batch, labels = half_batch(rank), LABELS[rank]
    plan = mixup.draw(batch, labels=labels)
    logits, loss = mixed_pass(mixup, model, batch, labels, plan)
    loss.backward()
    assert all(isinstance(parameter.grad, DTensor) for parameter in model.parameters())
    return plan, logits.detach(), {name: full_gradient(p.grad, WORLD) for name, p in model.named_parameters()}


def every_step():
    assert distributed.get_world_size() == WORLD
    return {(kind, mixed, way): step(kind, SITES.get(mixed, mixed), way) for kind, mixed, way in CASES}


@pytest.fixture(scope="module")
def ranks():
    return on_two_ranks(every_step)


@pytest.mark.parametrize("kind, mixed, way", CASES)
def test_logits_and_gradients_are_those_of_the_whole_model(ranks, kind, mixed, way):
    assert_as_in_one_process([steps[kind, mixed, way] for steps in ranks], lambda: model_of(kind), mixed)
