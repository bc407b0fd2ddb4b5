"""A strength that follows held-out predictions, against slow readings of its rule."""

import json
import math

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax

from hf_mixup import Mixup
from hf_mixup.plan.examples import Examples
from hf_mixup.plan.planner import UNOBSERVED, Planner
from hf_mixup.plan.strength import AutoStrength, surplus_of
from tests.plain_config import plain_config
from tests.zoo import cached_toy_model, toy_batch

SIZE = 40


def rows(mean, spread=0.3, size=SIZE):
    """Surpluses of this mean and standard deviation."""
    values = torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return mean + spread * (values - values.mean()) / values.std()


def by_hand(strength, mean, error, trained=None):
    """The rule; `trained` is the surplus of the training examples and its error."""
    step = 10 * mean
    if mean > 0:
        step *= max(0, 1 - (1.5 * error / mean) ** 2)
    after = strength + step
    if trained is not None and mean - trained[0] <= 1.5 * math.sqrt(error**2 + trained[1] ** 2):
        after = min(after, strength / 2)
    return min(max(after, 0), 1)


def test_the_strength_moves_by_the_surplus_less_its_error():
    auto, expected = AutoStrength(), 0.0
    for mean in (-0.1, 0.02, 0.09, 0.08, 0.005, -0.03, 0.5, -0.001):
        auto.see(rows(mean))
        expected = by_hand(expected, mean, 0.3 / math.sqrt(SIZE))
        assert auto.value == pytest.approx(expected)
        assert auto.checks[-1][:3] == (pytest.approx(mean), pytest.approx(0.3 / math.sqrt(SIZE)), SIZE)
    assert 0 < auto.value < 1


def test_of_several_kinds_the_one_that_asks_for_the_least_is_followed():
    both, expected, root = AutoStrength(), 0.0, math.sqrt(SIZE)
    # The mean and spread of each kind: the lower mean, then the lower one in doubt, then below 0.
    for one, other in (((0.05, 0.1), (0.2, 0.3)), ((0.06, 0.1), (0.07, 0.4)), ((0.3, 0.1), (-0.02, 0.3))):
        for part in torch.stack([rows(-0.1, 0.2), rows(-0.2, 0.2)], -1).chunk(3):
            both.learn(part)
        both.see(torch.stack([rows(*one), rows(*other)], -1))
        asked = [
            by_hand(expected, mean, spread / root, (trained, 0.2 * math.sqrt(1 - 1 / SIZE) / root))
            for (mean, spread), trained in ((one, -0.1), (other, -0.2))
        ]
        expected = min(asked)
        assert both.value == pytest.approx(expected, rel=1e-5)
        followed = (one, other)[asked.index(expected)]
        assert both.checks[-1].surplus == pytest.approx(followed[0])
    assert [round(check.surplus, 6) for check in both.checks] == [0.05, 0.07, -0.02] and both.value > 0
    kept = AutoStrength()
    both.learn(torch.stack([rows(0.5), rows(0.1)], -1))
    kept.load_state_dict(json.loads(json.dumps(both.state_dict())))
    assert torch.equal(kept.trained, both.trained) and kept.checks == both.checks
    kept.see(torch.full((SIZE, 2), math.nan))
    assert kept.checks == both.checks and kept.trained is None


def test_a_surplus_within_one_and_a_half_errors_starts_nothing():
    error = 0.3 / math.sqrt(SIZE)
    for share, moves in ((1.49, False), (1.51, True)):
        auto = AutoStrength()
        auto.see(rows(share * error))
        assert (auto.value > 0) == moves


def test_a_model_that_is_as_sure_of_what_it_trains_on_is_left_to_learn():
    auto, expected, error = AutoStrength(), 0.0, 0.3 / math.sqrt(SIZE)
    for mean, trained in ((0.2, -0.1), (0.1, 0.05), (0.2, 0.2), (-0.02, 0.1), (0.15, -0.1)):
        for part in rows(trained, 0.4).float().chunk(3):
            auto.learn(torch.cat([part, torch.tensor([math.nan])]))
        auto.see(rows(mean))
        # Their spread is that of the batch, not of the population.
        its_error = 0.4 * math.sqrt((SIZE - 1) / SIZE) / math.sqrt(SIZE)
        expected = by_hand(expected, mean, error, (trained, its_error))
        assert auto.value == pytest.approx(expected, abs=1e-5)
        assert auto.checks[-1].trained == pytest.approx(trained, abs=1e-5)
    assert [round(check.strength, 2) for check in auto.checks] == [1.0, 0.5, 0.25, 0.05, 1.0]
    # What was trained on before a check is forgotten.
    auto.see(rows(0.2))
    assert math.isnan(auto.checks[-1].trained)


def test_in_the_first_pass_nothing_is_mixed():
    auto = AutoStrength()
    for is_first_pass, expected in ((True, 0.0), (True, 0.0), (False, 1.0), (True, 0.0)):
        auto.see(rows(0.2), is_first_pass)
        assert auto.value == expected and auto.checks[-1].is_first_pass == is_first_pass


def test_rows_without_a_label_and_checks_of_one_row_say_nothing():
    auto, other = AutoStrength(), AutoStrength()
    auto.see(torch.cat([rows(0.2), torch.full((3,), math.nan)]))
    other.see(rows(0.2))
    assert repr(auto.checks) == repr(other.checks)
    auto.see(torch.tensor([0.5, math.nan]))
    auto.see(torch.tensor([]))
    assert repr(auto.checks) == repr(other.checks)


@pytest.mark.parametrize("soft", [False, True])
def test_the_surplus_is_confidence_less_accuracy(soft):
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(9, 4)) * 3
    targets = generator.dirichlet(np.ones(4), size=9) if soft else np.eye(4)[generator.integers(0, 4, 9)]
    expected = [
        max(probabilities) - target[int(np.argmax(probabilities))]
        for probabilities, target in zip(softmax(logits, axis=1), targets, strict=True)
    ]
    found = surplus_of(torch.tensor(logits), torch.tensor(targets), "single_label_classification")
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_each_of_several_labels_is_a_prediction():
    generator = np.random.default_rng(1)
    logits, targets = generator.normal(size=(7, 5)) * 3, generator.integers(0, 2, (7, 5)).astype(float)
    expected = []
    for row, truth in zip(logits, targets, strict=True):
        probabilities = [expit(value) for value in row]
        sure = [max(p, 1 - p) - float((p > 0.5) == bool(t)) for p, t in zip(probabilities, truth, strict=True)]
        expected.append(sum(sure) / len(sure))
    found = surplus_of(torch.tensor(logits), torch.tensor(targets), "multi_label_classification")
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_plan_uses_that_share_of_the_partners_weight():
    fixed, auto = Planner(plain_config(alpha=1.0)), Planner(plain_config(alpha=1.0, strength="auto"))
    assert not auto.draw(Examples(SIZE)).active
    strength = auto.observe(rows(0.06, 0.1))
    assert 0.2 < strength < 0.8
    weak, full = auto.draw(Examples(SIZE)), fixed.draw(Examples(SIZE))
    torch.testing.assert_close(1 - weak.lam, strength * (1 - full.lam))
    assert torch.equal(weak.partner, full.partner)


def test_a_fixed_strength_is_a_share_too_and_follows_nothing():
    half, full = Planner(plain_config(alpha=1.0, strength=0.5)), Planner(plain_config(alpha=1.0))
    torch.testing.assert_close(1 - half.draw(Examples(SIZE)).lam, 0.5 * (1 - full.draw(Examples(SIZE)).lam))
    with pytest.raises(ValueError, match=r"strength=0.5: fixed; the recipe 'default' has"):
        half.observe(rows(0.2))
    assert not Planner(plain_config(strength=0)).draw(Examples(SIZE)).active


def test_what_was_seen_is_in_the_state():
    auto, other = (Planner(plain_config(alpha=1.0, strength="auto"), seed) for seed in (0, 1))
    auto.observe(rows(0.09))
    auto.auto_strength.learn(rows(0.01).float())
    other.load_state_dict(json.loads(json.dumps(auto.state_dict())))
    assert other.strength == auto.strength > 0 and repr(other.auto_strength.checks) == repr(auto.auto_strength.checks)
    assert torch.equal(other.auto_strength.trained, auto.auto_strength.trained)
    assert torch.equal(other.draw(Examples(SIZE)).lam, auto.draw(Examples(SIZE)).lam)
    auto.restart(0, 0)
    assert auto.strength == 0


def test_a_loop_lets_it_follow_its_own_evaluations():
    model, batch = cached_toy_model("bert"), toy_batch((9, 9, 7, 5))
    mixup, labels = Mixup(model, plain_config(strength="auto")), torch.tensor([0, 1, 2, 0])
    assert not mixup.draw(batch).active
    sure = 9 * torch.eye(3)[[1, 2, 0, 1]]
    assert mixup.observe(sure, labels) == 1.0
    assert mixup.draw(batch).active
    assert mixup.observe(sure, labels + torch.tensor([1, 1, -2, 1])) < 1.0


def test_a_loop_that_shows_it_nothing_is_told():
    planner = Planner(plain_config(strength="auto"))
    for _ in range(UNOBSERVED - 1):
        planner.draw(Examples(SIZE))
    with pytest.warns(UserWarning, match="no held-out predictions were seen"):
        planner.draw(Examples(SIZE))


def test_the_story_says_what_it_did_and_why():
    auto = AutoStrength()
    assert auto.story() == ""
    auto.see(rows(-0.05))
    assert auto.story() == (
        "nothing was mixed: none of 1 check of 40 held-out rows called for it (confidence less accuracy -0.050 at "
        "most, with a standard error of 0.047)."
    )
    auto.see(rows(0.2))
    auto.see(rows(-0.03))
    assert auto.story() == (
        "strength up to 1.00 and 0.70 at the end: on after 2 of 3 checks of 40 held-out rows, being surer than right "
        "(confidence less accuracy +0.200 at most, with a standard error of 0.047)."
    )
    auto.learn(rows(0.2).float())
    auto.see(rows(0.2))
    auto.see(rows(0.2), is_first_pass=True)
    assert auto.story().endswith(
        "; at 1 of them no training row had been seen twice, so its own loss was to correct that; at 1 of them it was "
        "as sure of its training rows, so it had yet to learn them)."
    )
