import math
from collections import Counter

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from hf_mixup import MixupTrainer
from hf_mixup.plan.strength import Check
from tests.plain_config import PLAIN
from tests.toy_runs import (
    CLASSES,
    a_plan,
    assert_same_step,
    clean_logits,
    collate,
    examples,
    first_step,
    make_trainer,
    one_hot,
    same_weights,
    steady_bert,
    training_inputs,
)
from tests.zoo import toy_model

MIXED = PLAIN | {"site": "embeddings", "alpha": 1.0, "self_pairs": False}
WEIGHT, TEMPERATURE = 0.3, 2.0
TAUGHT = {"teacher_weight": WEIGHT, "teacher_temperature": TEMPERATURE}


@pytest.fixture
def teacher():
    """A model that is surer than one without training, with dropout that must not be on."""
    torch.manual_seed(1)
    model = toy_model("bert", hidden_dropout_prob=0.5)
    model.classifier.weight.data.mul_(30)
    return model.train()


def some_without_label(rows):
    return [row | {"labels": -100} if number % 3 == 1 else row for number, row in enumerate(rows)]


def learnt(teacher, inputs, weight=WEIGHT, temperature=TEMPERATURE):
    """What each row learns, class by class and one row at a time."""
    targets = []
    for row, label in enumerate(inputs["labels"]):
        length = int(inputs["attention_mask"][row].sum())
        alone = {name: inputs[name][row : row + 1, :length] for name in ("input_ids", "attention_mask")}
        logits = [value / temperature for value in clean_logits(teacher.eval(), alone)[0].tolist()]
        several = label.dim() > 0
        total = sum(math.exp(value) for value in logits)
        target = []
        for kind, value in enumerate(logits):
            guess = 1 / (1 + math.exp(-value)) if several else math.exp(value) / total
            if not several and label == -100:
                target.append(guess)
            else:
                own = float(label[kind]) if several else float(label == kind)
                target.append((1 - weight) * own + weight * guess)
        targets.append(target)
    return targets


def slow_loss(logits, targets, several):
    total = 0.0
    for scores, target in zip(logits, targets, strict=True):
        if several:
            total += float(F.binary_cross_entropy_with_logits(scores, torch.tensor(target)))
        else:
            total -= sum(part * float(log) for part, log in zip(target, scores.log_softmax(-1), strict=True))
    return total / len(logits)


def mixed_by(plan, targets):
    pairs = zip(plan.partner.tolist(), plan.lam.tolist(), strict=True)
    return [
        [lam * own + (1 - lam) * other for own, other in zip(targets[row], targets[partner], strict=True)]
        for row, (partner, lam) in enumerate(pairs)
    ]


def taught(folder, teacher, mixup=MIXED, **options):
    return make_trainer(folder, mixup=mixup, teacher=teacher, **TAUGHT | options)


def inputs_of(kind):
    rows = examples(8, one_hot) if kind == "several labels" else examples(8)
    return training_inputs(some_without_label(rows) if kind == "some without a label" else rows)


@pytest.mark.parametrize("clean_weight", [0.0, 0.25])
@pytest.mark.parametrize("kind", ["classes", "some without a label", "several labels"])
def test_the_mixed_loss_is_that_of_the_blended_targets(tmp_path, teacher, kind, clean_weight):
    inputs, plan = inputs_of(kind), a_plan(8)
    trainer = taught(tmp_path, teacher, mixup=MIXED | {"clean_weight": clean_weight})
    trainer.mixup.draw = lambda *args, **kwargs: plan
    loss, outputs = trainer.compute_loss(trainer.model.train(), inputs, return_outputs=True)
    targets, several = learnt(teacher, inputs), kind == "several labels"
    expected = (1 - clean_weight) * slow_loss(outputs["logits"].detach(), mixed_by(plan, targets), several)
    expected += clean_weight * slow_loss(clean_logits(trainer.model, inputs), targets, several)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert trainer.model.config.problem_type is None


@pytest.mark.parametrize("kind", ["classes", "some without a label", "several labels"])
@pytest.mark.parametrize("mixup", [None, "default"])
def test_what_is_not_mixed_learns_the_same_targets(tmp_path, teacher, kind, mixup):
    trainer, inputs = taught(tmp_path, teacher, mixup=mixup), inputs_of(kind)
    loss, outputs = trainer.compute_loss(trainer.model.train(), dict(inputs), return_outputs=True)
    expected = slow_loss(outputs["logits"].detach(), learnt(teacher, inputs), kind == "several labels")
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("mixup", [None, MIXED, "default"])
def test_a_weight_of_0_changes_nothing(tmp_path, teacher, mixup):
    models, losses = [steady_bert(), steady_bert()], []
    for model, options in zip(models, ({}, {"teacher": teacher, "teacher_weight": 0.0}), strict=True):
        trainer = make_trainer(tmp_path, model, mixup=mixup, max_steps=4, **options)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert same_weights(*models)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_batches_of_unequal_size_accumulate_to_one_step(tmp_path, teacher):
    rows = some_without_label(examples(6))
    given = {"rows": rows, "teacher": teacher, "teacher_weight": WEIGHT, "mixup": None}
    whole = first_step(tmp_path, **given, per_device_train_batch_size=6)
    parts = first_step(tmp_path, **given, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    assert_same_step(whole, parts)


@pytest.mark.parametrize("mixup", [None, "tmix", "default", "reg_mixup"])
def test_a_batch_costs_one_pass_of_a_teacher_that_stays_as_it_is(tmp_path, teacher, mixup):
    before, passes = {name: value.clone() for name, value in teacher.state_dict().items()}, Counter()
    teacher.register_forward_hook(lambda module, args, output: passes.update([module.training]))
    given = {"max_steps": 3, "gradient_accumulation_steps": 2, "eval_dataset": examples(8), "eval_strategy": "epoch"}
    trainer = taught(tmp_path, teacher, mixup=mixup, rows=examples(32), **given)
    teacher.train()  # by whoever has it, too
    trainer.train()
    assert passes == {False: 6}
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert all(weight.grad is None for weight in teacher.parameters())
    trained = {id(weight) for group in trainer.optimizer.param_groups for weight in group["params"]}
    assert trained.isdisjoint(map(id, teacher.parameters()))
    trainer.save_model(str(tmp_path / "saved"))
    assert set(load_file(tmp_path / "saved" / "model.safetensors")) == set(trainer.model.state_dict())


def test_evaluation_is_that_of_the_labels(tmp_path, teacher):
    with_one, without = (
        make_trainer(tmp_path, steady_bert(), mixup=MIXED, eval_dataset=examples(9), **options)
        for options in ({"teacher": teacher}, {})
    )
    assert with_one.evaluate()["eval_loss"] == without.evaluate()["eval_loss"]


def test_rows_that_have_no_label_at_all_learn_from_the_teacher_alone(tmp_path, teacher):
    rows = Dataset.from_list([row | {"labels": -100} for row in examples(8)])
    inputs = collate(list(rows))
    expected = slow_loss(clean_logits(steady_bert(), inputs), learnt(teacher, inputs), several=False)
    assert first_step(tmp_path, rows=rows, **TAUGHT, teacher=teacher)[0] == pytest.approx(expected, abs=1e-4)
    with pytest.raises(ValueError, match="-100 in every row, so there is nothing to learn"):
        make_trainer(tmp_path, rows=rows).train()


def test_a_resumed_training_ends_as_the_whole_one(tmp_path, teacher):
    given = {"mixup": "tmix", "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = taught(tmp_path, teacher, **given)
    whole.train()
    resumed = taught(tmp_path, teacher, **given)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert same_weights(whole.model, resumed.model)


# ---- What goes by the labels ----


def test_partners_of_another_class_go_by_the_labels(tmp_path, teacher):
    teacher.classifier.bias.data[0] = 1e3  # all rows are of class 0
    trainer, plans = taught(tmp_path, teacher, mixup=PLAIN | {"partner": "other_class"}, teacher_weight=1.0), []
    draw = trainer.mixup.draw
    trainer.mixup.draw = lambda *args, **kwargs: plans.append(draw(*args, **kwargs)) or plans[-1]
    inputs = training_inputs()
    trainer.compute_loss(trainer.model.train(), dict(inputs))
    assert plans[0].active and (inputs["labels"] != inputs["labels"][plans[0].partner]).all()


def test_partners_of_earlier_batches_bring_what_they_taught(tmp_path, teacher):
    trainer, inputs = taught(tmp_path, teacher, mixup=PLAIN | {"partner": "previous_batch"}), training_inputs()
    trainer.compute_loss(trainer.model.train(), dict(inputs))
    (kept,) = trainer.mixup.planner.memory.places.values()
    torch.testing.assert_close(torch.stack([row.target for row in kept]), torch.tensor(learnt(teacher, inputs)))


def test_the_automatic_strength_and_margins_go_by_the_labels(tmp_path, teacher):
    trainer, inputs = taught(tmp_path, teacher, mixup={"recipe": "default", "clean_weight": 0.5}), training_inputs()
    planner, recorded = trainer.mixup.planner, []
    planner.auto_strength.checks.append(Check(0.1, 0.0, 9, 0.0, 0.5, False, False))
    planner.record = lambda plan, logits, targets: recorded.append(targets)
    _, outputs = trainer.compute_loss(trainer.model.train(), dict(inputs), return_outputs=True)
    assert trainer.mixup.mixed == 1
    confidence, predicted = outputs["logits"].detach().softmax(-1).max(-1)
    surplus = confidence - (predicted == inputs["labels"]).float()
    expected = torch.stack([torch.tensor(8.0), surplus.sum(), surplus.square().sum()])
    torch.testing.assert_close(planner.auto_strength.trained.flatten(), expected)
    assert torch.equal(recorded[0], F.one_hot(inputs["labels"], CLASSES).float())


# ---- What is refused ----


class Own(MixupTrainer):
    def compute_loss(self, *args, **kwargs):
        return super().compute_loss(*args, **kwargs)


def loss_func(outputs, labels, num_items_in_batch=None):
    return F.cross_entropy(outputs.logits, labels)


SMALL_VOCABULARY = {"teacher": toy_model("bert", vocab_size=20)}
REFUSED = {
    "tokens": (SMALL_VOCABULARY, r"teacher: knows 20 tokens, and the model has vocab_size=\d+; expected one tokenizer"),
    "no model": ({"teacher": "bert-base"}, r"teacher='bert-base': expected a model \(torch.nn.Module\), got .* str"),
    "weight": ({"teacher_weight": 1.5}, "teacher_weight=1.5: expected a finite number >= 0 and <= 1"),
    "temperature": ({"teacher_temperature": 0}, "teacher_temperature=0: expected a finite number > 0"),
    "loss": ({"compute_loss_func": loss_func}, "teacher: not with a compute_loss_func or a compute_loss of your own"),
    "weight alone": ({"teacher": None}, "teacher_weight=0.3, teacher_temperature=2.0: used with a teacher only"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("mixup", [None, MIXED])
def test_what_cannot_work_is_refused(tmp_path, teacher, case, mixup):
    options, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        taught(tmp_path, **{"teacher": teacher, "mixup": mixup} | options)


def test_teachers_and_students_that_do_not_fit_are_refused(tmp_path, teacher):
    with pytest.raises(ValueError, match="teacher: gives 3 logits, and the model has num_labels=5; expected the same"):
        taught(tmp_path, teacher, model=steady_bert(num_labels=5))
    for changes in ({"num_labels": 1}, {"problem_type": "regression"}):
        with pytest.raises(ValueError, match=r"teacher: needs classes, and the model predicts scores \(num_labels="):
            taught(tmp_path, teacher, model=steady_bert(**changes))
    with pytest.raises(ValueError, match=r"teacher: shares modules with the model.*copy.deepcopy"):
        taught(tmp_path, teacher, model=teacher)
    names = {0: "b", 1: "a", 2: "c"}
    teacher.config.id2label = names
    with pytest.raises(ValueError, match=r"teacher: its classes are \['b', 'a', 'c'\], those of the model \['a', 'b'"):
        taught(tmp_path, teacher, model=steady_bert(id2label={0: "a", 1: "b", 2: "c"}))


def test_a_loss_of_ones_own_is_refused_however_it_is_given(tmp_path, teacher):
    message = "teacher: not with a compute_loss_func or a compute_loss of your own"
    with pytest.raises(ValueError, match=message):
        Own(steady_bert(), make_trainer(tmp_path).args, teacher=teacher)
    trainer = taught(tmp_path, teacher)
    trainer.compute_loss = lambda *args, **kwargs: None
    with pytest.raises(ValueError, match=message):
        trainer.train()


def test_a_module_without_a_config_is_looked_at_in_the_first_batch(tmp_path):
    class Module(nn.Module):
        def __init__(self, classes):
            super().__init__()
            self.table = nn.Embedding(200, classes)

        def forward(self, input_ids, attention_mask):
            return self.table(input_ids).mean(1)

    assert taught(tmp_path, Module(CLASSES)).train().global_step == 2
    with pytest.raises(ValueError, match="teacher: gives 4 logits, and the model has num_labels=3"):
        taught(tmp_path, Module(4)).train()


@pytest.mark.parametrize("mixup", [None, MIXED])
def test_labels_of_another_name_are_refused(tmp_path, teacher, mixup):
    trainer = taught(tmp_path, teacher, mixup=mixup, label_names=["label"])
    inputs = collate(examples(8))
    inputs["label"] = inputs.pop("labels")
    with pytest.raises(ValueError, match="labels: none in this training batch, which has only input_ids"):
        trainer.training_step(trainer.model, inputs)
