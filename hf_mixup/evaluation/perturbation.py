"""Texts with small faults, to see whether predictions stand: typing errors, missing words, words out of place."""

from __future__ import annotations

import hashlib
import math
import re
import string
from collections.abc import Callable, Sequence

import numpy as np

from hf_mixup.config.checks import choice, count, number
from hf_mixup.evaluation.predictions import diverged


def _characters(text: str, strength: float, generator: np.random.Generator) -> str:
    hits, edits = generator.random(len(text)) < strength, generator.integers(4, size=len(text))
    letters = generator.choice(list(string.ascii_lowercase), size=len(text))
    pieces = list(text)
    for place in np.flatnonzero(hits).tolist():
        if not text[place].isalpha():
            continue
        if edits[place] == 0:
            beside = _neighbour(text, place)
            pieces[place], pieces[beside] = pieces[beside], pieces[place]
        elif edits[place] == 1:
            pieces[place] = ""
        elif edits[place] == 2:
            pieces[place] *= 2
        else:
            pieces[place] = letters[place]
    perturbed = "".join(pieces)
    return perturbed if perturbed.strip() else text


def _neighbour(text: str, place: int) -> int:
    """The letter to the right, else to the left, else the letter itself."""
    beside = (place + 1, place - 1)
    return next((other for other in beside if 0 <= other < len(text) and text[other].isalpha()), place)


def _dropout(text: str, strength: float, generator: np.random.Generator) -> str:
    words = text.split()
    draws = generator.random(len(words))
    if not (draws < strength).any():
        return text
    kept = [word for word, draw in zip(words, draws, strict=True) if draw >= min(strength, draws.max())]
    return " ".join(kept)


def _swaps(text: str, strength: float, generator: np.random.Generator) -> str:
    # Words stand at odd places, between them the white space as it was.
    pieces = re.split(r"(\S+)", text)
    places = range(1, len(pieces), 2)
    hits = generator.random(len(places)) < strength
    moved = -1
    for place, hit in zip(places[:-1], hits[:-1], strict=True):
        if hit and place != moved:
            moved = place + 2
            pieces[place], pieces[moved] = pieces[moved], pieces[place]
    return "".join(pieces)


PERTURBATIONS: dict[str, Callable[[str, float, np.random.Generator], str]] = {
    "characters": _characters,
    "dropout": _dropout,
    "swaps": _swaps,
}


def perturb(texts: Sequence[str], kind: str, strength: float, seed: int) -> list[str]:
    """Texts with random faults, drawn for each text from `seed` and the text alone: the other texts do not matter.

    ```python
    >>> perturb(["a good film"], "swaps", 1.0, seed=0)
    ['good a film']
    ```

    Args:
        texts (`Sequence[str]`): what to perturb.
        kind (`str`): `"characters"`: a letter changes places with its neighbour in the word, is deleted, is doubled,
            or becomes a random letter from a to z; `"dropout"`: a word is left out; `"swaps"`: a word changes places
            with the next one, unless it has just been moved.
        strength (`float`): the probability of that for each letter or word, 0 (no change) to 1.
        seed (`int`): another seed, other faults; 0 or more.

    Returns:
        `list[str]`: as many texts, in the same order; none becomes empty.

    Raises:
        ValueError: for another kind, a strength or a seed out of range, or one text in place of a list.
    """
    if isinstance(texts, str):
        raise ValueError(f"texts={texts!r}: expected a list of texts.")
    perturbation = PERTURBATIONS[choice(*PERTURBATIONS)("kind", kind)]
    strength = number(0.0, 1.0)("strength", strength)
    count(0)("seed", seed)
    return [perturbation(text, strength, _generator(text, seed)) for text in texts]


def _generator(text: str, seed: int) -> np.random.Generator:
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "big")])


def flips(
    clean_logits: np.ndarray, perturbed_logits: np.ndarray, problem_type: str = "single_label_classification"
) -> float:
    """Share of the predictions that a perturbation changed.

    ```python
    >>> flips(np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([[1.0, 0.0], [2.0, 1.0]]))
    0.5
    ```

    Args:
        clean_logits (`np.ndarray`): scores before softmax or sigmoid, shape (examples, classes).
        perturbed_logits (`np.ndarray`): those of the same examples, perturbed; same shape.
        problem_type (`str`, defaults to `"single_label_classification"`): for `"multi_label_classification"` a
            prediction is the set of labels whose probability exceeds one half.

    Returns:
        `float`: 0 to 1; nan if a logit of either side is not finite.

    Raises:
        ValueError: for another problem type, shapes that differ, or no examples.
    """
    choice("single_label_classification", "multi_label_classification")("problem_type", problem_type)
    clean, perturbed = np.asarray(clean_logits), np.asarray(perturbed_logits)
    if clean.ndim != 2 or clean.shape != perturbed.shape or not len(clean):
        raise ValueError(f"expected logits (examples, classes) twice; got shapes {clean.shape} and {perturbed.shape}.")
    if diverged(clean) or diverged(perturbed):
        return math.nan
    if problem_type == "multi_label_classification":
        return float(((clean > 0) != (perturbed > 0)).any(axis=1).mean())
    return float((clean.argmax(axis=1) != perturbed.argmax(axis=1)).mean())
