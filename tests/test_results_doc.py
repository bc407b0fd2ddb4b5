"""docs/results.md shows the raw results that are kept beside it."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("matplotlib", reason="needs the plots extra")

import matplotlib.pyplot as plt

from tests.toy_comparison import write_comparison, write_predictions

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def results():
    spec = importlib.util.spec_from_file_location("results", ROOT / "benchmarks/results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def summaries(results):
    return results.kept_summaries()


@pytest.mark.parametrize("name", ["DOCS", "TABLES"])
def test_tables_are_those_of_the_raw_results(results, summaries, name):
    page = getattr(results, name).read_text(encoding="utf-8")
    shown = page.partition(results.BEGIN)[2].partition(results.END)[0].strip()
    written = results.default_pages if name == "DOCS" else results.tables
    assert shown == written(summaries) and shown.count("\n") > 10


def test_the_default_is_nowhere_worse_and_repairs_two_thirds(results, summaries):
    default_summaries = {path: group for path, group in summaries.items() if "compare_default_" in path.name}
    judged = pd.concat(default_summaries.values())
    primary = judged[(judged["method"] == "default") & judged["metric"].isin(results.PRIMARY_NAMES)]
    assert len(default_summaries) == 9 and len(primary) == 47 and not (primary["verdict"] == "worse").any()
    # From the values themselves, of one setting.
    values = pd.read_csv(results.KEPT / "compare_default_sst2.csv").query("train_size == 20 and metric == 'ece'")
    none, scaled, default = (
        values[values["method"] == name]["value"].mean() for name in ("none", "temperature_scaling", "default")
    )
    shares = re.findall(r"(\d+)% \|", results.default_pages(default_summaries))
    assert f"{100 * (none - default) / (none - scaled):.0f}" == shares[4] and min(map(int, shares)) >= 67


def test_the_picture_of_the_readme_shows_the_raw_results(results, tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("default_picture", ROOT / "benchmarks/default_picture.py")
    picture = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(picture)
    _, (left, right) = drawn = plt.subplots(1, 2)
    picture.draw_reliability(left, "rotten_tomatoes", 200)
    picture.draw_errors(right)
    plt.close(drawn[0])
    shown = {dots.get_label(): dots.get_offsets()[:, 0] for dots in right.collections}
    table = pd.read_csv(results.KEPT / "compare_default_sst2.csv").query("train_size == 20 and metric == 'ece'")
    means = table.groupby("method")["value"].mean()
    for method, label in picture.NAMES.items():
        assert len(shown[label]) == 10 and np.isclose(shown[label], means[method]).any()
    assert [line.get_label() for line in left.lines[1:]] == list(picture.NAMES.values())


def test_the_number_of_verdicts_is_said(results, summaries):
    text = " ".join(results.DOCS.read_text(encoding="utf-8").split())
    assert "Of {:,} verdicts {:,} are marked".format(*results.verdicts(summaries)) in text


def test_every_comparison_that_is_configured_is_kept(summaries):
    configured = {path.stem for path in (ROOT / "configs/compare").glob("*.yaml")}
    assert {path.stem.removeprefix("compare_") for path in summaries} == configured


def test_the_page_is_written_from_comparisons_and_their_predictions_are_kept(results, tmp_path, monkeypatch, capsys):
    places = {"KEPT": "", "DOCS": "page.md", "TABLES": "tables.md", "PICTURE": "page.png"}
    for name, place in places.items():
        monkeypatch.setattr(results, name, tmp_path / place)
    for page in (results.DOCS, results.TABLES):
        page.write_text(f"before\n{results.BEGIN}\nold\n{results.END}\nafter")
    folders = [write_comparison(tmp_path / name) for name in ("one", "two")]
    write_predictions(folders[0])
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr("sys.argv", ["results.py", *map(str, folders)])
    results.main()
    page, said = results.TABLES.read_text(), capsys.readouterr().out
    assert page.startswith("before\n") and page.endswith("\nafter") and "old" not in page
    assert "| tmix | 5 | 0.772 + |" in page and "2 comparisons in page.md and page.png" in said
    assert results.PICTURE.is_file() and [path.name for path in tmp_path.glob("*.npz")] == ["predictions_one.npz"]
    with np.load(tmp_path / "predictions_one.npz") as kept:
        assert kept["logits"].shape == (30, 300, 4)
    # A family spans both: twice as many tests as in each.
    both = results.kept_summaries()
    alone = results.summary_of(tmp_path / "compare_one.csv").set_index(["method", "metric", "train_size"])
    together = both[tmp_path / "compare_one.csv"].set_index(["method", "metric", "train_size"])
    row = ("tmix", "accuracy", 20)
    assert alone.loc[row, "p"] == together.loc[row, "p"] and alone.loc[row, "q"] < together.loc[row, "q"]
    found, marked = results.verdicts(both, {"accuracy"})
    assert found == 8 and 0 < marked < 8
