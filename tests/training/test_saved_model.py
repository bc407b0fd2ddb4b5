import json
import subprocess
import sys

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer

from hf_mixup import MixupModel, MixupTrainer
from tests.toy_runs import arguments
from tests.toy_text import reviews, save_toy_model

TEXT = "a lovely film with a dull plot"
NEWCOMER = """
import json, sys
sys.modules["hf_mixup"] = None
try:
    import hf_mixup
    raise SystemExit("hf_mixup was imported")
except ImportError:
    pass
from transformers import AutoModelForSequenceClassification, pipeline
seen = {}
for folder in sys.argv[2:]:
    model, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    keys = sorted(info["missing_keys"]) + sorted(info["unexpected_keys"])
    scores = pipeline("text-classification", model=folder, device="cpu")(sys.argv[1], top_k=None)
    seen[folder] = {"class": type(model).__name__, "keys": keys, "scores": {s["label"]: s["score"] for s in scores}}
print(json.dumps(seen))
"""


def fine_tune(folder, mixup_model):
    """Train on toy reviews through one of the two ways in, save beside the tokenizer, and return the plain model."""
    base = save_toy_model(folder / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    names = {0: "bad", 1: "good"}
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2, id2label=names)
    rows = [tokenizer(text) | {"label": int(good)} for text, good in reviews(16)]
    trainer = Trainer if mixup_model else MixupTrainer
    trainer = trainer(
        model=MixupModel(model, "manifold") if mixup_model else model,
        args=arguments(folder, learning_rate=1e-2),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model(str(folder / "saved"))
    return model.eval(), tokenizer


def test_the_saved_folder_works_where_hf_mixup_is_not_installed(tmp_path):
    expected = {}
    for name in ("trainer", "model"):
        model, tokenizer = fine_tune(tmp_path / name, mixup_model=name == "model")
        with torch.no_grad():
            scores = model(**tokenizer(TEXT, return_tensors="pt")).logits.softmax(-1)[0].tolist()
        expected[str(tmp_path / name / "saved")] = dict(zip(("bad", "good"), scores, strict=True))
    command = [sys.executable, "-c", NEWCOMER, TEXT, *expected]
    process = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert process.returncode == 0, process.stderr
    seen = json.loads(process.stdout.splitlines()[-1])
    assert seen.keys() == expected.keys()
    for folder, scores in expected.items():
        assert seen[folder]["class"] == "BertForSequenceClassification" and seen[folder]["keys"] == []
        assert seen[folder]["scores"] == pytest.approx(scores, abs=1e-5)
