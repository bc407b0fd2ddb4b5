"""What is measured on a GPU, in the order of its worth: the machine may be taken away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product

from step_time import SITES, mixing_at

from benchmarks.gpu.exactness import exactness
from benchmarks.gpu.models import AUTOCAST, HAS_GPU, NO_GPU, Row, Setting, why_absent
from benchmarks.gpu.steps import at_sites, compared, no_wait
from benchmarks.gpu.suite import gpu_tests


@dataclass(frozen=True)
class Case:
    """Rows that are found together: if one fails, the others of the benchmark are still found."""

    part: str
    run: Callable[[], list[Row]]
    columns: Row = field(default_factory=dict)
    # Why it is not run.
    absent: str | None = None
    # After this the process is ended.
    seconds: float = 60.0


def every_case(small: bool) -> list[Case]:
    """All cases, those of one part one after the other."""
    return [*exactness_cases(small), *step_cases(small), *wait_cases(small), *test_cases()]


def case_of(part: str, setting: Setting, run: Callable[..., list[Row]], *args: object, seconds: float = 60.0) -> Case:
    why = why_absent(setting, trains=run is not exactness)
    return Case(part, partial(run, setting, *args), setting.columns, why, seconds)


def exactness_cases(small: bool) -> list[Case]:
    found = product(("fp32", AUTOCAST), ("eager", "sdpa"))
    settings = [Setting(kernel=kernel, precision=precision, small=small) for precision, kernel in found]
    return [case_of("exactness", setting, exactness) for setting in settings]


def step_cases(small: bool) -> list[Case]:
    usual = Setting(precision=AUTOCAST, small=small)
    found = product((AUTOCAST, "fp32"), (True, False))
    settings = [replace(usual, precision=precision, padded=padded) for precision, padded in found]
    kinds = at_sites("hidden") if small else at_sites()
    return [case_of("steps", setting, compared, kinds, 8.0) for setting in settings]


def wait_cases(small: bool) -> list[Case]:
    setting = Setting(small=small, batch_size=8)
    return [case_of("waits", setting, no_wait, mixing_at(site)) for site in SITES]


def test_cases() -> list[Case]:
    return [Case("tests", partial(gpu_tests, 110.0), absent=None if HAS_GPU else NO_GPU, seconds=120.0)]
