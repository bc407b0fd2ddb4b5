"""Intervals over seeds and test texts, from the predictions of the runs. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse, stats
from scipy.special import expit, log_softmax

from hf_mixup.cli.compare.runs import DERIVED, PREDICTIONS, Cell, load_runs
from hf_mixup.cli.compare.statistics import FEWEST, LEVEL
from hf_mixup.config.files import write_whole

KEY = ["method", "train_size", "label_noise", "seed"]
BOUNDS = ["low_texts", "high_texts"]
RESAMPLES, AT_A_TIME = 1000, 50
ECE_BINS = 15
# What float16 holds; a run with larger logits has diverged.
LARGEST = 6e4


def gather_predictions(folder: str | Path) -> dict[str, np.ndarray]:
    """The predictions of the finished runs of a comparison on its test texts.

    Args:
        folder (`str` or `Path`): the output folder of a comparison.

    Returns:
        `dict[str, np.ndarray]`: `logits`, float16 (float32 for regression), shape (runs, texts, classes); `labels`, of
            the texts; `problem_type`; and of each run `method`, `train_size`, `label_noise`, `seed` and `temperature`
            (nan if there is none). For tagged tokens both are of the tokens of all texts; `texts` is the number of the
            text of each, and `entities`, shape (runs, 2, texts), what F1 is made of, if tags mark entities. Empty if no
            run has left its predictions.

    Raises:
        FileNotFoundError: if the folder holds no comparison.
        ValueError: if runs were tested on other texts.
    """
    runs: list[tuple[Any, ...]] = []
    logits, entities, same = [], [], dict[str, np.ndarray]()
    for run in load_runs(folder):
        cell = Cell(*(run[name] for name in KEY))
        path = Path(folder) / "runs" / cell.name / PREDICTIONS
        if not path.is_file():
            continue
        with np.load(path) as saved:
            scores = saved["test_logits"].clip(-LARGEST, LARGEST)
            fixed = {name: saved[f"test_{name}"] for name in ("labels", "texts") if f"test_{name}" in saved}
            entities += [saved["test_entities"]] if "test_entities" in saved else []
        if same and not all(np.array_equal(fixed[name], same[name]) for name in same):
            raise ValueError(f"{path}: the test labels are not those of the other runs.")
        same, kind = fixed, run["problem_type"]
        logits.append(scores.astype(np.float32 if kind == "regression" else np.float16))
        runs.append((*(run[name] for name in KEY), run["metrics"].get("temperature") or np.nan))
    if not same:
        return {}
    columns = dict(zip([*KEY, "temperature"], map(np.array, zip(*runs, strict=True)), strict=True))
    columns |= {"entities": np.stack(entities)} if entities else {}
    return columns | same | {"logits": np.stack(logits), "problem_type": np.array(kind)}


def save_predictions(predictions: Mapping[str, np.ndarray], path: str | Path) -> None:
    """Keep what `gather_predictions` returns in one compressed `.npz` file; `numpy.load` reads it back."""
    with write_whole(path) as part, part.open("wb") as file:
        np.savez_compressed(file, **predictions)  # type: ignore[arg-type]


def add_text_intervals(
    summary: pd.DataFrame, predictions: Mapping[str, np.ndarray], baseline: str, resamples: int = RESAMPLES
) -> pd.DataFrame:
    """Add to a summary how the differences in the primary endpoints vary over seeds and test texts together.

    Both are drawn with replacement, the texts the same for all runs, so that a method and the baseline are paired by
    seed and by text. The interval is that of the percentiles, with two corrections: it is shifted by the bias of the
    resamples (a calibration error of fewer different texts is larger), and what seeds contribute is widened as a t
    interval is, since percentiles of so few are too narrow.

    Args:
        summary (`pandas.DataFrame`): see `hf_mixup.cli.compare.table.summarise`.
        predictions (`Mapping[str, np.ndarray]`): see `gather_predictions`.
        baseline (`str`): the method that the others are compared with.
        resamples (`int`): how many times texts and seeds are drawn. The draws are the same in every call.

    Returns:
        `pandas.DataFrame`: the same rows with `low_texts` and `high_texts`, the ends of the 95 % interval; nan if there
            are fewer than 3 pairs of predictions, for all other metrics, and for what has no difference.
    """
    values = _resampled_metrics(predictions, baseline, resamples) if predictions else {}
    rows = []
    for setting, of_runs in pd.DataFrame(list(values), columns=KEY).groupby(KEY[:-1], sort=False):
        seeds = [seed for seed in of_runs["seed"] if (baseline, *setting[1:], seed) in values]
        pairs = [(values[(*setting, seed)], values[(baseline, *setting[1:], seed)]) for seed in seeds]
        if len(pairs) >= FEWEST and setting[0] != baseline:
            for metric in pairs[0][0]:
                differences = np.stack([own[metric] - base[metric] for own, base in pairs])
                rows.append((*setting, metric, *_interval(differences)))
    found = pd.DataFrame(rows, columns=[*KEY[:-1], "metric", *BOUNDS])
    merged = summary.merge(found, how="left", on=[*KEY[:-1], "metric"])
    merged.loc[merged["difference"].isna(), BOUNDS] = np.nan
    for name in reversed(BOUNDS):
        merged.insert(int(merged.columns.get_loc("high")) + 1, name, merged.pop(name))
    return merged


def _interval(differences: np.ndarray) -> tuple[float, float]:
    """The ends, from differences (pairs, 1 + resamples): of the texts as they are, and of every draw of texts."""
    pairs, resamples = len(differences), differences.shape[1] - 1
    drawn = np.random.default_rng(1).multinomial(pairs, np.full(pairs, 1 / pairs), resamples).T / pairs
    observed, of_texts = differences[:, 0].mean(), differences[:, 1:]
    means = of_texts.mean(axis=0)
    wider = np.sqrt(pairs / (pairs - 1)) * stats.t.ppf(1 - LEVEL / 2, pairs - 1) / stats.norm.ppf(1 - LEVEL / 2)
    of_both = means + wider * ((drawn * of_texts).sum(axis=0) - means)
    low, high = np.percentile(of_both, [100 * LEVEL / 2, 100 * (1 - LEVEL / 2)]) - (of_both.mean() - observed)
    return float(low), float(high)


def _resampled_metrics(
    predictions: Mapping[str, np.ndarray], baseline: str, resamples: int
) -> dict[tuple[Any, ...], dict[str, np.ndarray]]:
    """Of every run, and of the baseline with its temperature, each primary endpoint: (1 + resamples,)."""
    kind, labels, every = str(predictions["problem_type"]), predictions["labels"], predictions["logits"]
    of_text = predictions["texts"] if "texts" in predictions else np.arange(len(labels))
    entities = predictions["entities"] if "entities" in predictions else [None] * len(every)
    texts, generator = int(of_text.max()) + 1, np.random.default_rng(0)
    draws = (np.bincount(generator.integers(texts, size=texts), minlength=texts) for _ in range(resamples))
    counts = np.stack([np.ones(texts, np.uint8), *(draw.astype(np.uint8) for draw in draws)], axis=1)
    values = {}
    columns = (predictions[name].tolist() for name in [*KEY, "temperature"])
    for (*key, temperature), logits, counted in zip(zip(*columns, strict=True), every, entities, strict=True):
        scores = logits.astype(np.float64)
        values[tuple(key)] = _metrics(kind, scores, labels, counts, of_text, counted)
        if key[0] == baseline and np.isfinite(temperature):
            values[(DERIVED, *key[1:])] = _metrics(kind, scores / temperature, labels, counts, of_text, counted)
    return values


def _metrics(
    kind: str,
    logits: np.ndarray,
    labels: np.ndarray,
    counts: np.ndarray,
    of_text: np.ndarray,
    entities: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Every metric of texts that are there `counts` (texts, samples) times: (samples,); `of_text` is of each label."""
    found, blocks = {}, np.split(counts, range(AT_A_TIME, counts.shape[1], AT_A_TIME), axis=1)
    belongs = sparse.csr_array((np.ones(len(labels)), (np.arange(len(labels)), of_text)))

    def summed(parts: Any) -> np.ndarray:
        return np.concatenate([parts @ block.astype(np.float64) for block in blocks], axis=1)

    rows = summed(np.bincount(of_text)[None])
    # Runs that diverged, and equal scores, have no value.
    with np.errstate(all="ignore"):
        of_texts = {metric: parts @ belongs for metric, parts in PARTS[kind](logits, labels).items()}
        for metric, parts in (of_texts | ({} if entities is None else {"f1": entities})).items():
            found[metric] = FINISH.get(metric, np.ravel)(summed(parts) / rows)
    return found


def _single_label(logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """What each text or token contributes to each metric, (parts, texts): it is made of the means over them."""
    logs = log_softmax(logits, axis=1)
    correct = logs.argmax(axis=1) == labels
    gaps = _gaps(np.exp(logs.max(axis=1))[:, None], correct[:, None])
    return {"accuracy": correct[None], "nll": -logs[np.arange(len(labels)), labels][None], "ece": gaps}


def _several_labels(logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    truth, predicted = labels > 0, logits > 0
    hits, named = (predicted & truth).sum(axis=1), predicted.sum(axis=1) + truth.sum(axis=1)
    entropy = np.logaddexp(0, logits) - logits * labels
    found = {"lrap": _ranking_precision(logits, truth)[None], "micro_f1": np.stack([2 * hits, named])}
    return found | {"nll": entropy.mean(axis=1)[None], "label_ece": _gaps(expit(logits), truth)}


def _one_score(scores: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    x, y = scores.reshape(-1), labels.reshape(-1)
    squared = np.square(x - y)[None]
    x, y = x - x.mean(), y - y.mean()
    return {"pearson": np.stack([x, y, x * x, y * y, x * y]), "rmse": squared}


def _gaps(probabilities: np.ndarray, truth: np.ndarray) -> sparse.csr_array:
    """How far each probability (texts, labels) is off, in the bin of its label: (labels times bins, texts)."""
    texts, labels = probabilities.shape
    # Edges and probabilities in float32, as torchmetrics bins them.
    edges = np.linspace(0, 1, ECE_BINS + 1, dtype=np.float32)
    bins = np.searchsorted(edges, probabilities.astype(np.float32), side="right") - 1
    rows = bins.clip(max=ECE_BINS - 1) + ECE_BINS * np.arange(labels)
    places = (rows.ravel(), np.repeat(np.arange(texts), labels))
    return sparse.csr_array((((truth - probabilities) / labels).ravel(), places), shape=(labels * ECE_BINS, texts))


def _ranking_precision(logits: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Label-ranking average precision of each text: (texts,)."""
    above = np.zeros(len(truth))
    for label in np.flatnonzero(truth.any(axis=0)):
        at_least = logits >= logits[:, [label]]
        above += truth[:, label] * (at_least & truth).sum(axis=1) / at_least.sum(axis=1)
    # Texts without a label, as scikit-learn counts them, have nothing to rank.
    return np.where(truth.any(axis=1), above / truth.sum(axis=1).clip(min=1), 1.0)


def _pearson(means: np.ndarray) -> np.ndarray:
    x, y, xx, yy, xy = means
    return (xy - x * y) / np.sqrt((xx - x * x) * (yy - y * y))


PARTS: dict[str, Callable[[np.ndarray, np.ndarray], dict[str, Any]]] = {
    "single_label_classification": _single_label,
    "multi_label_classification": _several_labels,
    "regression": _one_score,
    "token_classification": _single_label,
}
# How a metric is made of the means of its parts, (parts, samples); of one part it is the mean.
FINISH: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    **dict.fromkeys(("ece", "label_ece"), lambda means: np.abs(means).sum(axis=0)),
    **dict.fromkeys(("f1", "micro_f1"), lambda means: np.where(means[1] > 0, means[0] / means[1], 0.0)),
    "pearson": _pearson,
    "rmse": lambda means: np.sqrt(means[0]),
}
