"""The command line of a comparison."""

import pytest
import yaml

from hf_mixup.cli.compare.options import read_comparison, read_options, read_part
from hf_mixup.cli.main import main


@pytest.fixture
def config(tmp_path):
    """Writes the YAML file of a comparison."""

    def write(**values):
        path = tmp_path / "comparison.yaml"
        grid = {"methods": ["none", "tmix"], "train_sizes": [20], "output_dir": "out", "model_name_or_path": "m"}
        path.write_text(yaml.safe_dump(grid | values))
        return str(path)

    return write


def test_options_have_the_types_of_yaml_unless_they_are_written_in_another_way():
    words = "--max-steps 60 --learning_rate=2.0e-4 --bf16 false --use_cpu --model_name_or_path 007 --report_to a b"
    words = [*words.split(), "--label_delimiter", " ", "--csv_quoting", "{x"]
    assert read_options(words) == {
        "max_steps": 60,
        "learning_rate": "2.0e-4",
        "bf16": False,
        "use_cpu": True,
        "model_name_or_path": "007",
        "report_to": ["a", "b"],
        "label_delimiter": " ",
        "csv_quoting": "{x",
    }


def test_fields_of_the_comparison_have_their_types():
    words = ["--train_sizes", "20", "200", "--label_noise", "0.20", "--measures", "[]", "--measured_samples", "64"]
    found = {"train_sizes": [20, 200], "label_noise": [0.2], "measures": [], "measured_samples": 64}
    assert read_options(words) == found


def test_names_of_files_are_text_and_lists_may_be_empty():
    assert read_options(["--outliers", "texts #2.csv", "--output_dir", "10:30"]) == {
        "outliers": "texts #2.csv",
        "output_dir": "10:30",
    }
    assert read_options(["--measures="]) == {"measures": []}
    methods = {"none": None, "a": {"mixup": "tmix"}}
    assert read_options(["--methods", "{none: , a: {mixup: tmix}}"]) == {"methods": methods}


@pytest.mark.parametrize("words", [["out"], ["--max_steps=1", "2"], ["--"]])
def test_words_without_an_option_are_refused(words):
    with pytest.raises(ValueError, match="options are written --field value"):
        read_options(words)


def test_files_take_the_place_of_a_dataset_and_a_dataset_that_of_files(config):
    of_dataset = {"dataset_name": "a/b", "dataset_config_name": "c", "test_split_name": "t", "label_column_name": "l"}
    path = config(**of_dataset, max_steps=5)
    run = read_comparison(path, ["--train_file", "a.csv", "--test_file", "b.csv", "--max_steps", "6"]).run
    common = {"model_name_or_path": "m", "label_column_name": "l"}
    assert run == common | {"train_file": "a.csv", "test_file": "b.csv", "max_steps": 6}
    run = read_comparison(path, ["--dataset_name", "d/e", "--dataset_config_name", "f"]).run
    assert run == common | {"dataset_name": "d/e", "dataset_config_name": "f", "max_steps": 5}
    # Without other training rows the rest stays.
    assert read_comparison(path, ["--label_column_name", "k"]).run["dataset_config_name"] == "c"
    run = read_comparison(config(train_file="a.csv", test_file="b.csv"), ["--dataset_name", "d/e"]).run
    assert run == {"model_name_or_path": "m", "dataset_name": "d/e"}


@pytest.mark.parametrize("text", ["0/4", "5/4", "a/b", "3", "1/0", "-1/4", "1/2/3", "", "1.0/2"])
def test_a_part_that_there_is_not_is_refused(config, capsys, text):
    assert main(["compare", config(), f"--part={text}"]) == 2
    assert f"part={text!r}: expected a part and how many there are, from 1/16 to 16/16" in capsys.readouterr().err


def test_parts():
    assert read_part("3/16") == (3, 16) and read_part(None) == (1, 1)


def test_options_that_are_none_are_refused(config, capsys):
    assert main(["compare", config(), "--seed", "1"]) == 2
    assert "seed=1: the comparison sets it" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["report", "out", "--seeds", "1"])
    assert "unrecognized arguments: --seeds 1" in capsys.readouterr().err
