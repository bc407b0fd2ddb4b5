"""The benchmarks find what they measure; they are run by hand. That of a GPU runs here in its small form."""

import json
import os
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree
from zipfile import ZipFile

import pytest
import torch

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import isolation

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
    rows = report["rows"]
    exact = [row for row in rows if row["part"] == "exactness" and "absent" not in row]
    parts = {"exactness", "steps", "waits", "decoder", "modernbert", "flex", "compiled", "attention", "fsdp2", "tests"}
    assert status == 0 and {row["site"] for row in exact} == {"word_embeddings", "embeddings", "hidden", "pooled"}
    assert all(row["passed"] and row["value"] <= row["bound"] for row in exact)
    assert {row["part"] for row in rows} == parts
    assert {row["part"] for row in rows if row.get("passed")} == {"exactness", "decoder", "fsdp2"}
    step = next(row for row in rows if row["part"] == "steps" and row.get("site") == "hidden")
    assert 0 < step["low"] <= step["time"] <= step["high"] and step["waits"] == step["memory"] == "needs a GPU"
    assert [row["absent"] for row in rows if row["part"] == "tests"] == ["needs a GPU"]
    assert report["card"] is None and report["versions"]["torch"] == version("torch")
    assert "| exactness | bert-base | sdpa | fp32 |" in printed and "no GPU; python" in printed
    assert (tmp_path / "new" / "gpu.md").read_text().count("\n|") == len(rows) + 2
    assert len((tmp_path / "new" / "gpu.csv").read_text().splitlines()) == len(rows) + 1


def test_the_benchmark_of_a_gpu_fails_with_what_it_measures(tmp_path, capsys, monkeypatch, own_path):
    from benchmarks.gpu import cases, exactness

    def broken():
        raise RuntimeError("no kernel")

    found = [cases.Case("broken", broken), cases.Case("chosen", lambda: [{"value": 1}]), cases.Case("left", list)]
    monkeypatch.setattr(cases, "tests", lambda small: found)
    monkeypatch.setattr(exactness, "error_at_ends", lambda *args: 1.0)
    status, report, printed = run_small(tmp_path, capsys, "--parts", "exactness,broken,chosen")
    failed = [row for row in report["rows"] if row.get("passed") is False]
    assert status == 1 and failed[-1]["value"] == "RuntimeError: no kernel" and len(failed) == printed.count("FAILED")
    assert {row["part"] for row in failed} == {"exactness", "broken"}
    assert report["rows"][-1].items() >= {"part": "chosen", "value": 1}.items()
    status, report, _ = run_small(tmp_path, capsys, "--parts", "broken", "--seconds", "0")
    assert status == 0 and [row["absent"] for row in report["rows"]] == ["no time was left"]


# Tells of cases as a worker does: the second ends the process, the third never ends.
CASES = """
import json, os, sys, time
file, skip = sys.argv[1], int(sys.argv[2])
def tell(**message):
    with open(file, "a") as lines:
        lines.write(json.dumps(message) + "\\n")
for case in range(skip, 4):
    tell(case=case, row={"part": case}, limit=0.3)
    if case == 1:
        os._exit(7)
    if case == 2:
        time.sleep(60)
    tell(case=case, rows=[{"part": case, "value": "done"}])
"""


def test_a_case_that_ends_its_process_or_hangs_costs_one_row():
    rows = []
    isolation.follow(
        lambda file, skip: [sys.executable, "-c", CASES, str(file), str(skip)],
        lambda message: rows.extend(message.get("rows", [])),
    )
    assert [(row["part"], row["value"]) for row in rows] == [
        (0, "done"),
        (1, "ended with status 7"),
        (2, "took too long"),
        (3, "done"),
    ]
    rows.clear()
    isolation.follow(lambda file, skip: [sys.executable, "-c", "1 / 0"], lambda message: rows.extend(message["rows"]))
    assert [row["value"] for row in rows] == ["ended with status 1"]


def test_the_benchmark_of_a_gpu_takes_packages_from_wheels(tmp_path, own_path):
    with ZipFile(tmp_path / "made_up-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("made_up_package/__init__.py", "VALUE = 7")
    gpu.put_on_path(tmp_path)
    assert import_module("made_up_package").VALUE == 7
    assert sys.path[-1] == os.environ["PYTHONPATH"]


REPORT = """<testsuites><testsuite><testcase classname="a" name="fine"/>
<testcase classname="a" name="bad"><failure message="no">trace</failure></testcase>
<testcase classname="a" name="without"><skipped message="needs a GPU"/></testcase>
<testcase classname="a" name="other"><skipped message="no such model"/></testcase></testsuite></testsuites>"""


def test_the_tests_of_a_gpu_are_counted():
    from benchmarks.gpu import suite

    rows = suite.rows_of(ElementTree.ElementTree(ElementTree.fromstring(REPORT)))
    assert rows[0] == {"value": "1 of 3", "passed": False}
    assert [(row["site"], row["value"]) for row in rows[1:]] == [("a::bad", "no"), ("a::without", "needs a GPU")]
    assert suite.unfinished("x PASSED\ny FAILED")[0]["value"].startswith("stopped after 1 passed of 2")
