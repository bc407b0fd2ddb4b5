"""Entities of a batch and which of them are exchanged, against loops over tokens; permutations of a text."""

from collections import Counter

import pytest
import torch

from hf_mixup.plan.entities import other_tokens, plan_entities, token_kinds

NAMES = ["O", "B-per", "I-per", "B-loc", "I-loc"]
TYPES, BEGINS = torch.tensor([0, 1, 1, 2, 2]), torch.tensor([False, True, False, True, False])


def slow_kinds(labels):
    found = []
    for row in labels.tolist():
        kinds, kind = [], None
        for label in row:
            if label < 0:
                kinds.append(-1 if kind is None else 3)
                continue
            name = NAMES[label]
            new = None if name == "O" else name[2:]
            kinds.append(0 if new is None else 1 if name[0] == "B" or new != kind else 2)
            kind = new
        found.append(kinds)
    return found


def slow_entities(kinds, fixed):
    """The beginning and the length of each entity of a text."""
    found = []
    for start, kind in enumerate(kinds):
        if kind == 1 and not fixed[start]:
            stop = start + 1
            while stop < len(kinds) and kinds[stop] >= 2 and not fixed[stop]:
                stop += 1
            found.append((start, stop - start))
    return found


def random_labels(seed, size=6, length=14):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(-2, 5, (size, length), generator=generator)
    return labels.where(labels >= 0, -100)


@pytest.mark.parametrize("seed", range(20))
def test_kinds_are_those_of_a_reading_from_left_to_right(seed):
    labels = random_labels(seed)
    assert token_kinds(labels, TYPES, BEGINS).tolist() == slow_kinds(labels)


@pytest.mark.parametrize("seed", range(20))
def test_an_entity_gives_way_to_one_that_is_as_long(seed):
    kinds = token_kinds(random_labels(seed), TYPES, BEGINS)
    generator = torch.Generator().manual_seed(seed)
    fixed = torch.arange(14) >= torch.randint(8, 14, (6, 1), generator=generator)
    fixed[:, 0] = True
    partner, wanted = torch.tensor([1, 2, 0, 3, 5, 4]), torch.tensor([True] * 5 + [False])
    source, lam = plan_entities(kinds, partner, fixed, wanted, torch.rand(6, generator=generator))
    for row, other in enumerate(partner.tolist()):
        own, theirs = (slow_entities(kinds[at].tolist(), fixed[at].tolist()) for at in (row, other))
        pairs = {(a, b, size) for a, size in own for b, length in theirs if length == size and row != other}
        taken = [(position, at) for position, at in enumerate(source[row].tolist()) if at >= 0]
        if not pairs or not wanted[row]:
            assert not taken and lam[row] == 1
            continue
        (start, begin), size = taken[0], len(taken)
        assert (start, begin, size) in pairs
        assert taken == [(start + offset, begin + offset) for offset in range(size)]
        assert float(lam[row]) == pytest.approx(1 - size / int((~fixed[row]).sum()))


def test_every_pair_of_entities_is_as_likely():
    kinds = torch.tensor([[0, 1, 0, 1, 2, 1], [1, 0, 1, 2, 1, 0]])
    fixed, partner, found = torch.zeros(2, 6, dtype=torch.bool), torch.tensor([1, 0]), Counter()
    for uniform in torch.linspace(0, 0.999, 1000):
        source, _ = plan_entities(kinds, partner, fixed, torch.ones(2, dtype=torch.bool), uniform.expand(2))
        found[tuple(source[0].tolist())] += 1
    # Two entities of one token with two, and one of two tokens with one.
    assert len(found) == 5 and all(190 <= count <= 210 for count in found.values())


@pytest.mark.parametrize("seed", range(10))
def test_each_labeled_token_is_mixed_with_one_of_its_text(seed):
    kinds = token_kinds(random_labels(seed), TYPES, BEGINS)
    source = other_tokens(kinds, torch.rand(kinds.shape, generator=torch.Generator().manual_seed(seed)))
    for row, taken in zip(kinds.tolist(), source.tolist(), strict=True):
        labeled = [position for position, kind in enumerate(row) if kind in (0, 1, 2)]
        assert sorted(at for at in taken if at >= 0) == labeled
        assert [position for position, at in enumerate(taken) if at >= 0] == labeled


def test_permutations_are_as_likely():
    kinds, found = torch.tensor([[-1, 0, 1, 3, 2]]), Counter()
    generator = torch.Generator().manual_seed(0)
    for _ in range(1200):
        found[tuple(other_tokens(kinds, torch.rand(1, 5, generator=generator))[0].tolist())] += 1
    assert len(found) == 6 and all(150 < count < 250 for count in found.values())
