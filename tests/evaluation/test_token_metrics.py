"""Metrics of tokens against seqeval called directly, slow loops, and the metrics of texts."""

import math
import warnings

import numpy as np
import pytest
from seqeval.metrics import f1_score, precision_score, recall_score
from sklearn.metrics import f1_score as tag_f1
from transformers import EvalPrediction

from hf_mixup.evaluation import (
    classification_metrics,
    compute_metrics_for,
    fit_temperature,
    scaled_metrics,
    token_metrics,
)
from hf_mixup.evaluation.calibration import binary_ece
from hf_mixup.training.metric_names import METRIC_NAMES, TAG_METRICS, check_metric_name, has_entities

BIO = ["B-loc", "B-per", "I-loc", "I-per", "O"]
IOBES = [f"{place}-{kind}" for place in "BIES" for kind in ("loc", "per")] + ["O"]
POS = ["ADJ", "NOUN", "VERB"]


def scores(names, texts=40, length=12, sharpness=2.0, seed=0):
    """Logits and labels of texts of several lengths: the first and the last token, and some between, have no label."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, len(names), (texts, length))
    logits = generator.normal(size=(texts, length, len(names)))
    logits += sharpness * (np.eye(len(names))[labels]) * (generator.random((texts, length, 1)) < 0.8)
    labels[generator.random(labels.shape) < 0.2] = -100
    labels[:, 0] = labels[np.arange(length) >= generator.integers(3, length, (texts, 1))] = -100
    labels[:, 1] = generator.integers(0, len(names), texts)
    # What Trainer pads logits with.
    logits[labels == -100] = -100
    return logits.astype(np.float32), labels


def rows_of(classes, labels, names):
    """What run_ner.py gives to seqeval."""
    return [
        [names[index] for index, label in zip(row, kept, strict=True) if label != -100]
        for row, kept in zip(classes, labels, strict=True)
    ]


@pytest.mark.parametrize("names", [BIO, IOBES, ["B", "I", "O"], ["I-a", "I-b", "O"]])
@pytest.mark.parametrize("sharpness", [0.0, 2.0, 9.0])
def test_entities_are_those_of_seqeval(names, sharpness):
    logits, labels = scores(names, sharpness=sharpness)
    truth, said = (rows_of(classes, labels, names) for classes in (labels, logits.argmax(-1)))
    found = token_metrics(logits, labels, names)
    for name, score in {"f1": f1_score, "precision": precision_score, "recall": recall_score}.items():
        assert found[name] == pytest.approx(score(truth, said)), name
    assert tuple(found) == METRIC_NAMES["token_classification"]
    assert all(type(value) is float for value in found.values())


@pytest.mark.parametrize(("scheme", "places"), [("BILOU", {"E": "L", "S": "U"}), ("BMES", {"I": "M"}), ("IOBES", {})])
def test_schemes_with_other_letters_count_as_iobes(scheme, places):
    logits, labels = scores(IOBES)
    names = [places.get(name[0], name[0]) + name[1:] for name in IOBES]
    assert token_metrics(logits, labels, names) == token_metrics(logits, labels, IOBES)


def spans_by_hand(tags):
    """The entities of IOB2 tags of one text, read slowly; an I- without its B- begins one, as conlleval reads it."""
    spans, start = [], None
    for place, tag in enumerate([*tags, "O"]):
        goes_on = start is not None and tag.startswith("I-") and tag[2:] == tags[start][2:]
        if start is not None and not goes_on:
            spans.append((tags[start][2:], start, place - 1))
            start = None
        if start is None and tag != "O":
            start = place
    return spans


def test_the_calibration_of_entities_by_hand():
    logits, labels = scores(BIO)
    exponentials = np.exp(logits.astype(np.float64))
    probabilities = exponentials / exponentials.sum(-1, keepdims=True)
    certainty, correct = [], []
    for text in range(len(labels)):
        kept = labels[text] != -100
        tags = [BIO[index] for index in labels[text][kept]]
        said = [BIO[index] for index in logits[text][kept].argmax(-1)]
        highest = probabilities[text][kept].max(-1)
        for kind, first, last in spans_by_hand(said):
            certainty.append(math.prod(highest[first : last + 1]))
            correct.append((kind, first, last) in spans_by_hand(tags))
    assert len(certainty) > 100 and 0 < sum(correct) < len(correct)
    certainty, correct = np.array(certainty), np.array(correct, dtype=int)
    found = token_metrics(logits, labels, BIO)["entity_ece"]
    assert found == pytest.approx(binary_ece(certainty, correct))
    edges = np.minimum((certainty * 15).astype(int), 14)
    by_bin = [abs((certainty - correct)[edges == number].sum()) for number in range(15)]
    assert found == pytest.approx(sum(by_bin) / len(certainty), abs=1e-6)


def test_tokens_are_measured_as_texts_are():
    logits, labels = scores(BIO)
    kept = labels != -100
    of_texts, found = classification_metrics(logits[kept], labels[kept]), token_metrics(logits, labels, BIO)
    assert {name: found[name] for name in ("accuracy", "nll", "brier", "ece")} == {
        name: of_texts[name] for name in ("accuracy", "nll", "brier", "ece")
    }


def test_what_is_padded_changes_nothing():
    logits, labels = scores(BIO)
    wide = np.full((40, 20, 5), np.nan, dtype=np.float32)
    wide[:, 4:16], none = logits, np.full((40, 20), -100)
    none[:, 4:16] = labels
    assert token_metrics(wide, none, BIO) == token_metrics(logits, labels, BIO)


def test_an_entity_ends_with_its_text():
    # Two texts of one token each: B-loc, and I-loc of the same type.
    logits = np.eye(5)[[[0], [2]]] * 5
    assert token_metrics(logits, np.array([[0], [2]]), BIO)["f1"] == 1
    joined = token_metrics(logits.reshape(1, 2, 5), np.array([[0, 2]]), BIO)
    assert joined["entity_ece"] > token_metrics(logits, np.array([[0], [2]]), BIO)["entity_ece"] > 0


def test_tags_without_entities_have_a_macro_f1():
    logits, labels = scores(POS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = token_metrics(logits, labels, POS)
    assert tuple(found) == TAG_METRICS
    kept = labels != -100
    assert found["macro_f1"] == pytest.approx(tag_f1(labels[kept], logits[kept].argmax(-1), average="macro"))


@pytest.mark.filterwarnings("error")
def test_a_tag_of_another_form_is_outside():
    names = [*BIO[:4], "X"]
    logits, labels = scores(BIO)
    assert token_metrics(logits, labels, names) == token_metrics(logits, labels, BIO)


@pytest.mark.filterwarnings("error")
def test_without_any_entity():
    labels = np.full((2, 3), 4)
    found = token_metrics(np.eye(5)[labels], labels, BIO)
    assert found["f1"] == found["precision"] == found["recall"] == 0 and found["accuracy"] == 1
    assert math.isnan(found["entity_ece"])


@pytest.mark.parametrize("names", [BIO, ["A", "B", "C", "D", "E"]])
def test_a_model_that_diverged_has_no_metric(names):
    logits, labels = scores(BIO)
    logits[3, 1] = np.nan
    found = token_metrics(logits, labels, names)
    assert all(math.isnan(value) for value in found.values())
    assert tuple(found) == tuple(token_metrics(*scores(BIO), names))


@pytest.mark.parametrize(
    ("names", "marks"),
    [
        (["B-x", "O"], True),
        (["U-x", "L-x"], True),
        (["B", "I", "O"], True),
        (["B", "I", "E", "S", "O"], True),
        (POS, False),
        (["I", "O", "S"], False),
        (["B", "I", "NOUN"], False),
        (["X-y"], False),
        (["B-"], False),
    ],
)
def test_which_tags_mark_entities(names, marks):
    assert has_entities(names) is marks


def test_wrong_shapes_and_names_are_refused():
    logits, labels = scores(BIO)
    for wrong in [(logits[0], labels[0]), (logits, labels[:, 1:]), (logits[:0], labels[:0])]:
        with pytest.raises(ValueError, match=r"logits \(examples, length, classes\), labels \(examples, length\)"):
            token_metrics(*wrong, BIO)
    with pytest.raises(ValueError, match="label_names: 4 names; expected one for each of the 5 classes"):
        token_metrics(logits, labels, BIO[:4])
    with pytest.raises(ValueError, match="-100 for every token"):
        token_metrics(logits, np.full_like(labels, -100), BIO)
    with pytest.raises(ValueError, match="labels: 7 in row"):
        token_metrics(logits, np.where(labels == 3, 7, labels), BIO)
    with pytest.raises(ValueError, match="label_names: needed with token_classification"):
        compute_metrics_for("token_classification")


def test_the_metrics_of_a_trainer():
    logits, labels = scores(BIO)
    found = compute_metrics_for("token_classification", BIO)(
        EvalPrediction(predictions=(logits, "more"), label_ids=labels)
    )
    assert found == token_metrics(logits, labels, BIO)


def test_a_metric_that_the_tags_do_not_have_is_refused():
    check_metric_name("token_classification", "eval_f1", label_names=BIO)
    check_metric_name("token_classification", "macro_f1", label_names=POS)
    with pytest.raises(ValueError, match="no such metric of token classification.*Metrics: loss, accuracy, macro_f1"):
        check_metric_name("token_classification", "f1", label_names=POS)


def test_one_temperature_for_all_tokens():
    logits, labels = scores(BIO, sharpness=1.0)
    kept = labels != -100
    temperature = fit_temperature(logits * 3, labels, "token_classification")
    assert temperature == fit_temperature(logits[kept] * 3, labels[kept], "single_label_classification") > 1
    scaled = scaled_metrics(logits * 3, labels, "token_classification", temperature, BIO)
    whole = token_metrics(logits.astype(np.float64) * 3 / temperature, labels, BIO)
    assert set(scaled) == {"nll_scaled", "brier_scaled", "ece_scaled", "entity_ece_scaled"}
    assert all(value == pytest.approx(whole[name.removesuffix("_scaled")], abs=1e-6) for name, value in scaled.items())
    assert scaled["nll_scaled"] < token_metrics(logits * 3, labels, BIO)["nll"]
