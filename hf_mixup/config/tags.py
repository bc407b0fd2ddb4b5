"""The names of tags: where in an entity a token is, and the type of the entity. Imports no torch."""

from __future__ import annotations

import re

OUTSIDE_TAG = "O"
# Where in an entity a token is, and which of these begin one; a bare letter is a place too, if there is nothing else.
PLACES, BEGINNINGS, ENDINGS = "BIMESLU", "BSU", "ELSU"
PLACED = re.compile(rf"[{PLACES}]-.")
_PARTS = re.compile(rf"([{PLACES}])(?:[-_](.*))?")


def tag_parts(name: str) -> tuple[str, str]:
    """The place and the type that a tag names: `("B", "person")` of B-person, `("", "noun")` of a tag without a place.

    ```python
    >>> tag_parts("B-person"), tag_parts("I"), tag_parts("noun")
    (('B', 'person'), ('I', ''), ('', 'noun'))
    ```
    """
    found = _PARTS.fullmatch(name)
    return ("", name) if found is None else (found[1], found[2] or "")
