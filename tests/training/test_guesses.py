"""Guessed classes against the formulas of their docstring, one row and one class at a time."""

import json
import math

import pytest
import torch

from hf_mixup.config.unlabeled_config import UnlabeledConfig
from hf_mixup.training.guesses import Guesses

CLASSES, HORIZON = 3, 2.5
CONFIG = {"class_prior": "labels", "temperature": 0.5, "confidence": 2.0}
COUNTS = [5.0, 2.0, 1.0]


def config(**changes):
    return UnlabeledConfig(**CONFIG | changes)


def batches(count=5, rows=7, sharpness=2.0):
    generator = torch.Generator().manual_seed(0)
    return [(sharpness * torch.randn(rows, CLASSES, generator=generator)).softmax(-1) for _ in range(count)]


class Slow:
    """The same, in loops over rows and classes."""

    def __init__(self, config, shares):
        self.config, self.shares, self.seen = config, [share / sum(shares) for share in shares], 0
        self.mean, self.largest, self.square = [0.0] * CLASSES, 0.0, 0.0

    def learn(self, guessed):
        self.seen += 1
        share = max(1 / self.seen, 1 / HORIZON)
        for kind in range(CLASSES):
            of_batch = sum(row[kind] for row in guessed) / len(guessed)
            self.mean[kind] += share * (of_batch - self.mean[kind])
        aligned = [self.aligned(row) for row in guessed]
        self.largest += share * (sum(max(row) for row in aligned) / len(aligned) - self.largest)
        self.square += share * (sum(max(row) ** 2 for row in aligned) / len(aligned) - self.square)
        return [self.sharpened(row) for row in aligned], [self.weight(max(row)) for row in aligned]

    def aligned(self, row):
        if self.config.class_prior == "none":
            return row
        ratios = [value * share / mean for value, share, mean in zip(row, self.shares, self.mean, strict=True)]
        return [value / sum(ratios) for value in ratios]

    def sharpened(self, row):
        if self.config.temperature == 0:
            return [float(value == max(row)) for value in row]
        powers = [value ** (1 / self.config.temperature) for value in row]
        return [value / sum(powers) for value in powers]

    def weight(self, most):
        if self.config.confidence is None:
            return 1.0
        deviation = math.sqrt(self.square - self.largest**2)
        below = max(0.0, self.largest - most)
        return math.exp(-(below**2) / (2 * (deviation / self.config.confidence) ** 2))

    @property
    def drift(self):
        return sum(abs(mean - share) for mean, share in zip(self.mean, self.shares, strict=True)) / 2


CASES = {
    "as it is": {},
    "no prior": {"class_prior": "none"},
    "given shares": {"class_prior": [6.0, 3.0, 1.0]},
    "not sharpened": {"temperature": 1.0},
    "the likeliest class": {"temperature": 0.0},
    "all weigh 1": {"confidence": None},
    "strict": {"confidence": 0.5},
}


@pytest.mark.parametrize("case", CASES)
def test_targets_and_weights_are_those_of_the_formulas(case):
    given = config(**CASES[case])
    shares = given.class_prior if isinstance(given.class_prior, list) else [count + 1 for count in COUNTS]
    guesses, slow = Guesses(given, CLASSES, COUNTS), Slow(given, shares)
    for number, guessed in enumerate(batches(), 1):
        found, expected = guesses.learn(guessed, HORIZON), slow.learn(guessed.double().tolist())
        for values, others in zip(found, expected, strict=True):
            torch.testing.assert_close(values, torch.tensor(others), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(guesses.mean, torch.tensor(slow.mean))
        assert float(guesses.drift) == pytest.approx(slow.drift, abs=1e-6)
        assert guesses.seen == number
    torch.testing.assert_close(found[0].sum(-1), torch.ones(7))
    assert bool((found[1] <= 1).all())


def test_the_first_batch_is_its_own_mean_whatever_the_horizon():
    (first,) = batches(1)
    for horizon in (0.0, 1.0, 100.0):
        guesses = Guesses(config(), CLASSES, COUNTS)
        guesses.learn(first, horizon)
        torch.testing.assert_close(guesses.mean, first.mean(0))


def test_guesses_that_are_all_sure_or_all_of_one_class_stay_finite():
    for rows in (torch.eye(CLASSES), torch.eye(CLASSES)[[0, 0, 0]], torch.full((4, CLASSES), 1 / CLASSES)):
        for changes in CASES.values():
            targets, weights = Guesses(config(**changes), CLASSES, COUNTS).learn(rows, HORIZON)
            assert bool(targets.isfinite().all()) and bool(weights.isfinite().all())


def test_a_sure_guess_of_a_class_that_the_prior_has_not_stays_as_it_is():
    targets, _ = Guesses(config(class_prior=[0.5, 0.5, 0.0]), CLASSES).learn(torch.eye(3), HORIZON)
    assert torch.allclose(targets, torch.eye(3), atol=1e-4)


def test_the_prior_has_one_row_more_for_each_class():
    guesses = Guesses(config(), CLASSES, [7.0, 0.0, 0.0])
    torch.testing.assert_close(guesses.prior, torch.tensor([0.8, 0.1, 0.1]))


def test_labels_are_counted_if_nobody_has():
    labels = [torch.tensor([0, 0, 2, -100]), torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]])]
    counting = Guesses(config(), CLASSES)
    for each in labels:
        counting.count(each)
    torch.testing.assert_close(counting.counts, torch.tensor([1 + 2 + 1.5, 1 + 0.25, 1 + 1 + 0.25]))
    for known in (Guesses(config(), CLASSES, COUNTS), Guesses(config(class_prior=[1, 1, 2]), CLASSES)):
        before = known.counts
        known.count(labels[0])
        assert torch.equal(known.counts, before)


def test_means_are_those_over_all_processes():
    """Of two processes, each of which sees a half of every batch."""
    whole, halves = Guesses(config(), CLASSES, COUNTS), [Guesses(config(), CLASSES, COUNTS) for _ in range(2)]
    for guessed in batches(3, rows=8):
        expected, parts = whole.learn(guessed, HORIZON), (guessed[:4], guessed[4:])
        aligned = [part * whole.prior / whole.mean for part in parts]
        largest = [(part / part.sum(-1, keepdim=True)).max(-1).values for part in aligned]
        for half, part, mine in zip(halves, parts, (slice(4), slice(4, 8)), strict=True):
            of_all = iter(
                [guessed.mean(0), torch.stack([torch.cat(largest).mean(), torch.cat(largest).square().mean()])]
            )
            found = half.learn(part, HORIZON, lambda value, of_all=of_all: next(of_all))
            torch.testing.assert_close(found[0], expected[0][mine])
            torch.testing.assert_close(found[1], expected[1][mine])


@pytest.mark.parametrize("counts", [COUNTS, None])
def test_what_is_read_back_continues_to_the_bit(counts):
    guesses, given = Guesses(config(), CLASSES, counts), batches()
    for guessed in given[:3]:
        guesses.count(torch.tensor([0, 1, 1]))
        guesses.learn(guessed, HORIZON)
    again = Guesses(config(), CLASSES, counts)
    again.load_state_dict(json.loads(json.dumps(guesses.state_dict())))
    for guessed in given[3:]:
        for each in (guesses, again):
            each.count(torch.tensor([2]))
        for one, other in zip(guesses.learn(guessed, HORIZON), again.learn(guessed, HORIZON), strict=True):
            assert torch.equal(one, other)
    assert guesses.state_dict() == again.state_dict()


def test_another_number_of_shares_is_refused():
    with pytest.raises(ValueError, match=r"unlabeled.class_prior: 2 shares for num_labels=3"):
        Guesses(config(class_prior=[0.5, 0.5]), CLASSES)


def test_a_guess_that_is_not_finite_leaves_the_means():
    guesses = Guesses(UnlabeledConfig(), 2, [3.0, 5.0])
    guesses.learn(torch.tensor([[0.9, 0.1], [0.4, 0.6]]), 10)
    before = guesses.state_dict()
    guesses.learn(torch.tensor([[torch.nan, torch.nan], [0.4, 0.6]]), 10)
    after = guesses.state_dict()
    assert (after["mean"], after["confidence"]) == (before["mean"], before["confidence"])


def test_a_prior_that_is_given_is_not_that_of_a_checkpoint():
    saved = Guesses(UnlabeledConfig(class_prior=[0.5, 0.5]), 2).state_dict()
    guesses = Guesses(UnlabeledConfig(class_prior=[0.9, 0.1]), 2)
    guesses.load_state_dict(saved)
    assert guesses.prior.tolist() == pytest.approx([0.9, 0.1])
