"""Every public name has an example in its docstring, and each example runs."""

import doctest
import inspect
import re

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, Trainer, default_data_collator

import hf_mixup
from hf_mixup import evaluation
from tests.test_own_trainer_doc import WeightedTrainer, rows, tokenizer
from tests.toy_runs import arguments, steady_bert

PUBLIC = {name: getattr(package, name) for package in (hf_mixup, evaluation) for name in package.__all__}
# What must hold after an example that prints nothing.
AFTER = {
    "Mixup": "mixup.mixed == 1 and loss.requires_grad",
    "MixupCollator": "trainer.train().global_step == 2 and len(loader) == 1",
    "MixupConfig": "config.layers == [2, 3, 4]",
    "MixupMixin": "trainer.train().global_step == 2 and trainer.mixup.mixed == 2",
    "MixupModel": "loss.requires_grad and model.mixup.mixed == 1",
    "MixupTrainer": "trainer.mixup.mixed == 2",
    "compute_metrics_for": "'eval_nll' in trainer.evaluate(eval_dataset)",
    "fold_temperature": "model.config.calibration_temperature == 1",
    "scaled_logits": "torch.equal(probabilities, model(**batch).logits.softmax(-1))",
    "store_temperature": "model.config.calibration_temperature > 0",
}


@pytest.fixture
def names(tmp_path, monkeypatch):
    """What an example may use without saying where it comes from."""
    monkeypatch.chdir(tmp_path)
    others = (DataCollatorWithPadding, DataLoader, Trainer, WeightedTrainer)
    names = PUBLIC | {"np": np, "torch": torch} | {other.__name__: other for other in others}
    names |= {"model": steady_bert().train(), "args": arguments(tmp_path, report_to=[]), "tokenizer": tokenizer()}
    names |= {"train_dataset": rows(), "eval_dataset": rows(8), "batch": default_data_collator(rows(8))}
    names["teacher"] = steady_bert()
    names["trainer"] = Trainer(names["model"], names["args"])
    generator = np.random.default_rng(0)
    return names | {"logits": generator.normal(size=(8, 3)), "labels": np.arange(8) % 3}


@pytest.mark.parametrize("name", PUBLIC)
def test_the_example_of_a_public_name_runs(name, names):
    blocks = re.findall(r"```python\n(.*?)```", inspect.getdoc(PUBLIC[name]) or "", flags=re.DOTALL)
    assert blocks, f"{name}: no example in its docstring"
    assert all(name.lower() in block.lower() for block in blocks)
    for block in blocks:
        if ">>>" in block:
            runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
            said = []
            runner.run(doctest.DocTestParser().get_doctest(block, names, name, None, 0), out=said.append)
            assert not runner.failures, "".join(said)
        else:
            exec(block, names)
            assert eval(AFTER.get(name, "True"), names)
