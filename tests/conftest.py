"""Nothing is downloaded, no test takes more than one core, and short trainings stay short."""

import gc
import os

os.environ["HF_HUB_OFFLINE"] = "1"

import torch  # noqa: E402

torch.set_num_threads(1)


def pytest_collection_finish():
    """Trainer collects garbage before each training: 0.3 s, unless what was imported is left out of it."""
    gc.collect()
    gc.freeze()
