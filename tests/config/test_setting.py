"""Every field of `MixupConfig` is declared whole, and what it asks of other fields is refused otherwise."""

import re
from dataclasses import fields
from textwrap import dedent

import pytest

from hf_mixup import MixupConfig
from hf_mixup.cli.mixup_help import mixup_help
from hf_mixup.config.mixup_config import SPANS
from tests.plain_config import CHOICES

GROUPS = ["who is mixed with whom", "how much", "where in the network", "how two become one", "what label follows"]
GROUPS.append("what texts without labels add")
# A value of each field with a condition that is not its default, if the condition does not name one.
OTHER = {
    "self_pairs": False,
    "memory": 8,
    "bandwidth": 0.5,
    "same_label_prob": 0.25,
    "group": "domain",
    "alpha": 0.5,
    "beta": 3.0,
    "lam": 0.25,
    "neighbors": 2,
    "near_prob": 0.25,
    "similarity": 2.0,
    "similarity_width": 0.25,
    "mode": "batch",
    "ramp": "step",
    "layers": [1],
    "add_noise": 0.5,
    "mult_noise": 0.5,
    "kappa": 2.0,
    "tau": 0.25,
    "class_counts": [1.0, 2.0],
    "check_rows": 64,
}
KNOWN = {field.name: field for field in fields(MixupConfig)}
CASES = [
    (name, value, condition)
    for name, field in KNOWN.items()
    for condition in field.metadata["conditions"]
    for value in condition.only or [OTHER[name]]
]


def other_values(condition):
    """Values of the other field that break the condition, and those that meet it."""
    if not condition.values:
        unset, is_set = KNOWN[condition.other].default, {"schedule": {0: 1.0}}.get(condition.other, 0.5)
        return ([unset], [is_set]) if condition.wanted else ([is_set], [unset])
    words = {**CHOICES, "strength": ("auto", 0.5)}[condition.other]
    rest = [word for word in words if word not in condition.values]
    return (rest, condition.values) if condition.wanted else (condition.values, rest)


def refusal(values):
    """What is said about `values`."""
    try:
        MixupConfig(**values)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("name", "value", "condition"), CASES)
def test_each_condition_refuses_what_breaks_it_and_nothing_else(name, value, condition):
    broken, met = other_values(condition)
    # What other conditions ask for.
    needs_input = value in SPANS and condition.other != "site"
    beside = {"clean_weight": 0.5} | ({"site": "input"} if needs_input else {})
    about = re.compile(rf"^{name}={re.escape(repr(value))}(:| needs| not).*\b{condition.other}\b")
    for other in broken:
        assert about.match(refusal(beside | at_site(other) | {name: value, condition.other: other})), other
    for other in met:
        assert not about.match(refusal(beside | at_site(other) | {name: value, condition.other: other})), other


def at_site(partner):
    return {"site": "pooled"} if partner == "same_text" else {}


@pytest.mark.parametrize("field", fields(MixupConfig), ids=lambda field: field.name)
def test_every_field_is_declared_whole(field):
    assert field.metadata["group"] in GROUPS and len(field.metadata["help"]) > 10
    assert all(re.search(rf"\b{word}\b", field.metadata["help"]) for word in CHOICES.get(field.name, ()))
    with pytest.raises(ValueError, match=field.name):
        field.metadata["check"](field.name, [{}])
    assert getattr(MixupConfig(), field.name) == field.metadata["check"](field.name, field.default)


def test_the_help_has_a_heading_for_each_group_and_says_what_a_field_needs():
    printed = mixup_help()
    places = [printed.index(f"\n{group}:\n") for group in GROUPS]
    assert places == sorted(places)
    assert places[2] < printed.index("  layers ") < places[3] < printed.index("  add_noise ") < places[4]
    assert "Only with partner near_label or near_length. Default: 1.0." in " ".join(printed.split())


def test_the_docstring_says_under_its_question_what_a_field_means():
    said = " ".join(MixupConfig.__doc__.split())
    parts = re.split("|".join(rf"\b{group.capitalize()}:" for group in GROUPS), said.partition("Raises:")[0])[1:]
    assert len(parts) == len(GROUPS)
    for field in fields(MixupConfig):
        part = parts[GROUPS.index(field.metadata["group"])]
        assert f" {field.name} (`" in part and " ".join(field.metadata["help"].split()) in part
    assert "layers (`list[int | str] | None`, defaults to `('7/12', '9/12', '12/12')`)" in parts[2]
    assert "lam (`float`, *optional*): A fixed lambda;" in parts[1]


def test_the_example_of_the_docstring_is_a_config():
    code = dedent(MixupConfig.__doc__.split("```python\n")[1].split("```")[0])
    names = {"MixupConfig": MixupConfig}
    exec(code, names)
    assert names["config"] == MixupConfig(layers=[2, 3, 4], alpha=0.4)
