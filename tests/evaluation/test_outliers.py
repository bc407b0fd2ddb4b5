import numpy as np
import pytest

from hf_mixup.evaluation import outlier_metrics


def area(inside, outside):
    """The probability that an example of the task scores above another; a tie counts one half."""
    pairs = [(a > b) + (a == b) / 2 for a in inside for b in outside]
    return sum(pairs) / len(pairs)


def fpr95(inside, outside):
    """The smallest share of others that a threshold lets in, among those which keep 95 % of the task's."""
    thresholds = [t for t in inside if (inside >= t).mean() >= 0.95]
    return min((outside >= t).mean() for t in thresholds)


@pytest.mark.parametrize("tied", [False, True])
def test_against_the_definitions(tied):
    generator = np.random.default_rng(3)
    inside, outside = generator.normal(size=(60, 3)) * 3, generator.normal(size=(45, 3)) * 2
    if tied:
        outside[:25] = inside[:25]
    found = outlier_metrics(inside, outside)
    scores = {
        "softmax": lambda logits: (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).max(axis=1).round(12),
        "energy": lambda logits: np.log(np.exp(logits).sum(axis=1)).round(12),
    }
    for name, score in scores.items():
        assert found[f"ood_auroc_{name}"] == pytest.approx(area(score(inside), score(outside)))
        assert found[f"ood_fpr95_{name}"] == pytest.approx(fpr95(score(inside), score(outside)))
    assert sorted(found) == ["ood_auroc_energy", "ood_auroc_softmax", "ood_fpr95_energy", "ood_fpr95_softmax"]
    assert all(type(value) is float for value in found.values())


def test_softmax_and_energy_are_not_the_same():
    # As sure in both, but the size of the logits tells them apart.
    inside, outside = np.array([[10.0, 8.0]] * 4), np.array([[2.0, 0.0]] * 4)
    found = outlier_metrics(inside, outside)
    assert (found["ood_auroc_softmax"], found["ood_fpr95_softmax"]) == (0.5, 1.0)
    assert (found["ood_auroc_energy"], found["ood_fpr95_energy"]) == (1.0, 0.0)


def test_examples_of_the_task_are_the_positive_class():
    inside, outside = np.array([[5.0, 0.0], [4.0, 0.0]]), np.array([[0.5, 0.0], [0.1, 0.0]])
    assert outlier_metrics(inside, outside)["ood_auroc_softmax"] == 1.0
    assert outlier_metrics(outside, inside)["ood_auroc_softmax"] == 0.0
    assert outlier_metrics(outside, inside)["ood_fpr95_softmax"] == 1.0


def test_one_of_twenty_may_be_missed():
    # At the threshold that misses the lowest of twenty, one of four others passes; one that keeps all lets in all.
    inside = np.array([[0.0, 0.0]] + [[5.0 + number, 0.0] for number in range(19)])
    outside = np.array([[0.5, 0.0], [0.6, 0.0], [0.7, 0.0], [9.5, 0.0]])
    assert outlier_metrics(inside, outside)["ood_fpr95_softmax"] == 0.25
    assert outlier_metrics(inside[:19], outside)["ood_fpr95_softmax"] == 1.0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_model_that_diverged_tells_nothing_apart(bad):
    sound, lost = np.eye(4, 2), np.eye(4, 2)
    lost[3, 0] = bad
    names = list(outlier_metrics(sound, sound))
    for inside, outside in ((lost, sound), (sound, lost), (lost, lost)):
        found = outlier_metrics(inside, outside)
        assert list(found) == names and all(np.isnan(value) for value in found.values())


@pytest.mark.parametrize(("inside", "outside"), [((0, 2), (3, 2)), ((3, 2), (0, 2)), ((3, 2), (3, 4)), ((3,), (3,))])
def test_what_is_refused(inside, outside):
    with pytest.raises(ValueError, match="expected logits .*got shapes"):
        outlier_metrics(np.zeros(inside), np.zeros(outside))
