"""How well a classifier knows how good it is, from logits, as a module of `evaluate`."""

import evaluate
from datasets import Features, Sequence, Value

from hf_mixup.evaluation.metrics import classification_metrics

INPUTS = """
Args:
    predictions: scores before the softmax, one list of classes per example.
    references: class indices; rows with -100 are left out.
Returns:
    nll, in nats; brier, summed over classes; ece, over 15 equal-width bins; adaptive_ece, over 15 equal-mass bins, of
    at least 10 examples each, so fewer bins below 150; examples of equal confidence share a bin. All are nan if a
    prediction is not finite.
"""

CITATION = "Nixon et al. (2019). Measuring Calibration in Deep Learning."


class Calibration(evaluate.Metric):
    """Negative log-likelihood, Brier score and two calibration errors."""

    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__,
            citation=CITATION,
            inputs_description=INPUTS,
            features=Features({"predictions": Sequence(Value("float64")), "references": Value("int64")}),
        )

    def _compute(self, predictions, references):
        metrics = classification_metrics(predictions, references)
        return {name: metrics[name] for name in ("nll", "brier", "ece", "adaptive_ece")}
