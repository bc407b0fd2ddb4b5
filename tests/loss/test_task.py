"""The weights of classes: by epoch, and the scale of the loss."""

import pytest
import torch
from torch.nn import functional as F
from transformers import PretrainedConfig

from hf_mixup import Mixup, MixupCollator, MixupModel
from hf_mixup.loss.task import Task
from tests.plain_config import PLAIN, plain_config
from tests.toy_runs import CLASSES, collate, examples
from tests.zoo import cached_toy_model, toy_batch, toy_model

LATER = [1.0, 2.0, 5.0]
DEFERRED = {0: None, 2: LATER}
LABELS = torch.tensor([0, 2, 1, 0])
LOGITS = torch.randn(4, CLASSES, generator=torch.Generator().manual_seed(0))


def task_of(class_weights, num_labels=CLASSES, problem_type=None):
    about = PretrainedConfig(num_labels=num_labels)
    about.problem_type = problem_type
    return Task(about, plain_config(class_weights=class_weights))


def weighted(logits, labels, weights):
    weight = None if weights is None else torch.tensor(weights)
    return F.cross_entropy(logits, labels, weight=weight, reduction="none")


def losses_of(task):
    return task.losses(LOGITS, task.targets(LABELS), "single_label_classification")


@pytest.mark.parametrize(
    ("given", "epoch", "weights"),
    [(LATER, None, LATER), (DEFERRED, 0.0, None), (DEFERRED, 1.99, None), (DEFERRED, 2.0, LATER), (DEFERRED, 7, LATER)],
)
def test_the_weights_are_those_of_the_latest_epoch_that_has_begun(given, epoch, weights):
    task = task_of(given)
    task.epoch = epoch
    torch.testing.assert_close(losses_of(task), weighted(LOGITS, LABELS, weights))


def test_weights_by_epoch_need_the_epoch():
    with pytest.raises(ValueError, match=r"class_weights=\{0.0: None, 2.0: .*needs the progress.*draw\(batch, epoch="):
        losses_of(task_of(DEFERRED))


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ({2: LATER}, {}, r"class_weights=\{2.0: .*\}: say from epoch 0 on, such as"),
        ({0: LATER, 2: [1, 2]}, {}, "class_weights: 2 weights for num_labels=3"),
        ({0: None, 2: [1.0]}, {"num_labels": 1}, "class_weights: 1 weights for num_labels=1"),
        (DEFERRED, {"problem_type": "multi_label_classification"}, "class_weights need single_label_classification"),
        ({0: [1, -1, 2]}, {}, "class_weights, value=-1: expected a finite number >= 0"),
        ({0: "12"}, {}, "class_weights, value='12': expected a list of numbers, one per class"),
        ({-1: LATER}, {}, "class_weights, moment=-1: expected"),
        ("12", {}, r"class_weights='12': expected a list .*; or a mapping of epochs, such as \{0: null, 10: \[1, 1, 4"),
    ],
)
def test_weights_that_cannot_work_are_refused_at_once(given, options, message):
    with pytest.raises(ValueError, match=message):
        task_of(given, **options)


def test_a_loss_in_inference_mode_does_not_keep_a_later_one_from_training():
    task, logits = task_of([1.0, 2.0, 7.0]), LOGITS.clone().requires_grad_(True)
    with torch.inference_mode():
        losses_of(task)
    task.losses(logits, task.targets(LABELS), "single_label_classification").sum().backward()
    assert logits.grad.abs().sum() > 0


def test_weights_of_mean_1_over_the_examples_have_the_scale_of_torch():
    """The whole set as one batch; in smaller ones torch divides by the weights that are in it."""
    weights = torch.tensor(LATER)
    scaled = weights / weights[LABELS].mean()
    expected = F.cross_entropy(LOGITS, LABELS, weight=weights)
    torch.testing.assert_close(losses_of(task_of(scaled)).mean(), expected)


# ---- Where the epoch comes from ----


@pytest.mark.parametrize("epoch", [0.5, 2.5])
def test_a_loop_of_ones_own_says_the_epoch_when_it_draws(epoch):
    model, batch = cached_toy_model("bert"), toy_batch()
    mixup = Mixup(model, plain_config(class_weights=DEFERRED, lam=1.0))
    plan = mixup.draw(batch, epoch)
    with torch.no_grad(), mixup.apply(plan, batch):
        logits = model(**batch).logits
    expected = weighted(logits, LABELS, None if epoch < 2 else LATER)
    torch.testing.assert_close(mixup.loss(logits, LABELS, plan, reduction="none"), expected)


def test_a_mixup_model_has_the_weights_of_its_epoch():
    model, batch = MixupModel(toy_model("bert"), plain_config(class_weights=DEFERRED, prob=0.0)), toy_batch()
    model.train()
    with pytest.raises(ValueError, match="class_weights=.*mixup_epoch of a MixupModel"):
        model(**batch, labels=LABELS)
    losses = []
    for model.mixup_epoch in (1.0, 3.0):
        torch.manual_seed(0)
        outputs = model(**batch, labels=LABELS)
        losses.append(outputs.loss.item())
        weights = None if model.mixup_epoch < 2 else LATER
        assert losses[-1] == pytest.approx(weighted(outputs.logits, LABELS, weights).mean().item(), rel=1e-5)
    assert losses[0] != pytest.approx(losses[1], rel=1e-2)


def test_a_collator_has_the_weights_of_its_epoch():
    collator = MixupCollator(collate, PLAIN | {"class_weights": DEFERRED, "prob": 0.0}, CLASSES)
    with pytest.raises(ValueError, match="class_weights=.* needs the progress of training: give the Trainer callbacks"):
        collator(examples(4))
    for epoch, weights in ((1.0, None), (2.0, LATER)):
        collator.set_progress(epoch)
        labels = collator(examples(4))["labels"]
        expected = weighted(LOGITS, labels.argmax(1), weights).mean()
        torch.testing.assert_close(collator.loss((LOGITS,), labels), expected)
