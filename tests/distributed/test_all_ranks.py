"""Partners from the batches of all ranks: what one process does with the global batch, to rounding."""

from itertools import product

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers.modeling_layers import GradientCheckpointingLayer

from hf_mixup import Mixup, MixupPlan
from tests.distributed.launch import WORLD, on_two_ranks
from tests.forward.anatomy.test_images_and_sounds import toy
from tests.hosts import full_gradient
from tests.plain_config import PLAIN, plain_config
from tests.zoo import toy_batch, toy_model

LENGTHS = ((16, 10, 7), (5, 9, 12))
LABELS = ((0, 1, 2), (2, 2, 0))
SITES = ("embeddings", "hidden", "pooled")
CASES = [*product(("bert", "llama", "bart"), SITES, ("ddp",)), *product(("bert", "llama"), SITES, ("fsdp2",))]
STEPS = 3


def half(rank):
    return toy_batch(lengths=LENGTHS[rank], seed=rank), torch.tensor(LABELS[rank])


def whole():
    """The batches of all ranks as one, padded to the longest."""
    halves = [half(rank) for rank in range(WORLD)]
    longest = max(batch["input_ids"].shape[1] for batch, _ in halves)
    fill = {"input_ids": 1, "attention_mask": 0}
    batch = {
        name: torch.cat(
            [torch.nn.functional.pad(part[name], (0, longest - part[name].shape[1]), value=value) for part, _ in halves]
        )
        for name, value in fill.items()
    }
    return batch, torch.cat([labels for _, labels in halves])


def without_dropout(family):
    model = toy_model(family).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for name in ("dropout", "attention_dropout", "activation_dropout"):
        for module in model.modules():
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model


def in_parallel(model, way):
    """The model as each rank trains it, asserted to be what it is called."""
    if way == "ddp":
        return DistributedDataParallel(model)
    mesh = init_device_mesh("cpu", (WORLD,))
    for part in (*(module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)), model):
        fully_shard(part, mesh=mesh)
        assert isinstance(part, FSDPModule)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    return model


def whole_gradient(parameter):
    gradient = parameter.grad
    return full_gradient(gradient, WORLD) if isinstance(gradient, DTensor) else gradient.clone()


def config(site):
    return plain_config(site=site, alpha=1.0, partner="all_ranks")


def step(model, mixup, inputs, labels, plan):
    with mixup.apply(plan, inputs):
        logits = model(**{name: value for name, value in inputs.items() if name != "labels"}).logits
    loss = mixup.loss(logits, labels, plan)
    loss.backward()
    gradients = {
        name.removeprefix("module."): whole_gradient(p) for name, p in model.named_parameters() if p.grad is not None
    }
    model.zero_grad(set_to_none=True)
    return gradients


def on_each_rank():
    assert distributed.get_world_size() == WORLD
    inputs, labels = half(distributed.get_rank())
    found = {}
    for family, site, way in CASES:
        model = in_parallel(without_dropout(family), way)
        mixup = Mixup(model, config(site), seed=3, rank=distributed.get_rank())
        steps = []
        for _ in range(STEPS):
            # As a loader may give it, with the labels.
            inputs["labels"] = labels
            plan = mixup.draw(inputs, labels=labels)
            plain = {"lam": plan.lam, "layer": plan.layer, "targets": mixup.targets(labels, plan)}
            steps.append(plain | {"gradients": step(model, mixup, inputs, labels, plan)})
        found[family, site, way] = steps
    return found


def on_uneven_batches():
    """One rank has a text more than the other; one text is left to the other."""
    rank = distributed.get_rank()
    inputs, labels = half(rank)
    if rank:
        inputs, labels = {name: value[:1] for name, value in inputs.items()}, labels[:1]
    model = without_dropout("bert")
    mixup = Mixup(model, plain_config(site="hidden", layers=[1], partner="all_ranks", lam=0.0), rank=rank)
    plan = mixup.draw(inputs, labels=labels)
    with mixup.apply(plan, inputs), torch.no_grad():
        logits = model(**inputs).logits
    with torch.no_grad():
        clean = model(**inputs).logits
    return logits, clean, [part["input_ids"] for part in plan.outside.parts]


def on_other_inputs():
    """One rank has segments and the other has not."""
    rank = distributed.get_rank()
    inputs, labels = half(rank)
    if rank:
        inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    mixup = Mixup(toy_model("bert"), config("embeddings"), rank=rank)
    try:
        mixup.draw(inputs, labels=labels)
    except ValueError as error:
        return str(error)


def boxes_of(images, labels, partner):
    """The logits and targets of images that take boxes from each other."""
    model, inputs = toy("vit"), {"pixel_values": images}
    mixup = Mixup(model, plain_config(site="input", interpolation="box", partner=partner, alpha=1.0), seed=3)
    plan = mixup.draw(inputs, labels=labels)
    with mixup.apply(plan, inputs), torch.no_grad():
        return model(**inputs).logits, mixup.targets(labels, plan)


def six_images():
    return torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor(LABELS).flatten()


def on_images():
    own = slice(3 * distributed.get_rank(), 3 * distributed.get_rank() + 3)
    images, labels = six_images()
    return boxes_of(images[own], labels[own], "all_ranks")


@pytest.fixture(scope="module")
def ranks():
    return on_two_ranks(on_each_rank)


@pytest.fixture(scope="module")
def uneven():
    return on_two_ranks(on_uneven_batches)


@pytest.mark.parametrize(("family", "site", "way"), CASES)
def test_gradients_are_those_of_one_process_with_the_global_batch(ranks, family, site, way):
    model, (inputs, labels) = without_dropout(family), whole()
    mixup = Mixup(model, plain_config(site=site, alpha=1.0), seed=3)
    for number in range(STEPS):
        plan = mixup.draw(inputs)
        one, other = (found[family, site, way][number] for found in ranks)
        torch.testing.assert_close(torch.cat([one["lam"], other["lam"]]), plan.lam)
        assert one["layer"] == other["layer"] == plan.layer
        torch.testing.assert_close(torch.cat([one["targets"], other["targets"]]), mixup.targets(labels, plan))
        expected = step(model, mixup, inputs, labels, plan)
        assert expected.keys() == one["gradients"].keys()
        for name, gradient in expected.items():
            bound = 1e-5 * max(value.abs().max().item() for value in expected.values())
            assert (one["gradients"][name] - gradient).abs().max() < bound, name
            assert torch.equal(one["gradients"][name], other["gradients"][name]), name


def test_some_partners_are_on_the_other_rank(ranks):
    model, (inputs, _) = without_dropout("bert"), whole()
    partner = Mixup(model, plain_config(site="embeddings", alpha=1.0), seed=3).draw(inputs).partner
    assert any((partner[:3] >= 3).tolist()) and any((partner[3:] < 3).tolist())
    assert isinstance(ranks, list) and len(ranks) == WORLD


def test_batches_of_other_sizes_meet(uneven):
    clean = {}
    for (_, logits, _), rank in zip(uneven, range(WORLD), strict=True):
        for tokens, row in zip(half(rank)[0]["input_ids"], logits, strict=False):
            clean[tuple(token for token in tokens.tolist() if token != 1)] = row
    assert [len(logits) for logits, _, _ in uneven] == [3, 1]
    for logits, _, parts in uneven:
        for row, part in zip(logits, parts, strict=True):
            partner = tuple(token for token in part[0].tolist() if token != 1)
            torch.testing.assert_close(row, clean[partner], rtol=1e-4, atol=1e-5)


def test_boxes_are_those_of_one_process_with_the_global_batch():
    found = zip(*on_two_ranks(on_images), strict=True)
    for ours, expected in zip(found, boxes_of(*six_images(), "random"), strict=True):
        torch.testing.assert_close(torch.cat(ours), expected)


def test_other_inputs_are_refused_on_every_rank():
    one, other = on_two_ranks(on_other_inputs)
    assert "the ranks have other inputs" in one and "the ranks have other inputs" in other
    assert "token_type_ids" in other and "token_type_ids" not in one


def test_one_process_alone_mixes_its_own_batch():
    model, (inputs, labels) = toy_model("bert"), whole()
    plans = [
        Mixup(model, PLAIN | {"site": "embeddings", "partner": partner}, seed=3).draw(inputs, labels=labels)
        for partner in ("random", "all_ranks")
    ]
    assert torch.equal(plans[0].partner, plans[1].partner) and torch.equal(plans[0].lam, plans[1].lam)
    assert plans[1].outside is None and isinstance(plans[1], MixupPlan)
