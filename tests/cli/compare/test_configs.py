"""Every file in configs/compare is a comparison that can start, of a dataset or of files of its rows."""

import shlex
from pathlib import Path

import pytest

from hf_mixup.cli.compare.options import read_comparison
from hf_mixup.cli.compare.rows import read_data, training_data
from hf_mixup.cli.compare.runs import Cell
from hf_mixup.cli.train.arguments import parse_fields

ROOT = Path(__file__).parents[3]
CONFIGS = sorted((ROOT / "configs/compare").glob("*.yaml"))
DATA = ROOT.parent / "shared/data"


def options_for_files(path):
    """The options that the first lines of a config add."""
    comments = [line[1:] for line in path.read_text().splitlines() if line.startswith("#   ")]
    return shlex.split(" ".join(comments))


def arguments_of(comparison):
    return parse_fields(comparison.run | {"output_dir": comparison.output_dir})


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_comparison_names_its_dataset_and_files_take_its_place(path):
    data = arguments_of(read_comparison(str(path)))[1]
    words = options_for_files(path)
    assert data.dataset_name and not data.train_file and bool(words) != data.dataset_name.startswith("demo:")
    assert words == options_for_files(path.with_name(path.name.removeprefix("default_").removeprefix("long_")))
    if words:
        files = arguments_of(read_comparison(str(path), words))[1]
        assert (files.dataset_name, files.dataset_config_name) == (None, None) and files.test_file


@pytest.mark.parametrize("name", ["sst2", "trec", "stsb", pytest.param("goemotions", marks=pytest.mark.slow)])
def test_the_files_hold_what_is_drawn(name, tmp_path):
    if not DATA.is_dir():
        pytest.skip("needs the benchmark data in ../shared/data")
    path = ROOT / f"configs/compare/{name}.yaml"
    words = [str(DATA / word) if word.endswith(".csv") else word for word in options_for_files(path)]
    comparison = read_comparison(str(path), [*words, "--cache_dir", str(tmp_path)])
    data = read_data(*arguments_of(comparison))
    classes = len(data.label_names) if data.problem_type == "single_label_classification" else 1
    for size in comparison.train_sizes:
        drawn = training_data(data, Cell(comparison.baseline, size, 0.0, 0))[0].splits["train"]
        assert drawn.num_rows == size * classes
    assert data.splits["test"].num_rows == 500
