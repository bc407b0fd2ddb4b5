"""The order of unlabelled rows, where it resumes, and two batches made one."""

import math
import random
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.utils.data import IterableDataset

from hf_mixup.training.unlabeled_rows import (
    UnlabeledRows,
    given_guesses,
    join_rows,
    known_classes,
    with_masked_tokens,
    without_labels,
)

SIZE, LENGTH, SEED = 3, 10, 7


class Stream(IterableDataset):
    """A stream that can be read again."""

    def __iter__(self):
        return ({"row": number} for number in range(LENGTH))


ROWS = [{"row": number} for number in range(LENGTH)]
KINDS = {
    "list": ROWS,
    "datasets": Dataset.from_list(ROWS),
    "stream": Stream(),
    "stream of datasets": Dataset.from_list(ROWS).to_iterable_dataset(),
}
STREAMS = [kind for kind in KINDS if "stream" in kind]


def collate(rows):
    return {"row": torch.tensor([row["row"] for row in rows])}


def unlabeled_rows(dataset, rank=0, world=1, workers=0, size=SIZE, seed=SEED):
    return UnlabeledRows(dataset, collate, size, seed, rank, world, workers)


def taken(rows, count):
    return [rows.take()["row"].tolist() for _ in range(count)]


def of_all(dataset, world, count, before=0):
    """The rows that all processes are given, in the order of the whole: one of each process in turn."""
    ranks = [unlabeled_rows(dataset, rank, world) for rank in range(world)]
    for rows in ranks:
        rows.restart(before)
    given = [sum(taken(rows, count), []) for rows in ranks]
    return [row for turn in zip(*given, strict=True) for row in turn]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_each_pass_gives_each_row_once_over_all_processes(kind, world):
    given = of_all(KINDS[kind], world, 12)
    passes = [given[start : start + LENGTH] for start in range(0, len(given) - LENGTH + 1, LENGTH)]
    assert len(passes) >= 3 and all(sorted(rows) == list(range(LENGTH)) for rows in passes)
    is_in_order = [rows == list(range(LENGTH)) for rows in passes]
    assert is_in_order == [kind in STREAMS] * len(passes)
    assert kind in STREAMS or len({tuple(rows) for rows in passes}) == len(passes)


def test_the_order_is_that_of_the_seed():
    first, again, other = (taken(unlabeled_rows(ROWS, seed=seed), 8) for seed in (SEED, SEED, SEED + 1))
    assert first == again != other


def test_a_batch_may_be_larger_than_the_data():
    (batch,) = taken(unlabeled_rows(ROWS[:4], size=10), 1)
    assert Counter(batch[:8]) == dict.fromkeys(range(4), 2) and len(batch) == 10


@pytest.mark.parametrize("after", [0, 1, 3, 5, 11])
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_taken_is_not_given_again(kind, after):
    whole, resumed = unlabeled_rows(KINDS[kind]), unlabeled_rows(KINDS[kind])
    taken(whole, after)
    resumed.restart(whole.taken)
    assert resumed.taken == after
    assert taken(resumed, 6) == taken(whole, 6)
    whole.restart()
    assert taken(whole, 2) == taken(unlabeled_rows(KINDS[kind]), 2)


@pytest.mark.parametrize(("worlds", "count"), [((1, 2), 4), ((2, 1), 3), ((2, 2), 3), ((3, 2), 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_another_number_of_processes_resumes_at_the_same_row(kind, worlds, count):
    before, after = worlds
    total = before * count * SIZE + after * 3 * SIZE
    expected = of_all(KINDS[kind], 1, total // SIZE)
    first = of_all(KINDS[kind], before, count)
    assert first + of_all(KINDS[kind], after, 3, before=before * count) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_no_random_number_is_taken_from_the_training(kind):
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    rows = unlabeled_rows(KINDS[kind])
    taken(rows, 9)
    rows.restart(2)
    taken(rows, 2)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all() and random.getstate() == states[2]


@pytest.mark.parametrize("kind", ["list", "stream"])
def test_workers_give_the_same_batches_and_take_no_random_number(kind):
    state, rows = torch.get_rng_state(), unlabeled_rows(KINDS[kind], workers=2)
    rows.restart(2)
    alone = unlabeled_rows(KINDS[kind])
    alone.restart(2)
    assert taken(rows, 6) == taken(alone, 6)
    assert torch.equal(torch.get_rng_state(), state)


def test_data_without_rows_is_refused():
    class Empty(IterableDataset):
        def __iter__(self):
            return iter(())

    for dataset in ([], Dataset.from_list([])):
        with pytest.raises(ValueError, match="unlabeled_dataset: has no rows"):
            unlabeled_rows(dataset)
    with pytest.raises(ValueError, match="unlabeled_dataset: the stream has no rows"):
        unlabeled_rows(Empty()).take()


def test_a_stream_that_can_be_read_only_once_is_refused_at_its_end():
    class Once(IterableDataset):
        rows = iter(ROWS)

        def __iter__(self):
            return self.rows

    rows = unlabeled_rows(Once())
    assert taken(rows, 3) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    with pytest.raises(ValueError, match="unlabeled_dataset: the stream has no rows"):
        rows.take()


def test_batches_that_are_no_mappings_are_refused():
    with pytest.raises(ValueError, match="unlabeled_dataset: its batches are list, expected mappings"):
        UnlabeledRows(ROWS, list, SIZE, SEED, 0, 1, 0).take()


# ---- Two batches made one ----


def batch(*lengths, on_left=False, start=10):
    longest, rows = max(lengths), {"input_ids": [], "attention_mask": [], "token_type_ids": []}
    for number, length in enumerate(lengths):
        tokens, missing = [start + number] * length, longest - length
        for name, values, fill in zip(rows, (tokens, [1] * length, [1] * length), (9, 0, 0), strict=True):
            padding = [fill] * missing
            rows[name].append(padding + values if on_left else values + padding)
    return {name: torch.tensor(values) for name, values in rows.items()}


@pytest.mark.parametrize("on_left", [False, True])
@pytest.mark.parametrize("lengths", [((3, 2), (5, 1)), ((5, 1), (3, 2)), ((4, 4), (4,))])
def test_the_shorter_texts_are_padded_as_the_collator_would(lengths, on_left):
    labelled, unlabeled = (batch(*each, on_left=on_left) for each in lengths)
    joined = join_rows(labelled, unlabeled, {"input_ids": 9}, on_left)
    expected = batch(*lengths[0], *lengths[1], on_left=on_left)
    first = len(lengths[0])
    own = expected["attention_mask"][first:].bool()
    expected["input_ids"][first:][own] -= first  # rows are numbered anew in the second batch
    assert joined.keys() == expected.keys()
    assert all(torch.equal(joined[name], expected[name]) for name in expected)


def test_images_and_what_belongs_to_the_batch_are_joined_too():
    labelled = {"pixel_values": torch.rand(2, 3, 4, 4), "scale": torch.tensor(2.0), "word": "x"}
    unlabeled = {"pixel_values": torch.rand(3, 3, 4, 4), "scale": torch.tensor(2.0), "word": "x"}
    joined = join_rows(labelled, unlabeled, {}, False)
    assert torch.equal(joined["pixel_values"], torch.cat([labelled["pixel_values"], unlabeled["pixel_values"]]))
    assert joined["scale"] == 2.0 and joined["word"] == "x"
    smaller = unlabeled | {"pixel_values": torch.rand(3, 3, 4, 5)}
    with pytest.raises(ValueError, match=r"pixel_values has shape \(3, 3, 4, 5\), that of the labelled .* \(2, 3, 4"):
        join_rows(labelled, smaller, {}, False)


def test_what_only_one_of_the_two_has_is_refused():
    whole = batch(3, 2)
    without = {name: value for name, value in whole.items() if name != "token_type_ids"}
    for pair in ((whole, without), (without, whole)):
        with pytest.raises(ValueError, match="unlabeled_dataset: token_type_ids: in the batches of only one"):
            join_rows(*pair, {}, False)


def test_texts_of_other_lengths_without_a_mask_are_refused():
    long, short = ({"input_ids": batch(length)["input_ids"]} for length in (5, 3))
    with pytest.raises(ValueError, match="texts of other lengths need an attention_mask"):
        join_rows(long, short, {}, False)
    assert join_rows(long, long, {}, False)["input_ids"].shape == (2, 5)


def test_masks_stand_for_a_share_of_the_tokens_and_for_none_of_the_special_ones():
    tokens = torch.randint(5, 50, (40, 100))
    tokens[:, 0], tokens[:, 90:] = 2, 1
    given = {"input_ids": tokens.clone(), "attention_mask": torch.ones_like(tokens)}
    masked = with_masked_tokens(given, 0.3, 4, torch.tensor([1, 2, 4]), (0, 5))
    changed = masked["input_ids"] != tokens
    assert bool((masked["input_ids"][changed] == 4).all()) and not changed[:, 0].any() and not changed[:, 90:].any()
    assert float(changed[:, 1:90].float().mean()) == pytest.approx(0.3, abs=0.03)
    assert torch.equal(given["input_ids"], tokens) and masked["attention_mask"] is given["attention_mask"]
    again, other = (with_masked_tokens(given, 0.3, 4, torch.tensor([1, 2, 4]), (0, at)) for at in (5, 6))
    assert torch.equal(masked["input_ids"], again["input_ids"])
    assert not torch.equal(masked["input_ids"], other["input_ids"])


def test_labels_of_unlabelled_rows_are_taken_away():
    tokens = {"input_ids": torch.ones(2, 3)}
    for name, labels, classes in (
        ("labels", torch.tensor([1, -100]), [1, -100]),
        ("label", torch.tensor([1, 0]), [1, 0]),
        ("labels", torch.tensor([-100, -100]), None),
        ("labels", torch.rand(2, 3), None),
        ("labels", ["a", "b"], None),
    ):
        rest, found = without_labels({**tokens, name: labels})
        assert rest.keys() == tokens.keys()
        known = known_classes(found)
        assert (None if known is None else known.tolist()) == classes
    assert without_labels(tokens)[1] is None


def test_given_guesses_are_probabilities_of_all_classes():
    chances = torch.tensor([[0.25, 0.75], [1.0, 0.0]], dtype=torch.float64)
    assert torch.equal(given_guesses(chances, 2), chances.float())
    assert torch.equal(given_guesses(torch.tensor([[0, 1]]), 2), torch.tensor([[0.0, 1.0]]))
    rounded = torch.tensor([[0.3, 0.6, 0.1]], dtype=torch.bfloat16)
    assert float(given_guesses(rounded, 3).sum()) == pytest.approx(1, abs=1e-6) != float(rounded.float().sum())
    for labels, words in (
        (None, "there is none"),
        (torch.tensor([1, 0]), r"its shape is \(2,\)"),
        (torch.tensor([0.5, 0.5]), r"its shape is \(2,\)"),
        (chances, r"shape \(2, 2\) .* with num_labels=3; expected \(batch, 3\)"),
        (torch.tensor([[0.5, 0.5], [1.5, -0.5]]), r"\[1.5, -0.5\] in row 2: .* values in \[0, 1\]"),
        (torch.tensor([[0.5, 0.25]]), r"\[0.5, 0.25\] in row 1: class probabilities must sum to 1"),
        (torch.tensor([[math.nan, 1.0]]), r"\[nan, 1.0\] in row 1: not finite"),
    ):
        with pytest.raises(ValueError, match=f"unlabeled.guesses='given': .*{words}"):
            given_guesses(labels, 3 if labels is chances else 2)


def test_the_batches_never_end():
    rows = unlabeled_rows(ROWS)
    assert len(list(islice(iter(rows.take, None), 50))) == 50


def test_a_negative_label_is_none():
    for labels, known in (([-1, -1], False), ([-100, -1], False), ([0, -1], True)):
        assert (known_classes(torch.tensor(labels)) is not None) == known
