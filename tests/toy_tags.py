"""Toy texts with a tag per token, for tests of `task: tokens`."""

from tests.toy_text import BAD, GOOD, reviews

NAMES = ["B-bad", "B-good", "I-bad", "I-good", "O"]
KINDS = {"good": GOOD, "bad": BAD}
TAGS = {word: f"{'BBII'[place]}-{kind}" for kind, words in KINDS.items() for place, word in enumerate(words)}


def tagged(count, seed=0):
    """Pairs of lists (tokens, tags) of 4 to 6 words; the word alone decides its tag."""
    for number, (text, _) in enumerate(reviews(count, seed)):
        words = text.split()[number % 3 :]
        yield words, [TAGS.get(word, "O") for word in words]


def write_conll(path, rows, between="\t"):
    """A CoNLL file of pairs of lists; returns the path as a string."""
    texts = ["".join(f"{word}{between}{tag}\n" for word, tag in zip(*row, strict=True)) for row in rows]
    path.write_text("\n".join(texts), encoding="utf-8")
    return str(path)
