"""Spans of tokens: which give way, which stay, and the lambda that follows."""

import numpy as np
import pytest
import torch
from scipy import stats

from hf_mixup import Mixup, MixupCollator
from hf_mixup.plan.spans import plan_spans, swap_tokens
from tests.plain_config import PLAIN
from tests.zoo import cached_toy_model, toy_batch

SWAP = torch.tensor([1, 0])


def plan_of(batch, lam, partner=SWAP, uniform=0.0, saliency=None):
    size = len(partner)
    if not isinstance(uniform, torch.Tensor):
        uniform = torch.full((2, 2, size), uniform)
    lam = torch.full((size,), lam) if isinstance(lam, float) else lam
    return plan_spans(lam, partner, batch["attention_mask"], batch.get("token_type_ids"), uniform, saliency)


def taken(source, row):
    return [(t, s) for t, s in enumerate(source[row].tolist()) if s >= 0]


@pytest.mark.parametrize(
    ("lam", "width", "expected"), [(0.9, 1, 0.9), (0.5, 5, 0.5), (0.55, 4, 0.6), (0.0, 10, 0.0), (0.99, 1, 0.9)]
)
def test_the_share_of_lambda_rounds_down_and_is_at_least_one_token(lam, width, expected):
    source, new = plan_of(toy_batch((12, 12)), lam)
    assert [len(taken(source, row)) for row in range(2)] == [width, width]
    torch.testing.assert_close(new, torch.full((2,), expected))


@pytest.mark.parametrize("size", range(1, 30))
def test_a_tenth_is_a_tenth_also_in_single_precision(size):
    source, _ = plan_of(toy_batch((size + 2, size + 2)), 0.9)
    assert len(taken(source, 0)) == max(size // 10, 1)


def test_lambda_1_swaps_nothing():
    source, lam = plan_of(toy_batch((12, 9)), 1.0)
    assert (source == -1).all() and (lam == 1).all()


@pytest.mark.parametrize("uniform", [0.0, 0.5, 0.9999999])
@pytest.mark.parametrize("side", ["right", "left"])
def test_special_tokens_and_padding_stay(side, uniform):
    batch = toy_batch((12, 7), side=side)
    source, _ = plan_of(batch, 0.6, uniform=uniform)
    for row in range(2):
        own, other = (batch["attention_mask"][k].nonzero().squeeze(1).tolist() for k in (row, 1 - row))
        for t, s in taken(source, row):
            assert t in own[1:-1] and s in other[1:-1]
    assert len(taken(source, 0)) == 4 and len(taken(source, 1)) == 2


def test_the_first_and_the_last_span_are_reached():
    batch = toy_batch((8, 8))
    assert taken(plan_of(batch, 0.5, uniform=0.0)[0], 0) == [(1, 1), (2, 2), (3, 3)]
    assert taken(plan_of(batch, 0.5, uniform=0.9999999)[0], 0) == [(4, 4), (5, 5), (6, 6)]


def test_spans_begin_anywhere_alike():
    batch, generator = toy_batch((8, 8)), np.random.default_rng(0)
    starts = []
    for _ in range(2000):
        source, _ = plan_of(batch, 0.5, uniform=torch.from_numpy(generator.random((2, 2, 2))).float())
        starts.append(taken(source, 0)[0])
    table = np.zeros((4, 4))
    for own, other in starts:
        table[own - 1, other - 1] += 1
    assert stats.chisquare(table.ravel()).pvalue > 1e-4


def test_left_padding_moves_the_plan_and_changes_nothing_else():
    uniform = torch.rand(2, 2, 2, generator=torch.Generator().manual_seed(0))
    right, lam = plan_of(toy_batch((12, 7), side="right"), 0.7, uniform=uniform)
    left, same = plan_of(toy_batch((12, 7), side="left"), 0.7, uniform=uniform)
    assert torch.equal(lam, same)
    assert taken(left, 0) == [(t, s + 5) for t, s in taken(right, 0)]
    assert taken(left, 1) == [(t + 5, s) for t, s in taken(right, 1)]


@pytest.mark.parametrize("saliency", [None, torch.rand(2, 12)])
def test_a_partner_that_is_shorter_than_the_span_changes_nothing(saliency):
    source, lam = plan_of(toy_batch((12, 4)), 0.7, saliency=saliency)
    assert (source[0] == -1).all() and lam[0] == 1
    assert len(taken(source, 1)) == 1 and lam[1] == 0.5


@pytest.mark.parametrize("saliency", [None, torch.rand(2, 12)])
def test_a_partner_as_long_as_the_span_gives_all_of_itself(saliency):
    source, lam = plan_of(toy_batch((12, 5)), 0.7, saliency=saliency)
    assert [s for _, s in taken(source, 0)] == [1, 2, 3]
    torch.testing.assert_close(lam[0], torch.tensor(0.7))


@pytest.mark.parametrize("length", [0, 1, 2])
def test_texts_of_special_tokens_alone_stay(length):
    batch = toy_batch((9, 9))
    batch["attention_mask"][1, length:] = 0
    source, lam = plan_of(batch, 0.5)
    assert (source == -1).all() and lam.tolist() == [1.0, 1.0]


def pair_batch(*lengths):
    """Pairs of texts: the lengths of their two segments, special tokens included."""
    longest = max(sum(pair) for pair in lengths)
    mask, types = torch.zeros(2, len(lengths), longest, dtype=torch.long)
    for row, (first, second) in enumerate(lengths):
        mask[row, : first + second] = 1
        types[row, first : first + second] = 1
    return {"attention_mask": mask, "token_type_ids": types}


def test_each_segment_takes_from_the_same_segment_of_the_partner():
    batch = pair_batch((6, 5), (8, 3))
    source, lam = plan_of(batch, 0.5)
    # Four of the first segment may be replaced (not the first, not the last), and four of the second (not the last).
    assert taken(source, 0) == [(1, 1), (2, 2), (6, 8), (7, 9)]
    assert taken(source, 1) == [(1, 1), (2, 2), (3, 3), (8, 6)]
    torch.testing.assert_close(lam, torch.tensor([0.5, 0.5]))


def test_each_segment_and_each_text_has_random_numbers_of_its_own():
    # For both segments: where the span that gives way begins, and where the one that is taken does.
    uniform = torch.tensor([[0.0, 0.99], [0.99, 0.0]]).unsqueeze(-1).expand(2, 2, 2)
    source, _ = plan_of(pair_batch((6, 5), (6, 5)), 0.5, uniform=uniform)
    assert taken(source, 0) == [(1, 3), (2, 4), (8, 6), (9, 7)]


def test_a_segment_whose_partner_is_too_short_stays_and_lambda_counts_both():
    source, lam = plan_of(pair_batch((6, 7), (8, 3)), 0.5)
    assert taken(source, 0) == [(1, 1), (2, 2)]
    torch.testing.assert_close(lam[0], torch.tensor(1 - 2 / 10))


def test_an_empty_second_segment_is_no_segment():
    source, lam = plan_of(pair_batch((12, 0), (7, 5)), 0.5)
    assert taken(source, 0) == [(t, t) for t in range(1, 6)] and lam[0] == 0.5
    assert [t for t, _ in taken(source, 1)] == [1, 2]
    torch.testing.assert_close(lam[1], torch.tensor(1 - 2 / 9))
    alone, same = plan_of({"attention_mask": torch.ones(2, 12)}, 0.5)
    assert taken(alone, 0) == [(t, t) for t in range(1, 6)] and same[0] == 0.5


def test_the_least_salient_span_gives_way_to_the_most_salient_one():
    saliency = torch.tensor([[9.0, 5, 1, 1, 5, 5, 0, 0], [9.0, 1, 1, 6, 1, 4, 4, 9]])
    batch = {"attention_mask": torch.tensor([[1] * 7 + [0], [1] * 8])}
    source, lam = plan_of(batch, 0.6, saliency=saliency)
    assert taken(source, 0) == [(2, 5), (3, 6)]
    assert taken(source, 1) == [(1, 4), (2, 5)]
    torch.testing.assert_close(lam, torch.tensor([1 - 2 / 5, 1 - 2 / 6]))


@pytest.mark.parametrize("side", ["right", "left"])
def test_saliency_of_padding_does_not_count(side):
    batch = toy_batch((10, 6), side=side)
    saliency = torch.rand(2, 10, generator=torch.Generator().manual_seed(0))
    loud = torch.where(batch["attention_mask"].bool(), saliency, 1e3)
    quiet = torch.where(batch["attention_mask"].bool(), saliency, -1e3)
    assert torch.equal(plan_of(batch, 0.7, saliency=loud)[0], plan_of(batch, 0.7, saliency=quiet)[0])


@pytest.mark.parametrize("saliency", [None, torch.arange(24.0).view(2, 12)])
def test_an_example_that_is_its_own_partner_stays(saliency):
    uniform = torch.tensor([0.0, 0.9]).view(1, 2, 1).expand(2, 2, 2)
    ids = toy_batch((12, 12))["input_ids"]
    source, _ = plan_of(toy_batch((12, 12)), 0.5, torch.arange(2), uniform, saliency)
    assert torch.equal(swap_tokens(ids, torch.arange(2), source), ids)


def test_tokens_come_from_the_partner():
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]])
    source = torch.tensor([[-1, 2, 3, -1], [-1, -1, -1, -1], [0, -1, -1, 0]])
    swapped = swap_tokens(ids, torch.tensor([1, 2, 0]), source)
    assert swapped.tolist() == [[1, 7, 8, 4], [5, 6, 7, 8], [1, 10, 11, 1]]


@pytest.mark.parametrize("begins", [9, 0, 2])
@pytest.mark.parametrize("family", ["t5", "bart", "roberta"])
def test_texts_of_a_pair_without_types_are_told_apart_by_their_separators(family, begins):
    """In these a pair is A </s> B </s>, or A </s> </s> B </s>, and the head of the first two reads at the last </s>."""
    model, batch, length = cached_toy_model(family), toy_batch((14, 14, 14, 14)), 14
    separators = [5] if family == "t5" else [5, 6]
    batch["input_ids"] = batch["input_ids"].masked_fill(batch["input_ids"] == 2, 9)
    batch["input_ids"][:, [*separators, length - 1]] = 2
    batch["input_ids"][:, 0] = begins
    mixup = Mixup(model, PLAIN | {"site": "input", "interpolation": "span", "alpha": 1.0, "self_pairs": False})
    first, second = set(range(separators[0])), set(range(separators[-1] + 1, length - 1))
    taken = set()
    for number in range(100):
        plan = mixup.draw(batch)
        if number % 5 == 0:
            with torch.no_grad(), mixup.apply(plan, batch):
                model(**batch)
        for position, source in ((p, s) for row in plan.source.tolist() for p, s in enumerate(row) if s >= 0):
            assert {position, source} <= first or {position, source} <= second
            taken.add(position)
    assert taken == (first - {0}) | second


def test_a_collator_is_told_the_separators():
    batch = toy_batch((14, 14, 14, 14))
    batch["input_ids"][:, 5] = 2
    collator = MixupCollator(lambda rows: batch | {"labels": torch.tensor([0, 1, 2, 0])}, "span_mix", 3, separators=[2])
    for _ in range(50):
        assert (collator([])["input_ids"][:, 5] == 2).all()
