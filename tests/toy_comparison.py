"""A comparison folder as `hf-mixup compare` leaves it, with made-up numbers."""

import itertools
import json
from zlib import crc32

import numpy as np
import yaml

METHODS = ("none", "label_smoothing", "tmix")
# Gains over the baseline: accuracy, and the share of its calibration error that is left.
GAINS = {"none": (0, 1), "label_smoothing": (0.0, 0.7), "tmix": (0.04, 0.4)}
BINS = 15


def write_comparison(
    folder, methods=METHODS, sizes=(20, 80), noise=(0.0,), seeds=range(5), kind="single_label_classification", **run
):
    """Every run is finished; the shared part of a seed is larger than what methods differ by."""
    asked = {
        "output_dir": str(folder),
        "methods": {name: [{"mixup": name}] for name in methods},
        "train_sizes": list(sizes),
        "seeds": list(seeds),
        "label_noise": list(noise),
        "run": run,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "comparison.yaml").write_text(yaml.safe_dump(asked, sort_keys=False))
    for method, size, share, seed in itertools.product(methods, sizes, noise, seeds):
        run_folder = folder / "runs" / f"{method}-size{size}-noise{share:g}-seed{seed}"
        run_folder.mkdir(parents=True)
        metrics, curves = MADE_UP[kind](method, size, share, seed)
        cell = {"method": method, "train_size": size, "label_noise": share, "seed": seed}
        result = cell | {"problem_type": kind, "label_names": ["bad", "good"], "metrics": metrics, "curves": curves}
        (run_folder / "result.json").write_text(json.dumps(result))
    return folder


def change_run(folder, name, **metrics):
    """Overwrite metrics of a finished run."""
    path = folder / "runs" / name / "result.json"
    result = json.loads(path.read_text())
    result["metrics"] |= metrics
    path.write_text(json.dumps(result))


def _single_label(method, size, noise, seed):
    shared = np.random.default_rng([seed, size]).normal()
    own = np.random.default_rng([seed, size, crc32(method.encode())])
    gain, left = GAINS.get(method, (0.01, 0.9))
    accuracy = 0.72 + 0.05 * np.log2(size / 20) / 2 - 0.3 * noise + gain + 0.03 * shared + 0.008 * own.normal()
    ece = 0.12 * left + 0.01 * shared + 0.005 * own.normal()
    nll = 0.62 - 0.5 * gain + 1.2 * (ece - 0.05) - 0.05 * np.log2(size / 20) + 0.02 * shared
    metrics = {"accuracy": accuracy, "macro_f1": accuracy - 0.01, "nll": nll, "brier": 0.6 * nll, "ece": ece}
    metrics |= {"adaptive_ece": 1.05 * ece, "temperature": 1 + 8 * ece, "nll_scaled": nll - ece, "ece_scaled": 0.04}
    metrics |= {"dev_nll": nll + 0.02 * own.normal(), "train_loss": 0.1 * left, "test_loss": nll}
    metrics |= {"generalisation_gap": nll - 0.1 * left, "path_loss": 0.3 + 0.2 * left + 0.02 * own.normal()}
    metrics |= {"gradient_norm": left + 0.1 * own.normal(), "uncertain_width": 0.4 - 0.3 * left + 0.01 * own.normal()}
    metrics |= {"ood_auroc_softmax": 0.7 + gain + 0.01 * own.normal(), "ood_fpr95_energy": None}
    for kind, slope in (("characters", 0.6), ("dropout", 0.4), ("swaps", 0.2), ("noise", 0.1)):
        for strength in (0.5, 1.0) if kind == "noise" else (0.1, 0.3):
            metrics[f"accuracy_{kind}_{strength:g}"] = accuracy - slope * strength * left + 0.01 * own.normal()
            metrics[f"flips_{kind}_{strength:g}"] = 0.8 * slope * strength
    if noise:
        metrics["memorised"] = 0.5 * left + 0.1 * shared
    curves = _curves(left, ece, nll, own)
    if method == "tmix":
        use = (0.7 + 0.05 * own.normal(size=3)).tolist()
        curves["unlabeled"] = {
            "step": [54, 72, 90],
            "use": use,
            "drift": [0.1, 0.1, 0.2],
            "disagreement": [0.3, 0.2, 0.2],
        }
    return metrics, curves


def _curves(left, ece, nll, own):
    t, steps = np.linspace(0, 1, 11), np.arange(1, 6) * 18
    low, count = (np.arange(BINS) + 0.5) / BINS, np.arange(BINS) ** 2.0
    count[: BINS // 2] = 0
    confidence = [value if number else None for value, number in zip(low, count, strict=True)]

    def reliability(error):
        accuracy = [
            None if value is None else min(1, max(0, value - 2 * error * (value - 0.5))) for value in confidence
        ]
        return {"confidence": confidence, "accuracy": accuracy, "count": count.tolist()}

    fall = np.exp(-steps / 25)
    return {
        "learning": {
            "step": steps.tolist(),
            "train_loss": (0.69 * fall + 0.1 * left + 0.01 * own.normal(size=5)).tolist(),
            "dev_loss": (nll + 0.1 * fall + 0.05 * left * (steps / 90) ** 2 + 0.01 * own.normal(size=5)).tolist(),
        },
        "path": {
            "t": t.tolist(),
            "confidence": (0.9 - (1.4 - left) * 0.8 * t * (1 - t) + 0.01 * own.normal()).tolist(),
            "loss": (nll + left * 1.5 * t * (1 - t) + 0.02 * own.normal()).tolist(),
        },
        "reliability": reliability(ece),
        "reliability_scaled": reliability(0.02),
    }


def _multi_label(method, size, noise, seed):
    value = 0.6 + 0.02 * np.random.default_rng([seed, size, crc32(method.encode())]).normal()
    metrics = {
        "micro_f1": value,
        "lrap": value + 0.1,
        "nll": 0.4,
        "nll_scaled": 0.38,
        "lrap_characters_0.1": value,
        "label_ece": 0.1 * value,
    }
    return metrics, {}


def _regression(method, size, noise, seed):
    value = 0.6 + 0.02 * np.random.default_rng([seed, size, crc32(method.encode())]).normal()
    return {"pearson": value, "rmse": 1.2 - value, "spearman": None, "generalisation_gap": 0.1 * value}, {}


def _tokens(method, size, noise, seed):
    value = 0.6 + 2 * GAINS[method][0] + 0.01 * np.random.default_rng([seed, size, crc32(method.encode())]).normal()
    metrics = {"f1": value, "precision": value + 0.01, "recall": value - 0.01, "accuracy": 0.3 + value, "nll": 0.4}
    metrics |= {"nll_scaled": 0.38, "ece": 0.1, "entity_ece": 0.2 * value, "entity_ece_scaled": 0.1 * value}
    return metrics | {"test_loss": 0.4}, {}


MADE_UP = {
    "single_label_classification": _single_label,
    "multi_label_classification": _multi_label,
    "regression": _regression,
    "token_classification": _tokens,
}


def predicted(kind, generator, texts=300, classes=4):
    """Logits and labels that agree in most texts; some logits are equal, some probabilities 0 or 1."""
    logits = generator.normal(size=(texts, classes)).round(1) * 4
    if kind == "single_label_classification":
        logits[:5] *= 50
        guesses = generator.integers(classes, size=texts)
        return logits, np.where(generator.random(texts) < 0.6, logits.argmax(axis=1), guesses)
    if kind == "multi_label_classification":
        labels = (generator.random((texts, classes)) < 1 / (1 + np.exp(-logits))).astype(float)
        labels[:3] = [[0] * classes, [1] * classes, [0] * classes]
        return logits, labels
    return logits[:, :1], 100 + 3 * logits[:, 0] + generator.normal(size=texts)


def write_predictions(folder, kind="single_label_classification"):
    """Leave predictions in every run, which have nothing to do with its metrics; the labels, and the logits by run."""
    _, labels = predicted(kind, np.random.default_rng(0))
    given = {}
    for number, run in enumerate(sorted((folder / "runs").iterdir())):
        given[run.name] = predicted(kind, np.random.default_rng(number))[0].astype(np.float32)
        np.savez_compressed(run / "predictions.npz", test_logits=given[run.name], test_labels=labels)
    return labels, given
