"""What is measured on a GPU, in the order of its worth: the machine may be taken away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product

from step_time import SITES, mixing_at

from benchmarks.gpu.attention import attention
from benchmarks.gpu.compiled import compiled
from benchmarks.gpu.exactness import exactness
from benchmarks.gpu.models import AUTOCAST, FLASH, FLEX, HAS_FLASH, HAS_GPU, NO_GPU, PURE, Row, Setting, why_absent
from benchmarks.gpu.outside import exactness_before, remembering
from benchmarks.gpu.sharded import sharded
from benchmarks.gpu.steps import ENDS, at_sites, compared, no_wait
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
    parts = (exact, steps, waits, decoders, modernbert, masks, shards, flex, compile_once, tests)
    return [case for part in parts for case in part(small)]


def case_of(part: str, setting: Setting, run: Callable[..., list[Row]], *args: object, seconds: float = 60.0) -> Case:
    why = why_absent(setting, trains=run is not exactness)
    return Case(part, partial(with_kernel, setting, run, *args), setting.columns, why, seconds)


def with_kernel(setting: Setting, run: Callable[..., list[Row]], *args: object) -> list[Row]:
    if setting.kernel != FLASH or HAS_FLASH:
        return run(setting, *args)
    from flash_stand_in import flash_stand_in

    with flash_stand_in():
        return run(setting, *args)


def exact(small: bool) -> list[Case]:
    half = [
        Setting("bert-base", kernel, AUTOCAST, padded) for kernel, padded in product(("sdpa", FLASH), (True, False))
    ]
    rest = [Setting(), Setting(kernel="eager"), Setting(kernel="eager", precision=AUTOCAST)]
    long = [Setting("modernbert-base", kernel, AUTOCAST, batch_size=8, length=512) for kernel in ("sdpa", FLASH)]
    settings = [rest[0], half[2]] if small else [*half, *rest, *long]
    return [case_of("exactness", replace(setting, small=small), exactness) for setting in settings]


def steps(small: bool) -> list[Case]:
    half = [Setting("bert-base", kernel, AUTOCAST, padded) for kernel in ("sdpa", FLASH) for padded in (True, False)]
    rest = [Setting(padded=padded) for padded in (True, False)]
    # So much work that the GPU does not wait for the CPU.
    rest.append(Setting(precision=AUTOCAST, batch_size=128, length=256))
    kinds = at_sites("hidden") if small else at_sites()
    found = rest[:1] if small else [*half, *rest]
    return [case_of("steps", replace(setting, small=small), compared, kinds, 5.0) for setting in found]


def waits(small: bool) -> list[Case]:
    setting = Setting(small=small, batch_size=8)
    return [case_of("waits", setting, no_wait, mixing_at(site)) for site in (SITES[:1] if small else SITES)]


def decoders(small: bool) -> list[Case]:
    usual = Setting("llama, 1 B", "sdpa", PURE, batch_size=1, length=1024, small=small)
    cases = [] if small else [case_of("decoder", replace(usual, batch_size=2), exactness)]
    kinds = ENDS | {f"{site}, batch before": remembering(site, small) for site in ("embeddings", "hidden")}
    for size, lora, recomputed in ((1, False, False), (2, True, True), (1, True, False), (2, False, True)):
        setting = replace(usual, batch_size=size, lora=lora, recomputed=recomputed)
        cases.append(case_of("decoder", setting, exactness_before))
        cases.append(case_of("decoder", setting, compared, kinds, 3.0))
    cases.append(case_of("decoder", replace(usual, kernel=FLASH, batch_size=2), exactness_before))
    cases.append(case_of("decoder", replace(usual, kernel=FLASH, batch_size=2), compared, kinds, 3.0))
    return cases[:2] if small else cases


def modernbert(small: bool) -> list[Case]:
    usual = Setting("modernbert-base", "sdpa", AUTOCAST, batch_size=16, length=512, small=small)
    settings = [usual, replace(usual, padded=False), replace(usual, kernel=FLASH)]
    kinds = at_sites("embeddings", "hidden")
    return [case_of("modernbert", setting, compared, kinds, 4.0) for setting in settings]


def flex(small: bool) -> list[Case]:
    # Before any compiled model: the kernel cannot be compiled once Trainer has turned TF32 on.
    setting = Setting("bert-base, 4 layers", FLEX, AUTOCAST, small=small)
    return [case_of("flex", setting, exactness), case_of("flex", setting, compared, at_sites("hidden"), 3.0)]


def compile_once(small: bool) -> list[Case]:
    setting = Setting("bert-base, 4 layers", "sdpa", AUTOCAST, padded=False, small=small)
    return [case_of("compiled", setting, compiled, 5.0, seconds=90.0)]


def masks(small: bool) -> list[Case]:
    shapes = [(2, 2, 8)] if small else [(32, 12, 128), (8, 16, 1024)]
    return [Case("attention", partial(attention, *shape), absent=None if HAS_GPU else NO_GPU) for shape in shapes]


def shards(small: bool) -> list[Case]:
    return [case_of("fsdp2", Setting(small=small), sharded, 3.0)]


def tests(small: bool) -> list[Case]:
    return [Case("tests", partial(gpu_tests, 110.0), absent=None if HAS_GPU else NO_GPU, seconds=120.0)]
