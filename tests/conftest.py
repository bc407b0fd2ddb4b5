"""Nothing is downloaded, no test takes more than one core, and short trainings stay short."""

import gc
import os

os.environ["HF_HUB_OFFLINE"] = "1"
# For processes that tests start; idle threads of toy models spin.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402

from tests.plain_config import PLAIN
from tests.toy_text import save_toy_model, write_reviews  # noqa: E402

torch.set_num_threads(1)


def leave_out_of_garbage():
    """Trainer collects garbage before each training: seconds, if what was imported or compiled is looked through."""
    gc.collect()
    gc.freeze()


def pytest_collection_finish():
    leave_out_of_garbage()


def pytest_runtest_teardown(item, nextitem):
    if nextitem is not None and nextitem.path != item.path:
        leave_out_of_garbage()


@pytest.fixture
def toy_config(tmp_path):
    """Writes a YAML for a run of a few steps; keyword arguments change fields, None leaves them out."""

    def write(**changes):
        values = {
            "model_name_or_path": save_toy_model(tmp_path / "toy"),
            "train_file": write_reviews(tmp_path / "train.csv", 48),
            "test_file": write_reviews(tmp_path / "test.csv", 16, seed=1),
            "cache_dir": str(tmp_path / "cache"),
            "output_dir": str(tmp_path / "out"),
            "mixup": PLAIN | {"site": "hidden", "layers": [0, 1], "alpha": 0.4},
            "max_steps": 3,
            "per_device_train_batch_size": 8,
            "learning_rate": "5e-3",
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
        } | changes
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump({name: value for name, value in values.items() if value is not None}))
        return str(path)

    return write
