"""A field of a config, declared once: its group, default, check, help, and the conditions on other fields."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, fields
from inspect import cleandoc
from itertools import groupby
from textwrap import fill
from typing import Any, TypeVar

from hf_mixup.config.checks import Check

Config = TypeVar("Config")


def setting(group: str, default: Any, check: Check, help: str, *conditions: Condition) -> Any:
    """A field of a dataclass whose `__post_init__` is `check_settings`.

    Args:
        group (`str`): the heading that it stands under.
        default (`Any`): what holds if nothing is said; a tuple for a list.
        check (`Check`): what a value has to be.
        help (`str`): what it means.
        *conditions (`Condition`): what a value other than the default asks of other fields.
    """
    return field(default=default, metadata={"group": group, "check": check, "help": help, "conditions": conditions})


def needs(other: str, *values: Any, only: tuple[Any, ...] = (), why: str = "") -> Condition:
    """The field means nothing unless `other` has one of `values`, or is set at all; `only` for these values of it."""
    return Condition(other, values, True, only, why)


def not_with(other: str, *values: Any, only: tuple[Any, ...] = (), why: str = "") -> Condition:
    """The field cannot be if `other` has one of `values`, or is set at all; `only` for these values of it."""
    return Condition(other, values, False, only, why)


def check_settings(config: Any) -> None:
    """Check every field by itself, then what it asks of others.

    Raises:
        ValueError: for a value that cannot work; the message begins with `field=value`.
    """
    for known in fields(config):
        setattr(config, known.name, known.metadata["check"](known.name, getattr(config, known.name)))
    for known in fields(config):
        value, default = getattr(config, known.name), known.metadata["check"](known.name, known.default)
        if value is not None and value != default:
            for condition in known.metadata["conditions"]:
                condition.check(config, known.name, value)


def document_fields(kind: type[Config]) -> type[Config]:
    """Put every field into the docstring of a dataclass, before what it raises: a section for each group."""
    start, raises, errors = cleandoc(kind.__doc__ or "").partition("Raises:")
    types = {known.name: str(known.type) for known in fields(kind)}  # type: ignore[arg-type]
    lines = []
    for group, members in help_by_group(kind):
        lines.append(f"{group.capitalize()}:")
        for name, text, default in members:
            said = f"`{types[name]}`, defaults to `{default!r}`"
            if default is None:
                said = f"`{types[name].removesuffix(' | None')}`, *optional*"
            entry = f"{name} ({said}): {text}"
            lines.append(fill(entry, 116, initial_indent=" " * 4, subsequent_indent=" " * 8, break_on_hyphens=False))
        lines.append("")
    kind.__doc__ = "\n".join([start.rstrip(), "", *lines, raises + errors])
    return kind


def takes_none(kind: type[Any], name: str) -> bool:
    """Whether a field of a dataclass may be `None`."""
    (known,) = (known for known in fields(kind) if known.name == name)
    with suppress(ValueError):
        return known.metadata["check"](name, None) is None
    return False


def fields_in_use(config: Any) -> dict[str, Any]:
    """The values of the fields that the others do not leave without meaning."""
    values = {known.name: (getattr(config, known.name), known.metadata["conditions"]) for known in fields(config)}
    return {name: value for name, (value, asked) in values.items() if all(one.holds(config, value) for one in asked)}


def changed_fields(before: Any, now: Any) -> list[str]:
    """The fields in which two configs differ, of those that mean something in one of them."""
    names = dict.fromkeys([*fields_in_use(before), *fields_in_use(now)])
    return [name for name in names if getattr(before, name) != getattr(now, name)]


def help_by_group(config: Any) -> Iterator[tuple[str, list[tuple[str, str, Any]]]]:
    """Each group, with name, help and value of its fields, in the order in which they are declared."""
    for group, members in groupby(fields(config), lambda known: known.metadata["group"]):
        yield group, [(known.name, _help(**known.metadata), getattr(config, known.name)) for known in members]


def _help(help: str, conditions: tuple[Condition, ...], **_: Any) -> str:
    asked = [condition for condition in conditions if condition.wanted and not condition.only]
    return " ".join([help, *(f"Only with {one.other} {' or '.join(one.values)}".rstrip() + "." for one in asked)])


@dataclass(frozen=True)
class Condition:
    """What a field asks of another one.

    Args:
        other (`str`): the other field.
        values (`tuple`): of the other field; none: whatever sets it.
        wanted (`bool`): whether it has to be one of these, or must not.
        only (`tuple`): the values of the field itself that ask for it; none: all but the default.
        why (`str`): the end of the message.
    """

    other: str
    values: tuple[Any, ...]
    wanted: bool
    only: tuple[Any, ...] = ()
    why: str = ""

    def holds(self, config: Any, value: Any) -> bool:
        """Whether the field may be `value` in `config`."""
        got = getattr(config, self.other)
        is_set = got in self.values if self.values else bool(got)
        return (bool(self.only) and value not in self.only) or self.wanted == is_set

    def check(self, config: Any, name: str, value: Any) -> None:
        """Raise `ValueError` if `name` cannot be `value` in `config`."""
        got = getattr(config, self.other)
        if self.holds(config, value):
            return
        if not self.wanted:
            found = f"{self.other}={got!r}" if self.values else self.other
            raise ValueError(f"{name}={value!r}: not with {found}{self.why and f', {self.why}'}.")
        allowed = f"{self.other}={' or '.join(map(repr, self.values))}, got {self.other}={got!r}"
        least = f"{self.other} > 0" if got == 0 else self.other
        raise ValueError(f"{name}={value!r} needs {allowed if self.values else least}{self.why and f': {self.why}'}.")
