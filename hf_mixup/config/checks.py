"""Values that a user gives, checked: errors name the field, the value, what is allowed and the nearest spelling."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from fractions import Fraction
from numbers import Integral, Real
from typing import Any, SupportsFloat

# Takes the name of a field and what was given, and returns what it means or raises `ValueError`.
Check = Callable[[str, Any], Any]


def nearest(word: str, choices: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the closest of `choices`, or an empty string."""
    by_lower = {choice.lower(): choice for choice in choices}
    close = [by_lower[match] for match in difflib.get_close_matches(word.lower(), by_lower, n=1)]
    return f" Did you mean {close[0]!r}?" if close else ""


# What to do with names that stand beside a config elsewhere.
HINTS = {
    "mixup": " Put its fields at the top of the file.",
    "recipe": " A recipe is named in a dict or the YAML file of a run, and not in a mixup file.",
}


def known_fields(names: Iterable[Any], known: list[str]) -> None:
    """Raise `ValueError` for a name that is no field of a config, with the nearest that is."""
    for name in names:
        if name not in known:
            inside = HINTS.get(str(name), "")
            raise ValueError(
                f"Unknown mixup field {name!r}.{nearest(str(name), known)}{inside} Fields: {', '.join(known)}."
            )


def choice(*allowed: str) -> Check:
    """One of a few words."""

    def check(name: str, value: Any) -> str:
        if value not in allowed:
            raise ValueError(f"{name}={value!r}: expected one of {', '.join(allowed)}.{nearest(str(value), allowed)}")
        return value

    return check


def allow_only(config: Any, allowed: Mapping[str, tuple[Any, ...]], why: str) -> None:
    """Raise `ValueError` if a field of `config` has a value that is not among those `allowed` by `why`."""
    for name, values in allowed.items():
        value = getattr(config, name)
        if value not in values:
            raise ValueError(f"{name}={value!r}: {why}; expected {' or '.join(map(repr, values))}.")


def optional(check: Check) -> Check:
    """`None`, or what `check` takes."""
    return lambda name, value: None if value is None else check(name, value)


def number(low: float = 0.0, high: float = math.inf, open_low: bool = False) -> Check:
    """A finite number from `low` to `high`."""

    def check(name: str, value: Any) -> float:
        if not isinstance(value, Real) and isinstance(value, (str, SupportsFloat)):
            # YAML reads 1e-1 as text, and what is in a tensor is a tensor.
            with suppress(RuntimeError, TypeError, ValueError):
                value = float(value)
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or not low <= value <= high or (open_low and value == low):
            bounds = f"{'>' if open_low else '>='} {low:g}" + (f" and <= {high:g}" if math.isfinite(high) else "")
            raise ValueError(f"{name}={value!r}: expected a finite number {bounds}.")
        return float(value)

    return check


def share_or(word: str) -> Check:
    """A check for a word, or a number from 0 to 1."""
    share = number(high=1)

    def check(name: str, value: Any) -> float | str:
        if value == word:
            return value
        try:
            return share(name, value)
        except ValueError:
            hint = nearest(str(value), [word])
            raise ValueError(f"{name}={value!r}: expected {word!r} or a number from 0 to 1.{hint}") from None

    return check


def count(low: int) -> Check:
    """A whole number of `low` or more."""

    def check(name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, Integral) or value < low:
            raise ValueError(f"{name}={value!r}: expected a whole number of {low} or more.")
        return int(value)

    return check


def boolean(name: str, value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r}: expected true or false.")
    return value


def text(name: str, value: Any) -> str:
    """A word."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name}={value!r}: expected a name.")
    return value


def per_class(name: str, value: Any) -> list[float]:
    """A list of numbers >= 0, not all of them 0."""
    if isinstance(value, (str, Mapping)) or not isinstance(value, Iterable):
        raise ValueError(f"{name}={value!r}: expected a list of numbers, one per class.")
    numbers = [number()(name, item) for item in value]
    if not any(numbers):
        raise ValueError(f"{name}={numbers!r}: at least one must be > 0.")
    return numbers


def points(when: Check, what: Check) -> Check:
    """A mapping of moments to values, such as `{0: 0, 0.1: 1}`."""

    def check(name: str, value: Any) -> dict[float, float]:
        if not isinstance(value, Mapping) or not value:
            raise ValueError(f"{name}={value!r}: expected a mapping such as {{0: 0, 0.1: 1}}.")
        return {
            when(f"{name}, moment", moment): what(f"{name}, value", item)
            for moment, item in sorted(value.items(), key=_moment)
        }

    return check


def _moment(item: tuple[Any, Any]) -> float:
    with suppress(TypeError, ValueError):
        return float(item[0])
    return math.inf


def by_epoch(single: Check, later: Check, example: str) -> Check:
    """A value, or a mapping of epochs to values, such as `example`: what `later` takes."""
    mapping = points(number(), later)

    def check(name: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return mapping(name, value)
        try:
            return single(name, value)
        except ValueError as error:
            raise ValueError(f"{str(error).removesuffix('.')}; or a mapping of epochs, such as {example}.") from None

    return check


def layer_list(name: str, value: Any) -> list[int | str]:
    """Layer numbers, or fractions of the depth such as `"7/12"`."""
    if isinstance(value, str):
        value = value.split(",")
    items = [value] if isinstance(value, Integral) else list(value) if isinstance(value, Iterable) else []
    if not items:
        raise ValueError(f"{name}={value!r}: expected a list of layer numbers such as [2, 3, -1] or ['7/12'].")
    items = [_layer_number(item.strip()) if isinstance(item, str) else item for item in items]
    for layer in items:
        if isinstance(layer, str):
            fraction(layer)
        elif isinstance(layer, bool) or not isinstance(layer, Integral):
            raise ValueError(f"{name}={items!r}: {layer!r} is neither an integer nor a fraction such as '7/12'.")
    return [layer if isinstance(layer, str) else int(layer) for layer in items]


def _layer_number(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdigit() else text


def fraction(text: str) -> Fraction:
    """A part of the depth: `"7/12"`; `"0/12"` is before the first block."""
    try:
        value = Fraction(text)
    except (ValueError, ZeroDivisionError):
        value = Fraction(-1)
    if not 0 <= value <= 1:
        raise ValueError(f"layers: {text!r} is not a fraction of the depth in [0, 1], such as '7/12'.")
    return value


def module_paths(name: str, value: Any) -> list[str]:
    """Paths of modules in a model."""
    paths = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
    is_list = isinstance(paths, Iterable) and not isinstance(paths, Mapping)
    if not is_list or not all(isinstance(path, str) and path for path in paths) or not list(paths):
        raise ValueError(f"{name}={value!r}: expected module paths such as ['encoder.layers'].")
    return list(paths)
