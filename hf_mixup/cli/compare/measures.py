"""What a run of a comparison measures beside its predictions: robustness, the decision boundary, other texts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from datasets import Dataset
from torch import Tensor
from transformers import EvalPrediction, PreTrainedTokenizerBase, Trainer

from hf_mixup.cli.compare.grid import Comparison
from hf_mixup.cli.train.data import TextData, first_rows, texts_of
from hf_mixup.cli.train.encoding import encode
from hf_mixup.cli.train.run_fields import DataArguments
from hf_mixup.evaluation.boundary import embedding_noise_logits, gradient_norm, paths
from hf_mixup.evaluation.entities import entity_counts
from hf_mixup.evaluation.metrics import METRICS, first_output
from hf_mixup.evaluation.outliers import outlier_metrics
from hf_mixup.evaluation.perturbation import PERTURBATIONS, flips, perturb
from hf_mixup.evaluation.predictions import IGNORED
from hf_mixup.training.metric_names import has_entities

# Strengths of each perturbation: shares of letters or words, and of the root mean square of the embeddings.
STRENGTHS = {**dict.fromkeys(PERTURBATIONS, (0.1, 0.3)), "noise": (0.5, 1.0)}
# The metric that is followed while texts are perturbed.
FOLLOWED = {"single_label_classification": "accuracy", "multi_label_classification": "lrap", "regression": "pearson"}
BATCH = 32


def further_metrics(
    comparison: Comparison, trainer: Trainer, data: TextData, data_args: DataArguments, seed: int
) -> tuple[dict[str, float], dict[str, Any]]:
    """Metrics and curves that the comparison asks for, on `measured_samples` texts of the test split."""
    if not comparison.measures and comparison.outliers is None:
        return {}, {}
    raw = first_rows(data.splits["test"].shuffle(seed=0), comparison.measured_samples)
    measured = _Measured(trainer, data, data_args, raw)
    metrics: dict[str, float] = {}
    curves: dict[str, Any] = {}
    if "boundary" in comparison.measures:
        path = paths(measured.model, measured.batches())
        curves["path"] = {name: path[name] for name in ("t", "confidence", "loss")}
        metrics |= {name: path[name] for name in ("uncertain_width", "path_loss", "steepness")}
        metrics["gradient_norm"] = gradient_norm(measured.model, measured.batches())
    if "perturbation" in comparison.measures:
        metrics |= measured.perturbed(seed)
    if comparison.outliers is not None and data.problem_type == "single_label_classification":
        every = texts_of(comparison.outliers)
        # Drawn once for all; those of one column serve for both of a pair.
        texts = [every[index] for index in np.random.default_rng(0).permutation(len(every))[: raw.num_rows]]
        outside = measured.logits([texts] * len(data.text_columns))
        metrics |= outlier_metrics(measured.clean, outside)
    return {name: value for name, value in metrics.items() if value is not None}, curves


class _Measured:
    """A trained model and the texts that it is measured on."""

    def __init__(self, trainer: Trainer, data: TextData, data_args: DataArguments, raw: Dataset) -> None:
        assert trainer.model is not None
        self.trainer, self.data, self.data_args, self.raw = trainer, data, data_args, raw
        self.model = trainer.model.eval()
        self.encoded = self._encode(raw)
        self.labels = np.asarray(raw["labels"])
        self.clean = predict(self.trainer, self.encoded)[0]
        self.kind = data.problem_type

    def batches(self) -> Iterator[dict[str, Tensor]]:
        """The texts as the model takes them, with their labels."""
        assert self.trainer.data_collator is not None
        rows = self.encoded
        for start in range(0, rows.num_rows, BATCH):
            batch = self.trainer.data_collator([rows[i] for i in range(start, min(start + BATCH, rows.num_rows))])
            yield {name: value.to(self.model.device) for name, value in batch.items()}

    def logits(self, texts: list[list[str]]) -> np.ndarray:
        """Of other texts, a list for each text column."""
        columns = dict(zip(self.data.text_columns, texts, strict=True))
        dummy = [self.raw[0]["labels"]] * len(texts[0])
        return predict(self.trainer, self._encode(Dataset.from_dict({**columns, "labels": dummy})))[0]

    def perturbed(self, seed: int) -> dict[str, float]:
        """The metric of the task under perturbations of growing strength, and for classes the changed predictions."""
        found = {}
        for kind, strengths in STRENGTHS.items():
            for strength in strengths:
                if kind == "noise":
                    logits = embedding_noise_logits(self.model, self.batches(), strength, seed)
                else:
                    logits = self.logits(
                        [perturb(self.raw[name][:], kind, strength, seed) for name in self.data.text_columns]
                    )
                name = FOLLOWED[self.kind]
                found[f"{name}_{kind}_{strength:g}"] = METRICS[self.kind](logits, self.labels)[name]
                if self.kind != "regression":
                    found[f"flips_{kind}_{strength:g}"] = flips(self.clean, logits, self.kind)
        return found

    def _encode(self, rows: Dataset) -> Dataset:
        data = TextData({"test": rows}, self.data.text_columns, self.data.problem_type, self.data.label_names, {})
        tokenizer = self.trainer.processing_class
        assert isinstance(tokenizer, PreTrainedTokenizerBase)
        return encode(data, tokenizer, self.data_args)["test"]


def predict(trainer: Trainer, rows: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels of some rows, of tokens padded; texts of like length are run together, to pad them less."""
    order = np.argsort([len(tokens) for tokens in rows["input_ids"]], kind="stable")
    predicted, back = trainer.predict(rows.select(order)), np.argsort(order)
    logits = first_output(predicted.predictions)[back]
    return logits, np.asarray(predicted.label_ids)[back] if logits.ndim == 3 else np.asarray(rows["labels"])


def metrics_of(trainer: Trainer, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The metrics of the task, and as `loss` that of its problem type, without smoothing or weights."""
    assert trainer.compute_metrics is not None
    found = trainer.compute_metrics(EvalPrediction(logits, labels))
    return found | {"loss": found["rmse"] ** 2 if "rmse" in found else found["nll"]}


def kept_predictions(name: str, logits: np.ndarray, labels: np.ndarray, data: TextData) -> dict[str, np.ndarray]:
    """What is kept of the predictions of a split.

    Returns:
        `dict[str, np.ndarray]`: with the name of the split in front, `logits` and `labels`; of tokens only those with
            a label, one below the other, with `texts`, the number of the text of each, and, if tags mark entities,
            `entities`, shape (2, texts): twice how many are right, and how many are predicted or in the labels.
    """
    found = {"logits": logits, "labels": labels}
    if logits.ndim == 3:
        kept = labels != IGNORED
        found = {"logits": logits[kept], "labels": labels[kept], "texts": np.nonzero(kept)[0]}
        if has_entities(data.label_names):
            predicted = found["logits"].argmax(1)
            found["entities"] = entity_counts(predicted, found["labels"], found["texts"], data.label_names)
    return {f"{name}_{part}": values for part, values in found.items()}
