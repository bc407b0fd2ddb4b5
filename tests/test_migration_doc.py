"""docs/migration.md is true: of the hand-written class that it shows, and of what replaces it."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import Trainer

from hf_mixup import Mixup, MixupTrainer
from tests.toy_runs import a_plan, arguments, collate, examples, first_step, steady_bert
from tests.zoo import toy_batch, toy_model

PAGE = (Path(__file__).parents[1] / "docs/migration.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
SAME_LENGTH = [{name: value[:4] if name != "labels" else value for name, value in row.items()} for row in examples()]


@pytest.fixture
def page(tmp_path):
    """The names that the page defines, all of its code having run."""
    names = {"model": steady_bert(), "args": arguments(tmp_path), "train": SAME_LENGTH, "dev": SAME_LENGTH[:8]}
    for block in BLOCKS:
        exec(block, names)
        names.setdefault("hand_written", names["trainer"])
    return names


@pytest.fixture
def at(monkeypatch):
    """Fixes the lambda and the partners that the ten lines draw."""

    def fix(lam, partner=None):
        monkeypatch.setattr(np.random, "beta", lambda a, b: lam)
        if partner is not None:
            monkeypatch.setattr(torch, "randperm", lambda *args, **options: partner)

    return fix


def loss_of(page, batch, model=None, **options):
    trainer = page["HandWritten"](model or steady_bert(), page["args"], train_dataset=SAME_LENGTH, **options)
    return trainer.compute_loss(trainer.model, dict(batch), return_outputs=True)


def test_all_of_them_train(page):
    for trainer in (page["hand_written"], page["trainer"], MixupTrainer(page["model"], page["args"], mixup=None)):
        if trainer.train_dataset is not None:
            assert np.isfinite(trainer.train().training_loss)
    assert page["trainer"].mixup.mixed == 2


def test_both_compute_the_same_loss_for_texts_of_one_length(page, at):
    batch, model = collate(SAME_LENGTH[:8]), steady_bert()
    mixup = Mixup(model, page["mixup"])
    plan = a_plan(8, "word_embeddings")
    plan.lam.fill_(0.3)
    labels, inputs = batch["labels"], {name: value for name, value in batch.items() if name != "labels"}
    with mixup.apply(plan, inputs):
        logits = model(**inputs).logits
    at(0.3, plan.partner)
    torch.testing.assert_close(loss_of(page, batch, model)[0], mixup.loss(logits, labels, plan))


@pytest.mark.parametrize("kind", ["HandWritten", "MixupTrainer"])
def test_evaluation(page, kind):
    extra = {"mixup": page["mixup"]} if kind == "MixupTrainer" else {}
    trainer = page[kind](steady_bert(), page["args"], train_dataset=SAME_LENGTH, eval_dataset=SAME_LENGTH, **extra)
    same_loss = trainer.evaluate()["eval_loss"] == trainer.evaluate()["eval_loss"]
    one, other = (trainer.predict(SAME_LENGTH).predictions for _ in range(2))
    assert same_loss == np.array_equal(one, other) == (kind == "MixupTrainer")


@pytest.mark.parametrize("segments", [False, True])
def test_the_partner_at_lambda_0(page, at, segments):
    model = steady_bert()
    batch = toy_batch((9, 9, 9, 9) if segments else (9, 4, 7, 5), segments=segments)
    if segments:
        batch["token_type_ids"] = torch.arange(9).ge(torch.tensor([[2], [4], [6], [8]])).long()
    plan = a_plan(4, "word_embeddings")
    plan.lam.fill_(0.0)
    clean = model(**batch).logits[plan.partner]
    with Mixup(model, page["mixup"]).apply(plan, batch):
        torch.testing.assert_close(model(**batch).logits, clean)
    at(0.0, plan.partner)
    _, outputs = loss_of(page, batch | {"labels": torch.zeros(4, dtype=torch.long)}, model)
    assert (outputs.logits - clean).abs().max() > 0.05


def test_a_decoder_does_not_find_the_last_token(page, at):
    model, batch = toy_model("gpt2"), toy_batch((9, 4, 7, 5))
    at(1.0)
    _, outputs = loss_of(page, batch | {"labels": torch.zeros(4, dtype=torch.long)}, model)
    wrong = (outputs.logits - model(**batch).logits).abs().amax(1) > 0.05
    assert wrong.tolist() == [False, True, True, True]


@pytest.mark.parametrize(("kind", "factor"), [("HandWritten", 2), ("MixupTrainer", 1)])
def test_accumulated_gradients(page, at, tmp_path, kind, factor):
    at(1.0)
    extra = {"mixup": page["mixup"] | {"lam": 1.0}} if kind == "MixupTrainer" else {}

    def gradients(size, steps):
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        return first_step(tmp_path, trainer=lambda **kw: page[kind](**kw | extra), rows=SAME_LENGTH, **options)[1]

    whole, parts = gradients(8, 1), gradients(4, 2)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], factor * gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["HandWritten", "MixupTrainer"])
def test_label_smoothing(page, at, tmp_path, kind):
    at(1.0)
    extra = {"mixup": page["mixup"] | {"lam": 1.0}} if kind == "MixupTrainer" else {}

    def loss(smoothing):
        args = arguments(tmp_path, label_smoothing_factor=smoothing, max_steps=1)
        trainer = page[kind](steady_bert(), args, train_dataset=SAME_LENGTH, **extra)
        trainer.train()
        return trainer.state.log_history[0]["loss"]

    assert (loss(0.0) == loss(0.5)) == (kind == "HandWritten")


def test_several_labels_get_another_loss(page, at):
    at(1.0)
    model, batch = steady_bert(problem_type="multi_label_classification"), collate(SAME_LENGTH[:4])
    batch["labels"] = torch.tensor([[1.0, 1, 0], [0, 1, 0], [0, 0, 0], [1, 1, 1]])
    loss, outputs = loss_of(page, batch, model)
    expected = F.binary_cross_entropy_with_logits(outputs.logits, batch["labels"])
    torch.testing.assert_close(model(**batch).loss, expected)
    assert abs(loss - expected) > 0.05


def test_ddp_has_no_embeddings_to_ask_for():
    assert not hasattr(torch.nn.parallel.DistributedDataParallel, "get_input_embeddings")


def test_processes_are_seeded_alike_by_trainer_and_not_by_mixup(tmp_path):
    draws, plans = [], []
    for rank in range(2):
        Trainer(steady_bert(), arguments(tmp_path), train_dataset=SAME_LENGTH)
        draws.append((np.random.beta(0.2, 0.2), torch.randperm(8).tolist()))
        plans.append(Mixup(steady_bert(), seed=0, rank=rank).draw(collate(SAME_LENGTH)).partner.tolist())
    assert draws[0] == draws[1] and plans[0] != plans[1]
