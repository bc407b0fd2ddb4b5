"""Entities with few sentences, by method: `python benchmarks/entities.py DATA OUTPUT.jsonl [options]`.

Each run trains MiniLM on some sentences of a set and measures the last weights on all of its test sentences. One line
of JSON per run; runs that OUTPUT has already are left out. DATA is a folder with wnut17_train.conll and the like.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from hf_mixup.cli.train.classification import finish, prepare
from hf_mixup.cli.train.run_fields import DataArguments, ModelArguments

# The files of a set, and the sentences and updates of a run.
SETS: dict[str, tuple[dict[str, str], int, int]] = {
    "snips": ({"train_file": "snips_train.jsonl", "test_file": "snips_test.jsonl"}, 200, 200),
    "wnut17": (
        {"train_file": "wnut17_train.conll", "validation_file": "wnut17_dev.conll", "test_file": "wnut17_test.conll"},
        400,
        200,
    ),
}
METHODS = ("none", "default", "tmix", "inter_lada", "intra_lada", "seq_mix")
METRICS = ("f1", "precision", "recall", "accuracy", "nll", "ece", "entity_ece")
DEV, BATCH, LENGTH = 100, 16, 48


def run(name: str, seed: int, method: str, data: Path) -> dict[str, Any]:
    """Train once, on sentences that the seed draws."""
    files, size, updates = SETS[name]
    data_args = DataArguments(
        task="tokens",
        **{field: str(data / file) for field, file in files.items()},  # type: ignore[arg-type]
        shuffle_train_dataset=True,
        shuffle_seed=seed,
        max_train_samples=size,
        max_eval_samples=DEV,
        max_seq_length=LENGTH,
    )
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder,
            max_steps=updates,
            per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=64,
            learning_rate=2e-4,
            warmup_steps=updates // 10,
            weight_decay=0.01,
            seed=seed,
            eval_strategy="steps",
            eval_steps=updates // 4,
            logging_steps=updates // 4,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        started = prepare(ModelArguments(model_name_or_path="demo:minilm", mixup=method), data_args, args)
        results = finish(started)
    metrics = {metric: round(float(results["metrics"][metric]), 5) for metric in METRICS}
    seconds = round(results["train"]["train_runtime"], 1)
    return {
        "set": name,
        "size": size,
        "seed": seed,
        "method": method,
        "updates": updates,
        **metrics,
        "seconds": seconds,
    }


def main() -> None:
    """Run what is asked for and is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    given = parser.parse_args()
    done = [json.loads(line) for line in given.output.read_text().splitlines()] if given.output.exists() else []
    known = {(row["set"], row["seed"], row["method"]) for row in done}
    for seed, name, method in ((s, n, m) for s in given.seeds for n in given.sets for m in given.methods):
        if (name, seed, method) not in known:
            row = run(name, seed, method, given.data)
            with given.output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)


if __name__ == "__main__":
    main()
