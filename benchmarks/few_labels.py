"""Few labels, with and without unlabelled texts: `python benchmarks/few_labels.py DATA OUTPUT.jsonl [options]`.

Each run trains MiniLM on a few texts of each class and, if the method uses them, on other texts of the training set
without their labels. Two weights are measured: those with the lowest loss on a development set as large as the labelled
one, and the last. One line of JSON per run; runs that OUTPUT has already are left out. DATA is a folder with
agnews_train.csv and the like; the movie reviews come with the demo extra.

The methods `given` learn guesses of a language model: `--write_texts FOLDER` writes 1,500 training texts of each set as
FOLDER/SET.csv and trains nothing, examples/language_model_guesses.py makes FOLDER/SET.jsonl of it, and `--guesses
FOLDER` trains on these.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    TrainingArguments,
    set_seed,
)

from hf_mixup import MixupTrainer
from hf_mixup.cli import demo
from hf_mixup.evaluation.metrics import compute_metrics_for

MODEL = "demo:minilm"
REVIEWS = {"rotten_tomatoes": "demo:rotten_tomatoes", "imdb": "demo:imdb"}
SETS = ("ag_news", "trec", "rotten_tomatoes", "sst2", "imdb")
# The mixup of a method, whether it uses unlabelled texts, and its number of updates, in those of the others.
METHODS: dict[str, tuple[Any, bool, float]] = {
    "none": (None, False, 1),
    "tmix": ("tmix", False, 1),
    "default": ("default", False, 1),
    "tmix_long": ("tmix", False, 2),
    "few_labels": ("default", True, 1),
    "unmixed": (None, True, 1),
    "given": ({"recipe": "few_labels", "unlabeled": {"guesses": "given"}}, True, 1),
    "given_unsharpened": ({"recipe": "few_labels", "unlabeled": {"guesses": "given", "temperature": 1}}, True, 1),
    "given_unmixed": ({"recipe": "few_labels", "strength": 0, "unlabeled": {"guesses": "given"}}, True, 1),
    "mixtext": ("mixtext", True, 1),
    "ict": ("ict", True, 1),
    "softmatch": ("softmatch", True, 1),
    "mean_teacher": ("mean_teacher", True, 1),
}
UNLABELED, GUESSED, TESTED, LENGTH, BATCH = 3000, 1500, 500, 48, 8
# What may be done to the unlabelled texts: a share of them gives way to texts of another set, or to those of one class.
FOREIGN, RARE = 0.2, 0.1


class Measured(MixupTrainer):
    """Measures the last weights on the test rows before the best ones take their place."""

    tested: Any = None
    last: dict[str, float]

    def _before_best_model(self) -> None:
        super()._before_best_model()
        self.last = measured(self.predict(self.tested).metrics)


def measured(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics that are kept of a run."""
    return {name: round(float(metrics[f"test_{name}"]), 5) for name in ("accuracy", "nll", "ece", "brier")}


def rows_of(name: str, data: Path) -> dict[str, pd.DataFrame]:
    """The train, validation and test rows of a set, columns text and label."""
    if name in REVIEWS:
        return {split: rows.to_pandas() for split, rows in demo.load_dataset(REVIEWS[name]).items()}
    stem = name.replace("_", "")
    parts = {part: pd.read_csv(data / f"{stem}_{part}.csv") for part in ("train", "test")}
    names = {label: number for number, label in enumerate(sorted(parts["train"]["label"].unique()))}
    parts = {part: rows.assign(label=rows["label"].map(names)) for part, rows in parts.items()}
    mixed = parts["train"].sample(frac=1, random_state=0)
    return {"validation": mixed[: len(mixed) // 10], "train": mixed[len(mixed) // 10 :], "test": parts["test"]}


def split_rows(name: str, data: Path, size: int, seed: int, changed: str) -> dict[str, pd.DataFrame]:
    """The rows of a run: `size` labelled ones and as many for development of each class, unlabelled and tested ones."""
    rows = rows_of(name, data)
    labelled = rows["train"].groupby("label").sample(size, random_state=seed)
    rest = rows["train"].drop(labelled.index).sample(frac=1, random_state=seed)
    unlabeled = rest[:UNLABELED]
    if changed == "foreign":
        other = rows_of("trec" if name != "trec" else "sst2", data)["train"].sample(frac=1, random_state=seed)
        number = int(FOREIGN * len(unlabeled))
        unlabeled = pd.concat([unlabeled[number:], other[:number].assign(label=-100)])
    if changed == "imbalanced":
        first, others = rest[rest["label"] == 0], rest[rest["label"] != 0]
        number = min(UNLABELED, int(len(first) / (1 - RARE)))
        unlabeled = pd.concat([first[: int((1 - RARE) * number)], others[: int(RARE * number)]])
    return {
        "train": labelled,
        "validation": of_each_class(rows["validation"], size, seed),
        "unlabeled": unlabeled,
        "test": rows["test"].sample(min(TESTED, len(rows["test"])), random_state=0),
    }


def write_texts(name: str, data: Path, folder: Path) -> None:
    """Some training texts of a set, with their labels, to be guessed."""
    rows = rows_of(name, data)["train"].sample(GUESSED, random_state=0)
    folder.mkdir(parents=True, exist_ok=True)
    rows[["text", "label"]].to_csv(folder / f"{name}.csv", index=False)


def with_guesses(frames: dict[str, pd.DataFrame], file: Path) -> dict[str, pd.DataFrame]:
    """The rows of a run with the texts of `file` for unlabelled ones, and their class probabilities for labels."""
    rows = pd.read_json(file, orient="records", lines=True, dtype=False)
    return {**frames, "unlabeled": rows[~rows["text"].isin(frames["train"]["text"])]}


def of_each_class(rows: pd.DataFrame, size: int, seed: int) -> pd.DataFrame:
    """`size` rows of each class, or all if there are fewer."""
    state = np.random.RandomState(seed)
    return pd.concat([own.sample(min(size, len(own)), random_state=state) for _, own in rows.groupby("label")])


def run(name: str, size: int, seed: int, method: str, given: argparse.Namespace) -> dict[str, Any]:
    """Train once, and measure the kept weights on the test rows."""
    tokenizer = AutoTokenizer.from_pretrained(demo.model_path(MODEL))
    frames = split_rows(name, given.data, size, seed, given.changed)
    if method.startswith("given"):
        frames = with_guesses(frames, given.guesses / f"{name}.jsonl")
    splits = {part: encoded(rows, tokenizer) for part, rows in frames.items()}
    set_seed(seed)
    classes = frames["train"]["label"].nunique()
    model = AutoModelForSequenceClassification.from_pretrained(demo.model_path(MODEL), num_labels=classes)
    mixup, uses_unlabeled, longer = METHODS[method]
    updates = int(given.updates * longer)
    compute = compute_metrics_for("single_label_classification")
    with tempfile.TemporaryDirectory() as folder:
        trainer = Measured(
            model=model,
            args=arguments(folder, updates, seed),
            mixup=mixup,
            unlabeled_dataset=splits["unlabeled"] if uses_unlabeled else None,
            train_dataset=splits["train"],
            eval_dataset=splits["validation"],
            processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=compute,
        )
        trainer.tested = splits["test"]
        started = time.perf_counter()
        trainer.train()
        seconds = round(time.perf_counter() - started, 1)
        best = measured(trainer.predict(splits["test"]).metrics)
    logs = [log for log in trainer.state.log_history if "unlabeled_use" in log]
    guesses = {key: value for key, value in logs[-1].items() if key.startswith("unlabeled_")} if logs else {}
    step = int(Path(trainer.state.best_model_checkpoint or "checkpoint-0").name.rpartition("-")[2])
    about = {"set": name, "size": size, "seed": seed, "method": method, "changed": given.changed, "updates": updates}
    last = {f"last_{key}": value for key, value in trainer.last.items()}
    return {**about, **best, **last, **guesses, "best_step": step, "seconds": seconds}


def encoded(rows: pd.DataFrame, tokenizer: Any) -> Dataset:
    """Tokens and labels."""
    tokens = tokenizer(rows["text"].astype(str).tolist(), truncation=True, max_length=LENGTH)
    return Dataset.from_dict({**tokens, "labels": rows["label"].tolist()})


def arguments(folder: str, updates: int, seed: int) -> TrainingArguments:
    """The same for all methods."""
    part = max(1, updates // 10)
    return TrainingArguments(
        output_dir=folder,
        max_steps=updates,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=64,
        learning_rate=2e-4,
        warmup_steps=part,
        weight_decay=0.01,
        seed=seed,
        eval_strategy="steps",
        eval_steps=part,
        save_strategy="steps",
        save_steps=part,
        save_total_limit=1,
        save_only_model=True,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        logging_steps=part,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )


def main() -> None:
    """Run what is asked for and is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path, nargs="?")
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--sizes", nargs="+", type=int, default=[10])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--methods", nargs="+", default=["none", "tmix", "few_labels"], choices=METHODS)
    parser.add_argument("--changed", default="", choices=["", "foreign", "imbalanced"])
    parser.add_argument("--updates", type=int, default=150)
    parser.add_argument("--guesses", type=Path, help="folder of SET.jsonl, of examples/language_model_guesses.py")
    parser.add_argument("--write_texts", type=Path, help="write the texts to be guessed into this folder, and end")
    given = parser.parse_args()
    if given.write_texts:
        for name in given.sets:
            write_texts(name, given.data, given.write_texts)
        return
    if given.output is None:
        parser.error("OUTPUT.jsonl: nowhere to write the runs")
    if any(method.startswith("given") for method in given.methods) and (given.changed or not given.guesses):
        parser.error("methods given: need --guesses, and no --changed, as their texts are those that were guessed")
    done = [json.loads(line) for line in given.output.read_text().splitlines()] if given.output.exists() else []
    asked = [
        (name, size, seed, method)
        for seed in given.seeds
        for size in given.sizes
        for name in given.sets
        for method in given.methods
    ]
    known = {(row["set"], row["size"], row["seed"], row["method"], row["changed"]) for row in done}
    for name, size, seed, method in asked:
        if (name, size, seed, method, given.changed) in known:
            continue
        row = run(name, size, seed, method, given)
        with given.output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(row, flush=True)


if __name__ == "__main__":
    main()
