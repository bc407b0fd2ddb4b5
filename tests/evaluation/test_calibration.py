"""Calibration errors by hand, whatever the order of the rows, and the bins of a reliability diagram."""

import json
import math

import numpy as np
import pytest

from hf_mixup.evaluation import classification_metrics, multilabel_metrics, reliability


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


@pytest.fixture
def scores():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(200, 4)).astype(np.float32) * 3
    labels = np.where(generator.random(200) < 0.6, logits.argmax(axis=1), generator.integers(0, 4, 200))
    return logits, labels


def with_confidence(confidence):
    """Logits of two classes; the first has the probability given."""
    confidence = np.asarray(confidence, dtype=np.float64)
    return np.stack([np.log(confidence), np.log1p(-confidence)], axis=1)


def adaptive(confidence, right):
    """The adaptive calibration error of two classes, of which the first is predicted."""
    return classification_metrics(with_confidence(confidence), 1 - np.asarray(right, dtype=int))["adaptive_ece"]


def test_adaptive_ece_by_hand():
    # 30 examples make three bins of ten neighbors in confidence: every other one is right, so each bin is 0.5 accurate.
    confidence = np.linspace(0.51, 0.99, 30)
    labels = np.arange(30) % 2
    order = np.random.default_rng(0).permutation(30)
    found = classification_metrics(with_confidence(confidence)[order], labels[order])
    assert found["adaptive_ece"] == pytest.approx(np.mean(confidence) - 0.5)


def test_adaptive_ece_takes_bins_of_equal_mass(scores):
    logits, labels = scores
    probabilities = softmax(logits.astype(np.float64))
    ranked = np.argsort(probabilities.max(axis=1))
    # 200 examples in 15 bins: five of 14, then ten of 13.
    edges = np.cumsum([0] + [14] * 5 + [13] * 10)
    error = 0.0
    for start, end in zip(edges, edges[1:], strict=False):
        rows = ranked[start:end]
        right = probabilities[rows].argmax(axis=1) == labels[rows]
        error += (end - start) / 200 * abs(right.mean() - probabilities[rows].max(axis=1).mean())
    found = classification_metrics(logits, labels)
    assert found["adaptive_ece"] == pytest.approx(error)
    assert abs(found["adaptive_ece"] - found["ece"]) > 1e-3


def test_adaptive_bins_hold_ten_examples():
    for rows, bins in ((10, 1), (19, 1), (20, 2), (149, 14), (150, 15), (1000, 15)):
        confidence, right = np.linspace(0.6, 0.9, rows), np.arange(rows) % 3 == 0
        wanted = sum(
            abs((right[start : start + count] - confidence[start : start + count]).sum())
            for start, count in blocks(rows, bins)
        )
        assert adaptive(confidence, right) == pytest.approx(wanted / rows), rows


def blocks(rows, bins):
    """Starts and sizes of bins that differ by one example at most, the larger ones first."""
    sizes = [len(part) for part in np.array_split(np.arange(rows), bins)]
    return zip(np.cumsum([0, *sizes[:-1]]), sizes, strict=True)


def test_few_examples_share_one_bin():
    # One right of two, at 0.9 and 0.6 on average 0.75: each for itself they would be off by 0.1 and 0.6.
    assert adaptive([0.9, 0.6], [True, False]) == pytest.approx(0.25)
    assert adaptive([0.9], [True]) == pytest.approx(0.1)
    assert adaptive([0.5] * 15, [True, False] * 7 + [True]) == pytest.approx(0.5 / 15)


@pytest.mark.parametrize("labels", [np.repeat([0, 1], 150), np.tile([0, 1], 150)])
def test_a_coin_is_calibrated_in_every_order(labels):
    assert classification_metrics(np.zeros((300, 2)), labels)["adaptive_ece"] == 0


@pytest.mark.parametrize("levels", [1, 2, 5, 40, 10_000])
@pytest.mark.parametrize("rows", [3, 25, 149, 400])
def test_no_metric_depends_on_the_order_of_the_rows(rows, levels):
    generator = np.random.default_rng([rows, levels])
    drawn = np.round(generator.normal(size=(levels, 3)) * 2, 3)
    logits, labels = drawn[generator.integers(levels, size=rows)], generator.integers(3, size=rows)
    # Sorted by label, as many test files are, and reversed: the orders that divide a block the most.
    first = np.argsort(labels, kind="stable")
    wanted = classification_metrics(logits[first], labels[first])
    for order in (first[::-1], *(generator.permutation(rows) for _ in range(5))):
        found = classification_metrics(logits[order], labels[order])
        assert found["adaptive_ece"] == pytest.approx(wanted["adaptive_ece"], abs=1e-12)
        # torchmetrics adds in float32.
        assert found == pytest.approx(wanted, abs=1e-6)


def test_a_block_of_equal_confidence_is_not_divided_and_leaves_no_small_bin():
    # 40 examples, so bins of ten: the block of 27 fills two of them and more, and the three that follow it join it.
    confidence = np.concatenate([np.linspace(0.51, 0.6, 10), np.full(27, 0.7), np.linspace(0.8, 0.9, 3)])
    right = np.concatenate([np.ones(10), np.zeros(30)]).astype(bool)
    gaps = right - confidence
    assert adaptive(confidence, right) == pytest.approx((abs(gaps[:10].sum()) + abs(gaps[10:].sum())) / 40)


def test_probability_one_belongs_to_the_last_bin():
    # In one bin 0.95 and 1 average to 0.975 with accuracy one half; apart they would be off by 0.05 and 1.
    logits = np.vstack([with_confidence([0.95]), [[100.0, 0.0]]])
    labels = np.array([0, 1])
    assert classification_metrics(logits, labels)["ece"] == pytest.approx(0.475, abs=1e-6)
    sure = np.array([[math.log(19.0)], [100.0]])
    assert multilabel_metrics(sure, np.array([[1], [0]]))["label_ece"] == pytest.approx(0.475, abs=1e-6)


def test_reliability_adds_up_to_the_calibration_error(scores):
    logits, labels = scores
    found = reliability(logits, labels)
    assert [len(found[name]) for name in ("confidence", "accuracy", "count")] == [15, 15, 15]
    assert sum(found["count"]) == 200
    rows = [row for row in zip(*found.values(), strict=True) if row[2]]
    error = sum(count / 200 * abs(confidence - accuracy) for confidence, accuracy, count in rows)
    assert error == pytest.approx(classification_metrics(logits, labels)["ece"], abs=1e-6)


def test_reliability_by_hand():
    logits = np.vstack([with_confidence([0.55, 0.58, 0.9]), [[100.0, 0.0]]])
    found = reliability(logits, np.array([0, 1, 1, 0]))
    assert found["count"] == [0] * 8 + [2, 0, 0, 0, 0, 1, 1]
    assert [found["accuracy"][place] for place in (8, 13, 14)] == [0.5, 0.0, 1.0]
    assert found["confidence"][8] == pytest.approx(0.565)
    empty = [place for place, count in enumerate(found["count"]) if not count]
    assert all(found[name][place] is None for name in ("confidence", "accuracy") for place in empty)
    json.dumps(found)


@pytest.mark.filterwarnings("error")
def test_a_model_that_diverged_has_empty_bins():
    found = reliability(np.full((10, 2), np.nan), np.zeros(10, dtype=int))
    assert found == {"confidence": [None] * 15, "accuracy": [None] * 15, "count": [0] * 15}
    assert reliability(np.array([[1.0, 0.0], [np.inf, 0.0]]), np.array([0, 0])) == found


def test_rows_that_transformers_ignores_are_in_no_bin(scores):
    logits, labels = scores
    marked = np.where(np.arange(200) < 60, -100, labels)
    assert reliability(logits, marked) == reliability(logits[60:], labels[60:])
