"""Under DeepSpeed's ZeRO: a partitioned model mixes as the whole one does.

DeepSpeed is no dependency; on a machine without a GPU it needs no compiler either: `pip install wheel` and then
`DS_ACCELERATOR=cpu pip install --no-build-isolation deepspeed`.
"""

import gc
import os
from importlib.util import find_spec
from itertools import product

import pytest
import torch
from torch import distributed
from transformers import AutoModelForSequenceClassification
from transformers.initialization import no_init_weights

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

pytestmark = pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")

# Each parameter is partitioned, however small.
CONFIG = {"train_micro_batch_size_per_gpu": 4, "zero_allow_untested_optimizer": True, "gradient_clipping": 0.0}
ZERO = {"stage3_param_persistence_threshold": 0}


def config_of(stage):
    return CONFIG | {"zero_optimization": ZERO | {"stage": stage}}


def engine_of(model, stage):
    import deepspeed

    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    engine, *_ = deepspeed.initialize(
        model=model, model_parameters=model.parameters(), optimizer=optimizer, config=config_of(stage)
    )
    assert type(engine).__name__ == "DeepSpeedEngine" and engine.zero_optimization_stage() == stage
    assert engine.world_size == WORLD
    return engine


def mixup_then_engine(model, mixed, stage):
    mixup = Mixup(model, mixed, seed=SEED, rank=distributed.get_rank())
    return mixup, engine_of(model, stage)


def engine_then_mixup(model, mixed, stage):
    engine = engine_of(model, stage)
    return Mixup(engine, mixed, seed=SEED, rank=distributed.get_rank()), engine


def partitioned_at_construction(whole, mixed, stage):
    """A model too large for one process, whose parameters are whole only while their module runs."""
    import deepspeed

    with deepspeed.zero.Init(config_dict_or_path=config_of(stage)), no_init_weights():
        model = AutoModelForSequenceClassification.from_config(whole.config).train()
    assert all(parameter.numel() == 0 for parameter in model.parameters())
    mixup = Mixup(model, mixed, seed=SEED, rank=distributed.get_rank())
    with deepspeed.zero.GatheredParameters(list(model.parameters()), modifier_rank=0), torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(whole.get_parameter(name))
    return mixup, engine_of(model, stage)


WAYS = {way.__name__: way for way in (mixup_then_engine, engine_then_mixup, partitioned_at_construction)}
CASES = [
    *product(["bert"], ["embeddings"], [1, 2], ["mixup_then_engine"]),
    *product(["bert"], SITES, [3], ["mixup_then_engine"]),
    *product(["bert", "llama", "t5"], ["hidden"], [3], ["engine_then_mixup"]),
    *product(["bert", "llama"], ["hidden"], [3], ["partitioned_at_construction"]),
    *product(["bert"], ["reg_mixup", "ssmix"], [3], ["engine_then_mixup"]),
]


def step(family, mixed, stage, way):
    """The plan, the logits and the averaged gradients, which are what SGD takes, of a pass on this rank's texts."""
    rank, whole = distributed.get_rank(), steady_model(family)
    before = {name: parameter.detach().clone() for name, parameter in whole.named_parameters()}
    mixup, engine = WAYS[way](whole, SITES.get(mixed, mixed), stage)
    assert stage < 3 or all(parameter.numel() == 0 for parameter in engine.module.parameters())
    batch, labels = half_batch(rank), LABELS[rank]
    plan = mixup.draw(batch, labels=labels)
    logits, loss = mixed_pass(mixup, engine, batch, labels, plan)
    engine.backward(loss)
    engine.step()
    return plan, logits, {name: before[name] - value for name, value in weights(engine, stage).items()}


def weights(engine, stage):
    import deepspeed

    parameters = dict(engine.module.named_parameters())
    with deepspeed.zero.GatheredParameters(list(parameters.values()), enabled=stage == 3):
        return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def every_step():
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    # It would be compiled, for minutes.
    deepspeed.ops.__compatible_ops__[ShareMemCommBuilder.NAME] = False
    gc.collect()
    gc.freeze()
    assert distributed.get_world_size() == WORLD
    return {case: step(*case) for case in CASES}


@pytest.fixture(scope="module")
def ranks():
    return on_two_ranks(every_step)


@pytest.mark.parametrize("family, mixed, stage, way", CASES)
def test_logits_and_gradients_are_those_of_the_whole_model(ranks, family, mixed, stage, way):
    assert_as_in_one_process([steps[family, mixed, stage, way] for steps in ranks], lambda: steady_model(family), mixed)
