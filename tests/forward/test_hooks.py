"""Hooks are registered for one forward pass: all of them or none, the same ones in every pass."""

from contextlib import nullcontext

import pytest
import torch

from hf_mixup import Mixup, MixupPlan
from hf_mixup.forward.anatomy.host import CHECKPOINTS_HOOKS
from hf_mixup.forward.hooks import OUTSIDE_ROWS, READ_AT_SITE, READOUTS, SITES
from tests.forward.anatomy.test_architectures import own_model
from tests.plain_config import plain_config
from tests.zoo import DEPTH, toy_batch, toy_model

PARTNER, LAM = torch.tensor([2, 0, 3, 1]), torch.tensor([0.3, 0.9, 0.5, 0.7])
LABELS = torch.tensor([0, 1, 2, 0])


def hooks_of(model):
    """Every hook of a model, as the function and the object that it is a method of."""
    hooks = [h for m in model.modules() for table in (m._forward_pre_hooks, m._forward_hooks) for h in table.values()]
    return [(hook.__func__, id(hook.__self__)) for hook in hooks]


def fail(*args, **kwargs):
    raise RuntimeError("no room for a hook")


@pytest.mark.parametrize("partner", ["random", "previous_batch"])
@pytest.mark.parametrize(
    ("path", "method"),
    [("layers.2", "register_forward_pre_hook"), ("layers.2", "register_forward_hook"), ("", "register_forward_hook")],
)
def test_a_registration_that_fails_halfway_leaves_no_hook(partner, path, method):
    model, batch = toy_model("llama"), toy_batch()
    layer = 0 if "pre" in method else DEPTH - 1
    mixup = Mixup(model, plain_config(site="hidden", layers=[layer], partner=partner))
    plan = mixup.draw(batch, labels=LABELS)
    broken = model.model.get_submodule(path)
    setattr(broken, method, fail)
    with pytest.raises(RuntimeError, match="no room for a hook"), mixup.apply(plan, batch):
        raise AssertionError
    assert not hooks_of(model)
    delattr(broken, method)
    with mixup.apply(plan, batch):
        assert hooks_of(model) and model(**batch).logits.isfinite().all()
    assert not hooks_of(model)


def test_a_block_below_the_site_has_no_hook_and_each_above_it_one():
    model, batch = toy_model("bert"), toy_batch()
    mixup = Mixup(model, plain_config(site="hidden"))
    for layer in range(DEPTH):
        with mixup.apply(MixupPlan(PARTNER, LAM, "hidden", layer), batch):
            assert len(hooks_of(model)) == max(DEPTH - 1 - layer, 1)
            model(**batch)


@pytest.mark.parametrize("fields", [{"site": "word_embeddings"}, {"site": "hidden", "partner": "previous_batch"}])
@pytest.mark.parametrize("family", ["bert", "own"])
def test_every_pass_meets_the_same_hooks(family, fields):
    """A compiled model guards on them, see `HookGroup`."""
    model, batch = own_model() if family == "own" else toy_model(family), toy_batch()
    blocks = ["body.lower", "body.upper"] if family == "own" else None
    mixup = Mixup(model, plain_config(**fields, layers=[1] if fields["site"] == "hidden" else None, blocks=blocks))
    seen = []
    for _ in range(4):
        plan = mixup.draw(batch, labels=LABELS)
        with mixup.apply(plan, batch):
            seen.append(hooks_of(model))
            model(**batch)
    # Nothing is mixed with an earlier batch before there is one.
    assert seen[1] and seen[1] == seen[2] == seen[3]


def test_no_pass_is_held_after_its_end():
    model, batch = toy_model("bert"), toy_batch()
    mixup = Mixup(model, plain_config(site="hidden"))
    groups = mixup._hooks.groups
    rows = [*SITES.values(), *READOUTS.values(), *READ_AT_SITE.values(), OUTSIDE_ROWS]
    assert {kind for row in rows for kind in row} == set(groups)
    with mixup.apply(MixupPlan(PARTNER, LAM, "hidden", 0), batch):
        assert [kind for kind, group in groups.items() if group.current is not None] == [*SITES["hidden"]]
        model(**batch)
    assert all(group.current is None for group in groups.values())


def held(model):
    """What each checkpointed block holds: the very objects."""
    return [{name: id(value) for name, value in vars(block).items()} for block in model.bert.encoder.layer]


@pytest.mark.parametrize("fails", [False, True])
def test_checkpointed_blocks_hold_afterwards_what_they_held_before(fails):
    model, batch = toy_model("bert").train(), toy_batch()
    model.gradient_checkpointing_enable()
    mixup, before = Mixup(model, plain_config(site="hidden")), held(model)
    ends = pytest.raises(RuntimeError, match="no room") if fails else nullcontext()
    with ends, mixup.apply(MixupPlan(PARTNER, LAM, "hidden", 1), batch):
        # From 5.23 on transformers checkpoints blocks without their hooks.
        assert (held(model) == before) != CHECKPOINTS_HOOKS
        model(**batch)
        if fails:
            fail()
    assert held(model) == before
