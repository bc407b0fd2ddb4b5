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
from hf_mixup.training.metric_names import METRIC_NAMES


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


def area_under_risk_coverage(confidence, correct):
    """Slowly: the errors among the k most confident, in the mean over every order of equal ones."""
    risks = []
    for k in range(1, len(confidence) + 1):
        edge = sorted(confidence, reverse=True)[k - 1]
        above, at = confidence > edge, confidence == edge
        risks.append((sum(~correct[above]) + (k - sum(above)) * np.mean(~correct[at])) / k)
    return np.mean(risks)


def test_the_area_under_the_risk_coverage_curve(scores):
    logits, labels = scores
    # Equal confidences: every row is there twice, right once and wrong once in some.
    twice, of_twice = np.concatenate([logits, logits]), np.concatenate([labels, labels[::-1]])
    for rows, truth in ((logits, labels), (twice, of_twice), (np.zeros((30, 4)), labels[:30])):
        confidence, correct = softmax(rows.astype(np.float64)).max(axis=1).round(12), rows.argmax(axis=1) == truth
        found = classification_metrics(rows, truth)["aurc"]
        assert found == pytest.approx(area_under_risk_coverage(confidence, correct))
        order = np.random.default_rng(3).permutation(len(truth))
        assert classification_metrics(rows[order], truth[order])["aurc"] == pytest.approx(found)


def test_the_area_is_that_of_chance_for_equal_scores_and_less_for_a_model_that_knows_its_errors():
    labels = np.array([0, 0, 0, 1])
    assert classification_metrics(np.zeros((4, 2)), labels)["aurc"] == pytest.approx(1 / 4)
    knows = np.array([[9.0, 0], [8, 0], [7, 0], [1, 0]])
    assert classification_metrics(knows, labels)["aurc"] == pytest.approx(1 / 16)
    assert classification_metrics(knows[::-1], labels)["aurc"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    # The order of two classes' probabilities is the same at every temperature.
    assert classification_metrics(knows / 3, labels)["aurc"] == pytest.approx(1 / 16)


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


@pytest.mark.filterwarnings("error")
def test_equal_scores_have_no_correlation_but_an_error():
    found = regression_metrics(np.full(4, 2.0), np.array([1.0, 2.0, 3.0, 4.0]))
    assert np.isnan(found["pearson"]) and np.isnan(found["spearman"]) and found["rmse"] == pytest.approx(1.5**0.5)


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


@pytest.mark.parametrize(
    ("direction", "names"),
    [
        (True, "accuracy accuracy_characters_0.1 macro_f1 micro_f1 subset_accuracy lrap pearson spearman"),
        (True, "ood_auroc_softmax ood_auroc_energy dev_accuracy dev_macro_f1 dev_pearson eval_accuracy eval_lrap"),
        (False, "loss nll nll_scaled brier brier_scaled ece adaptive_ece label_ece ece_scaled adaptive_ece_scaled"),
        (False, "aurc aurc_scaled dev_aurc"),
        (False, "label_ece_scaled rmse flips_dropout_0.2 ood_fpr95_softmax ood_fpr95_energy memorised test_loss"),
        (False, "gradient_norm path_loss dev_nll dev_loss eval_nll eval_loss eval_adaptive_ece eval_rmse"),
        (None, "temperature generalisation_gap train_loss uncertain_width steps seconds dev_ eval_runtime"),
    ],
)
def test_direction_of_metrics(direction, names):
    assert {name: higher_is_better(name) for name in names.split()} == dict.fromkeys(names.split(), direction)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("problem_type", "labels"),
    [
        ("single_label_classification", [0] * 7 + [1] * 3),
        ("multi_label_classification", [[0, 1]] * 10),
        ("regression", np.arange(10.0)),
    ],
)
@pytest.mark.parametrize("everywhere", [True, False])
def test_a_model_that_diverged_has_no_metric(problem_type, labels, bad, everywhere):
    logits = np.linspace(-1, 1, 20, dtype=np.float32).reshape(10, 2)[:, : 1 + (problem_type != "regression")].copy()
    logits[slice(None) if everywhere else 3] = bad
    found = compute_metrics_for(problem_type)(EvalPrediction(predictions=logits, label_ids=np.asarray(labels)))
    assert tuple(found) == METRIC_NAMES[problem_type]
    assert all(type(value) is float and math.isnan(value) for value in found.values())


def test_rows_that_transformers_ignores_are_left_out(scores):
    logits, labels = scores
    marked = np.where(np.arange(200) % 3, labels, -100)
    kept = marked != -100
    assert classification_metrics(logits, marked) == classification_metrics(logits[kept], labels[kept])
    diverged = np.where(kept[:, None], logits, np.nan)
    assert classification_metrics(diverged, marked) == classification_metrics(logits[kept], labels[kept])


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
        (regression_metrics, (), ()),
    ],
)
def test_wrong_shapes_are_refused(metrics, scores_shape, labels_shape):
    with pytest.raises(ValueError, match=r"expected .*got shapes"):
        metrics(np.zeros(scores_shape), np.zeros(labels_shape, dtype=int))
