import math

import numpy as np
import pytest
from scipy.special import expit, softmax

from hf_mixup.evaluation import classification_metrics, fit_temperature, multilabel_metrics, scaled_metrics

SINGLE, MULTI = "single_label_classification", "multi_label_classification"


def drawn(problem_type, rows=4000, classes=4):
    """Logits whose probabilities are the true ones, and labels drawn from them."""
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(rows, classes)) * 2
    if problem_type == MULTI:
        return logits, (generator.random((rows, classes)) < expit(logits)).astype(np.float32)
    cumulated = softmax(logits, axis=1).cumsum(axis=1)
    return logits, (generator.random((rows, 1)) > cumulated).sum(axis=1).clip(max=classes - 1)


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_a_known_temperature_is_found(problem_type, temperature):
    logits, labels = drawn(problem_type)
    assert fit_temperature(logits * temperature, labels, problem_type) == pytest.approx(temperature, rel=0.05)


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI])
def test_no_other_temperature_is_better(problem_type):
    logits, labels = drawn(problem_type, rows=200)
    logits = logits * 2.5
    best = fit_temperature(logits, labels, problem_type)
    lowest = scaled_metrics(logits, labels, problem_type, best)["nll_scaled"]
    for other in np.geomspace(0.06, 19, 15):
        assert scaled_metrics(logits, labels, problem_type, other)["nll_scaled"] >= lowest - 1e-9


def test_two_classes_by_hand():
    # Three of four are right at a gap of 4: the best gap is log 3.
    logits = np.array([[4.0, 0.0]] * 4)
    labels = np.array([0, 0, 0, 1])
    assert fit_temperature(logits, labels, SINGLE) == pytest.approx(4 / math.log(3), rel=1e-4)
    found = scaled_metrics(logits, labels, SINGLE, 4 / math.log(3))
    assert found == pytest.approx(
        {
            "nll_scaled": -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)),
            "brier_scaled": 0.75 * 2 * 0.25**2 + 0.25 * 2 * 0.75**2,
            "ece_scaled": 0.0,
            "adaptive_ece_scaled": 0.0,
            "aurc_scaled": 0.25,
        },
        abs=1e-6,
    )


def test_several_labels_by_hand():
    found = scaled_metrics(np.array([[2.0, -2.0]]), np.array([[1, 1]]), MULTI, 2.0)
    high, low = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1))
    assert found == pytest.approx(
        {
            "nll_scaled": -(math.log(high) + math.log(low)) / 2,
            "brier_scaled": ((1 - high) ** 2 + (1 - low) ** 2) / 2,
            "label_ece_scaled": ((1 - high) + (1 - low)) / 2,
        },
        abs=1e-6,
    )


def test_accuracy_and_ranks_stay():
    logits, labels = drawn(SINGLE, rows=300)
    before, after = classification_metrics(logits, labels), classification_metrics(logits / 7.3, labels)
    assert [before[name] for name in ("accuracy", "macro_f1")] == [after[name] for name in ("accuracy", "macro_f1")]
    logits, labels = drawn(MULTI, rows=300)
    before, after = multilabel_metrics(logits, labels), multilabel_metrics(logits / 7.3, labels)
    names = ("micro_f1", "macro_f1", "subset_accuracy", "lrap")
    assert [before[name] for name in names] == [after[name] for name in names]


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI])
def test_temperature_one_changes_nothing(problem_type):
    logits, labels = drawn(problem_type, rows=100)
    metrics = (classification_metrics if problem_type == SINGLE else multilabel_metrics)(logits, labels)
    found = scaled_metrics(logits, labels, problem_type, 1.0)
    assert found == {name: metrics[name.removesuffix("_scaled")] for name in found}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("problem_type", [SINGLE, MULTI])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_model_that_diverged_has_no_temperature(problem_type, bad):
    sound, labels = drawn(problem_type, rows=50)
    lost = sound.copy()
    lost[7, 1] = bad
    temperature = fit_temperature(lost, labels, problem_type)
    assert math.isnan(temperature)
    for logits, divisor in ((sound, temperature), (lost, 2.0), (lost, temperature)):
        found = scaled_metrics(logits, labels, problem_type, divisor)
        assert list(found) == list(scaled_metrics(sound, labels, problem_type, 1.0))
        assert all(math.isnan(value) for value in found.values())


def test_rows_that_transformers_ignores_are_left_out():
    logits, labels = drawn(SINGLE, rows=60)
    marked = np.where(np.arange(60) % 2, labels, -100)
    wanted = fit_temperature(logits[1::2], labels[1::2], SINGLE)
    assert fit_temperature(logits, marked, SINGLE) == pytest.approx(wanted)
    assert scaled_metrics(logits, marked, SINGLE, 2.0) == scaled_metrics(logits[1::2], labels[1::2], SINGLE, 2.0)


def test_the_ends_of_the_range():
    right, wrong = np.array([[5.0, 0.0], [0.0, 5.0]]), np.array([[0.0, 5.0], [5.0, 0.0]])
    labels = np.array([0, 1])
    assert 0.05 <= fit_temperature(right, labels, SINGLE) <= 20
    assert fit_temperature(wrong, labels, SINGLE) == pytest.approx(20.0, rel=1e-3)
    assert fit_temperature(right / 100, labels, SINGLE) == pytest.approx(0.05, rel=1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_temperature(np.zeros(3), np.zeros(3), "regression"), "problem_type='regression': expected one"),
        (lambda: scaled_metrics(np.zeros(3), np.zeros(3), "regression", 1.0), "problem_type='regression'"),
        (lambda: fit_temperature(np.zeros((3, 2)), np.zeros(4, dtype=int), SINGLE), r"got shapes \(3, 2\) and \(4,\)"),
        (lambda: fit_temperature(np.zeros((3, 2)), np.zeros((3, 3)), MULTI), "got shapes"),
        (lambda: fit_temperature(np.zeros((0, 2)), np.zeros(0, dtype=int), SINGLE), "got shapes"),
        (lambda: scaled_metrics(np.zeros((1, 2)), np.zeros(1, dtype=int), SINGLE, 0.0), "temperature=0.0: .*> 0"),
        (
            lambda: fit_temperature(np.zeros((1, 2)), [0], "multi_label_clasification"),
            "Did you mean 'multi_label_classification'",
        ),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
