"""What a comparison found, in words."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd

from hf_mixup.cli.compare.table import BETTER, SAME, TOO_FEW, WORSE, number, verdict_of
from hf_mixup.training.metric_names import higher_is_better

NAMES = {
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "subset_accuracy": "subset accuracy",
    "lrap": "LRAP",
    "nll": "NLL",
    "brier": "Brier score",
    "ece": "ECE",
    "adaptive_ece": "adaptive ECE",
    "label_ece": "ECE per label",
    "aurc": "AURC",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "rmse": "RMSE",
    "ood_auroc_softmax": "OOD AUROC (softmax)",
    "ood_auroc_energy": "OOD AUROC (energy)",
    "ood_fpr95_softmax": "OOD FPR95 (softmax)",
    "ood_fpr95_energy": "OOD FPR95 (energy)",
    "test_loss": "test loss",
    "path_loss": "mean loss on the line between texts",
    "memorised": "memorised share",
}
PHRASES = {
    "accuracy": "is more accurate than",
    "ece": "is better calibrated than",
    "nll": "gives better probabilities than",
    "path_loss": "has a lower loss between texts than",
    "test_loss": "ends with a lower loss than",
    "memorised": "learns fewer wrong labels by heart than",
}
# A metric under a perturbation, as a run of a comparison names it.
PERTURBED = re.compile(r"(?P<metric>\w+)_(?P<kind>characters|dropout|swaps|noise)_(?P<strength>[\d.]+)")


def metric_name(metric: str) -> str:
    """How a metric is called in text: `"macro F1"`, `"accuracy (characters 0.1)"`."""
    if metric in NAMES:
        return NAMES[metric]
    found = PERTURBED.fullmatch(metric)
    if found is None:
        return metric.replace("_", " ")
    return f"{NAMES.get(found['metric'], found['metric'])} ({found['kind']} {found['strength']})"


def setting_name(size: int, noise: float, problem_type: str) -> str:
    """How a size and a label noise are called in text."""
    rows = f"{size} training row{'s' * (size != 1)}"
    rows += " per class" if problem_type == "single_label_classification" else ""
    return rows + (f", {100 * noise:g} % wrong labels" if noise else "")


def select(summary: pd.DataFrame, metric: str, size: int, noise: float) -> pd.DataFrame:
    """The rows of one metric at one size and label noise."""
    at = (summary["metric"] == metric) & (summary["train_size"] == size) & (summary["label_noise"] == noise)
    return summary[at]


def finding(summary: pd.DataFrame, metric: str, baseline: str, size: int, noise: float) -> str:
    """One sentence about a metric, for the title of a picture.

    Args:
        summary (`pandas.DataFrame`): see `hf_mixup.cli.compare.table.summarise`.
        metric (`str`): a metric with a direction.
        baseline (`str`): the method that the others are compared with.
        size (`int`), noise (`float`): where.

    Returns:
        `str`: such as `"tmix is better calibrated than none: ECE 0.050 against 0.110"`; it names who diverged.
    """
    rows = select(summary, metric, size, noise)
    lost = divergences(rows, baseline)
    found = _compared(rows, metric, baseline)
    if found is None:
        return f"No verdict on {metric_name(metric)}: {'; '.join(lost) or f'nothing was compared with {baseline}'}"
    return "; ".join([found, *lost])


def divergences(rows: pd.DataFrame, baseline: str) -> list[str]:
    """Who diverged, such as `["tmix diverged in 2 of 4 seeds"]`; the baseline alone if it did, as nothing is left."""
    lost = {row["method"]: verdict_of(row) for _, row in rows[rows["diverged"] > 0].iterrows()}
    if baseline in lost:
        return [f"baseline {baseline} {lost[baseline]}"]
    return [f"{method} {said}" for method, said in lost.items()]


def _compared(rows: pd.DataFrame, metric: str, baseline: str) -> str | None:
    """What was found of the methods that did not diverge; `None` if there is none with a verdict."""
    name = metric_name(metric)
    others, base = rows[rows["method"] != baseline], rows[rows["method"] == baseline]["mean"]
    for verdict in (BETTER, WORSE):
        found = others[others["verdict"] == verdict].sort_values("mean")
        if found.empty:
            continue
        # The best of the better ones, the worst of the worse ones.
        one = found.iloc[-1 if bool(higher_is_better(metric)) == (verdict == BETTER) else 0]
        numbers = f"{name} {number(one['mean'])} against {number(base.iloc[0])}"
        if verdict == BETTER:
            return f"{one['method']} {PHRASES.get(metric, 'is better than')} {baseline}: {numbers}"
        return f"No method is better than {baseline}, and {one['method']} is worse: {numbers}"
    said = {SAME: f"No difference in {name} was seen", TOO_FEW: f"Too few seeds for a verdict on {name}"}
    return next((sentence for verdict, sentence in said.items() if (others["verdict"] == verdict).any()), None)


def verdicts(summary: pd.DataFrame, metric: str, size: int, noise: float) -> dict[str, list[str]]:
    """The methods of each verdict, of one metric at one size and label noise: `{"better": ["tmix"], ...}`."""
    rows = select(summary, metric, size, noise)
    return {word: list(rows[rows["verdict"] == word]["method"]) for word in (BETTER, WORSE, SAME, TOO_FEW)}


def overview(summary: pd.DataFrame, metrics: Sequence[str], baseline: str, size: int, noise: float) -> str:
    """Which methods are better and worse, over several metrics, in one sentence."""
    parts, same = [], []
    for metric in metrics:
        found = verdicts(summary, metric, size, noise)
        for word in (BETTER, WORSE):
            if found[word]:
                parts.append(f"{metric_name(metric)} is {word} with {', '.join(found[word])}")
        if found[SAME] and not found[BETTER] and not found[WORSE]:
            same.append(metric_name(metric))
    if same:
        parts.append(f"no difference in {' and '.join(same)} was seen")
    at = (summary["train_size"] == size) & (summary["label_noise"] == noise) & summary["metric"].isin(metrics)
    lost = divergences(summary[at], baseline)
    if not parts and not lost:
        parts = ["too few seeds for a verdict"]
    return f"Against {baseline}: {'; '.join([*parts, *lost])}"
