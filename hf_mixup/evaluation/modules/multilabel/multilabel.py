"""Metrics of predictions with several labels, from logits, as a module of `evaluate`."""

import evaluate
from datasets import Features, Sequence, Value

from hf_mixup.evaluation.metrics import multilabel_metrics

INPUTS = """
Args:
    predictions: scores before the sigmoid, one list of labels per example.
    references: 0 or 1 per label, as many lists.
Returns:
    micro_f1, macro_f1, subset_accuracy, lrap, nll, brier, label_ece. All are nan if a prediction is not finite.
"""


class Multilabel(evaluate.Metric):
    """F1, ranking precision, likelihood and calibration of several labels."""

    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=INPUTS,
            features=Features({"predictions": Sequence(Value("float64")), "references": Sequence(Value("float64"))}),
        )

    def _compute(self, predictions, references):
        return multilabel_metrics(predictions, references)
