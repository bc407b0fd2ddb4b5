"""The benchmarks find what they measure; they are run by hand. That of a GPU runs here in its small form."""

import json
import os
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch

from benchmarks.gpu import __main__ as gpu

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCHMARKS.glob("*.py")))
def test_a_benchmark_can_be_imported(monkeypatch, name):
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    module = import_module(name)
    assert all(callable(getattr(owner, part)) for owner, part in getattr(module, "PARTS", ()))


@pytest.fixture
def own_path(monkeypatch):
    """What a benchmark puts on the path is gone after the test."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", "")


def run_small(folder, capsys, *options):
    """The exit status of the small benchmark, its report, and what it prints."""
    file = folder / "new" / "gpu.json"
    status = gpu.main(["--output", str(file), "--small", *options])
    return status, json.loads(file.read_text()), capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what it is without a GPU")
def test_the_benchmark_of_a_gpu_says_what_is_absent_without_one(tmp_path, capsys, own_path):
    status, report, printed = run_small(tmp_path, capsys)
    rows = {(row["what"], row.get("setting", "")): row for row in report["rows"]}
    exact = [row for (what, _), row in rows.items() if what == "error at lambda 0 and 1"]
    assert status == 0 and len(exact) == 4 and all(row["passed"] and row["value"] <= row["bound"] for row in exact)
    assert rows["a step, tmix", "fp32"]["memory"] == pytest.approx(1, abs=0.2)
    assert rows["a step, tmix", "fp32"]["time"] > 0 and rows["a step, tmix", "fp32"]["waits"] == "needs a GPU"
    assert rows["a step", "bf16"]["absent"] == rows["tests that need a GPU", ""]["absent"] == "needs a GPU"
    assert report["card"] is None and report["versions"]["torch"] == version("torch")
    assert "| error at lambda 0 and 1 | sdpa, bfloat16 |" in printed and "no GPU; python" in printed


def test_the_benchmark_of_a_gpu_fails_with_what_it_measures(tmp_path, capsys, monkeypatch, own_path):
    from benchmarks.gpu import parts

    def broken(small, seconds):
        raise RuntimeError("no kernel")

    monkeypatch.setattr(parts, "PARTS", (parts.exactness, broken))
    monkeypatch.setattr(parts, "BOUNDS", {torch.float32: -1.0})
    status, report, printed = run_small(tmp_path, capsys)
    assert status == 1 and [row["passed"] for row in report["rows"]] == [False, False, False]
    assert report["rows"][-1]["value"] == "RuntimeError: no kernel" and printed.count("FAILED") == 3
    monkeypatch.setattr(parts, "PARTS", (parts.exactness,))
    status, report, _ = run_small(tmp_path, capsys, "--seconds", "0")
    assert status == 0 and report["rows"] == [{"what": "exactness", "absent": "no time was left"}]


def test_the_benchmark_of_a_gpu_takes_packages_from_wheels(tmp_path, own_path):
    with ZipFile(tmp_path / "made_up-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("made_up_package/__init__.py", "VALUE = 7")
    gpu.put_on_path(tmp_path)
    assert import_module("made_up_package").VALUE == 7
    assert sys.path[-1] == os.environ["PYTHONPATH"]
