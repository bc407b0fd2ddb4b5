import evaluate
import numpy as np
import pytest

from hf_mixup.evaluation import classification_metrics, load, multilabel_metrics, regression_metrics
from hf_mixup.evaluation.loading import FOLDER, MODULES

CALIBRATION = ("nll", "brier", "ece", "adaptive_ece")


@pytest.fixture
def open_module(tmp_path):
    return lambda name: load(name, cache_dir=str(tmp_path))


@pytest.fixture
def scores():
    generator = np.random.default_rng(0)
    return generator.normal(size=(40, 3)).astype(np.float32), generator.integers(0, 3, 40)


def test_every_folder_is_a_module():
    assert sorted(path.name for path in FOLDER.iterdir() if path.name != "__pycache__") == sorted(MODULES)
    for name in MODULES:
        assert (FOLDER / name / f"{name}.py").is_file()
        assert isinstance(load(name), evaluate.Metric)


def test_calibration_from_its_path(scores, tmp_path):
    logits, labels = scores
    module = evaluate.load(str(FOLDER / "calibration"), cache_dir=str(tmp_path))
    expected = classification_metrics(logits, labels)
    found = module.compute(predictions=logits, references=labels)
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
