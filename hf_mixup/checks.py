"""Values that a user gives, checked: errors name the field, the value, what is allowed and the nearest spelling."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from contextlib import suppress
from fractions import Fraction
from numbers import Real
from typing import Any


def nearest(word: str, choices: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the closest of `choices`, or an empty string."""
    close = difflib.get_close_matches(word, list(choices), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(allowed)}.{nearest(str(value), allowed)}")


def number(name: str, value: Any, low: float, high: float = math.inf, open_low: bool = False) -> float:
    if isinstance(value, str):
        # YAML reads 1e-1 as text.
        with suppress(ValueError):
            value = float(value)
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not low <= value <= high or (open_low and value == low):
        bounds = f"{'>' if open_low else '>='} {low}" + (f" and <= {high}" if math.isfinite(high) else "")
        raise ValueError(f"{name}={value!r}: expected a finite number {bounds}.")
    return float(value)


def is_integer(text: str) -> bool:
    return text.strip().lstrip("-").isdigit()


def fraction(text: str) -> Fraction:
    try:
        value = Fraction(text)
    except (ValueError, ZeroDivisionError):
        value = Fraction(0)
    if not 0 < value <= 1:
        raise ValueError(f"layers: {text!r} is not a fraction of the depth in (0, 1], such as '7/12'.")
    return value
