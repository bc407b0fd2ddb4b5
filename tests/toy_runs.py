"""What the tests of whole trainings share: toy texts with labels, their collator, short runs."""

import pytest
import torch
from transformers import TrainerCallback, TrainingArguments

from hf_mixup import MixupPlan, MixupTrainer
from tests.zoo import VOCAB, toy_model

PAD, CLASSES = 1, 3
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def one_hot(label):
    return [float(label == k) for k in range(CLASSES)]


def examples(count=16, label=int, seed=0):
    """Texts of 4 to 9 tokens of which the second tells the class; `label` makes the label from the class."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for number in range(count):
        kind = number % CLASSES
        tokens = torch.randint(10, VOCAB, (4 + number % 6,), generator=generator).tolist()
        tokens[0], tokens[1], tokens[-1] = 0, 5 + kind, 2
        rows.append({"input_ids": tokens, "attention_mask": [1] * len(tokens), "labels": label(kind)})
    return rows


def collate(rows):
    """Pad on the right; labels of any kind become one tensor."""
    longest = max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": PAD, "attention_mask": 0}
    batch = {
        name: torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in rows])
        for name, value in fill.items()
    }
    return batch | {"labels": torch.tensor([row["labels"] for row in rows])} if "labels" in rows[0] else batch


def steady_bert(**changes):
    """A toy BERT without dropout."""
    return toy_model("bert", **NO_DROPOUT, **changes)


def arguments(folder, **changes):
    defaults = {
        "max_steps": 2,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return TrainingArguments(output_dir=str(folder), **defaults | changes)


def make_trainer(folder, model=None, trainer=MixupTrainer, rows=None, mixup=None, **options):
    """A trainer of `model` on `rows`; `options` that are not the trainer's own are training arguments."""
    own = ("callbacks", "compute_loss_func", "compute_metrics", "eval_dataset", "model_init", "soft_targets")
    own += ("averaging", "ema_decay", "teacher", "teacher_weight", "teacher_temperature")
    own += ("unlabeled_dataset", "unlabeled_views", "unlabeled", "class_weights", "processing_class")
    kwargs = {name: options.pop(name) for name in own if name in options}
    if isinstance(trainer, type) and issubclass(trainer, MixupTrainer):
        kwargs["mixup"] = mixup
    if "model_init" not in kwargs:
        kwargs["model"] = model or steady_bert()
    return trainer(
        args=arguments(folder, **options),
        train_dataset=examples() if rows is None else rows,
        data_collator=collate,
        **kwargs,
    )


def training_inputs(rows=None):
    return collate(examples(8) if rows is None else rows)


def a_plan(size, site="embeddings", seed=0, layer=None):
    """A plan in which nobody is their own partner, with a lambda of its own for each example."""
    generator = torch.Generator().manual_seed(seed)
    lam = torch.rand(size, generator=generator)
    return MixupPlan(torch.arange(size).roll(1), lam, site, layer)


def swap_neighbours(batch, epoch=None, **kwargs):
    """A plan that depends on the texts alone: neighbours are partners, lambda comes from the third token."""
    partner = torch.arange(batch["input_ids"].shape[0]) ^ 1
    lam = (batch["input_ids"][:, 2] % 9 + 0.5) / 10
    return MixupPlan(partner, lam, "embeddings")


class Gradients(TrainerCallback):
    """Keeps the gradients of the first optimiser step."""

    def __init__(self):
        self.first = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if not self.first:
            self.first = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def first_step(folder, model=None, draw=None, **options):
    """The logged loss and the gradients of one optimiser step."""
    seen = Gradients()
    trainer = make_trainer(folder, model, callbacks=[seen], max_steps=1, max_grad_norm=0.0, **options)
    if draw is not None:
        trainer.mixup.draw = draw
    trainer.train()
    return trainer.state.log_history[0]["loss"], seen.first


def assert_same_step(one, other):
    (loss, gradients), (other_loss, other_gradients) = one, other
    assert loss == pytest.approx(other_loss, rel=1e-5)
    assert gradients.keys() == other_gradients.keys() and gradients
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, other_gradients[name], rtol=1e-5, atol=1e-5, msg=name)


def two_term(loss_of, logits, labels, plan):
    """Mean over the batch of lambda * loss(own label) + (1 - lambda) * loss(partner's label), one by one."""
    total = 0.0
    for i, (j, lam) in enumerate(zip(plan.partner.tolist(), plan.lam.tolist(), strict=True)):
        total += lam * loss_of(logits[i : i + 1], labels[i : i + 1])
        total += (1 - lam) * loss_of(logits[i : i + 1], labels[j : j + 1])
    return total / len(labels)


def same_weights(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def clean_logits(model, inputs):
    with torch.no_grad():
        return model(**{name: value for name, value in inputs.items() if name != "labels"}).logits
