"""A comparison of toy reviews."""

import pytest

from hf_mixup.cli.compare.grid import Comparison
from tests.toy_text import save_toy_model, write_reviews


@pytest.fixture
def toy(tmp_path):
    """A comparison of toy reviews; keyword arguments change fields."""

    def make(**changes):
        values = {
            "output_dir": str(tmp_path / "out"),
            "methods": ["none", "default"],
            "train_sizes": [12],
            "measured_samples": 20,
            "model_name_or_path": save_toy_model(tmp_path / "toy"),
            "train_file": write_reviews(tmp_path / "train.csv", 80),
            "validation_file": write_reviews(tmp_path / "dev.csv", 40, seed=1),
            "test_file": write_reviews(tmp_path / "test.csv", 60, seed=2),
            "cache_dir": str(tmp_path / "cache"),
            "max_steps": 10,
            "per_device_train_batch_size": 8,
            "learning_rate": 5e-3,
            "use_cpu": True,
        } | changes
        return Comparison.from_dict({name: value for name, value in values.items() if value is not None})

    return make
