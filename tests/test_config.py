"""What the user says, and what is refused."""

import json

import numpy as np
import pytest
import yaml

from hf_mixup import MixupConfig
from hf_mixup.resolve import recipe_names, resolve_config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"site": "hiden"}, r"site='hiden': expected one of .*hidden.* Did you mean 'hidden'\?"),
        ({"mode": "elm"}, r"mode='elm': expected one of elem, batch. Did you mean 'elem'\?"),
        ({"alpha": 0}, r"alpha=0: expected a finite number > 0"),
        ({"alpha": -1.0}, r"alpha=-1.0: .* > 0"),
        ({"alpha": float("nan")}, r"alpha=nan: expected a finite number"),
        ({"alpha": float("inf")}, r"alpha=inf: expected a finite number"),
        ({"alpha": "much"}, r"alpha='much': expected a finite number"),
        ({"beta": 0.0}, r"beta=0.0: .* > 0"),
        ({"lam": 1.5}, r"lam=1.5: .* >= 0 and <= 1"),
        ({"prob": -0.1}, r"prob=-0.1: .* >= 0 and <= 1"),
        ({"prob": 1.1}, r"prob=1.1: .* >= 0 and <= 1"),
        ({"off_epoch": -1}, r"off_epoch=-1: .* >= 0"),
        ({"dominant": "yes"}, r"dominant='yes': expected true or false"),
        ({"layers": [1]}, r"layers=\[1\] needs site='hidden', got site='embeddings'"),
        ({"site": "hidden", "layers": []}, r"layers=\[\]: expected a list of layer numbers"),
        ({"site": "hidden", "layers": 1.5}, r"layers=1.5: expected a list"),
        ({"site": "hidden", "layers": True}, r"True is neither an integer nor a fraction"),
        ({"site": "hidden", "layers": [1.5]}, r"1.5 is neither an integer nor a fraction"),
        ({"site": "hidden", "layers": ["13/12"]}, r"'13/12' is not a fraction of the depth in \(0, 1\]"),
        ({"site": "hidden", "layers": ["x"]}, r"'x' is not a fraction"),
        ({"class_weights": [1.0, -1.0]}, r"class_weights=-1.0: .* >= 0"),
        ({"class_weights": [0.0, 0.0]}, r"class_weights=\[0.0, 0.0\]: at least one must be > 0"),
        ({"class_weights": "12"}, r"class_weights='12': expected a list of numbers"),
        ({"aplha": 0.2}, r"Unknown mixup field 'aplha'. Did you mean 'alpha'\? Fields: site, layers, alpha"),
    ],
)
def test_values_that_cannot_work_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        MixupConfig.from_dict(values)


@pytest.mark.parametrize(
    ("layers", "depth", "expected"),
    [
        (None, 3, [0, 1, 2]),
        ([0, 2, -1], 4, [0, 2, 3]),
        ([3, -1], 4, [3]),
        (["7/12", "9/12", "12/12"], 12, [6, 8, 11]),
        (["7/12", "9/12", "12/12"], 6, [3, 4, 5]),
        (["7/12", "9/12", "12/12"], 24, [13, 17, 23]),
        (["1/12"], 3, [0]),
    ],
)
def test_layers_are_counted_from_0_and_fractions_scale(layers, depth, expected):
    assert MixupConfig(site="hidden", layers=layers).resolve_layers(depth) == expected


@pytest.mark.parametrize("layer", [4, -5])
def test_layers_out_of_range_are_named(layer):
    with pytest.raises(
        ValueError, match=rf"layer {layer} is out of range, the model has 4 blocks .*0 to 3, or -1 to -4"
    ):
        MixupConfig(site="hidden", layers=[layer]).resolve_layers(4)


@pytest.mark.parametrize(
    ("layers", "expected"), [(1, [1]), ("1", [1]), ("2, -1", [2, -1]), ("7/12", ["7/12"]), ((0, "1/2"), [0, "1/2"])]
)
def test_layers_may_be_said_in_short(layers, expected):
    assert MixupConfig(site="hidden", layers=layers).layers == expected


def test_numbers_may_be_text_as_yaml_reads_them():
    assert MixupConfig(**yaml.safe_load("{alpha: 4e-1, prob: 1e0}")) == MixupConfig(alpha=0.4, prob=1.0)


def test_numbers_of_numpy_become_plain_ones(tmp_path):
    weights = np.array([1.0, 2.0], dtype=np.float32)
    config = MixupConfig(site="hidden", layers=iter(np.array([1, 2])), alpha=np.float32(0.5), class_weights=weights)
    config.save(tmp_path / "mixup.yaml")
    assert MixupConfig.from_file(tmp_path / "mixup.yaml") == config
    assert (config.layers, config.alpha, config.class_weights) == ([1, 2], 0.5, [1.0, 2.0])


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_a_config_survives_dict_and_file(tmp_path, suffix):
    config = MixupConfig(site="hidden", layers=[1, "7/12"], alpha=0.2, lam=0.3, off_epoch=2.0, class_weights=[1.0, 2.0])
    path = tmp_path / f"mixup.{suffix}"
    config.save(path)
    assert (json.loads if suffix == "json" else yaml.safe_load)(path.read_text()) == config.to_dict()
    assert MixupConfig.from_file(path) == config == MixupConfig.from_dict(config.to_dict()) == resolve_config(path)
    assert resolve_config(str(path)) == config


@pytest.mark.parametrize("text", ["- alpha", "alpha", ""])
def test_a_yaml_that_is_not_a_mapping_is_refused(tmp_path, text):
    path = tmp_path / "list.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match="list.yaml: expected a mapping of mixup fields, got"):
        resolve_config(path)


def test_broken_yaml_and_unknown_fields_name_the_file(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("alpha: [")
    with pytest.raises(ValueError, match="broken.yaml: not valid YAML"):
        resolve_config(path)
    path.write_text("sight: hidden")
    with pytest.raises(ValueError, match="broken.yaml: Unknown mixup field 'sight'. Did you mean 'site'"):
        resolve_config(path)
    path.write_text("!!python/object/apply:os.system ['false']")
    with pytest.raises(ValueError, match="not valid YAML"):
        resolve_config(path)


def test_a_missing_file_and_an_unknown_recipe_are_named():
    with pytest.raises(FileNotFoundError, match="No mixup config file at 'absent.yaml'"):
        resolve_config("absent.yaml")
    with pytest.raises(ValueError, match="mixup='tmxi': no such recipe. Did you mean 'tmix'"):
        resolve_config("tmxi")
    with pytest.raises(ValueError, match="mixup=3: expected"):
        resolve_config(3)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_a_config(name):
    config = resolve_config(name)
    assert isinstance(config, MixupConfig)
    assert config.resolve_layers(6)


def test_the_ways_to_say_default_and_none():
    assert {"default", "word_mixup", "embed_mix", "sent_mixup", "manifold", "tmix"} <= set(recipe_names())
    assert resolve_config("default") == resolve_config(True) == MixupConfig()
    assert resolve_config(None) is resolve_config("none") is resolve_config(False) is None
    assert resolve_config({"alpha": 0.2}) == MixupConfig(alpha=0.2)
