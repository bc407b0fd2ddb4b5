"""What is refused of unlabelled rows, and when."""

import logging

import pytest
import torch
from datasets import Dataset
from torch.nn import functional as F
from torch.utils.data import IterableDataset
from transformers import TrainerCallback

from hf_mixup import Mixup, MixupCollator, MixupTrainer
from tests.plain_config import PLAIN, plain_config
from tests.toy_runs import CLASSES, collate, examples, make_trainer, one_hot, steady_bert
from tests.training.test_unlabeled import GUESSED, MIXED, UNLABELED, with_rows


class Own(MixupTrainer):
    def compute_loss(self, *args, **kwargs):
        return super().compute_loss(*args, **kwargs)


def loss_func(outputs, labels, num_items_in_batch=None):
    return F.cross_entropy(outputs.logits, labels)


REFUSED = {
    "compute_loss_func": ({"compute_loss_func": loss_func}, {}, "unlabeled_dataset: not with a compute_loss_func or a"),
    "averaging": ({"averaging": "none"}, {}, "averaging='none': the average guesses .* say guesses='model'"),
    "class_prior": ({}, {"class_prior": [0.5, 0.5]}, "unlabeled.class_prior: 2 shares for num_labels=3"),
    "ratio": ({}, {"ratio": 0}, "unlabeled.ratio=0: expected a finite number > 0"),
    "guesses": ({}, {"guesses": "avarage"}, "unlabeled.guesses='avarage': .* Did you mean 'average'"),
    "unknown": ({}, {"rato": 1.0}, "unlabeled: unknown field 'rato'. Did you mean 'ratio'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_before_the_first_step(tmp_path, case):
    options, changes, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, **options, **with_rows(MIXED, **changes)).train()


JOINED = {
    "previous_batch": {"partner": "previous_batch"},
    "all_ranks": {"partner": "all_ranks"},
    "margin": {"partner": "margin", "clean_weight": 0.5},
    "lisa": {"partner": "lisa"},
    "near_label": {"partner": "near_label"},
    "clean_weight": {"clean_weight": 0.5},
}
APART = {
    "partner": {"partner": "same_class"},
    "label_rule": {"label_rule": "remix", "class_counts": [3.0, 2.0, 1.0]},
    "interpolation": {"site": "input", "interpolation": "span"},
    "self_pairs": {"self_pairs": False},
}


@pytest.mark.parametrize("case", [*JOINED, *APART])
def test_what_cannot_be_mixed_with_them_is_refused_by_name(tmp_path, case):
    changes, how = (JOINED | APART)[case], {"partners": "apart"} if case in APART else {}
    name = case if case in ("clean_weight", *APART) else "partner"
    why = r"not with unlabeled.partners='apart'" if case in APART else "not with unlabeled_dataset"
    if case == "margin":
        name = "(partner|clean_weight)"
    with pytest.raises(ValueError, match=f"^{name}=.*: {why}; expected "):
        make_trainer(tmp_path, **with_rows(MIXED | changes, **how))


@pytest.mark.parametrize("changes", [{"num_labels": 1}, {"problem_type": "regression"}])
def test_scores_are_refused(tmp_path, changes):
    with pytest.raises(ValueError, match=r"unlabeled_dataset: needs classes to guess.*regression"):
        make_trainer(tmp_path, steady_bert(**changes), **with_rows(MIXED))


@pytest.mark.parametrize("start", [0.0, 0.9])
@pytest.mark.parametrize("kind", ["said", "seen in the data", "seen in the batches"])
def test_several_labels_are_refused_before_the_first_step(tmp_path, kind, start):
    model = steady_bert(problem_type="multi_label_classification" if kind == "said" else None)
    rows, steps = examples(16, one_hot), []
    given = with_rows(MIXED, start=start) | {"rows": Dataset.from_list(rows) if kind == "seen in the data" else rows}

    class Step(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            steps.append(1)

    with pytest.raises(ValueError, match=r"unlabeled_dataset: needs one label per text \(single_label_classification"):
        make_trainer(tmp_path, model, max_steps=4, callbacks=[Step()], **given).train()
    assert not steps


def test_a_loss_of_ones_own_is_refused_however_it_is_given(tmp_path):
    message = "unlabeled_dataset: not with a compute_loss_func or a compute_loss of your own"
    trainer = make_trainer(tmp_path, **with_rows(MIXED))
    with pytest.raises(ValueError, match=message):
        Own(steady_bert(), trainer.args, mixup=MIXED, unlabeled_dataset=UNLABELED)
    trainer.compute_loss = lambda *args, **kwargs: None
    with pytest.raises(ValueError, match=message):
        trainer.train()


def test_labels_of_another_name_are_refused(tmp_path):
    rows = [{("kind" if name == "labels" else name): value for name, value in row.items()} for row in examples()]

    def with_kind(rows):
        return collate(rows) | ({"kind": torch.tensor([row["kind"] for row in rows])} if "kind" in rows[0] else {})

    trainer = make_trainer(tmp_path, rows=rows, remove_unused_columns=False, **with_rows(MIXED))
    trainer.data_collator = with_kind
    with pytest.raises(ValueError, match="labels: none in this training batch"):
        trainer.train()


def test_a_config_of_unlabelled_rows_needs_some(tmp_path):
    with pytest.raises(ValueError, match=r"unlabeled=.*: needs MixupTrainer\(unlabeled_dataset=\.\.\.\)"):
        make_trainer(tmp_path, mixup=MIXED | {"unlabeled": {"ratio": 2.0}})
    with pytest.raises(ValueError, match=r"unlabeled=.*: needs MixupTrainer\(unlabeled_dataset=\.\.\.\)"):
        Mixup(steady_bert(), plain_config(unlabeled={"ratio": 2.0}))
    with pytest.raises(ValueError, match=r"unlabeled=.*: needs a model, which a collator has not"):
        MixupCollator(collate, PLAIN | {"unlabeled": {"ratio": 2.0}}, CLASSES)


class Steps(TrainerCallback):
    """Counts the steps that were made."""

    def __init__(self):
        self.made = 0

    def on_step_end(self, *args, **kwargs):
        self.made += 1


@pytest.mark.parametrize("mixup", [None, MIXED], ids=["off", "mixed"])
def test_rows_of_other_inputs_are_refused_before_the_first_step(tmp_path, mixup):
    """Though they are used at the end of the training alone."""
    rows = [row | {"token_type_ids": [0] * len(row["input_ids"])} for row in UNLABELED]
    given = with_rows(mixup, start=0.9) | {"unlabeled_dataset": rows}

    def collate_all(rows):
        batch = collate(rows)
        if "token_type_ids" in rows[0]:
            batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
        return batch

    steps = Steps()
    trainer = make_trainer(tmp_path, max_steps=4, callbacks=[steps], **given)
    trainer.data_collator = collate_all
    with pytest.raises(ValueError, match=r"token_type_ids"):
        trainer.train()
    assert not steps.made


@pytest.mark.parametrize("mixup", [None, MIXED], ids=["off", "mixed"])
def test_guesses_that_are_missing_are_refused_before_the_first_step(tmp_path, mixup):
    last_is_wrong = Dataset.from_list([*GUESSED[:-1], GUESSED[-1] | {"labels": [0.5, 0.5, 0.5]}])
    for rows, message in (
        (UNLABELED, "guesses='given': the column labels .* each of the 3 classes; there is none"),
        (last_is_wrong, r"unlabeled_dataset: .*: labels: \[0.5, 0.5, 0.5\] in row 20: .* sum to 1"),
    ):
        steps, given = Steps(), with_rows(mixup, start=0.9, guesses="given") | {"unlabeled_dataset": rows}
        with pytest.raises(ValueError, match=message):
            make_trainer(tmp_path, max_steps=4, callbacks=[steps], **given).train()
        assert not steps.made


def test_guesses_that_are_not_used_are_warned_of(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("hf_mixup"), "propagate", True)
    for guesses in ("given", "average"):
        given = with_rows(MIXED, start=0.9, guesses=guesses) | {"unlabeled_dataset": GUESSED}
        caplog.clear()
        make_trainer(tmp_path, max_steps=1, **given).train()
        assert ("its labels are probabilities, which are not used" in caplog.text) == (guesses == "average")


def test_the_first_look_at_the_rows_changes_no_run(tmp_path):
    """It takes none, and leaves the random numbers of a collator as they were."""

    def noisy(rows):
        batch = collate(rows)
        batch["input_ids"] = batch["input_ids"].clamp_max(int(torch.randint(50, 60, ())))
        return batch

    models = [steady_bert(), steady_bert()]
    for model, looks in zip(models, (True, False), strict=True):
        trainer = make_trainer(tmp_path, model, max_steps=3, **with_rows(MIXED))
        trainer.data_collator = noisy
        if not looks:
            trainer._check_first_batch = lambda inputs: None
        trainer.train()
        assert trainer._rows.taken == 3
    assert all(torch.equal(*pair) for pair in zip(*(model.state_dict().values() for model in models), strict=True))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(UNLABELED)


def test_a_stream_is_not_looked_at(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=2, **with_rows(MIXED) | {"unlabeled_dataset": Stream()})
    trainer.train()
    assert trainer._rows.look() is None and trainer._rows.taken == 2
