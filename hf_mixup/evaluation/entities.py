"""Metrics of entities: spans of tokens whose tags say where they begin and of which type they are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from seqeval.metrics.sequence_labeling import get_entities

from hf_mixup.config.tags import PLACES
from hf_mixup.evaluation.calibration import binary_ece

# seqeval reads B, I, E and S.
READ_AS = {place: place for place in PLACES} | {"M": "I", "L": "E", "U": "S"}


def entity_metrics(
    probabilities: np.ndarray, labels: np.ndarray, texts: np.ndarray, label_names: Sequence[str]
) -> dict[str, float]:
    """Precision, recall and F1 of the predicted entities, and the calibration error of their probabilities.

    An entity is right if its type, its first and its last token are. The probability that a tagger gives to one is the
    product of those of its tokens' tags, as it draws each for itself. Kuleshov and Liang 2015 measure the calibration
    of such events, Jagannatha and Yu 2020 that of entities.

    Args:
        probabilities (`np.ndarray`): of the tags, shape (tokens, classes).
        labels (`np.ndarray`): class indices, shape (tokens,).
        texts (`np.ndarray`): the number of the text that a token is of, shape (tokens,), in ascending order.
        label_names (`Sequence[str]`): the tags in the order of their indices: `B-`, `I-` and the type, or in IOBES,
            BILOU or BMES. A tag of another form is outside of entities.

    Returns:
        `dict[str, float]`: `f1`, `precision` and `recall` over all entities, as seqeval and conlleval count them (0 if
        there are none), and `entity_ece`, over 15 equal-width bins; nan if no entity is predicted.
    """
    starts = _starts(texts)
    gold, found = (_entities(classes, starts, label_names) for classes in (labels, probabilities.argmax(1)))
    right, confidence = len(gold & found), np.insert(probabilities.max(1), starts, 1.0)
    entities = sorted(found)
    certainty = np.array([confidence[first : last + 1].prod() for _, first, last in entities])
    correct = np.array([int(entity in gold) for entity in entities])
    return {
        "f1": 2 * right / max(len(gold) + len(found), 1),
        "precision": right / max(len(found), 1),
        "recall": right / max(len(gold), 1),
        "entity_ece": binary_ece(certainty, correct) if entities else math.nan,
    }


def entity_counts(
    predicted: np.ndarray, labels: np.ndarray, texts: np.ndarray, label_names: Sequence[str]
) -> np.ndarray:
    """What the F1 of entities is made of, text by text.

    Args:
        predicted (`np.ndarray`): class indices, shape (tokens,).
        labels, texts (`np.ndarray`), label_names (`Sequence[str]`): as in `entity_metrics`.

    Returns:
        `np.ndarray`: shape (2, texts): twice how many entities are right, and how many are predicted or in the labels.
            F1 is the sum of the first by that of the second.
    """
    starts = _starts(texts)
    gold, found = (_entities(classes, starts, label_names) for classes in (labels, predicted))
    places = np.insert(texts, starts, -1)
    at = [[places[first] for _, first, _ in entities] for entities in (gold & found, gold, found)]
    right, *named = (np.bincount(np.array(some, dtype=int), minlength=texts[-1] + 1) for some in at)
    return np.stack([2 * right, sum(named)])


def _starts(texts: np.ndarray) -> np.ndarray:
    """The first token of each text but the first."""
    return np.flatnonzero(np.diff(texts)) + 1


def _entities(classes: np.ndarray, starts: np.ndarray, label_names: Sequence[str]) -> set[tuple[str, int, int]]:
    """Type, first and last place of each entity; a place outside of entities is put before each of `starts`."""
    tags = [*map(_read_as, label_names), "O"]
    # No entity crosses from one text to the next.
    return set(get_entities([tags[index] for index in np.insert(classes, starts, len(label_names))]))


def _read_as(tag: str) -> str:
    place, dash, kind = tag.partition("-")
    return f"{READ_AS[place]}{dash}{kind}" if place in READ_AS else "O"
