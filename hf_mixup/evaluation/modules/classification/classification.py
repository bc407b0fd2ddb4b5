"""Accuracy and macro F1 from logits, as a module of `evaluate`."""

import evaluate
from datasets import Features, Sequence, Value

from hf_mixup.evaluation.metrics import classification_metrics

INPUTS = """
Args:
    predictions: scores before the softmax, one list of classes per example.
    references: class indices; rows with -100 are left out.
Returns:
    accuracy; macro_f1, over the classes that occur. Both are nan if a prediction is not finite.
"""


class Classification(evaluate.Metric):
    """Accuracy and macro F1."""

    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=INPUTS,
            features=Features({"predictions": Sequence(Value("float64")), "references": Value("int64")}),
        )

    def _compute(self, predictions, references):
        metrics = classification_metrics(predictions, references)
        return {name: metrics[name] for name in ("accuracy", "macro_f1")}
