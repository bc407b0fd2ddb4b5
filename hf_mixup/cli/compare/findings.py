"""What a comparison found, in words."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence

import pandas as pd

from hf_mixup.cli.compare.statistics import BETTER, DECIDED, EQUIVALENT, NO_WORSE, PRIMARY_NAMES, SAME, TOO_FEW, WORSE
from hf_mixup.cli.compare.table import SETTING, number, verdict_of
from hf_mixup.training.metric_names import higher_is_better

NAMES = {
    "f1": "F1 of entities",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "subset_accuracy": "subset accuracy",
    "lrap": "LRAP",
    "nll": "NLL",
    "brier": "Brier score",
    "ece": "ECE",
    "adaptive_ece": "adaptive ECE",
    "label_ece": "ECE per label",
    "entity_ece": "ECE of entities",
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
    "f1": "finds entities better than",
    "accuracy": "is more accurate than",
    "ece": "is better calibrated than",
    "nll": "gives better probabilities than",
    "path_loss": "has a lower loss between texts than",
    "test_loss": "ends with a lower loss than",
    "memorised": "learns fewer wrong labels by heart than",
}
# What is said of the primary endpoints first, and in which verdicts it shows.
LEADING = {
    "Better or worse after correction": (BETTER, WORSE),
    "Equivalent to the baseline, or no worse, by the margin": (EQUIVALENT, NO_WORSE),
}
# The p value after correction that a verdict goes by.
DECIDED_BY = {**dict.fromkeys((BETTER, WORSE, SAME), "q"), EQUIVALENT: "q_equivalent", NO_WORSE: "q_no_worse"}
WIDTH = 100
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


def setting_name(size: int, noise: float, per_class: bool) -> str:
    """How a size and a label noise are called in text; `per_class` says of what the size is."""
    rows = f"{size} training row{'s' * (size != 1)}" + " per class" * per_class
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
    if not others["verdict"].isin(DECIDED).any():
        return f"Too few seeds for a verdict on {name}" if (others["verdict"] == TOO_FEW).any() else None
    held = others[others["verdict"].isin((EQUIVALENT, NO_WORSE))]
    said = [f"{row['method']} is {verdict_of(row)}" for _, row in held.iterrows()]
    return "; ".join([f"No difference in {name} was seen", *said])


def verdicts(summary: pd.DataFrame, metric: str, size: int, noise: float) -> dict[str, list[str]]:
    """The methods of each verdict, of one metric at one size and label noise: `{"better": ["tmix"], ...}`."""
    rows = select(summary, metric, size, noise)
    return {word: list(rows[rows["verdict"] == word]["method"]) for word in (*DECIDED, TOO_FEW)}


def survivors(summary: pd.DataFrame, primary: bool, words: Sequence[str]) -> dict[str, str]:
    """What is said of each method by some verdicts, in which metrics and at which training sizes.

    Args:
        summary (`pandas.DataFrame`): see `hf_mixup.cli.compare.table.summarise`.
        primary (`bool`): of the primary endpoints, or of all other metrics.
        words (`Sequence[str]`): the verdicts, such as `("better", "worse")`.

    Returns:
        `dict[str, str]`: such as `{"tmix": "better: NLL (everywhere), ECE (20); worse: accuracy (80)"}`, without
            methods of which there is nothing to say.
    """
    said: dict[str, list[str]] = {}
    shown, settings = summary[summary["metric"].isin(PRIMARY_NAMES) == primary], summary[SETTING].drop_duplicates()
    for method, own in shown.groupby("method", sort=False):
        for word in words:
            metrics = []
            for metric, at in own[own["verdict"] == word].groupby("metric", sort=False):
                noisy = [f" with {100 * noise:g} % wrong labels" if noise else "" for noise in at["label_noise"]]
                places = [f"{size}{noise}" for size, noise in zip(at["train_size"], noisy, strict=True)]
                everywhere = len(places) == len(settings) > 1
                metrics.append(f"{metric_name(metric)} ({'everywhere' if everywhere else ', '.join(places)})")
            if metrics:
                said.setdefault(method, []).append(f"{word}: {', '.join(metrics)}")
    return {method: "; ".join(of_method) for method, of_method in said.items()}


def overview(summary: pd.DataFrame, metrics: Sequence[str], baseline: str, size: int, noise: float) -> str:
    """Which methods are better and worse, over several metrics, in one sentence."""
    parts, same = [], []
    for metric in metrics:
        found = verdicts(summary, metric, size, noise)
        for word in (BETTER, WORSE):
            if found[word]:
                parts.append(f"{metric_name(metric)} is {word} with {', '.join(found[word])}")
        if any(found[word] for word in DECIDED) and not found[BETTER] and not found[WORSE]:
            same.append(metric_name(metric))
    if same:
        parts.append(f"no difference in {' and '.join(same)} was seen")
    at = (summary["train_size"] == size) & (summary["label_noise"] == noise) & summary["metric"].isin(metrics)
    lost = divergences(summary[at], baseline)
    if not parts and not lost:
        parts = ["too few seeds for a verdict"]
    return f"Against {baseline}: {'; '.join([*parts, *lost])}"


def format_summary(summary: pd.DataFrame, metrics: Sequence[str]) -> str:
    """For the terminal: what is left after correction, then means and verdicts by size and label noise.

    Args:
        summary (`pandas.DataFrame`): see `summarise`.
        metrics (`Sequence[str]`): which to show, such as `MAIN_METRICS["regression"]`; unknown and repeated ones are
            left out.

    Returns:
        `str`: lines of at most 100 characters; metrics that do not fit beside the others stand below them. `seeds` is
            how many a method has, and q the p value after correction that its verdict goes by.
    """
    blocks = []
    for title, words in LEADING.items():
        said = survivors(summary, True, words)
        blocks.append(f"{title}:{'' if said else ' nothing'}")
        for method, found in said.items():
            blocks += textwrap.wrap(f"{method}: {found}", WIDTH, initial_indent="  ", subsequent_indent="    ")
        blocks.append("")
    for (size, noise), group in summary.groupby(SETTING, sort=False):
        blocks.append(f"train_size={size}, label_noise={noise:g}")
        methods = list(group["method"].unique())
        shown = group.set_index(["method", "metric"])
        seeds = group.groupby("method")["seeds"].max()
        names = _beside(_column(["method", *methods]), _column(["seeds", *(str(seeds[name]) for name in methods)]))
        lines = names
        for metric in dict.fromkeys(metrics):
            if metric not in set(group["metric"]):
                continue
            column = _column([metric, *(_entry(shown, method, metric) for method in methods)])
            if len(lines[0]) + 1 + len(column[0]) > WIDTH:
                blocks += lines
                lines = names
            lines = _beside(lines, column)
        blocks += [*lines, ""]
    return "\n".join(line.rstrip() for line in blocks).rstrip()


def _entry(shown: pd.DataFrame, method: str, metric: str) -> str:
    if (method, metric) not in shown.index:
        return "–"
    row = shown.loc[(method, metric)]
    q = row[DECIDED_BY[row["verdict"]]] if row["verdict"] in DECIDED_BY else math.nan
    tested = "" if math.isnan(q) else " (q < 0.001)" if q < 0.001 else f" (q {q:.3f})"
    return f"{number(row['mean'])} {verdict_of(row)}{tested}"


def _beside(lines: list[str], column: list[str]) -> list[str]:
    return [f"{line} {entry}" for line, entry in zip(lines, column, strict=True)]


def _column(entries: list[str]) -> list[str]:
    # The longest name of a method still leaves room for one metric.
    width = min(max(map(len, entries)), WIDTH // 2)
    return [entry[:width].ljust(width) for entry in entries]
