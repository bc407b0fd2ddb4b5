"""`strength="auto"` in a trainer: what it follows, what it costs, and that it changes nothing while it is 0."""

import logging
import random

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerCallback

from hf_mixup import MixupTrainer
from hf_mixup.plan.strength import surplus_of
from hf_mixup.training import check_rows, held_out
from tests.plain_config import PLAIN
from tests.resume_worker import train
from tests.toy_runs import CLASSES, arguments, clean_logits, collate, examples, make_trainer, same_weights, steady_bert
from tests.zoo import toy_model

AUTO = PLAIN | {"strength": "auto", "site": "hidden", "alpha": 1.0}
# Held-out rows whose labels no model that learns the training rows gets right.
WRONG = [row | {"labels": (row["labels"] + 1) % CLASSES} for row in examples(24, seed=1)]
LONG = {"max_steps": 30, "learning_rate": 3e-3}


def checks_of(trainer):
    return trainer.mixup.planner.auto_strength.checks


def strengths(trainer):
    return [logs["mixup_strength"] for logs in trainer.state.log_history if "mixup_strength" in logs]


@pytest.fixture
def said(caplog):
    for module in (held_out, check_rows):
        logging.getLogger(module.__name__).addHandler(caplog.handler)
    yield caplog
    for module in (held_out, check_rows):
        logging.getLogger(module.__name__).removeHandler(caplog.handler)


# ---- Never worse ----


def doubtful_bert():
    """A toy BERT with dropout, that gives every class the same probability at first."""
    model = toy_model("bert")
    torch.nn.init.zeros_(model.classifier.weight)
    torch.nn.init.zeros_(model.classifier.bias)
    return model


def test_while_the_model_is_not_surer_than_right_a_training_is_trainers_bit_for_bit(tmp_path, said):
    # With dropout: the checks take no random number from the training.
    models, rows = [doubtful_bert() for _ in range(3)], examples(48)
    make_trainer(tmp_path, models[0], Trainer, rows, max_steps=10).train()
    options = {"mixup": AUTO | {"check_rows": 48}, "eval_dataset": rows, "max_steps": 10}
    trainer = make_trainer(tmp_path, models[1], rows=rows, **options)
    trainer.train()
    assert len(checks_of(trainer)) == 9 and trainer.mixup.mixed == 0
    assert same_weights(models[0], models[1])
    assert "nothing was mixed: none of 9 checks of 48 held-out rows called for it" in said.text
    make_trainer(tmp_path, models[2], rows=rows, mixup=PLAIN, max_steps=10).train()
    assert not same_weights(models[0], models[2])


def test_a_model_that_is_surer_than_right_is_mixed(tmp_path, said):
    trainer = make_trainer(tmp_path, mixup=AUTO | {"check_rows": 24}, eval_dataset=WRONG, **LONG)
    trainer.train()
    found = strengths(trainer)
    assert found[0] == 0 and found[-1] == 1 and trainer.mixup.mixed > 10
    assert "mixup: strength up to 1.00 and 1.00 at the end" in said.text
    assert "mixup_lambda" not in trainer.state.log_history[0] and "mixup_lambda" in trainer.state.log_history[-2]


def test_in_the_first_pass_over_the_rows_nothing_is_mixed(tmp_path):
    options = {"mixup": AUTO | {"check_rows": 24}, "eval_dataset": WRONG, **LONG}
    trainer = make_trainer(tmp_path, rows=examples(96), **options)
    trainer.train()
    checks = checks_of(trainer)
    # 12 steps a pass; what is known after the last of them says what the second pass begins with.
    assert [check.is_first_pass for check in checks] == [True] * 3 + [False] * 6
    assert {check.strength for check in checks[:3]} == {0.0} and checks[3].strength > 0
    assert checks[2].surplus > 3 * checks[2].error and checks[2].surplus - checks[2].trained > 0.2


def test_a_training_of_one_pass_says_before_it_that_nothing_is_mixed(tmp_path, said):
    evaluated = {"eval_dataset": WRONG, "eval_strategy": "epoch"}
    for steps, is_said in ((6, True), (7, False)):
        trainer = make_trainer(tmp_path, rows=examples(48), mixup=AUTO, max_steps=steps, **evaluated)
        said.clear()
        trainer.train()
        assert ("this training has no second. Train two epochs or more" in said.text) == is_said
        assert "saw no held-out predictions" not in said.text


def test_scores_have_no_confidence_and_are_not_mixed(tmp_path, caplog):
    logging.getLogger("hf_mixup.training.trainer_checks").addHandler(caplog.handler)
    models = [steady_bert(num_labels=1, problem_type="regression") for _ in range(2)]
    rows, trainers = examples(16, float), []
    for model, kind in zip(models, (MixupTrainer, Trainer), strict=True):
        trainers.append(make_trainer(tmp_path, model, kind, rows, mixup="default", max_steps=3))
        trainers[-1].train()
    assert trainers[0].mixup is None and same_weights(*models)
    assert "scores have no confidence" in caplog.text and "c_mixup" in caplog.text


# ---- What it follows ----


@pytest.mark.parametrize("has_metrics", [False, True])
def test_evaluations_are_followed_without_another_pass(tmp_path, has_metrics):
    passes, logits = [], {}

    class Counting(MixupTrainer):
        def prediction_step(self, model, inputs, *args, **kwargs):
            passes.append(len(inputs["labels"]))
            return super().prediction_step(model, inputs, *args, **kwargs)

        def evaluate(self, *args, **kwargs):
            logits[self.state.global_step] = clean_logits(self.model.eval(), collate(WRONG))
            return super().evaluate(*args, **kwargs)

    metrics = {"compute_metrics": lambda prediction: {"rows": len(prediction.predictions)}} if has_metrics else {}
    trainer = Counting(
        model=steady_bert(),
        args=arguments(tmp_path, eval_strategy="steps", eval_steps=3, per_device_eval_batch_size=10, **LONG),
        train_dataset=examples(),
        eval_dataset=WRONG,
        data_collator=collate,
        mixup=AUTO,
        **metrics,
    )
    trainer.train()
    assert passes == [10, 10, 4] * 10
    # The last evaluation comes after the last step.
    assert len(checks_of(trainer)) == 9
    labels = collate(WRONG)["labels"]
    for check, step in zip(checks_of(trainer), sorted(logits), strict=False):
        surplus = surplus_of(logits[step], torch.eye(CLASSES)[labels], "single_label_classification")
        assert check.rows == 24 and check.surplus == pytest.approx(surplus.mean().item(), abs=1e-6)
        assert check.error == pytest.approx(surplus.std().item() / 24**0.5, abs=1e-6)
    evaluated = [logs for logs in trainer.state.log_history if "eval_loss" in logs]
    assert [logs["step"] for logs in evaluated] == sorted(logits)
    assert all(logs.get("eval_rows", 24) == 24 for logs in evaluated)


def test_predictions_of_other_data_are_not_followed(tmp_path):
    trainer = make_trainer(tmp_path, mixup=AUTO, **LONG)
    trainer.evaluate(WRONG)
    trainer.predict(WRONG)
    trainer.train()
    trainer.evaluate(WRONG)
    assert checks_of(trainer) == [] and set(strengths(trainer)) == {0.0}


def test_training_rows_are_no_held_out_rows(tmp_path):
    rows = examples()
    sets, options = {"train": rows, "dev": WRONG}, {"eval_strategy": "steps", "eval_steps": 10}
    trainer = make_trainer(tmp_path, rows=rows, mixup=AUTO | {"check_rows": 24}, eval_dataset=sets, **options, **LONG)

    class Evaluating(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5:
                trainer.evaluate(rows, metric_key_prefix="eval_again")

    trainer.add_callback(Evaluating())
    trainer.train()
    assert {check.rows for check in checks_of(trainer)} == {24}


def test_a_row_counts_once_if_a_check_and_an_evaluation_meet(tmp_path):
    options = {"eval_strategy": "epoch", "num_train_epochs": 10, "max_steps": -1, "learning_rate": 3e-3}
    trainer = make_trainer(tmp_path, mixup=AUTO | {"check_rows": 24}, eval_dataset=WRONG, **options)
    trainer.train()
    assert [check.rows for check in checks_of(trainer)] == [24] * 9


def test_what_is_seen_before_the_first_step_is_not_followed(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 10, "eval_on_start": True}
    trainer = make_trainer(tmp_path, mixup=AUTO | {"check_rows": 0}, eval_dataset=WRONG, **options, **LONG)
    trainer.train()
    assert len(checks_of(trainer)) == 2


def test_a_collator_with_random_numbers_gets_the_same_ones(tmp_path):
    def noisy(rows):
        batch = collate(rows)
        word = random.randrange(10, 20) + int(np.random.default_rng(np.random.randint(9)).integers(10))
        batch["input_ids"][:, 2] = torch.randint(word, word + 3, (len(rows),))
        return batch

    rows, models = examples(48), [doubtful_bert(), doubtful_bert()]
    for model, check in zip(models, (0, 48), strict=True):
        trainer = make_trainer(
            tmp_path, model, rows=rows, mixup=AUTO | {"check_rows": check}, eval_dataset=rows, max_steps=10
        )
        trainer.data_collator = noisy
        trainer.train()
        assert trainer.mixup.mixed == 0
    assert same_weights(*models)


def test_a_stream_is_not_checked(tmp_path, said):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(WRONG)

        def __len__(self):
            return len(WRONG)

    trainer = make_trainer(tmp_path, mixup=AUTO | {"check_rows": 8}, eval_dataset=Stream(), **LONG)
    trainer.train()
    assert checks_of(trainer) == [] and "Stream is a stream" in said.text


# ---- Refused at the first step, though mixup comes later ----


def test_a_model_with_another_loss_is_refused_at_the_first_step(tmp_path):
    class Squared(type(steady_bert())):
        def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
            outputs = super().forward(input_ids, attention_mask, **kwargs)
            if labels is not None:
                outputs["loss"] = torch.nn.functional.cross_entropy(outputs.logits, labels).square()
            return outputs

    trainer = make_trainer(tmp_path, Squared(steady_bert().config), mixup=AUTO, eval_dataset=WRONG)
    with pytest.raises(ValueError, match="The loss that Squared computes by itself"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_loss_that_takes_no_mixed_targets_is_refused_at_the_first_step(tmp_path):
    def loss(outputs, labels, num_items_in_batch=None):
        return torch.nn.functional.nll_loss(outputs.logits.log_softmax(-1), labels)

    trainer = make_trainer(tmp_path, mixup=AUTO, eval_dataset=WRONG, compute_loss_func=loss, soft_targets=True)
    with pytest.raises(ValueError, match="compute_loss_func failed on the mixed targets"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize("ignored", [-100, -1])
def test_a_loss_of_ones_own_may_leave_labels_out(tmp_path, ignored):
    def loss(outputs, labels, num_items_in_batch=None):
        return torch.nn.functional.cross_entropy(outputs.logits, labels, ignore_index=ignored)

    rows = [row | {"labels": ignored if number % 5 == 0 else row["labels"]} for number, row in enumerate(examples())]
    held = [*WRONG, *(row | {"labels": ignored} for row in WRONG[:5])]
    mixup = AUTO | {"partner": "other_class", "check_rows": len(held)}
    trainer = make_trainer(tmp_path, rows=rows, mixup=mixup, eval_dataset=held, compute_loss_func=loss, **LONG)
    trainer.train()
    assert {check.rows for check in checks_of(trainer)} == {24} and trainer.mixup.mixed > 10


def test_a_batch_without_labels_has_no_loss(tmp_path):
    rows = [row | {"labels": -100 if number < 8 else row["labels"]} for number, row in enumerate(examples())]
    trainer = make_trainer(tmp_path, rows=rows, mixup=AUTO, max_steps=4)
    trainer.train()
    assert all(np.isfinite(logs["loss"]) for logs in trainer.state.log_history if "loss" in logs)


def test_rows_without_a_label_are_left_out(tmp_path):
    rows = [*WRONG, *(row | {"labels": -100} for row in WRONG[:5])]
    trainer = make_trainer(tmp_path, mixup=AUTO | {"check_rows": len(rows)}, eval_dataset=rows, **LONG)
    trainer.train()
    assert {check.rows for check in checks_of(trainer)} == {24}


def test_several_evaluation_sets_are_one_check(tmp_path):
    sets = {"one": WRONG[:10], "other": WRONG[10:]}
    options = {"eval_strategy": "steps", "eval_steps": 10}
    trainer = make_trainer(tmp_path, mixup=AUTO | {"check_rows": 0}, eval_dataset=sets, **options, **LONG)
    trainer.train()
    assert [check.rows for check in checks_of(trainer)] == [24, 24]


# ---- Checks of its own ----


def test_short_trainings_have_no_checks_of_their_own_and_say_so(tmp_path, said):
    trainer = make_trainer(tmp_path, mixup=AUTO, eval_dataset=WRONG, **LONG)
    trainer.train()
    assert checks_of(trainer) == [] and "saw no held-out predictions" in said.text


@pytest.mark.parametrize(("steps", "checks"), [(100, 0), (300, 4), (700, 9)])
def test_checks_take_two_percent_of_a_training(tmp_path, steps, checks):
    trainer = make_trainer(tmp_path, mixup=AUTO, eval_dataset=examples(4000), max_steps=steps)
    chosen = check_rows.choose_rows(trainer)
    assert chosen.checks == checks
    passes = 0 if chosen.rows is None else len(chosen.rows) * chosen.checks
    # A row that is trained on is three passes.
    assert passes <= 0.02 * 3 * steps * 8
    assert chosen.rows is None or len(chosen.rows) >= 32


def test_a_check_stands_between_evaluations_only(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 15, "mixup": AUTO | {"check_rows": 9}}
    trainer = make_trainer(tmp_path, eval_dataset=WRONG, **options, **LONG)
    trainer.train()
    # After steps 3, 6, 9 and 12, by the evaluation after 15, and after 18, 21, 24 and 27.
    assert [check.rows for check in checks_of(trainer)] == [9, 9, 9, 9, 24, 9, 9, 9, 9]


def test_without_an_evaluation_set_training_rows_are_held_out(tmp_path, said):
    rows = Dataset.from_list(examples(400))
    trainer = make_trainer(tmp_path, rows=rows, mixup=AUTO | {"check_rows": 500}, max_steps=10)
    chosen = check_rows.choose_rows(trainer)
    assert len(chosen.rows) == 40 and len(chosen.train_dataset) == 360
    spelled = [sorted(repr(row) for row in part) for part in (rows, [*chosen.rows, *chosen.train_dataset])]
    assert spelled[0] == spelled[1]
    seen = []
    trainer.add_callback(NoteRows(seen))
    trainer.train()
    assert "40 of 400 training rows are held out" in said.text and "'check_rows': 0" in said.text
    assert {check.rows for check in checks_of(trainer)} == {40} and len(checks_of(trainer)) == 9
    assert seen == [360] and trainer.train_dataset is rows


class NoteRows(TrainerCallback):
    """Notes how many rows a training has."""

    def __init__(self, seen):
        self.seen = seen

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        self.seen.append(len(train_dataloader.dataset))


class Sampled(MixupTrainer):
    def _get_train_sampler(self, *args, **kwargs):
        return super()._get_train_sampler(*args, **kwargs)


@pytest.mark.parametrize(
    ("rows", "check", "kind", "why"),
    [
        (Dataset.from_list(examples(310)), None, MixupTrainer, "of 310 training rows too few could be held out"),
        (Dataset.from_list(examples(400)), 0, MixupTrainer, "check_rows=0 leaves it at your evaluations"),
        (examples(400), 100, MixupTrainer, "rows are held out of a datasets.Dataset only"),
        (Dataset.from_list(examples(400)), 100, Sampled, "with Trainer's own sampler"),
        (Dataset.from_list(examples(16)), None, MixupTrainer, "in so short a training checks would take more than 2%"),
    ],
)
def test_rows_that_are_all_trained_on_are_said_before_and_after(tmp_path, said, rows, check, kind, why):
    steps = 2 if why.startswith("in so short") else 500
    trainer = kind(
        model=steady_bert(),
        args=arguments(tmp_path, max_steps=steps),
        train_dataset=rows,
        data_collator=collate,
        mixup=AUTO | {"check_rows": check},
    )
    chosen = check_rows.choose_rows(trainer)
    assert chosen.rows is None and chosen.train_dataset is trainer.train_dataset and why in chosen.why_none
    trainer.args.max_steps = 2
    trainer.add_callback(NoteRows(seen := []))
    trainer.train()
    assert seen == [len(rows)]
    if why.startswith(("in so short", "check_rows")):
        assert "will see no held-out predictions, so nothing will be mixed: " + why in said.text
        assert "saw no held-out predictions, so nothing was mixed: " + why in said.text


def test_every_training_of_a_trainer_starts_from_strength_0(tmp_path):
    options = {"model_init": lambda: steady_bert(), "mixup": AUTO | {"check_rows": 24}, "eval_dataset": WRONG}
    trainer, found = make_trainer(tmp_path, **options, **LONG), []
    for _ in range(2):
        trainer.train()
        found.append([list(check) for check in checks_of(trainer)])
    assert found[0] == found[1] and len(found[0]) == 9


# ---- Resume ----


def test_a_resumed_training_follows_on(tmp_path):
    options = {"mixup": AUTO | {"check_rows": 24}, "eval_dataset": WRONG, "learning_rate": 3e-3, "steps_per_epoch": 2}
    whole = train(tmp_path / "whole", **options)
    again = train(tmp_path / "whole", resume=str(tmp_path / "whole" / "checkpoint-10"), **options)
    assert checks_of(whole) == checks_of(again) and len(checks_of(whole)) == 9
    assert same_weights(whole.model, again.model) and whole.mixup.planner.strength > 0
    assert arguments(tmp_path).world_size == 1


def test_a_resumed_training_does_not_count_the_evaluation_with_which_it_starts(tmp_path):
    options = {"mixup": AUTO | {"check_rows": 0}, "eval_dataset": WRONG, "learning_rate": 3e-3}
    options |= {"eval_strategy": "steps", "eval_steps": 3, "eval_on_start": True}
    whole = train(tmp_path / "whole", **options)
    again = train(tmp_path / "whole", resume=str(tmp_path / "whole" / "checkpoint-10"), **options)
    assert checks_of(whole) == checks_of(again) and len(checks_of(whole)) == 4
    assert same_weights(whole.model, again.model)
