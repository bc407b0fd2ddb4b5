"""Two ranks that train on half a batch each, and one process that is given all of it."""

import torch
from torch.nn import functional as F

from hf_mixup import Mixup, MixupPlan
from tests.plain_config import PLAIN
from tests.toy_runs import PAD
from tests.zoo import toy_batch, toy_model

SEED = 3
HALVES = [(11, 4, 7, 9), (6, 16, 5, 10)]
LABELS = torch.tensor([[0, 2, 1, 1], [2, 0, 0, 1]])
DROPOUTS = (
    "hidden_dropout_prob attention_probs_dropout_prob dropout attention_dropout activation_dropout classifier_dropout "
    "dropout_rate pooler_dropout"
)
SITES = {
    "word_embeddings": PLAIN | {"site": "word_embeddings"},
    "embeddings": PLAIN | {"site": "embeddings"},
    "hidden": PLAIN | {"site": "hidden", "layers": [1]},
    "pooled": PLAIN | {"site": "pooled"},
}


def steady_model(family):
    """A toy model that is trained without dropout."""
    return toy_model(family, **dict.fromkeys(DROPOUTS.split(), 0.0)).train()


def half_batch(rank):
    """The texts of one rank, padded to the longest of them."""
    return toy_batch(HALVES[rank], seed=rank)


def whole_batch():
    """The texts of both ranks, padded to the longest of all."""
    halves = [half_batch(rank) for rank in range(len(HALVES))]
    longest = max(half["input_ids"].shape[1] for half in halves)
    fill = {"input_ids": PAD, "attention_mask": 0}
    return {
        name: torch.cat([F.pad(half[name], (0, longest - half[name].shape[1]), value=value) for half in halves])
        for name, value in fill.items()
    }


def union(plans):
    """The plan of the whole batch that is both ranks' plans side by side."""
    first, second = plans
    assert (first.site, first.layer) == (second.site, second.layer)
    partner = torch.cat([first.partner, second.partner + len(first.partner)])
    return MixupPlan(partner, torch.cat([first.lam, second.lam]), first.site, first.layer)


def mixed_pass(mixup, model, batch, labels, plan):
    """The mixed logits and the loss of a batch under a plan, with the clean term where the config has one."""
    with mixup.apply(plan, batch):
        logits = model(**batch).logits
    clean_logits = model(**batch).logits if mixup.needs_clean_pass(plan) else None
    return logits.detach(), mixup.loss(logits, labels, plan, clean_logits=clean_logits)


def mixed_loss(*args):
    return mixed_pass(*args)[1]


def gradients_of_one_process(family, config, batch, labels, plan):
    """The gradients of one process that is given a plan."""
    model = steady_model(family)
    mixed_loss(Mixup(model, config), model, batch, labels, plan).backward()
    return gradients(model)


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def told(plan):
    """A plan as plain numbers."""
    source = None if plan.source is None else plan.source.tolist()
    return plan.partner.tolist(), plan.lam.tolist(), plan.site, plan.layer, source


def assert_close(found, expected, tolerance=1e-5):
    """Tensors by name that differ by less than a share of the largest of them."""
    assert found.keys() == expected.keys() and found
    scale = max(value.abs().max() for value in expected.values())
    assert scale > 0
    errors = {name: ((found[name] - value).abs().max() / scale).item() for name, value in expected.items()}
    worst = max(errors, key=errors.get)
    assert errors[worst] <= tolerance, f"{worst}: {errors[worst]:.2g} of the largest value"


def assert_as_in_one_process(ranks, make_model, mixed):
    """Plan, logits and averaged gradients of both ranks are those of a whole model that takes their texts in turn.

    `mixed` is one of `SITES` or the name of a recipe.
    """
    alone = []
    for rank, (plan, logits, _) in enumerate(ranks):
        model, batch = make_model(), half_batch(rank)
        mixup = Mixup(model, SITES.get(mixed, mixed), seed=SEED, rank=rank)
        own = mixup.draw(batch, labels=LABELS[rank])
        assert told(plan) == told(own)
        own_logits, loss = mixed_pass(mixup, model, batch, LABELS[rank], own)
        assert_close({"logits": logits}, {"logits": own_logits})
        loss.backward()
        alone.append(gradients(model))
    mean = {name: (alone[0][name] + alone[1][name]) / 2 for name in alone[0]}
    for _, _, averaged in ranks:
        assert_close(averaged, mean)
