"""What is looked at while a run trains: clean losses, and the weights that do best on the development split."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

from datasets import Dataset
from transformers import Trainer, TrainerCallback

from hf_mixup.cli.compare.measures import metrics_of, predict
from hf_mixup.cli.train.data import first_rows
from hf_mixup.cli.train.probabilities import as_classes
from hf_mixup.training.metric_names import higher_is_better
from hf_mixup.training.trainer import MixupTrainer
from hf_mixup.training.trainer_seams import same_random_state

# Losses are measured at this many moments of a training, on this many rows.
MOMENTS, CURVE_ROWS = 5, 64
# Early stopping chooses among the weights of this many moments.
STOPS = 10
# What becomes of rows without labels is logged as often; of that, these are drawn or measured.
GUESSED = ("use", "drift", "disagreement", "accuracy")


class LearningCurve(TrainerCallback):
    """Losses of clean batches, of training and development rows, at moments spread over the training."""

    def __init__(self, trainer: Trainer, splits: Mapping[str, Dataset], problem_type: str) -> None:
        self.trainer = trainer
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
        return metrics_of(self.trainer, *predict(self.trainer, self.rows[name]))["loss"]


class BestWeights(TrainerCallback):
    """Early stopping: of the weights after every tenth of the steps those that do best on development rows are taken.

    Args:
        trainer (`MixupTrainer`): whose averaged weights they are, if it has some.
        rows (`Dataset`): of the development split, tokenised.
        metric (`str`, *optional*): what tells the best; the loss decides between equals, and if there is none.
    """

    def __init__(self, trainer: MixupTrainer, rows: Dataset, metric: str | None = None) -> None:
        self.trainer, self.rows, self.metric = trainer, rows, metric
        self.best, self.weights = (-math.inf, -math.inf), dict[str, Any]()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Keep the weights if they are the best so far."""
        if state.global_step not in moments(state.max_steps, STOPS):
            return
        with same_random_state(args.device):
            predicted = predict(self.trainer, self.rows)
        found = metrics_of(self.trainer, *predicted)
        value = ranked(found, self.metric)
        if math.isfinite(found["loss"]) and (value, -found["loss"]) > self.best:
            self.best = value, -found["loss"]
            with self.trainer.averaged_weights():
                self.weights = copy.deepcopy(model.state_dict())

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Take the weights that were kept. None were if every loss was infinite or no number."""
        if self.weights:
            model.load_state_dict(self.weights)
            self.weights = {}


def ranked(metrics: Mapping[str, float], metric: str | None) -> float:
    """A metric, of the loss if there is none, as a number that is higher the better; -inf if it is not finite."""
    name = (metric or "loss").removeprefix("eval_")
    value = metrics[name] if higher_is_better(name) else -metrics[name]
    return value if math.isfinite(value) else -math.inf


def unlabeled_curve(trainer: Trainer) -> dict[str, list[float]]:
    """What the logs say of rows without labels: `step`, `use`, `drift`, `disagreement`, and `accuracy` if known."""
    logs = [entry for entry in trainer.state.log_history if "unlabeled_use" in entry]
    names = [name for name in GUESSED if all(f"unlabeled_{name}" in entry for entry in logs)]
    curve = {name: [entry[f"unlabeled_{name}"] for entry in logs] for name in names}
    return {"step": [entry["step"] for entry in logs]} | curve if logs else {}


def moments(steps: int, number: int) -> set[int]:
    """The steps that end each of so many parts of a training."""
    return {math.ceil(steps * part / number) for part in range(1, number + 1)}
