import evaluate
import numpy as np
import pytest

from hf_mixup.evaluation import classification_metrics, load, multilabel_metrics, regression_metrics
from hf_mixup.evaluation.loading import MODULES

CALIBRATION = ("nll", "brier", "ece", "adaptive_ece", "aurc")


@pytest.fixture
def open_module(tmp_path):
    return lambda name: load(name, cache_dir=str(tmp_path))


@pytest.fixture
def scores():
    generator = np.random.default_rng(0)
    return generator.normal(size=(40, 3)).astype(np.float32), generator.integers(0, 3, 40)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_knows_its_name_and_says_what_it_takes(name, open_module):
    module = open_module(name)
    assert isinstance(module, evaluate.Metric) and module.name == name
    assert "logits" in module.compute.__doc__ or "one score per example" in module.compute.__doc__


def test_calibration(scores, open_module):
    logits, labels = scores
    expected = classification_metrics(logits, labels)
    found = open_module("calibration").compute(predictions=logits, references=labels)
    assert found == pytest.approx({name: expected[name] for name in CALIBRATION})
    assert tuple(found) == CALIBRATION


def test_lists_and_memory(scores):
    logits, labels = scores
    found = load("calibration", keep_in_memory=True).compute(predictions=logits.tolist(), references=labels.tolist())
    assert found["ece"] == pytest.approx(classification_metrics(logits, labels)["ece"])


def test_batches_of_combined_modules_give_all_metrics(scores, open_module):
    logits, labels = scores
    both = evaluate.combine([open_module("classification"), open_module("calibration")])
    for start in range(0, 40, 16):
        both.add_batch(predictions=logits[start : start + 16], references=labels[start : start + 16])
    assert both.compute() == pytest.approx(classification_metrics(logits, labels))


def test_several_labels(scores, open_module):
    logits, _ = scores
    labels = (logits > 0.3).astype(int)
    found = open_module("multilabel").compute(predictions=logits, references=labels)
    assert found == pytest.approx(multilabel_metrics(logits, labels))


def test_regression(scores, open_module):
    logits, _ = scores
    found = open_module("regression").compute(predictions=logits[:, 0], references=logits[:, 1])
    assert found == pytest.approx(regression_metrics(logits[:, 0], logits[:, 1]))


def test_an_unknown_name_names_the_nearest():
    with pytest.raises(ValueError, match="name='calibraton': expected one of .*Did you mean 'calibration'"):
        load("calibraton")
