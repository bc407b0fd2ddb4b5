"""docs/results.md shows the raw results that are kept beside it."""

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="needs the plots extra")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def results():
    spec = importlib.util.spec_from_file_location("results", ROOT / "benchmarks/results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_are_those_of_the_raw_results(results):
    page = results.DOCS.read_text(encoding="utf-8")
    shown = page.partition(results.BEGIN)[2].partition(results.END)[0].strip()
    assert shown == results.tables(results.kept_summaries())


def test_the_number_of_verdicts_is_said(results):
    text = " ".join(results.DOCS.read_text(encoding="utf-8").split())
    assert "Of {:,} verdicts {:,} are marked".format(*results.verdicts(results.kept_summaries())) in text


def test_every_comparison_that_is_configured_is_kept(results):
    configured = {path.stem for path in (ROOT / "configs/compare").glob("*.yaml")}
    assert {path.stem.removeprefix("compare_") for path in results.kept_summaries()} == configured
