"""Who: weights between the examples of a batch, and partners drawn by them."""

import numpy as np
import pytest
import torch
from scipy import stats

from hf_mixup.plan.examples import Examples
from hf_mixup.plan.partners import choose_partner, draw_from_rows
from tests.plain_config import plain_config

ONE_HOT = torch.eye(3)


def examples_of(**facts):
    return Examples(len(next(iter(facts.values()))), **facts)


def frequencies(partner, examples, count=3000, coin=True, **fields):
    """How often each example is each one's partner: `(batch, batch)`."""
    config, generator = plain_config(partner=partner, **fields), np.random.default_rng(0)
    size = next(len(value) for value in (examples.targets, examples.margins) if value is not None)
    counts = np.zeros((size, size), int)
    for _ in range(count):
        chosen = choose_partner(config, examples, torch.from_numpy(generator.random(size)), coin)
        counts[np.arange(size), chosen.numpy()] += 1
    return counts


def assert_uniform(counts, allowed):
    """Each row is spread evenly over what is allowed for it."""
    for i, row in enumerate(allowed):
        members = sorted(row)
        assert counts[i, members].sum() == counts[i].sum(), i
        assert len(members) == 1 or stats.chisquare(counts[i, members]).pvalue > 1e-4, i


LABELS = [0, 0, 0, 1, 1, 2]


@pytest.mark.parametrize(
    ("partner", "allowed"),
    [
        ("same_class", [{1, 2}, {0, 2}, {0, 1}, {4}, {3}, {5}]),
        ("other_class", [{3, 4, 5}] * 3 + [{0, 1, 2, 5}] * 2 + [{0, 1, 2, 3, 4}]),
    ],
)
def test_classes_decide_and_who_fits_nobody_is_alone(partner, allowed):
    assert_uniform(frequencies(partner, examples_of(targets=ONE_HOT[LABELS])), allowed)


@pytest.mark.parametrize("partner", ["other_class", "lisa"])
def test_a_batch_of_one_class_is_not_mixed_across_classes(partner):
    examples = examples_of(targets=ONE_HOT[[1, 1, 1]], groups=torch.tensor([4, 4, 4]))
    for coin in (False, True):
        chosen = choose_partner(plain_config(partner=partner), examples, torch.rand(3), coin)
        assert chosen.tolist() == [0, 1, 2]


def test_texts_of_several_labels_are_alike_where_they_share_one():
    targets = torch.tensor([[1.0, 1, 0], [0, 1, 1], [0, 0, 1], [0, 0, 0], [1, 0, 0]])
    examples = examples_of(targets=targets)
    assert_uniform(frequencies("same_class", examples), [{1, 4}, {0, 2}, {1}, {3}, {0}])
    assert_uniform(frequencies("other_class", examples), [{2, 3}, {3, 4}, {0, 3, 4}, {0, 1, 2, 4}, {1, 2, 3}])


@pytest.mark.parametrize("sharp", [0.9, 0.6])
def test_class_probabilities_count_as_their_most_probable_class(sharp):
    rest = (1 - sharp) / 2
    targets = torch.full((4, 3), rest)
    for i, label in enumerate([0, 0, 1, 1]):
        targets[i, label] = sharp
    assert_uniform(frequencies("same_class", examples_of(targets=targets), 50), [{1}, {0}, {3}, {2}])


@pytest.mark.parametrize("bandwidth", [0.3, 1.0, 10.0])
def test_near_labels_follow_the_gaussian_kernel_without_oneself(bandwidth):
    scores = torch.tensor([[0.0], [0.4], [1.0], [1.1]])
    counts = frequencies("near_label", examples_of(targets=scores), bandwidth=bandwidth)
    for i in range(4):
        distance = (scores[i] - scores[:, 0]).double().numpy()
        kernel = np.exp(-(distance**2) / (2 * bandwidth**2))
        kernel[i] = 0
        expected = kernel / kernel.sum() * counts[i].sum()
        usual = expected > 5
        assert counts[i, ~usual].sum() < 30
        scaled = expected[usual] * counts[i, usual].sum() / expected[usual].sum()
        assert usual.sum() == 1 or stats.chisquare(counts[i, usual], scaled).pvalue > 1e-4


def test_near_labels_measure_scores_of_several_dimensions():
    scores = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0], [3.0, 3.0]])
    counts = frequencies("near_label", examples_of(targets=scores), 200)
    assert counts[0, 2] == counts[1, 3] == 200


def test_an_outlier_still_finds_its_nearest_label():
    scores = torch.tensor([[0.0], [1.0], [1e4]])
    assert frequencies("near_label", examples_of(targets=scores), 100)[2].tolist() == [0, 100, 0]


def test_lisa_crosses_groups_or_labels_and_never_both():
    labels, groups = [0, 0, 0, 1, 1, 2], torch.tensor([0, 0, 1, 0, 1, 5])
    examples = examples_of(targets=ONE_HOT[labels], groups=groups)
    assert_uniform(frequencies("lisa", examples, coin=True), [{2}, {2}, {0, 1}, {4}, {3}, {5}])
    assert_uniform(frequencies("lisa", examples, coin=False), [{3}, {3}, {4}, {0, 1}, {2}, {5}])


def test_balanced_weighs_an_example_of_another_class_by_one_over_its_number():
    counts = frequencies("balanced", examples_of(targets=ONE_HOT[LABELS]), 6000)
    # For the only example of class 2 there are three of class 0 and two of class 1.
    assert stats.chisquare([counts[5, :3].sum(), counts[5, 3:5].sum()]).pvalue > 1e-4
    assert stats.chisquare(counts[5, :3]).pvalue > 1e-4
    assert (np.diag(counts) == 0).all()


def test_balanced_draws_the_own_class_as_often_as_the_others():
    counts = frequencies("balanced", examples_of(targets=ONE_HOT[[0, 0, 1, 1, 2, 2]]), 3000)
    by_class = counts[0].reshape(3, 2).sum(1)
    assert stats.chisquare(by_class).pvalue > 1e-4


def test_balanced_does_not_fail_for_texts_without_a_label():
    counts = frequencies("balanced", examples_of(targets=torch.tensor([[0.0, 0], [1, 0], [1, 1]])), 100)
    assert (np.diag(counts) == 0).all()


@pytest.mark.parametrize(
    ("margins", "allowed"),
    [
        ([0.1, -3.0, 2.0, 5.0], [{2, 3}, {2, 3}, {0, 1}, {0, 1}]),
        ([9.0, 1.0, 5.0], [{1}, {0, 2}, {1}]),
    ],
)
def test_margins_pair_easy_with_hard(margins, allowed):
    assert_uniform(frequencies("margin", examples_of(margins=torch.tensor(margins)), clean_weight=0.5), allowed)


def test_texts_that_were_not_seen_yet_find_partners():
    counts = frequencies("margin", examples_of(margins=torch.zeros(6)), 100, clean_weight=0.5)
    assert (np.diag(counts) == 0).all()


def test_rows_are_drawn_in_proportion():
    weights = torch.tensor([[0.0, 1.0, 3.0], [0.0, 0.0, 0.0], [5.0, 0.0, 5.0]])
    generator = np.random.default_rng(0)
    drawn = np.stack([draw_from_rows(weights, torch.from_numpy(generator.random(3))).numpy() for _ in range(2000)])
    assert stats.binomtest(int((drawn[:, 0] == 2).sum()), 2000, 0.75).pvalue > 1e-4
    assert set(drawn[:, 0]) == {1, 2} and set(drawn[:, 1]) == {1} and set(drawn[:, 2]) == {0, 2}


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_the_ends_of_the_random_numbers_hit_no_zero_weight(uniform):
    weights = torch.tensor([[0.0, 1e-3, 7.0, 0.0], [0.0, 0.0, 0.0, 2.0]])
    drawn = draw_from_rows(weights, torch.full((2,), uniform, dtype=torch.float64))
    assert drawn.tolist() == [1 if uniform == 0 else 2, 3]


def test_a_large_batch_of_ties_stays_inside_the_batch():
    weights = torch.ones(257, 257)
    weights.fill_diagonal_(0)
    drawn = draw_from_rows(weights, torch.full((257,), 1 - 2**-53, dtype=torch.float64))
    assert drawn.tolist() == [256] * 256 + [255]


# ---- By the texts themselves ----


def texts_of(lengths):
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)).long()
    return Examples(len(lengths), inputs={"input_ids": torch.ones_like(mask), "attention_mask": mask})


def drawn(examples, count=3000, **fields):
    config, generator = plain_config(**fields), np.random.default_rng(0)
    counts = np.zeros((examples.size, examples.size), int)
    for _ in range(count):
        chosen = choose_partner(config, examples, torch.from_numpy(generator.random(examples.size)), True)
        counts[np.arange(examples.size), chosen.numpy()] += 1
    return counts


@pytest.mark.parametrize("bandwidth", [1.0, 3.0])
def test_near_lengths_follow_the_gaussian_kernel_without_oneself(bandwidth):
    lengths = [3, 4, 6, 9, 10]
    counts = drawn(texts_of(lengths), partner="near_length", bandwidth=bandwidth)
    for i, row in enumerate(counts):
        expected = np.array([np.exp(-((lengths[i] - n) ** 2) / (2 * bandwidth**2)) for n in lengths])
        expected[i] = 0
        expected *= row.sum() / expected.sum()
        # Those that are hardly ever drawn count as one.
        often = expected > 5
        found, wanted = ([*values[often], values[~often].sum() + 1] for values in (row, expected))
        assert row[i] == 0 and stats.chisquare(found, wanted).pvalue > 1e-4


def test_a_text_of_a_length_of_its_own_has_the_nearest_as_partner():
    assert drawn(texts_of([2, 3, 30]), 100, partner="near_length")[2].tolist() == [0, 100, 0]


@pytest.mark.parametrize("near_prob", [0.0, 0.5, 1.0])
def test_near_texts_are_the_nearest_by_angle(near_prob):
    angles = torch.tensor([0.0, 0.1, 0.3, 1.0, 1.2, 2.0])
    # The length of a vector says nothing.
    states = torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor([1.0, 5.0, 0.1, 2.0, 1.0, 9.0]).unsqueeze(1)
    examples = Examples(6, states=lambda: states)
    counts = drawn(examples, partner="near_text", neighbors=2, near_prob=near_prob)
    for i, row in enumerate(counts):
        nearest = (angles - angles[i]).abs().argsort()[1:3].tolist()
        expected = np.array([near_prob * (j in nearest) / 2 + (1 - near_prob) * (j != i) / 5 for j in range(6)])
        seen = expected > 0
        assert row[~seen].sum() == 0 and stats.chisquare(row[seen], 3000 * expected[seen]).pvalue > 1e-4


def test_near_texts_of_a_small_batch_are_all_others():
    counts = drawn(Examples(3, states=lambda: torch.eye(3)), partner="near_text", neighbors=5, near_prob=1.0)
    assert_uniform(counts, [{1, 2}, {0, 2}, {0, 1}])
