"""Correlations and error of predicted scores, as a module of `evaluate`."""

import evaluate
from datasets import Features, Value

from hf_mixup.evaluation.metrics import regression_metrics

INPUTS = """
Args:
    predictions: one score per example.
    references: one score per example.
Returns:
    pearson and spearman correlations; rmse, in the unit of the references. All are nan if a prediction is not finite.
"""


class Regression(evaluate.Metric):
    """Pearson and Spearman correlation and root mean squared error."""

    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=INPUTS,
            features=Features({"predictions": Value("float64"), "references": Value("float64")}),
        )

    def _compute(self, predictions, references):
        return regression_metrics(predictions, references)
