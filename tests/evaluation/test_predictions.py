"""What metrics refuse, and what counts as diverged."""

import numpy as np
import pytest
import torch

from hf_mixup.evaluation import (
    classification_metrics,
    diverged,
    fit_temperature,
    multilabel_metrics,
    regression_metrics,
    reliability,
)

SINGLE, MULTI = "single_label_classification", "multi_label_classification"


def fit_single(logits, labels):
    return fit_temperature(logits, labels, SINGLE)


def fit_multi(logits, labels):
    return fit_temperature(logits, labels, MULTI)


@pytest.mark.parametrize("measure", [classification_metrics, reliability, fit_single])
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 2, 3, 7], "labels: 3 in row 2; expected 0 to 2, or -100 to leave it out"),
        ([0, -1, 1, 1], "labels: -1 in row 1; expected 0 to 2"),
        ([0, 1, 2, 0.5], "labels: 0.5 in row 3; expected 0 to 2"),
        ([0, 1, np.nan, 0], "labels: nan in row 2"),
        ([-100] * 4, "labels: -100 in every row; expected at least one example"),
    ],
)
def test_labels_that_are_no_class_are_refused(measure, labels, message):
    with pytest.raises(ValueError, match=message):
        measure(np.zeros((4, 3)), np.array(labels))


@pytest.mark.parametrize("measure", [multilabel_metrics, fit_multi])
@pytest.mark.parametrize("label", [2, -100, 0.5, np.nan])
def test_labels_of_several_are_0_or_1(measure, label):
    with pytest.raises(ValueError, match=f"labels: {float(label)} in row 1; expected 0 or 1"):
        measure(np.zeros((2, 3)), np.array([[0, 1, 1], [1, label, 7]]))


@pytest.mark.parametrize("label", [np.nan, np.inf, -np.inf])
def test_scores_to_be_learnt_are_finite(label):
    with pytest.raises(ValueError, match=f"labels: {label} in row 2; expected a finite number"):
        regression_metrics(np.zeros((4, 1)), np.array([1.0, 2.0, label, np.nan]))


def test_class_indices_may_be_floats_that_are_whole():
    logits, labels = np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([0, 1])
    assert classification_metrics(logits, labels.astype(float)) == classification_metrics(logits, labels)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_number_tells(bad):
    logits = np.zeros((5, 3))
    assert not diverged(logits) and not diverged(torch.tensor(logits))
    logits[4, 1] = bad
    assert diverged(logits) and diverged(logits.astype(np.float16)) and diverged(torch.tensor(logits))
