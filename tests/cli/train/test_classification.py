import json
import logging
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification, EvalPrediction

from hf_mixup.cli.train.arguments import parse
from hf_mixup.cli.train.classification import build_model, encode, finish, load_data, prepare
from hf_mixup.evaluation import fit_temperature, scaled_logits
from hf_mixup.evaluation.metrics import METRICS, compute_metrics_for
from hf_mixup.training.metric_names import METRIC_NAMES
from tests.toy_text import save_toy_model, write_csv, write_reviews

EXAMPLE = Path(__file__).parents[3] / "examples" / "run_classification.py"


@pytest.fixture
def arguments(tmp_path):
    def arguments(*more, train_file=None, model=None):
        return [
            *("--model_name_or_path", model or save_toy_model(tmp_path / "toy")),
            *("--train_file", train_file or write_reviews(tmp_path / "train.csv", 40)),
            *("--cache_dir", str(tmp_path / "cache"), "--output_dir", str(tmp_path / "out")),
            *("--max_steps", "2", "--save_strategy", "no", "--report_to", "none", "--use_cpu", *more),
        ]

    return arguments


def test_pairs_are_encoded_as_pairs_and_truncated(arguments, tmp_path):
    rows = [("a film", "the plot " * 20, "x"), ("the film", "a plot", "y")] * 5
    train_file = write_csv(tmp_path / "pairs.csv", ["left", "right", "label"], rows)
    given = arguments("--text_column_names", "left,right", "--max_seq_length", "12", train_file=train_file)
    model_args, data_args, args = parse(given)
    data = load_data(model_args, data_args, args)
    _, tokenizer = build_model(model_args, data)
    encoded = encode(data, tokenizer, data_args)["train"]
    assert max(map(len, encoded["input_ids"])) == 12
    assert all(max(segments) == 1 for segments in encoded["token_type_ids"])
    assert set(encoded.column_names) == {"input_ids", "token_type_ids", "attention_mask", "labels"}
    data_args.pad_to_max_length = True
    assert {len(ids) for ids in encode(data, tokenizer, data_args)["train"]["input_ids"]} == {12}


def test_max_seq_length_is_capped_by_the_tokenizer(arguments, tmp_path, caplog):
    train_file = write_csv(tmp_path / "long.csv", ["text", "label"], [("a film " * 50, "x"), ("the film", "y")] * 5)
    model_args, data_args, args = parse(arguments(train_file=train_file))
    data = load_data(model_args, data_args, args)
    with caplog.at_level(logging.WARNING):
        encoded = encode(data, build_model(model_args, data)[1], data_args)
    assert max(map(len, encoded["train"]["input_ids"])) == 32
    assert "max_seq_length=128: the model takes 32 tokens" in caplog.text


@pytest.mark.parametrize(
    ("label", "dtype", "problem_type"),
    [
        ("1", torch.int64, "single_label_classification"),
        ("0.5", torch.float32, "regression"),
        ("b c", torch.float32, "multi_label_classification"),
    ],
)
def test_labels_in_the_batch(arguments, tmp_path, label, dtype, problem_type):
    rows = [("a film", label), ("the film", label.replace("1", "2").replace("b", "d"))] * 10
    train_file = write_csv(tmp_path / "rows.csv", ["text", "label"], rows)
    run = prepare(*parse(arguments("--label_delimiter", "|", train_file=train_file)[: None if " " in label else -2]))
    batch = next(iter(run.trainer.get_train_dataloader()))
    assert batch["labels"].dtype == dtype
    assert run.trainer.model.config.problem_type == problem_type


def test_a_tokenizer_without_pad_token_uses_its_eos_token(arguments, tmp_path, caplog):
    model = save_toy_model(tmp_path / "decoder", eos_token="[SEP]")
    config = json.loads((tmp_path / "decoder/config.json").read_text()) | {"pad_token_id": None}
    (tmp_path / "decoder/config.json").write_text(json.dumps(config))
    with caplog.at_level(logging.WARNING):
        run = prepare(*parse(arguments(model=model)))
    assert "no pad token: its eos token '[SEP]' serves as one" in caplog.text
    assert run.trainer.model.config.pad_token_id == 3
    assert run.trainer.processing_class.pad_token == "[SEP]"


def test_neither_pad_nor_eos_token_is_refused(arguments, tmp_path):
    model = save_toy_model(tmp_path / "bare", sep_token="[SEP]")
    with pytest.raises(ValueError, match="tokenizer_name=.*no pad token, nor an eos token"):
        prepare(*parse(arguments(model=model)))


def save_classifier(tmp_path, names):
    folder = save_toy_model(tmp_path / "classifier")
    config = BertConfig.from_pretrained(
        folder, id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)}
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def test_a_model_that_is_a_classifier_keeps_its_classes(arguments, tmp_path):
    model = save_classifier(tmp_path, ["good", "neutral", "bad"])
    run = prepare(*parse(arguments(model=model)))
    assert run.trainer.model.config.label2id == {"good": 0, "neutral": 1, "bad": 2}
    saved = AutoModelForSequenceClassification.from_pretrained(model).classifier.weight
    assert torch.equal(run.trainer.model.classifier.weight, saved)


def test_labels_outside_of_the_model(arguments, tmp_path):
    model = save_classifier(tmp_path, ["positive", "negative", "neutral"])
    with pytest.raises(ValueError, match="outside of the model's 3: 'bad', 'good'"):
        prepare(*parse(arguments(model=model)))
    run = prepare(*parse(arguments("--ignore_mismatched_sizes", model=model)))
    assert run.trainer.model.config.id2label == {0: "bad", 1: "good"}


def test_same_seed_same_metrics(arguments, tmp_path):
    runs = [finish(prepare(*parse(arguments("--overwrite_output_dir", "--seed", seed)))) for seed in "001"]
    nll = [run["metrics"]["nll"] for run in runs]
    assert nll[0] == nll[1] != nll[2]


def test_evaluation_during_training_uses_the_validation_rows(arguments, tmp_path):
    test_file = write_reviews(tmp_path / "test.csv", 12, seed=1)
    given = arguments("--test_file", test_file, "--eval_strategy", "steps", "--eval_steps", "1")
    results = finish(prepare(*parse(given)))
    assert results["rows"] == {"train": 36, "validation": 4, "test": 12}
    history = json.loads((tmp_path / "out/trainer_state.json").read_text())["log_history"]
    assert sum("eval_accuracy" in entry for entry in history) == 2


def test_dropped_rows_are_in_the_results(arguments, tmp_path):
    rows = [("a film", "x"), ("the film", "y"), ("", "y")] * 6
    results = finish(prepare(*parse(arguments(train_file=write_csv(tmp_path / "rows.csv", ["text", "label"], rows)))))
    assert results["dropped_rows"] == {"train": 6}
    assert json.loads((tmp_path / "out/results.json").read_text()) == results


# ---- The average of the weights, and a temperature ----


def test_a_run_saves_and_measures_the_average_of_the_weights(arguments, tmp_path):
    weights = {}
    for averaging in ([], ["--averaging", "ema"], ["--averaging", "ema", "--ema_decay", "0"]):
        more = ("--overwrite_output_dir", "--learning_rate", "1e-2", *averaging)
        run = prepare(*parse(arguments(*more)))
        metrics = finish(run)["metrics"]
        saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").classifier.weight
        assert torch.equal(saved, run.trainer.model.classifier.weight)
        weights[len(averaging)] = saved, metrics["nll"]
    assert torch.equal(weights[0][0], weights[4][0]) and weights[0][1] == weights[4][1]
    assert not torch.equal(weights[0][0], weights[2][0]) and weights[0][1] != weights[2][1]


def test_a_temperature_is_fitted_on_validation_rows_kept_and_measured(arguments, tmp_path, capsys):
    test_file = write_reviews(tmp_path / "test.csv", 12, seed=1)
    run = prepare(*parse(arguments("--test_file", test_file, "--fit_temperature", "true", "--max_steps", "8")))
    results = finish(run)
    assert results["rows"] == {"train": 36, "validation": 4, "test": 12}
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    held_out = run.trainer.predict(run.splits["validation"])
    temperature = fit_temperature(held_out.predictions, held_out.label_ids, "single_label_classification")
    assert model.config.calibration_temperature == results["metrics"]["temperature"] == temperature != 1
    tested = run.trainer.predict(run.splits["test"])
    scaled = METRICS["single_label_classification"](scaled_logits(tested.predictions, model), tested.label_ids)
    for name in ("nll", "brier", "ece"):
        assert results["metrics"][f"{name}_scaled"] == pytest.approx(scaled[name])
        assert results["metrics"][name] == pytest.approx(tested.metrics[f"test_{name}"])
    assert {"temperature", "nll", "nll_scaled"} <= {
        line.partition(" ")[0] for line in capsys.readouterr().out.split("\n")
    }


def test_further_training_forgets_the_temperature(arguments, tmp_path):
    finish(prepare(*parse(arguments("--fit_temperature"))))
    assert "calibration_temperature" in json.loads((tmp_path / "out/config.json").read_text())
    (tmp_path / "out").rename(tmp_path / "first")
    finish(prepare(*parse(arguments(model=str(tmp_path / "first")))))
    assert "calibration_temperature" not in json.loads((tmp_path / "out/config.json").read_text())


def test_a_temperature_of_scores_and_an_average_of_another_kind_are_refused(arguments, tmp_path):
    rows = [("a film", 0.5), ("the film", 1.5)] * 10
    train_file = write_csv(tmp_path / "scores.csv", ["text", "label"], rows)
    with pytest.raises(ValueError, match="fit_temperature=True: needs classes"):
        prepare(*parse(arguments("--fit_temperature", "true", train_file=train_file)))
    with pytest.raises(ValueError, match="averaging='swa': expected one of ema, none"):
        parse(arguments("--averaging", "swa"))
    with pytest.raises(ValueError, match="ema_decay=0.9: used with averaging='ema' only"):
        parse(arguments("--ema_decay", "0.9"))


# ---- The example script ----


@pytest.fixture
def run_example(arguments, monkeypatch):
    """Runs the script in this process with more arguments."""

    def run(*more):
        monkeypatch.setattr("sys.argv", [str(EXAMPLE), *arguments(*more)])
        runpy.run_path(str(EXAMPLE), run_name="__main__")

    return run


def test_the_example_script_runs(run_example, tmp_path, capsys):
    run_example("--mixup", "embed_mix", "--averaging", "ema", "--fit_temperature", "true")
    printed = capsys.readouterr().out
    assert "accuracy" in printed and "nll_scaled" in printed
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["mixup"] is not None and results["split"] == "validation"
    assert (tmp_path / "out/trainer_state.json").is_file()


def test_the_example_script_ends_with_one_line_on_bad_input(run_example, capsys):
    with pytest.raises(SystemExit) as ended:
        run_example("--mixup.alpha", "0")
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.splitlines()[-1].startswith("error: mixup.alpha=0") and "Traceback" not in said


@pytest.mark.parametrize("kind", ["eager", "sdpa"])
def test_attn_implementation_reaches_the_model(arguments, kind):
    run = prepare(*parse(arguments("--attn_implementation", kind)))
    assert run.trainer.model.config._attn_implementation == kind


def test_metric_names_are_those_of_the_metrics():
    scores = {
        "single_label_classification": (np.eye(2), np.arange(2)),
        "multi_label_classification": (np.eye(2), np.eye(2)),
        "regression": (np.arange(2.0), np.arange(2.0)),
    }
    found = {name: tuple(METRICS[name](*pair)) for name, pair in scores.items()}
    tags = compute_metrics_for("token_classification", ["B-a", "O"])
    found["token_classification"] = tuple(tags(EvalPrediction(np.eye(2)[None], np.array([[0, 1]]))))
    assert found == METRIC_NAMES


def test_two_processes_print_and_write_once(arguments, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    config = tmp_path / "run.yaml"
    pairs = zip(given := arguments("true"), given[1:], strict=False)
    values = {name[2:]: value for name, value in pairs if name.startswith("--")}
    config.write_text("\n".join(f"{name}: {value}" for name, value in values.items()))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "-m", "hf_mixup.cli.main", "train", str(config), "--per_device_train_batch_size", "4"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    for line in ("Model ", "Mixup ", "update 1 of 2: loss", "\naccuracy ", "Saved "):
        assert done.stdout.count(line) == 1
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["before"]["nll"] != results["metrics"]["nll"]
    # 2 steps of 2 x 4 examples out of 36.
    assert results["train"]["epoch"] == pytest.approx(2 * 8 / 36, abs=0.05)
