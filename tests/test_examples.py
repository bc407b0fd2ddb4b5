"""The examples of images and sounds run for two steps; that of texts is in `test_classification.py`."""

import ast
import json
import re
import runpy
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from scipy.io import wavfile
from transformers import DataCollatorForTokenClassification, Trainer, TrainingArguments, pipeline

from hf_mixup.training.metric_names import METRIC_NAMES
from tests.toy_tags import NAMES, tagged, write_conll
from tests.toy_text import save_toy_model, write_reviews

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Runs an example in this process; returns the printed metrics by name."""

    def run(name, *words):
        given = ["--output_dir", str(tmp_path / "out"), "--max_steps", "2", "--use_cpu", "--disable_tqdm", "true"]
        monkeypatch.setattr("sys.argv", [name, *given, *words])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        lines = [line.split() for line in capsys.readouterr().out.splitlines() if " = " in line]
        return {name.removeprefix("test_"): value for name, _, value in lines}

    return run


def write_recordings(folder, rate=8000, count=30):
    folder.mkdir()
    for number in range(count):
        noise = np.random.default_rng(number).normal(0, 3000, 1600 + 50 * number).astype(np.int16)
        wavfile.write(folder / f"{'abc'[number % 3]}_{number}.wav", rate, noise)
    return str(folder)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("run_image_classification.py", ()),
        ("run_image_classification.py", ("--mixup", "none")),
        ("run_audio_classification.py", ()),
        ("run_audio_classification.py", ("--mixup", "input_mixup", "--attention_mask", "false")),
    ],
)
def test_an_example_trains_and_prints_its_metrics(run, tmp_path, name, words):
    metrics = run(name, *words)
    assert set(METRIC_NAMES["single_label_classification"]) <= set(metrics) and float(metrics["nll"]) > 0
    assert json.loads((tmp_path / "out/config.json").read_text())["architectures"]
    assert (tmp_path / "out/mixup_config.yaml").is_file() == ("none" not in words)


def test_recordings_are_read(run, tmp_path):
    metrics = run("run_audio_classification.py", "--recordings", write_recordings(tmp_path / "sounds"))
    assert 0 <= float(metrics["accuracy"]) <= 1
    assert json.loads((tmp_path / "out/config.json").read_text())["id2label"] == {"0": "a", "1": "b", "2": "c"}


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("run_image_classification.py", ("--mixup", "tmxi"), "mixup='tmxi': no such recipe. Did you mean"),
        ("run_image_classification.py", ("--mixup", "word_mixup"), "site='word_embeddings': ViTForImage"),
        ("run_audio_classification.py", ("--recordings", "absent"), "recordings='absent': no .wav files there"),
    ],
)
def test_what_cannot_work_is_refused(run, name, words, message):
    with pytest.raises((ValueError, FileNotFoundError), match=f"^{message}"):
        run(name, *words)


def test_recordings_of_another_rate_are_refused(run, tmp_path):
    with pytest.raises(ValueError, match=r"has rate 16000 and shape \(1600,\); expected mono, 8000 Hz"):
        run("run_audio_classification.py", "--recordings", write_recordings(tmp_path / "sounds", rate=16000))


@pytest.mark.parametrize("mixup", ["tmix", "none"])
def test_the_plain_script_trains_on_files(monkeypatch, tmp_path, capsys, mixup):
    (tmp_path / "texts").mkdir()
    for seed, (split, count) in enumerate({"train": 64, "validation": 8, "test": 10}.items()):
        write_reviews(tmp_path / "texts" / f"{split}.csv", count, seed=seed)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    given = ["--model", save_toy_model(tmp_path / "toy"), "--dataset", str(tmp_path / "texts"), "--epochs", "1"]
    monkeypatch.setattr("sys.argv", ["", *given, "--mixup", mixup, "--output_dir", str(tmp_path / "out")])
    runpy.run_path(str(EXAMPLES / "text_classification.py"), run_name="__main__")
    metrics = ast.literal_eval(capsys.readouterr().out.splitlines()[-1])
    assert metrics["test_accuracy"] * 10 == round(metrics["test_accuracy"] * 10) and metrics["epoch"] == 1
    assert json.loads((tmp_path / "out/config.json").read_text())["id2label"] == {"0": "bad", "1": "good"}
    assert (tmp_path / "out/mixup_config.yaml").is_file() == (mixup != "none")


@pytest.mark.parametrize("mixup", ["seq_mix", "none"])
def test_the_script_for_tokens_trains_on_conll_files_and_evaluates_unmixed(monkeypatch, tmp_path, capsys, mixup):
    files = [
        write_conll(tmp_path / f"{seed}.conll", tagged(count, seed), between=" _ ")
        for seed, count in ((0, 96), (1, 16))
    ]
    given = [
        *files,
        "--model",
        save_toy_model(tmp_path / "toy"),
        "--epochs",
        "2",
        "--output_dir",
        str(tmp_path / "out"),
    ]
    monkeypatch.setattr("sys.argv", ["", *given, "--mixup", mixup])
    names = runpy.run_path(str(EXAMPLES / "token_classification.py"), run_name="__main__")
    metrics = ast.literal_eval(capsys.readouterr().out.splitlines()[-1])
    assert metrics["epoch"] == 2 and 0 <= metrics["eval_f1"] <= 1
    assert (tmp_path / "out/mixup_config.yaml").is_file() == (mixup != "none")

    classify = pipeline("token-classification", model=str(tmp_path / "out"))
    assert classify.model.config.id2label == dict(enumerate(NAMES))
    assert {found["word"] for found in classify("the great film")} <= {"the", "great", "film"}

    rows = [
        {**classify.tokenizer(words, is_split_into_words=True), "labels": [-100, *map(NAMES.index, tags), -100]}
        for words, tags in tagged(16, 1)
    ]
    collator = DataCollatorForTokenClassification(classify.tokenizer)
    args = TrainingArguments(str(tmp_path / "plain"), use_cpu=True, report_to="none")
    plain = Trainer(classify.model, args, data_collator=collator, eval_dataset=rows).evaluate()
    assert metrics["eval_loss"] == pytest.approx(plain["eval_loss"], rel=1e-5)
    assert names["read_conll"](files[1])["tags"] == [tags for _, tags in tagged(16, 1)]


def test_the_plain_script_stays_short():
    text = (EXAMPLES / "text_classification.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 70
    assert re.findall(r"^.*\bhf_mixup\b.*$", text, flags=re.MULTILINE) == ["from hf_mixup import MixupTrainer"]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_imports_public_names_only(path):
    check_imports(path.read_text(encoding="utf-8"))


def check_imports(source):
    """Fail if a source imports what is not in the `__all__` of a package or module."""
    for node in ast.walk(ast.parse(source)):
        assert not isinstance(node, ast.Import) or all(not name.name.startswith("hf_mixup") for name in node.names)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("hf_mixup"):
            public = getattr(import_module(str(node.module)), "__all__", ())
            assert {name.name for name in node.names} <= set(public)


@pytest.mark.parametrize(
    ("name", "package"), [("reward_model.py", "trl"), ("cross_encoder.py", "sentence_transformers")]
)
def test_a_trainer_of_another_library_trains_without_mixup_and_with_it(monkeypatch, tmp_path, capsys, name, package):
    pytest.importorskip(package, reason=f"{package} is not installed: it is in the extra trainers")
    given = ["--model_name_or_path", save_toy_model(tmp_path / "model"), "--output_dir", str(tmp_path / "out")]
    quick = ["--max_steps", "2", "--pairs", "16", "--max_length", "31", "--use_cpu", "--disable_tqdm", "true"]
    monkeypatch.setattr("sys.argv", [name, *given, *quick])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    plain, mixed = (line for line in capsys.readouterr().out.splitlines() if line.startswith("mixup="))
    assert plain.startswith("mixup=None: accuracy") and mixed.startswith("mixup=fixed: accuracy")
