"""The names of tags, taken apart."""

import pytest

from hf_mixup.config.tags import PLACED, tag_parts


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("B-person", ("B", "person")),
        ("I-work-of-art", ("I", "work-of-art")),
        ("U_loc", ("U", "loc")),
        ("E", ("E", "")),
        ("O", ("", "O")),
        ("NOUN", ("", "NOUN")),
        ("Ident", ("", "Ident")),
    ],
)
def test_the_place_and_the_type(name, parts):
    assert tag_parts(name) == parts
    assert bool(PLACED.match(name)) == ("-" in name)
