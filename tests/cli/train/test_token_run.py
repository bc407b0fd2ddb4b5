"""`hf-mixup train` with `task: tokens`, from a CoNLL file to results.json and a pipeline."""

import json
import logging
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForTokenClassification, BertConfig, BertForTokenClassification, pipeline
from transformers.utils.logging import get_verbosity, set_verbosity

from hf_mixup.cli.main import main
from hf_mixup.cli.train import run_text
from hf_mixup.cli.train.arguments import parse
from hf_mixup.cli.train.classification import build_model, finish, load_data, prepare
from hf_mixup.cli.train.named_classifier import head_labels
from hf_mixup.config.mixup_config import PARTNERS
from hf_mixup.evaluation import fit_temperature, token_metrics
from hf_mixup.forward.anatomy.host import LOAD_REPORT, LOADING_LOGGER
from hf_mixup.training.metric_names import METRIC_NAMES, TAG_METRICS
from tests.toy_tags import NAMES, tagged, write_conll
from tests.toy_text import save_toy_model

EXAMPLE = Path(__file__).parents[3] / "examples" / "run_classification.py"


@pytest.fixture(autouse=True)
def spoken():
    """A comparison in the same process leaves transformers quiet."""
    before = get_verbosity()
    set_verbosity(logging.WARNING)
    yield
    set_verbosity(before)


@pytest.fixture
def config(toy_config, tmp_path):
    """The YAML file of a run on a CoNLL file; keyword arguments change fields."""

    def config(**changes):
        files = {
            "train_file": write_conll(tmp_path / "train.conll", tagged(48)),
            "test_file": write_conll(tmp_path / "test.conll", tagged(16, seed=1)),
        }
        return toy_config(**{"task": "tokens", "mixup": "none"} | files | changes)

    return config


def results_of(folder):
    return json.loads(Path(folder, "results.json").read_text())


def test_train_end_to_end(config, tmp_path, capsys):
    assert main(["train", config(max_steps=60, eval_strategy="epoch")]) == 0
    results, printed = results_of(tmp_path / "out"), capsys.readouterr().out
    in_one_line = " ".join(printed.split())
    assert (results["problem_type"], results["label_names"]) == ("token_classification", NAMES)
    assert results["rows"] == {"train": 43, "validation": 5, "test": 16} and results["mixup"] is None
    metrics = results["metrics"]
    assert set(METRIC_NAMES["token_classification"]) <= set(metrics)
    assert metrics["f1"] > 0.8 > results["before"]["f1"] and 0 <= metrics["entity_ece"] < 0.5
    for line in (
        "BertForTokenClassification with ",
        f"Data {tmp_path}/train.conll, 43 train, 16 test, 5 validation rows; label column 'tags': ",
        "5 tags of 240 tokens, entities of 2 types ('bad', 'good')",
        "evaluation: f1 ",
    ):
        assert line in in_one_line
    before, after = (f"{found['f1']:.4f}" for found in (results["before"], metrics))
    assert re.search(rf"^f1 +{before} +{after}$", printed, flags=re.MULTILINE)
    assert "hf-mixup compare CONFIG.yaml compares methods" in in_one_line


def test_mixup_and_the_training_without_it(config, tmp_path, capsys):
    given = config(mixup="tmix", baseline=True, fit_temperature=True, max_steps=4)
    assert main(["train", given]) == 0
    mixed = results_of(tmp_path / "out")
    assert main(["train", given, "--mixup", "none", "--baseline", "false", "--overwrite_output_dir", "true"]) == 0
    plain = results_of(tmp_path / "out")["metrics"]
    for name in ("nll", "f1", "temperature"):
        assert mixed["baseline"]["metrics"][name] == pytest.approx(plain[name], abs=1e-6)
    assert mixed["mixup"]["site"] == "hidden" and mixed["metrics"]["nll"] != plain["nll"]


MIXED = {
    "inter_lada": "inter_lada - with a near text of the batch, or any",
    "intra_lada": "intra_lada - with another token of the same text, at the input of the last linear layer",
    "seq_mix": "seq_mix - an entity of a random text of the batch in the place of one",
    "default": "default - as much as held-out predictions ask for",
}


@pytest.mark.parametrize("recipe", MIXED)
def test_a_run_says_how_it_mixes(config, tmp_path, capsys, recipe):
    assert main(["train", config(mixup=recipe, max_steps=4, eval_strategy="epoch")]) == 0
    assert f"Mixup {MIXED[recipe]}" in " ".join(capsys.readouterr().out.split())
    assert results_of(tmp_path / "out")["mixup"] is not None


def test_every_partner_has_its_words():
    assert set(run_text.PARTNERS) == set(PARTNERS)


def test_what_is_saved_is_a_plain_model(config, tmp_path, capsys):
    assert main(["train", config(max_steps=60)]) == 0
    model = AutoModelForTokenClassification.from_pretrained(tmp_path / "out")
    assert [model.config.id2label[number] for number in range(5)] == NAMES
    assert model.config.label2id == {name: number for number, name in enumerate(NAMES)}
    assert model.config.problem_type is None
    said = next(line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("pipeline("))
    (entity,) = eval(said.strip().replace('"..."', '"the great lovely film"'), {"pipeline": pipeline})
    assert entity["entity_group"] == "good" and entity["word"] == "great lovely"


def test_the_metrics_are_those_of_the_saved_model(config, tmp_path):
    run = prepare(*parse([config(fit_temperature=True, max_steps=20)]))
    results = finish(run)
    rows, held_out = run.splits["test"], run.trainer.predict(run.splits["validation"])
    model = AutoModelForTokenClassification.from_pretrained(tmp_path / "out").eval()
    logits, labels = np.full((16, 8, 5), -100.0, dtype=np.float32), np.full((16, 8), -100)
    for place, row in enumerate(rows):
        # One text at a time, without padding.
        inputs = {name: torch.tensor([row[name]]) for name in ("input_ids", "attention_mask", "token_type_ids")}
        with torch.no_grad():
            logits[place, : len(row["labels"])] = model(**inputs).logits[0]
        labels[place, : len(row["labels"])] = row["labels"]
    found = token_metrics(logits, labels, NAMES)
    assert all(results["metrics"][name] == pytest.approx(value, abs=1e-4) for name, value in found.items())
    temperature = fit_temperature(held_out.predictions, held_out.label_ids, "token_classification")
    assert model.config.calibration_temperature == results["metrics"]["temperature"] == temperature != 1
    scaled = token_metrics(logits / temperature, labels, NAMES)
    for name in ("nll", "brier", "ece", "entity_ece"):
        assert results["metrics"][f"{name}_scaled"] == pytest.approx(scaled[name], abs=1e-3)


def test_a_pooler_that_a_tagger_does_not_have_is_not_reported(config, caplog):
    LOADING_LOGGER.addHandler(caplog.handler)
    try:
        run = prepare(*parse([config()]))
    finally:
        LOADING_LOGGER.removeHandler(caplog.handler)
    saved = load_file(Path(run.model_args.model_name_or_path, "model.safetensors"))
    assert any("pooler" in name for name in set(saved) - set(run.trainer.model.bert.state_dict()))
    assert LOAD_REPORT not in caplog.text


def test_parts_of_speech_in_a_json_file(config, tmp_path, capsys):
    tags = {"O": "NOUN", "B": "ADJ", "I": "ADV"}
    rows = [json.dumps({"words": words, "pos_tags": [tags[tag[0]] for tag in own]}) for words, own in tagged(48)]
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    given = config(train_file=str(tmp_path / "train.jsonl"), test_file=None, metric_for_best_model="macro_f1")
    assert main(["train", given]) == 0
    results = results_of(tmp_path / "out")
    assert results["label_names"] == ["ADJ", "ADV", "NOUN"] and results["split"] == "validation"
    assert set(TAG_METRICS) <= set(results["metrics"]) and "f1" not in results["metrics"]
    assert "aggregation_strategy" not in capsys.readouterr().out
    assert main(["train", given, "--metric_for_best_model", "f1", "--overwrite_output_dir", "true"]) == 2
    assert "metric_for_best_model='f1': no such metric of token classification" in capsys.readouterr().err


def test_the_best_model_by_f1(config, tmp_path):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "f1", "save_strategy": "epoch"}
    assert main(["train", config(eval_strategy="epoch", max_steps=12, averaging="ema", **best)]) == 0
    state = json.loads((tmp_path / "out/trainer_state.json").read_text())
    assert state["best_metric"] == max(entry["eval_f1"] for entry in state["log_history"] if "eval_f1" in entry)


def test_the_head_of_a_tagger_stays_with_its_order(config, tmp_path):
    order = NAMES[::-1]
    names = {"id2label": dict(enumerate(order)), "label2id": {name: number for number, name in enumerate(order)}}
    tagger = save_toy_model(tmp_path / "tagger")
    torch.manual_seed(1)
    BertForTokenClassification(BertConfig.from_pretrained(tagger, **names)).save_pretrained(tagger)
    model_args, data_args, args = parse([config(model_name_or_path=tagger)])
    data = load_data(model_args, data_args, args)
    assert data.label_names == order
    model, _ = build_model(model_args, data)
    saved = AutoModelForTokenClassification.from_pretrained(tagger)
    assert torch.equal(model.classifier.weight, saved.classifier.weight)
    # For texts it is no classifier.
    assert head_labels(model_args, "tokens") == order and head_labels(model_args, "texts") is None
    other = write_conll(tmp_path / "other.conll", [(["the", "film"], ["B-x", "O"])] * 5)
    with pytest.raises(ValueError, match="labels outside of the model's 5: 'B-x'"):
        load_data(*parse([config(model_name_or_path=tagger, train_file=other, test_file=None)]))


def test_the_bias_of_a_new_head_starts_at_the_shares_of_the_tags(config):
    model_args, data_args, args = parse([config(prior_bias=True)])
    data = load_data(model_args, data_args, args)
    bias = build_model(model_args, data)[0].classifier.bias.detach()
    labels = np.concatenate(data.splits["train"]["labels"][:])
    shares = torch.from_numpy(np.bincount(labels) / len(labels)).float()
    torch.testing.assert_close(bias.softmax(-1), shares, atol=0.01, rtol=0)


def test_what_is_about_texts_is_refused(config, tmp_path, capsys, monkeypatch):
    assert main(["train", config(), "--text_column_names", "tokens"]) == 2
    assert "text_column_names='tokens': used with task: texts only" in capsys.readouterr().err
    with pytest.raises(ValueError, match="mixup.unlabeled: needs texts without labels"):
        prepare(*parse([config(mixup={"recipe": "few_labels"})]))
    monkeypatch.setattr("sys.argv", [str(EXAMPLE), config()])
    with pytest.raises(SystemExit):
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert "task='tokens': this script is about texts" in capsys.readouterr().err
