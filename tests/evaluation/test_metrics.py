import json
import math

import numpy as np
import pytest
from transformers import EvalPrediction

from hf_mixup.evaluation import (
    classification_metrics,
    compute_metrics_for,
    higher_is_better,
    multilabel_metrics,
    regression_metrics,
    reliability,
)


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def f1(truth, predicted):
    hits = sum(t and p for t, p in zip(truth, predicted, strict=True))
    total = sum(truth) + sum(predicted)
    return 2 * hits / total if total else 0.0


def expected_calibration_error(probabilities, labels, bins=15):
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    error = 0.0
    for number in range(bins):
        inside = (confidence > number / bins) & (confidence <= (number + 1) / bins)
        if inside.any():
            error += inside.mean() * abs(confidence[inside].mean() - correct[inside].mean())
    return error


@pytest.fixture
def scores():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(200, 4)).astype(np.float32) * 3
    labels = np.where(generator.random(200) < 0.6, logits.argmax(axis=1), generator.integers(0, 4, 200))
    return logits, labels


def test_classification_by_hand(scores):
    logits, labels = scores
    probabilities = softmax(logits.astype(np.float64))
    predicted = logits.argmax(axis=1)
    found = classification_metrics(logits, labels)
    assert found["accuracy"] == pytest.approx((predicted == labels).mean())
    assert found["macro_f1"] == pytest.approx(np.mean([f1(labels == c, predicted == c) for c in range(4)]))
    assert found["nll"] == pytest.approx(-np.log(probabilities[np.arange(200), labels]).mean())
    by_hand = [sum((p[c] - (c == y)) ** 2 for c in range(4)) for p, y in zip(probabilities, labels, strict=True)]
    assert found["brier"] == pytest.approx(np.mean(by_hand))
    assert found["ece"] == pytest.approx(expected_calibration_error(probabilities, labels), abs=1e-6)
    assert all(type(value) is float for value in found.values())


def test_logits_inside_the_unit_interval_are_not_taken_for_probabilities():
    logits = np.array([[0.9, 0.1], [0.8, 0.3], [0.2, 0.7]])
    labels = np.array([0, 0, 0])
    expected = expected_calibration_error(softmax(logits), labels)
    assert classification_metrics(logits, labels)["ece"] == pytest.approx(expected, abs=1e-6)
    assert abs(expected_calibration_error(logits, labels) - expected) > 0.1


def test_two_equal_scores_have_nll_log_two_and_brier_one_half():
    found = classification_metrics(np.zeros((4, 2)), np.array([0, 1, 0, 1]))
    assert found["nll"] == pytest.approx(math.log(2))
    assert found["brier"] == pytest.approx(0.5)
    assert found["ece"] == pytest.approx(0.0)


def test_extreme_logits_are_exact():
    found = classification_metrics(np.array([[1000.0, 0.0], [0.0, 1000.0]]), np.array([0, 0]))
    assert found["nll"] == pytest.approx(500.0)
    assert found["brier"] == pytest.approx(1.0)


def test_multilabel_by_hand():
    logits = np.array([[2.0, -1.0, 0.5], [-3.0, 1.0, -0.5], [0.1, 0.2, -2.0], [-1.0, -1.0, -1.0]])
    labels = np.array([[1, 0, 0], [0, 1, 1], [1, 1, 0], [0, 0, 0]], dtype=np.float32)
    probabilities, predicted = 1 / (1 + np.exp(-logits)), logits > 0
    found = multilabel_metrics(logits, labels)
    assert found["micro_f1"] == pytest.approx(f1(labels.ravel() > 0, predicted.ravel()))
    assert found["macro_f1"] == pytest.approx(np.mean([f1(labels[:, c] > 0, predicted[:, c]) for c in range(3)]))
    assert found["subset_accuracy"] == pytest.approx(0.5)
    # Of the labels ranked at least as high as each true one, the share that is true: 1; 1, 2/2; 1, 2/2; none to rank.
    assert found["lrap"] == pytest.approx(1.0)
    swapped = multilabel_metrics(np.array([[2.0, -1.0, 0.5]]), np.array([[0, 1, 1]]))
    assert swapped["lrap"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    entropy = -(labels * np.log(probabilities) + (1 - labels) * np.log(1 - probabilities))
    assert found["nll"] == pytest.approx(entropy.mean())
    assert found["brier"] == pytest.approx(((probabilities - labels) ** 2).mean())


def test_regression_by_hand():
    generator = np.random.default_rng(1)
    labels = generator.normal(size=30)
    predictions = (labels + generator.normal(size=30))[:, None]
    x, y = predictions[:, 0] - predictions.mean(), labels - labels.mean()
    ranks_x, ranks_y = predictions[:, 0].argsort().argsort(), labels.argsort().argsort()
    found = regression_metrics(predictions, labels)
    assert found["pearson"] == pytest.approx((x * y).sum() / math.sqrt((x**2).sum() * (y**2).sum()))
    assert found["spearman"] == pytest.approx(1 - 6 * ((ranks_x - ranks_y) ** 2).sum() / (30 * (30**2 - 1)))
    assert found["rmse"] == pytest.approx(math.sqrt(((predictions[:, 0] - labels) ** 2).mean()))


def with_confidence(confidence):
    """Logits of two classes; the first has the probability given."""
    confidence = np.asarray(confidence, dtype=np.float64)
    return np.stack([np.log(confidence), np.log1p(-confidence)], axis=1)


@pytest.mark.filterwarnings("error")
def test_equal_scores_have_no_correlation_but_an_error():
    found = regression_metrics(np.full(4, 2.0), np.array([1.0, 2.0, 3.0, 4.0]))
    assert np.isnan(found["pearson"]) and np.isnan(found["spearman"]) and found["rmse"] == pytest.approx(1.5**0.5)


def test_adaptive_ece_by_hand():
    # 30 examples make 15 bins of two neighbours in confidence: one of each two is right, so each bin is 0.5 accurate.
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


def test_adaptive_ece_of_fewer_examples_than_bins():
    found = classification_metrics(with_confidence([0.9, 0.6]), np.array([0, 1]))
    assert found["adaptive_ece"] == pytest.approx((0.1 + 0.6) / 2)


def test_probability_one_belongs_to_the_last_bin():
    # In one bin 0.95 and 1 average to 0.975 with accuracy one half; apart they would be off by 0.05 and 1.
    logits = np.vstack([with_confidence([0.95]), [[100.0, 0.0]]])
    labels = np.array([0, 1])
    assert classification_metrics(logits, labels)["ece"] == pytest.approx(0.475, abs=1e-6)
    sure = np.array([[math.log(19.0)], [100.0]])
    assert multilabel_metrics(sure, np.array([[1], [0]]))["label_ece"] == pytest.approx(0.475, abs=1e-6)


def test_label_ece_by_hand():
    generator = np.random.default_rng(2)
    logits = generator.normal(size=(300, 3)) * 2
    labels = (generator.random((300, 3)) < [0.2, 0.5, 0.9]).astype(np.float32)
    errors = []
    for scores_of_label, truth in zip(logits.T, labels.T, strict=True):
        probability, error = 1 / (1 + np.exp(-scores_of_label)), 0.0
        for number in range(15):
            inside = (probability >= number / 15) & (probability < (number + 1) / 15)
            if inside.any():
                error += inside.mean() * abs(probability[inside].mean() - truth[inside].mean())
        errors.append(error)
    assert multilabel_metrics(logits, labels)["label_ece"] == pytest.approx(np.mean(errors), abs=1e-6)


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


@pytest.mark.parametrize(
    ("direction", "names"),
    [
        (True, "accuracy accuracy_characters_0.1 macro_f1 micro_f1 subset_accuracy lrap pearson spearman"),
        (True, "ood_auroc_softmax ood_auroc_energy dev_accuracy dev_macro_f1 dev_pearson"),
        (False, "loss nll nll_scaled brier brier_scaled ece adaptive_ece label_ece ece_scaled adaptive_ece_scaled"),
        (False, "label_ece_scaled rmse flips_dropout_0.2 ood_fpr95_softmax ood_fpr95_energy memorised test_loss"),
        (False, "gradient_norm path_loss dev_nll dev_loss"),
        (None, "temperature generalisation_gap train_loss uncertain_width steps seconds dev_"),
    ],
)
def test_direction_of_metrics(direction, names):
    assert {name: higher_is_better(name) for name in names.split()} == dict.fromkeys(names.split(), direction)


def test_compute_metrics_takes_the_first_of_several_outputs(scores):
    logits, labels = scores
    encoder_states = np.zeros((200, 7, 2))
    compute = compute_metrics_for("single_label_classification")
    found = compute(EvalPrediction(predictions=(logits, encoder_states), label_ids=labels))
    assert found == classification_metrics(logits, labels)


def test_unknown_problem_type_names_the_nearest():
    with pytest.raises(ValueError, match=r"problem_type='regresion'.*Did you mean 'regression'"):
        compute_metrics_for("regresion")


@pytest.mark.parametrize(
    ("metrics", "scores_shape", "labels_shape"),
    [
        (classification_metrics, (3, 2), (4,)),
        (classification_metrics, (0, 2), (0,)),
        (reliability, (3, 2), (4,)),
        (multilabel_metrics, (3, 2), (3, 3)),
        (regression_metrics, (3, 2), (3,)),
        (regression_metrics, (1, 1), (1,)),
    ],
)
def test_wrong_shapes_are_refused(metrics, scores_shape, labels_shape):
    with pytest.raises(ValueError, match=r"expected .*got shapes"):
        metrics(np.zeros(scores_shape), np.zeros(labels_shape, dtype=int))
