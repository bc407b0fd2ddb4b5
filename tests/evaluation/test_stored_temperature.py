"""A temperature that travels with a model: stored, applied, and folded into the weights."""

import copy
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast

from hf_mixup.evaluation import fit_temperature, fold_temperature, scaled_logits, store_temperature
from hf_mixup.evaluation.stored_temperature import FIELD
from tests.toy_runs import CLASSES, examples, make_trainer, steady_bert
from tests.toy_text import save_toy_model
from tests.zoo import FAMILIES, VOCAB, cached_toy_model, toy_batch, toy_model

SINGLE, MULTI = "single_label_classification", "multi_label_classification"
LABELS = {SINGLE: np.array([0, 1, 2, 0]), MULTI: np.eye(CLASSES, dtype=np.float32)[[0, 1, 2, 0]]}


def logits_of(model, batch):
    with torch.no_grad():
        return model(**batch).logits


@pytest.mark.parametrize("kind", [SINGLE, MULTI])
@pytest.mark.parametrize("is_said", [True, False])
def test_a_temperature_is_kept_through_saving_and_loading(tmp_path, kind, is_said):
    model, batch = steady_bert(problem_type=kind if is_said else None), toy_batch()
    logits = logits_of(model, batch)
    temperature = store_temperature(model, logits.numpy(), LABELS[kind])
    assert temperature == fit_temperature(logits.numpy(), LABELS[kind], kind) != 1
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    for said in (model, loaded, loaded.config, AutoConfig.from_pretrained(tmp_path), nn.DataParallel(loaded)):
        assert torch.equal(scaled_logits(logits, said), logits / temperature)
        np.testing.assert_array_equal(scaled_logits(logits.numpy(), said), logits.numpy() / temperature)
    assert torch.equal(logits_of(loaded, batch), logits)


def test_without_a_temperature_nothing_changes():
    model, logits = steady_bert(), torch.randn(2, CLASSES)
    assert torch.equal(scaled_logits(logits, model), logits)
    before = copy.deepcopy(model.state_dict())
    fold_temperature(model)
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_temperature_is_folded_exactly(family):
    model, batch = copy.deepcopy(cached_toy_model(family)).train(), toy_batch()
    model.config.calibration_temperature = 1.7
    before = copy.deepcopy(model.state_dict())
    logits = logits_of(model.eval(), batch)
    fold_temperature(model)
    torch.testing.assert_close(logits_of(model, batch), logits / 1.7, rtol=1e-6, atol=1e-6)
    assert model.config.calibration_temperature == 1 and all(weight.requires_grad for weight in model.parameters())
    changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert 1 <= len(changed) <= 2
    fold_temperature(model)
    torch.testing.assert_close(logits_of(model, batch), logits / 1.7, rtol=1e-6, atol=1e-6)


def test_half_precision_is_folded_as_far_as_it_goes():
    model, batch = steady_bert().to(torch.bfloat16), toy_batch()
    model.config.calibration_temperature = 3.0
    logits = logits_of(model, batch)
    fold_temperature(model)
    torch.testing.assert_close(logits_of(model, batch), logits / 3, rtol=0.02, atol=0.02)


class Capped(nn.Module):
    """A head whose logits are no linear function, as in Gemma 2."""

    def __init__(self):
        super().__init__()
        self.body = steady_bert()
        self.config = self.body.config

    def forward(self, input_ids=None, attention_mask=None):
        return torch.tanh(self.body(input_ids=input_ids, attention_mask=attention_mask).logits)


def test_what_is_no_linear_layer_is_refused_and_left_as_it_was():
    model = Capped()
    model.config.calibration_temperature = 2.0
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="Capped: its logits are not the output of a linear layer with 3 outputs"):
        fold_temperature(model)
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    assert model.config.calibration_temperature == 2.0


PIPELINE = """
import json, sys
from transformers import pipeline
classifiers = [pipeline("text-classification", folder, device="cpu") for folder in sys.argv[1:]]
assert not any(name.startswith("hf_mixup") for name in sys.modules)
print(json.dumps([[score["score"] for score in classify("w5 w9 w30 w7", top_k=None)] for classify in classifiers]))
"""


def save_folded(folder, kind):
    """Returns the probabilities of a text, which the saved model should give."""
    model = steady_bert(problem_type=kind)
    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(VOCAB)}, unk_token="w3"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w1").save_pretrained(folder)
    logits = logits_of(model, {"input_ids": torch.tensor([[5, 9, 30, 7]])})[0]
    model.config.calibration_temperature = 2.5
    fold_temperature(model)
    model.save_pretrained(folder)
    return torch.softmax(logits / 2.5, -1) if kind == SINGLE else torch.sigmoid(logits / 2.5)


def test_a_pipeline_of_the_folded_model_is_calibrated_without_this_package(tmp_path):
    expected = {str(tmp_path / kind): save_folded(tmp_path / kind, kind) for kind in (SINGLE, MULTI)}
    command = [sys.executable, "-c", PIPELINE, *expected]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    for scores, probabilities in zip(json.loads(done.stdout), expected.values(), strict=True):
        np.testing.assert_allclose(scores, sorted(probabilities.tolist(), reverse=True), atol=1e-6)


def test_the_example_of_the_docs_runs(tmp_path, monkeypatch):
    text = (Path(__file__).parents[2] / "docs" / "training_options.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    trainer = make_trainer(tmp_path, compute_metrics=lambda prediction: {})
    tokenizer = AutoTokenizer.from_pretrained(save_toy_model(tmp_path / "toy"))
    given = {"trainer": trainer, "model": trainer.model, "batch": toy_batch(), "validation_dataset": examples(9)}
    given["tokenizer"] = tokenizer
    exec(example, given)
    saved = AutoModelForSequenceClassification.from_pretrained("calibrated")
    probabilities = logits_of(saved, given["batch"]).softmax(-1)
    torch.testing.assert_close(probabilities, given["probabilities"].detach(), rtol=1e-6, atol=1e-6)
    assert saved.config.calibration_temperature == 1
    assert AutoTokenizer.from_pretrained("calibrated").get_vocab() == tokenizer.get_vocab()


def test_what_cannot_be_kept_is_refused():
    logits = np.array([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    regression = toy_model("bert", num_labels=1)
    with pytest.raises(ValueError, match="problem_type='regression': expected one of single_label_classification"):
        store_temperature(regression, logits[:, :1], np.array([0.5, 1.0]))
    adapted = get_peft_model(steady_bert(), LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    with pytest.raises(ValueError, match=r"adapters.*merge_and_unload"):
        store_temperature(adapted, logits, np.array([0, 1]))
    merged = adapted.merge_and_unload()
    assert store_temperature(merged, logits, np.array([0, 2])) == merged.config.calibration_temperature
    merged.config.calibration_temperature = 0.0
    with pytest.raises(ValueError, match=r"calibration_temperature=0.0: expected a finite number > 0"):
        scaled_logits(logits, merged)


def test_a_diverged_model_keeps_what_it_has():
    model = steady_bert()
    assert np.isnan(store_temperature(model, np.array([[np.nan, 0.0, 0.0]]), np.array([0])))
    assert FIELD not in vars(model.config)
