"""CoNLL text: a token and its tags per line, and a blank line between texts."""

from __future__ import annotations

SUFFIXES = (".conll", ".txt", ".tsv")
# The columns that become of it.
TOKENS, TAGS = "tokens", "tags"
DOCUMENT = "-DOCSTART-"


def read_conll(text: str) -> dict[str, list[list[str]]]:
    """The texts of a CoNLL file.

    Args:
        text (`str`): the whole file. A line has the token first and the tag last, with a tab between them, or, without
            any tab, blanks; what is between is left out. Lines that begin with `-DOCSTART-` are left out as well.

    Returns:
        `dict[str, list[list[str]]]`: a list of `tokens` and of `tags` for each text.

    Raises:
        ValueError: for a line without a tag, with its number.
    """
    texts: list[list[list[str]]] = []
    is_open = False
    # Only a line feed ends a line: tokens may hold other separators.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip() or line.startswith(DOCUMENT):
            is_open = False
            continue
        cells = line.split("\t") if "\t" in line else line.rstrip(" \r").split(" ")
        token, tag = cells[0].strip(" "), cells[-1].strip()
        if len(cells) < 2 or not token or not tag:
            raise ValueError(f"line {number} holds {line.rstrip()!r}; expected a token, a tab or a blank, and a tag.")
        if not is_open:
            texts.append([])
            is_open = True
        texts[-1].append([token, tag])
    return {name: [[pair[place] for pair in rows] for rows in texts] for place, name in enumerate((TOKENS, TAGS))}
