"""How much each token matters: against finite differences, in several families, and without a trace in the model."""

import numpy as np
import pytest
import torch

from hf_mixup import Mixup
from hf_mixup.forward.saliency import saliency
from tests.zoo import cached_toy_model, toy_batch, toy_model

LABELS = torch.tensor([0, 2, 1, 1])
FAMILIES = ("bert", "roberta", "distilbert", "llama", "t5", "xlnet", "albert")


def loss_of(logits):
    return -logits.log_softmax(-1).gather(1, LABELS.unsqueeze(1)).squeeze(1)


def saliency_of(model, batch):
    return saliency(Mixup(model).prepare(), batch, loss_of)


def test_it_is_the_norm_of_the_gradient_by_finite_differences():
    model, batch, step = toy_model("bert").double(), toy_batch((5, 4, 3, 5)), 1e-4
    measured = saliency_of(model, batch)
    for row, token in ((0, 0), (1, 2), (3, 4)):
        slopes = []
        for dimension in range(model.config.hidden_size):
            losses = []
            for sign in (step, -step):
                change = torch.zeros(4, 5, model.config.hidden_size, dtype=torch.double)
                change[row, token, dimension] = sign
                handle = model.bert.embeddings.register_forward_hook(lambda m, a, out, change=change: out + change)
                with torch.no_grad():
                    losses.append(loss_of(model(**batch).logits)[row].item())
                handle.remove()
            slopes.append((losses[0] - losses[1]) / (2 * step))
        assert measured[row, token].item() == pytest.approx(np.linalg.norm(slopes), rel=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_there_is_one_number_a_token_and_it_leaves_no_trace(family):
    model, batch = toy_model(family), toy_batch()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = saliency_of(model, batch)
    assert found.shape == batch["input_ids"].shape and found.dtype == torch.float32
    assert torch.isfinite(found).all() and not found.requires_grad
    assert (found[batch["attention_mask"].bool()] > 0).float().mean() > 0.8
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_it_depends_on_the_own_text_alone(family):
    model = cached_toy_model(family)
    batch = toy_batch((9, 9, 9, 9))
    found = saliency_of(model, batch)
    changed = {name: value.clone() for name, value in batch.items()}
    changed["input_ids"][1, 3] = 7
    other = saliency_of(model, changed)
    rows = [0, 2, 3]
    torch.testing.assert_close(other[rows], found[rows], rtol=1e-4, atol=1e-6)
    assert (other[1] - found[1]).abs().max() > 1e-4


@pytest.mark.parametrize("family", ["bert", "roberta", "llama"])
def test_padding_does_not_change_it(family):
    model, batch = cached_toy_model(family), toy_batch((9, 6, 5, 7))
    found = saliency_of(model, batch)
    longer = {
        "input_ids": torch.nn.functional.pad(batch["input_ids"], (0, 4), value=1),
        "attention_mask": torch.nn.functional.pad(batch["attention_mask"], (0, 4)),
    }
    torch.testing.assert_close(saliency_of(model, longer)[:, :9], found, rtol=1e-3, atol=1e-5)


def test_it_works_in_evaluation_without_gradients_and_with_frozen_parameters():
    model, batch = toy_model("bert"), toy_batch()
    expected = saliency_of(model, batch)
    model.requires_grad_(False)
    with torch.no_grad():
        torch.testing.assert_close(saliency_of(model, batch), expected)


def test_the_hook_is_gone_after_an_error():
    model, batch = toy_model("bert"), toy_batch()
    anatomy = Mixup(model).prepare()
    with pytest.raises(KeyError):
        saliency(anatomy, batch, lambda logits: {}["no loss"])
    assert all(not m._forward_pre_hooks for m in model.modules())


def test_a_plan_by_saliency_needs_labels():
    mixup = Mixup(cached_toy_model("bert"), "ssmix")
    assert mixup.needs_labels
    with pytest.raises(ValueError, match="interpolation='salient_span' a plan depends on them: give draw"):
        mixup.draw(toy_batch())


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_blocks_give_the_same_saliency_or_say_why_not(reentrant):
    model, batch = toy_model("bert").train(), toy_batch()
    mixup, labels = Mixup(model, "ssmix"), torch.tensor([0, 1, 2, 0])
    torch.manual_seed(0)
    expected = mixup.draw(batch, labels=labels)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    mixup.restart(0, 0)
    torch.manual_seed(0)
    if reentrant:
        with pytest.raises(ValueError, match="gradient_checkpointing_kwargs={'use_reentrant': False}"):
            mixup.draw(batch, labels=labels)
    else:
        assert torch.equal(mixup.draw(batch, labels=labels).source, expected.source)
