"""The benchmarks find what they measure; they are run by hand."""

import sys
from importlib import import_module
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCHMARKS.glob("*.py")))
def test_a_benchmark_can_be_imported(monkeypatch, name):
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    module = import_module(name)
    assert all(callable(getattr(owner, part)) for owner, part in getattr(module, "PARTS", ()))
