"""The metrics as modules of `evaluate`, from the installed package: nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import evaluate

from hf_mixup.config.checks import choice

FOLDER = Path(__file__).parent / "modules"
MODULES = ("classification", "calibration", "multilabel", "regression")


def load(name: str, **options: Any) -> evaluate.EvaluationModule:
    """A module with `add_batch` and `compute(predictions=..., references=...)`; `evaluate.combine` joins several.

    Args:
        name (`str`): what is computed.
            - `"classification"`: accuracy and macro F1, from logits and class indices
            - `"calibration"`: NLL, Brier score, ECE and adaptive ECE, from the same
            - `"multilabel"`: the metrics of `multilabel_metrics`, from logits and 0 or 1 per label
            - `"regression"`: Pearson, Spearman and RMSE, from one score per example
        **options: for `evaluate.load`, such as `keep_in_memory` or `cache_dir`.

    Raises:
        ValueError: for another name.
    """
    choice(*MODULES)("name", name)
    return evaluate.load(str(FOLDER / name), **options)
