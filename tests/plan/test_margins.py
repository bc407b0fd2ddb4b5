"""Which examples are hard: margins remembered by the tokens of each text."""

import json

import numpy as np
import pytest
import torch

from hf_mixup import Mixup
from hf_mixup.plan.margins import Margins
from tests.plain_config import plain_config
from tests.zoo import cached_toy_model, toy_batch

CONFIG = plain_config(site="pooled", partner="margin", clean_weight=0.5)
TARGETS = torch.eye(3)[[0, 2, 1, 1]]


def margins_by_loop(logits, targets):
    rows = []
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        label = target.index(max(target))
        rows.append(row[label] - max(value for c, value in enumerate(row) if c != label))
    return np.array(rows)


def area(margins, batch):
    return margins.of(margins.places(batch))


def recorded(visits=3):
    margins, batch = Margins(), toy_batch()
    logits = torch.randn(visits, 4, 3, generator=torch.Generator().manual_seed(0))
    for step in logits:
        margins.record(margins.places(batch), step, TARGETS)
    return margins, batch, np.mean([margins_by_loop(step, TARGETS) for step in logits], axis=0)


def test_new_texts_have_none_and_seen_ones_the_mean_over_their_visits():
    margins, batch, expected = recorded()
    np.testing.assert_allclose(area(margins, batch), expected, rtol=1e-5)
    assert area(margins, toy_batch(seed=9)).tolist() == [0.0] * 4
    assert area(Margins(), batch).tolist() == [0.0] * 4


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("more", [0, 1, 7])
def test_padding_does_not_matter(side, more):
    margins, _, expected = recorded()
    batch = toy_batch(side=side)
    widths = (more, 0) if side == "left" else (0, more)
    padded = {name: torch.nn.functional.pad(value, widths, value=9) for name, value in batch.items()}
    padded["attention_mask"] = torch.nn.functional.pad(batch["attention_mask"], widths)
    np.testing.assert_allclose(area(margins, padded), expected, rtol=1e-5)


def test_a_text_alone_and_without_a_mask_is_the_same_text():
    margins, batch, expected = recorded()
    for row in range(4):
        kept = batch["attention_mask"][row].bool()
        alone = {"input_ids": batch["input_ids"][row, kept].unsqueeze(0)}
        assert area(margins, alone).item() == pytest.approx(expected[row], rel=1e-5)


def test_the_order_of_tokens_and_their_number_matter():
    margins = Margins()
    texts = [[5, 6, 7], [7, 6, 5], [5, 6, 7, 7], [5, 6], [6, 5, 7]]
    for k, text in enumerate(texts):
        logits = torch.tensor([[float(k + 1), 0.0]])
        margins.record(margins.places({"input_ids": torch.tensor([text])}), logits, torch.tensor([[1.0, 0.0]]))
    assert [area(margins, {"input_ids": torch.tensor([text])}).item() for text in texts] == [1, 2, 3, 4, 5]


def test_texts_of_one_word_seldom_share_a_place():
    ids = torch.tensor([[101, word, 102] for word in range(2000, 7000)])
    places = Margins().places({"input_ids": ids})
    assert len(places.unique()) > 0.99 * len(ids) and places.min() >= 0


def test_a_text_twice_in_a_batch_counts_twice():
    margins, ids = Margins(), torch.tensor([[5, 6, 7], [5, 6, 7]])
    margins.record(
        margins.places({"input_ids": ids}), torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0], [1.0, 0]])
    )
    assert area(margins, {"input_ids": ids}).tolist() == [0.5, 0.5]


def test_half_precision_logits_are_summed_in_full():
    margins, batch = Margins(), toy_batch()
    for _ in range(300):
        margins.record(
            margins.places(batch), torch.full((4, 3), 0.5, dtype=torch.bfloat16) + TARGETS.bfloat16() * 0.25, TARGETS
        )
    np.testing.assert_allclose(area(margins, batch), 0.25, rtol=1e-4)


def test_a_state_goes_through_json_and_back():
    margins, batch, expected = recorded()
    other = Margins()
    other.record(other.places(toy_batch(seed=5)), torch.randn(4, 3), TARGETS)
    other.load_state_dict(json.loads(json.dumps(margins.state_dict())))
    assert torch.equal(area(other, batch), area(margins, batch)) and other.state_dict() == margins.state_dict()
    assert area(other, toy_batch(seed=5)).tolist() == [0.0] * 4
    other.record(other.places(batch), torch.zeros(4, 3), TARGETS)
    np.testing.assert_allclose(area(other, batch), expected * 3 / 4, rtol=1e-5)


def step(mixup, batch, labels):
    plan = mixup.draw(batch, labels=labels)
    model = mixup.model
    with torch.no_grad():
        with mixup.apply(plan, batch):
            logits = model(**batch).logits
        mixup.loss(logits, labels, plan, clean_logits=model(**batch).logits)
    return plan


def test_a_run_continues_from_its_state():
    model, labels = cached_toy_model("bert"), TARGETS.argmax(1)
    mixup, other = Mixup(model, CONFIG, seed=1), Mixup(model, CONFIG, seed=2)
    step(mixup, toy_batch(), labels)
    other.load_state_dict(json.loads(json.dumps(mixup.state_dict())))
    for seed in (0, 3, 0):
        expected, plan = step(mixup, toy_batch(seed=seed), labels), step(other, toy_batch(seed=seed), labels)
        assert torch.equal(plan.partner, expected.partner) and torch.equal(plan.lam, expected.lam)
    assert mixup.planner.state_dict() == other.planner.state_dict()


def test_a_new_training_forgets():
    mixup, batch = Mixup(cached_toy_model("bert"), CONFIG), toy_batch()
    step(mixup, batch, TARGETS.argmax(1))
    assert area(mixup.planner.margins, batch).abs().min() > 0
    mixup.restart(0, 0)
    assert area(mixup.planner.margins, batch).tolist() == [0.0] * 4


def test_what_is_recorded_is_the_clean_batch_and_once():
    model, batch, labels = cached_toy_model("bert"), toy_batch(), TARGETS.argmax(1)
    mixup = Mixup(model, CONFIG)
    step(mixup, batch, labels)
    expected = margins_by_loop(model(**batch).logits, TARGETS)
    np.testing.assert_allclose(area(mixup.planner.margins, batch), expected, rtol=1e-4, atol=1e-5)
    assert mixup.planner.margins.counts.sum() == 4


def test_a_clean_loss_records_nothing():
    model, batch, labels = cached_toy_model("bert"), toy_batch(), TARGETS.argmax(1)
    mixup = Mixup(model, CONFIG)
    mixup.draw(batch, labels=labels)
    mixup.loss(model(**batch).logits, labels)
    assert mixup.planner.margins.counts.sum() == 0


def test_an_earlier_plan_is_not_recorded_under_the_last_batch():
    model, labels = cached_toy_model("bert"), TARGETS.argmax(1)
    mixup, first, last = Mixup(model, CONFIG), toy_batch(), toy_batch(seed=4)
    plan = mixup.draw(first, labels=labels)
    mixup.draw(last, labels=labels)
    with mixup.apply(plan, first):
        logits = model(**first).logits
    mixup.loss(logits, labels, plan, clean_logits=torch.randn(4, 3))
    assert area(mixup.planner.margins, last).tolist() == [0.0] * 4


def test_scores_have_no_margins():
    with pytest.raises(ValueError, match="partner='margin' needs classes; for scores there is 'near_label'"):
        Mixup(cached_toy_model("bert", num_labels=1), CONFIG)
