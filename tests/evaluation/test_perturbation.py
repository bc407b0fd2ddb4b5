from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_mixup.evaluation import flips, perturb
from hf_mixup.evaluation.perturbation import PERTURBATIONS

LONG = " ".join(f"word{'abcdefghij'[number % 10]} {number}" for number in range(500))

texts = st.lists(st.text(max_size=60), max_size=4)
kinds = st.sampled_from([*PERTURBATIONS])
strengths = st.floats(0, 1)
seeds = st.integers(0, 2**32)


def is_subsequence(short, long):
    remaining = iter(long)
    return all(item in remaining for item in short)


@given(texts, kinds, seeds)
@settings(deadline=None, max_examples=60)
def test_strength_zero_is_the_identity(texts, kind, seed):
    assert perturb(texts, kind, 0.0, seed) == texts


@given(st.text(max_size=60), texts, kinds, strengths, seeds)
@settings(deadline=None, max_examples=80)
def test_a_text_and_a_seed_decide(text, others, kind, strength, seed):
    (alone,) = perturb([text], kind, strength, seed)
    assert perturb([*others, text, *others], kind, strength, seed)[len(others)] == alone
    assert bool(alone.strip()) == bool(text.strip())
    assert type(alone) is str


@pytest.mark.parametrize("kind", PERTURBATIONS)
def test_another_seed_gives_other_faults(kind):
    results = {perturb([LONG], kind, 0.3, seed)[0] for seed in range(5)}
    assert len(results) == 5 and LONG not in results


@pytest.mark.parametrize("kind", PERTURBATIONS)
def test_one_letter_at_full_strength_is_not_emptied(kind):
    assert all(perturb(["a"], kind, 1.0, seed)[0] for seed in range(50))


@given(st.text(max_size=60), strengths, seeds)
@settings(deadline=None, max_examples=60)
def test_dropout_leaves_words_in_their_order(text, strength, seed):
    (found,) = perturb([text], "dropout", strength, seed)
    assert is_subsequence(found.split(), text.split())


@given(st.text(max_size=60), strengths, seeds)
@settings(deadline=None, max_examples=60)
def test_swaps_keep_the_words_and_what_is_between(text, strength, seed):
    (found,) = perturb([text], "swaps", strength, seed)
    assert Counter(found) == Counter(text) and sorted(found.split()) == sorted(text.split())
    assert len(found) == len(text)


def test_full_strength():
    assert perturb(["a b  c\nd e"], "swaps", 1.0, 0) == ["b a  d\nc e"]
    (left,) = perturb(["one two three"], "dropout", 1.0, 0)
    assert left in ("one", "two", "three")


def test_only_letters_become_other_characters():
    (found,) = perturb(["12, 34! 56? " * 20], "characters", 1.0, 0)
    assert found == "12, 34! 56? " * 20


@pytest.mark.parametrize("strength", [0.1, 0.4])
def test_dropout_drops_as_many_as_asked(strength):
    (found,) = perturb([LONG], "dropout", strength, 1)
    # 1000 words: four standard deviations.
    assert 1 - len(found.split()) / 1000 == pytest.approx(strength, abs=4 * np.sqrt(strength * (1 - strength) / 1000))


def test_swaps_move_as_many_as_asked():
    words = [str(number) for number in range(1000)]
    (found,) = perturb([" ".join(words)], "swaps", 0.1, 1)
    moved = [place for place, (a, b) in enumerate(zip(words, found.split(), strict=True)) if a != b]
    assert all(abs(int(found.split()[place]) - place) == 1 for place in moved)
    # A word that has moved is passed over: one swap for p / (1 + p) of the words.
    assert len(moved) / 2 / 1000 == pytest.approx(0.1 / 1.1, abs=0.03)


def test_the_four_faults_of_letters_are_as_frequent():
    # Each letter stands in its own word of two, "ax": what became of it can be read off.
    pairs = 4000
    (found,) = perturb([" ".join(["ax"] * pairs)], "characters", 0.2, 4)
    counts = Counter(found.split(" "))
    once = 0.2 * 0.8 / 4 * pairs
    for fault in ("a", "x", "aax", "axx"):
        assert counts[fault] == pytest.approx(once, abs=4 * np.sqrt(once))
    assert counts["xa"] == pytest.approx(2 * once, abs=4 * np.sqrt(2 * once))
    assert counts["ax"] == pytest.approx(0.64 * pairs, abs=4 * np.sqrt(0.64 * 0.36 * pairs) + 0.02 * pairs)
    replaced = sum(count for word, count in counts.items() if len(word) == 2 and word not in ("ax", "xa"))
    assert replaced == pytest.approx(2 * once, rel=0.35)


def test_letters_do_not_leave_their_word():
    (found,) = perturb(["ab " * 500], "characters", 0.5, 0)
    assert found.count(" ") == 500


def test_more_strength_hits_more():
    def changed(strength):
        (found,) = perturb(["ab " * 500], "characters", strength, 0)
        return sum(word != "ab" for word in found.split(" "))

    assert 0 < changed(0.05) < changed(0.2) < changed(0.6)
    left = [perturb([LONG], "dropout", strength, 0)[0].split() for strength in (0.6, 0.2, 0.05)]
    assert is_subsequence(left[0], left[1]) and is_subsequence(left[1], left[2])


def test_flips_by_hand():
    clean = np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0], [0.3, 0.2]])
    perturbed = np.array([[9.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.3, 0.2]])
    assert flips(clean, perturbed) == 0.5
    assert flips(clean, clean) == 0.0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("problem_type", ["single_label_classification", "multi_label_classification"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_model_that_diverged_has_no_flips(problem_type, bad):
    sound, lost = np.zeros((4, 2)), np.array([[0.0, 0.0]] * 3 + [[0.0, bad]])
    for clean, perturbed in ((lost, lost), (sound, lost), (lost, sound)):
        assert np.isnan(flips(clean, perturbed, problem_type))


def test_flips_of_several_labels_compare_sets():
    clean = np.array([[1.0, -1.0, 2.0], [1.0, 1.0, -1.0], [-1.0, -2.0, -3.0]])
    perturbed = np.array([[2.0, -3.0, 1.0], [2.0, -1.0, -1.0], [-3.0, -2.0, -1.0]])
    assert flips(clean, perturbed, "multi_label_classification") == pytest.approx(1 / 3)
    assert flips(clean, perturbed) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: perturb(["a"], "swap", 0.1, 0), "kind='swap': expected one of .*Did you mean 'swaps'"),
        (lambda: perturb(["a"], "swaps", 1.5, 0), r"strength=1.5: .*<= 1"),
        (lambda: perturb(["a"], "swaps", -0.1, 0), r"strength=-0.1"),
        (lambda: perturb(["a"], "swaps", 0.1, -1), "seed=-1: expected a whole number of 0 or more"),
        (lambda: perturb("a text", "swaps", 0.1, 0), "texts='a text': expected a list"),
        (lambda: flips(np.zeros((2, 2)), np.zeros((3, 2))), "got shapes"),
        (lambda: flips(np.zeros((0, 2)), np.zeros((0, 2))), "got shapes"),
        (lambda: flips(np.zeros((2, 2)), np.zeros((2, 2)), "regression"), "problem_type='regression'"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
