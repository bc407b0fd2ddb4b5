"""What is looked at while a run trains: clean losses, and the weights that do best on the development split."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import Trainer, TrainerCallback

from hf_mixup.cli.compare.measures import predict
from hf_mixup.cli.train.data import first_rows
from hf_mixup.cli.train.probabilities import as_classes
from hf_mixup.evaluation.metrics import METRICS
from hf_mixup.training.trainer_seams import same_random_state

# Losses are measured at this many moments of a training, on this many rows.
MOMENTS, CURVE_ROWS = 5, 64
# Early stopping chooses among the weights of this many moments.
STOPS = 10


class LearningCurve(TrainerCallback):
    """Losses of clean batches, of training and development rows, at moments spread over the training."""

    def __init__(self, trainer: Trainer, splits: Mapping[str, Dataset], problem_type: str) -> None:
        self.trainer, self.problem_type = trainer, problem_type
        self.rows = {
            "train_loss": as_classes(first_rows(splits["train"].shuffle(seed=0), CURVE_ROWS), problem_type),
            "dev_loss": first_rows(splits["validation"], CURVE_ROWS),
        }
        self.learning: dict[str, list[float]] = {"step": [], "train_loss": [], "dev_loss": []}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure after every fifth of the steps."""
        if state.global_step not in moments(state.max_steps, MOMENTS):
            return
        self.learning["step"].append(state.global_step)
        for name in self.rows:
            self.learning[name].append(self.loss(name))

    def loss(self, name: str) -> float:
        """The loss of now, of the rows of that name."""
        return loss_of(self.problem_type, *predict(self.trainer, self.rows[name]))


class BestWeights(TrainerCallback):
    """Early stopping: of the weights after every tenth of the steps those of the lowest development loss are taken."""

    def __init__(self, trainer: Trainer, rows: Dataset, problem_type: str) -> None:
        self.trainer, self.rows, self.problem_type = trainer, rows, problem_type
        self.loss, self.weights = math.inf, dict[str, Any]()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Keep the weights if the development loss is the lowest so far."""
        if state.global_step not in moments(state.max_steps, STOPS):
            return
        with same_random_state(args.device):
            loss = loss_of(self.problem_type, *predict(self.trainer, self.rows))
        if loss < self.loss:
            self.loss = loss
            self.weights = copy.deepcopy(model.state_dict())

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Take the weights that were kept. None were if every loss was infinite or no number."""
        if self.weights:
            model.load_state_dict(self.weights)
            self.weights = {}


def moments(steps: int, number: int) -> set[int]:
    """The steps that end each of so many parts of a training."""
    return {math.ceil(steps * part / number) for part in range(1, number + 1)}


def loss_of(problem_type: str, logits: np.ndarray, labels: np.ndarray) -> float:
    """The loss of the problem type, without smoothing or weights."""
    metrics = METRICS[problem_type](logits, labels)
    return metrics["rmse"] ** 2 if problem_type == "regression" else metrics["nll"]
