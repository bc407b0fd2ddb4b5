"""Steps with unlabelled rows against a slow reading of the loss; when they begin, and resume."""

import logging
import shutil

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification, TrainerCallback

from hf_mixup import Mixup, MixupConfig
from hf_mixup.config.unlabeled_config import UnlabeledConfig
from hf_mixup.training.averaging import STATE_NAME as AVERAGE
from hf_mixup.training.state import CONFIG_NAME
from hf_mixup.training.unlabeled import STATE_NAME, UnlabeledTrainer
from hf_mixup.training.unlabeled_rows import UnlabeledRows
from tests.plain_config import PLAIN, plain_config
from tests.toy_runs import (
    CLASSES,
    Gradients,
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
    swap_neighbours,
)
from tests.training.test_averaging import Seen, assert_close, average_of, copied
from tests.training.test_guesses import Slow
from tests.zoo import VOCAB, toy_model

MIXED = PLAIN | {"site": "embeddings", "alpha": 1.0}
# From the first step on, at full weight.
NOW = {"start": 0.0, "ramp": 0.0, "weight": 1.0, "ratio": 1.0, "decay": 0.99, "mask": 0.0}
HOW = {"class_prior": "labels", "temperature": 0.5, "confidence": 2.0, "loss": "cross_entropy", "partners": "all"}
USED = NOW | HOW | {"guesses": "average"}
SEED = 42  # of the training arguments


def without_labels(rows):
    return [{name: value for name, value in row.items() if name != "labels"} for row in rows]


UNLABELED = without_labels(examples(20, seed=1))
CHANCES = torch.randn(20, CLASSES, generator=torch.Generator().manual_seed(7)).softmax(-1).tolist()
GUESSED = [row | {"labels": chances} for row, chances in zip(UNLABELED, CHANCES, strict=True)]


def with_rows(mixup, **changes):
    """What a trainer is given: unlabelled rows, and how they are used; without mixup it is one that has none."""
    if mixup is None:
        given = {"trainer": UnlabeledTrainer, "unlabeled": UnlabeledConfig(**USED | changes)}
    else:
        given = {"mixup": mixup | {"unlabeled": USED | changes}}
    return given | {"unlabeled_dataset": GUESSED if changes.get("guesses") == "given" else UNLABELED}


def as_rows(batch):
    """The rows of a batch that is padded on the right."""
    lengths = batch["attention_mask"].sum(1).tolist()
    return [
        {"input_ids": tokens[:length], "attention_mask": [1] * length}
        for tokens, length in zip(batch["input_ids"].tolist(), lengths, strict=True)
    ]


# ---- The loss and its gradients ----


class Kept(TrainerCallback):
    """Keeps what a trainer reads its first loss from: the labelled batch, and the plan of the pass."""

    def attach(self, trainer):
        self.inputs, self.plan, lesson, losses = None, None, trainer._lesson, trainer._losses

        def keep_inputs(model, inputs, *args):
            self.inputs = dict(inputs)
            return lesson(model, inputs, *args)

        def keep_plan(logits, given, plan):
            self.plan = plan
            return losses(logits, given, plan)

        trainer._lesson, trainer._losses = keep_inputs, keep_plan
        return self


def slow_cross_entropy(logits, target, smoothing, class_weights):
    logs = logits.log_softmax(-1)
    smooth = [(1 - smoothing) * part + smoothing / CLASSES for part in target]
    return -sum(weight * part * log for weight, part, log in zip(class_weights, smooth, logs, strict=True))


def slow_loss(logits, targets, weights, plan, labelled, loss="cross_entropy", smoothing=0.0, class_weights=None):
    """One row at a time: the loss against its own target and against its partner's, each with the row's weight."""
    class_weights, total = class_weights or [1.0] * CLASSES, 0.0
    pairs = [(row, 1.0) for row in range(len(targets))]
    if plan is not None and plan.active:
        pairs = list(zip(plan.partner.tolist(), plan.lam.tolist(), strict=True))
    for row, (partner, lam) in enumerate(pairs):
        shares = lam * weights[row], (1 - lam) * weights[partner]
        if row >= labelled and loss == "squared_error":
            mean = [
                (shares[0] * a + shares[1] * b) / sum(shares)
                for a, b in zip(targets[row], targets[partner], strict=True)
            ]
            chances = logits[row].softmax(-1)
            error = sum((chance - part) ** 2 for chance, part in zip(chances, mean, strict=True)) / CLASSES
            total = total + sum(shares) * error
            continue
        for share, target in zip(shares, (targets[row], targets[partner]), strict=True):
            total = total + share * slow_cross_entropy(logits[row], target, smoothing, class_weights)
    return total / labelled


def slow_step(inputs, plan, how, prior, guesser=None, taught=None, **options):
    """Loss and gradients of a step, with texts that are joined before they are padded."""
    model = steady_bert().train()
    labels, rows = inputs["labels"], as_rows(inputs)
    if taught is None and not labels.is_floating_point():
        rows = [row for row, label in zip(rows, labels.tolist(), strict=True) if label != -100]
        labels = labels[labels != -100]
    known = len(labels)
    targets = taught or (labels.tolist() if labels.is_floating_point() else [one_hot(label) for label in labels])
    order = UnlabeledRows(GUESSED, lambda rows: {"rows": rows}, round(how.ratio * 8), SEED, 0, 1, 0)
    others = order.take()["rows"]
    chances = [row["labels"] for row in others]
    others = without_labels(others)
    if how.guesses != "given":
        chances = [clean_logits(guesser or model.eval(), collate([row])).softmax(-1)[0].tolist() for row in others]
    guessed, trust = Slow(how, prior).learn(chances)
    weights = [1.0] * known + [how.weight * known / len(others) * each for each in trust]
    batch = collate(rows + others)
    if plan is not None and plan.active:
        with Mixup(model, plain_config(**MIXED)).apply(plan, batch):
            logits = model(**batch).logits
    else:
        logits = model(**batch).logits
    loss = slow_loss(logits, [*targets, *guessed], weights, plan, known, how.loss, **options)
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def probability(kind):
    return [0.8 if kind == k else 0.1 for k in range(CLASSES)]


CASES = {
    "as it is": ({}, {}),
    "two per row": ({"ratio": 2.0}, {}),
    "one for two rows": ({"ratio": 0.5, "weight": 3.0}, {}),
    "no prior": ({"class_prior": "none", "temperature": 1.0}, {}),
    "given shares": ({"class_prior": [0.2, 0.3, 0.5]}, {}),
    "likeliest class": ({"temperature": 0.0, "confidence": None}, {}),
    "squared error": ({"loss": "squared_error"}, {}),
    "apart": ({"partners": "apart"}, {}),
    "model": ({"guesses": "model"}, {}),
    "given": ({"guesses": "given", "start": None}, {}),
    "class weights": ({}, {"class_weights": [1.0, 2.0, 0.5]}),
    "smoothing": ({}, {"label_smoothing_factor": 0.1}),
    "both": ({}, {"label_smoothing_factor": 0.1, "class_weights": [1.0, 2.0, 0.5]}),
    "some without a label": ({}, {}),
    "probabilities": ({}, {}),
}


def rows_of(case):
    rows = examples(8, probability if case == "probabilities" else int)
    return [
        row | {"labels": -100} if case == "some without a label" and number % 3 == 1 else row
        for number, row in enumerate(rows)
    ]


def counts_of(rows):
    kinds = [row["labels"] for row in rows]
    return [sum(kind[k] if isinstance(kind, list) else kind == k for kind in kinds) for k in range(CLASSES)]


@pytest.mark.parametrize("is_mixed", [True, False], ids=["mixed", "clean"])
@pytest.mark.parametrize("case", CASES)
def test_a_step_is_that_of_the_slow_reading(tmp_path, case, is_mixed):
    changes, options = CASES[case]
    problem = {"problem_type": "single_label_classification"} if case == "probabilities" else {}
    rows, seen = rows_of(case), Gradients()
    given = {"callbacks": [seen], "max_steps": 1, "max_grad_norm": 0.0, "rows": rows, **options}
    trainer = make_trainer(
        tmp_path, steady_bert(**problem), **given, **with_rows(MIXED if is_mixed else None, **changes)
    )
    if is_mixed and case != "apart":
        trainer.mixup.draw = lambda batch, *args, **kwargs: a_plan(len(batch["input_ids"]))
    kept = Kept().attach(trainer)
    trainer.train()
    assert (kept.plan is not None and kept.plan.active) == is_mixed
    known = sum(row["labels"] != -100 for row in rows)
    if case == "apart" and is_mixed:
        partner = kept.plan.partner.tolist()
        assert sorted(partner[:known]) == list(range(known)) and sorted(partner[known:]) == list(range(known, 16))
        assert float(kept.plan.lam.min()) < 0.9
    how = UnlabeledConfig(**USED | changes)
    extra = {"smoothing": options.get("label_smoothing_factor", 0.0), "class_weights": options.get("class_weights")}
    prior = how.class_prior if isinstance(how.class_prior, list) else [count + 1 for count in counts_of(rows)]
    expected = slow_step(kept.inputs, kept.plan, how, prior, **extra)
    assert_same_step((trainer.state.log_history[0]["loss"], seen.first), expected)


def test_a_teacher_guesses_and_blends(tmp_path):
    torch.manual_seed(1)
    teacher, seen, rows = toy_model("bert", hidden_dropout_prob=0.5), Gradients(), examples(8)
    teacher.classifier.weight.data.mul_(4)
    rows[2]["labels"] = -100
    given = {"teacher": teacher, "teacher_weight": 0.3, "callbacks": [seen], "max_steps": 1, "max_grad_norm": 0.0}
    trainer = make_trainer(tmp_path, rows=rows, **given, **with_rows(MIXED))
    trainer.mixup.draw = lambda batch, *args, **kwargs: a_plan(len(batch["input_ids"]))
    kept = Kept().attach(trainer)
    trainer.train()
    taught = []
    for row, label in zip(as_rows(kept.inputs), kept.inputs["labels"].tolist(), strict=True):
        guess = clean_logits(teacher.eval(), collate([row])).softmax(-1)[0].tolist()
        own = one_hot(label)
        taught.append(guess if label == -100 else [0.7 * a + 0.3 * b for a, b in zip(own, guess, strict=True)])
    expected = slow_step(
        kept.inputs, kept.plan, UnlabeledConfig(**USED), [count + 1 for count in counts_of(rows)], teacher, taught
    )
    assert_same_step((trainer.state.log_history[0]["loss"], seen.first), expected)


def test_the_logits_of_a_teacher_are_divided_by_its_temperature(tmp_path):
    teacher, batch = toy_model("bert"), collate(UNLABELED[:4])
    trainer = make_trainer(tmp_path, teacher=teacher, teacher_temperature=2.0, **with_rows(MIXED))
    assert torch.allclose(trainer._guess(batch), (clean_logits(teacher, batch) / 2).softmax(-1))


def test_given_guesses_cost_no_pass_and_no_average(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=2, **with_rows(MIXED, guesses="given", start=None))
    trainer._guess = None
    trainer.train()
    assert trainer._average.averaging is None and trainer.unlabeled_weight == 1.0
    assert "unlabeled_accuracy" not in trainer.state.log_history[0]


def test_with_a_teacher_nothing_is_averaged(tmp_path):
    trainer = make_trainer(tmp_path, teacher=toy_model("bert"), max_steps=2, **with_rows(MIXED))
    trainer.train()
    assert trainer._average.averaging is None


@pytest.mark.parametrize("mixup", [None, MIXED], ids=["clean", "mixed"])
def test_accumulated_batches_are_one_step(tmp_path, mixup):
    how = {"class_prior": "none", "confidence": None}
    draw = None if mixup is None else swap_neighbours
    given = {"rows": examples(8), "draw": draw, **with_rows(mixup, **how)}
    whole = first_step(tmp_path, **given, per_device_train_batch_size=8)
    parts = first_step(tmp_path, **given, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    assert_same_step(whole, parts)
    plain = first_step(tmp_path, rows=examples(8), mixup=mixup, draw=draw)
    assert whole[0] != pytest.approx(plain[0], rel=1e-3)


@pytest.mark.parametrize("mixup", [None, MIXED], ids=["clean", "mixed"])
def test_a_batch_without_any_label_teaches_nothing(tmp_path, mixup):
    """The accumulated step is then that of its other batches."""
    rows = examples(8)
    for row in rows[4:]:
        row["labels"] = -100
    given = {"rows": rows, **with_rows(mixup), "per_device_train_batch_size": 4}
    in_order = {"train_sampling_strategy": "sequential"}
    both = first_step(tmp_path, **given, **in_order, gradient_accumulation_steps=2)
    alone = first_step(tmp_path, **given | {"rows": rows[:4]}, **in_order)
    assert_same_step(both, alone)


def test_the_guesses_are_those_of_the_average(tmp_path):
    """Not of the weights that are trained, and without dropout."""
    seen, found = Seen(), []
    model = toy_model("bert", hidden_dropout_prob=0.3)
    given = {"max_steps": 5, "learning_rate": 1e-2, "callbacks": [seen]}
    trainer = make_trainer(tmp_path, model, **given, **with_rows(MIXED))
    guess = trainer._guess
    trainer._guess = lambda batch: found.append((batch, guess(batch))) or found[-1][1]
    trainer.train()
    assert len(found) == 5
    for step, (batch, chances) in enumerate(found):
        average = toy_model("bert")
        average.load_state_dict(average_of(seen.weights[: step + 1], decay=0.99), strict=False)
        torch.testing.assert_close(chances, clean_logits(average, batch).softmax(-1), rtol=1e-4, atol=1e-5)
    assert_close(copied(model), average_of(seen.weights, decay=0.99))


def test_masks_are_for_the_pass_that_learns(tmp_path):
    class Tokenizer:
        """What the trainer asks of a tokenizer."""

        mask_token_id, all_special_ids, pad_token_id, padding_side = 3, [0, 1, 2, 3], 1, "right"

        def save_pretrained(self, *args):
            pass

    guessed, learnt = [], []
    trainer = make_trainer(tmp_path, max_steps=2, processing_class=Tokenizer(), **with_rows(MIXED, mask=0.5))
    guess, one_pass = trainer._guess, trainer._pass
    trainer._guess = lambda batch: guessed.append(batch["input_ids"]) or guess(batch)
    trainer._pass = lambda model, lesson: learnt.append(lesson.inputs["input_ids"]) or one_pass(model, lesson)
    trainer.train()
    for whole, joined in zip(guessed, learnt, strict=True):
        masked = joined[8:, : whole.shape[1]]
        changed = masked != whole
        assert not (whole == 3).any() and not (joined[:8] == 3).any()
        assert changed.any() and bool((masked[changed] == 3).all()) and int(whole[changed].min()) > 2


# ---- When it begins ----


@pytest.mark.parametrize("mixup", [None, MIXED, {"recipe": "default"}], ids=["off", "mixed", "default"])
def test_a_weight_of_0_is_the_run_without(tmp_path, mixup):
    models = [toy_model("bert"), toy_model("bert")]
    for model, given in zip(models, ({"mixup": mixup}, with_rows(mixup, weight=0.0)), strict=True):
        make_trainer(tmp_path, model, max_steps=4, **given).train()
    assert same_weights(*models)


@pytest.mark.parametrize("mixup", [None, MIXED], ids=["off", "mixed"])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_before_they_begin_the_run_is_the_one_without(tmp_path, mixup, accumulated):
    seen = Seen(), Seen()
    given = {"max_steps": 6, "gradient_accumulation_steps": accumulated, "per_device_train_batch_size": 4}
    for each, used in zip(seen, ({"mixup": mixup}, with_rows(mixup, start=0.5)), strict=True):
        make_trainer(tmp_path, toy_model("bert"), callbacks=[each], **given, **used).train()
    same = [
        all(torch.equal(one[name], other[name]) for name in other)
        for one, other in zip(seen[0].weights, seen[1].weights, strict=True)
    ]
    assert same == [True] * 4 + [False] * 3


def test_without_mixup_and_without_settings_they_are_used_as_the_defaults_say(tmp_path):
    trainer = make_trainer(tmp_path, mixup=None, unlabeled_dataset=UNLABELED, max_steps=6)
    trainer.train()
    assert trainer.mixup is None and trainer.unlabeled == UnlabeledConfig()
    assert any("unlabeled_weight" in entry for entry in trainer.state.log_history)


def test_the_weight_rises_from_the_start_on(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=10, **with_rows(MIXED, weight=3.0, start=0.4, ramp=0.3))
    assert trainer.unlabeled_weight == 0
    weights, step = [], trainer.training_step
    trainer.training_step = lambda *args: weights.append(trainer.unlabeled_weight) or step(*args)
    trainer.train()
    assert weights == pytest.approx([0, 0, 0, 0, 0, 1, 2, 3, 3, 3])
    logged = [entry["unlabeled_weight"] for entry in trainer.state.log_history if "unlabeled_weight" in entry]
    assert logged == pytest.approx([1, 2, 3, 3, 3])


# ---- Killed and resumed ----

RESUMES = {"save_strategy": "steps", "save_steps": 2, "max_steps": 8, "learning_rate": 1e-2}
RESUMES |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}


def logged(trainer):
    names = ("loss", "unlabeled_weight", "unlabeled_use", "unlabeled_drift", "unlabeled_disagreement")
    return [[entry.get(name) for name in names] for entry in trainer.state.log_history if "loss" in entry]


def run(folder, kind, mixup=MIXED, resume=None, **changes):
    """A training with dropout that is not a whole number of passes; labels of a list are counted as they come."""
    rows = examples(20)
    trainer = make_trainer(
        folder,
        toy_model("bert"),
        rows=Dataset.from_list(rows) if kind == "known" else rows,
        **RESUMES,
        **with_rows(mixup, start=0.5, ramp=0.25, **changes),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.fixture(scope="module", params=["known", "counted"])
def whole(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return run(folder, request.param), request.param, folder


@pytest.mark.parametrize("step", [2, 4, 6])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(whole, tmp_path, step):
    trainer, kind, folder = whole
    assert [entry[1] is not None for entry in logged(trainer)] == [False] * 5 + [True] * 3
    resumed = run(tmp_path, kind, resume=str(folder / f"checkpoint-{step}"))
    assert logged(resumed) == logged(trainer)
    assert same_weights(resumed.model, trainer.model)
    states = [torch.load(path / "checkpoint-8" / AVERAGE) for path in (folder, tmp_path)]
    assert all(torch.equal(weight, states[1]["weights"][name]) for name, weight in states[0]["weights"].items())
    texts = [(path / "checkpoint-8" / STATE_NAME).read_text() for path in (folder, tmp_path)]
    assert texts[0] == texts[1]


def test_without_their_state_the_weights_are_others(whole, tmp_path, caplog):
    trainer, kind, folder = whole
    shutil.copytree(folder / "checkpoint-6", tmp_path / "checkpoint-6")
    (tmp_path / "checkpoint-6" / STATE_NAME).unlink()
    resumed = run(tmp_path, kind, resume=True)
    assert not same_weights(resumed.model, trainer.model)


@pytest.fixture
def said(caplog):
    """What this package says."""
    with caplog.at_level(logging.WARNING, "hf_mixup"):
        yield lambda: caplog.text


def test_resuming_the_same_says_nothing_and_something_else_what(whole, tmp_path, said):
    _, kind, folder = whole
    run(tmp_path / "same", kind, resume=str(folder / "checkpoint-6"))
    assert "another mixup config" not in said() and "resumed otherwise" not in said()
    run(tmp_path / "other", kind, resume=str(folder / "checkpoint-6"), weight=0.5)
    assert "Resuming" in said() and "unlabeled=UnlabeledConfig(ratio=1.0, weight=0.5" in said()
    given = RESUMES | {"rows": examples(20), "mixup": MIXED, "averaging": "ema"}
    make_trainer(tmp_path / "x", toy_model("bert"), **given).train(resume_from_checkpoint=str(folder / "checkpoint-6"))
    assert "was saved with unlabelled rows, and is resumed otherwise" in said()


def test_a_second_training_is_the_first_again(whole, tmp_path):
    trainer, kind, _ = whole
    again = make_trainer(
        tmp_path,
        model_init=lambda: toy_model("bert"),
        rows=examples(20),
        **RESUMES | {"max_steps": 6, "save_strategy": "no"},
        **with_rows(MIXED, start=0.25, ramp=0.25),
    )
    weights = []
    for _ in range(2):
        again.train()
        weights.append(copied(again.model))
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())


# ---- What they cost ----


def test_a_step_costs_one_joined_pass_and_one_without_gradients(tmp_path):
    passes = []
    trainer = make_trainer(tmp_path, max_steps=4, **with_rows(MIXED, start=0.5))

    def count(module, args, kwargs, output):
        if "labels" not in kwargs:  # which the check of the model's own loss in the first step has
            rows = len(kwargs["input_ids"])
            passes.append((trainer.state.global_step, module.training, output.logits.requires_grad, rows))

    trainer.model.register_forward_hook(count, with_kwargs=True)
    trainer.train()
    clean = [(number, True, True, 8) for number in (0, 1)]
    joined = [each for number in (2, 3) for each in ((number, False, False, 8), (number, True, True, 16))]
    assert passes == clean + joined


def test_the_average_guesses_in_its_own_memory(tmp_path):
    trainer, guessed = make_trainer(tmp_path, max_steps=3, **with_rows(MIXED)), []

    def look(module, args, kwargs):
        if not module.training:
            held = [weight.data_ptr() for weight in module.parameters()]
            guessed.append(held == [average.data_ptr() for average in trainer._average.averages])

    trainer.model.register_forward_pre_hook(look, with_kwargs=True)
    before = [weight.data_ptr() for weight in trainer.model.parameters()]
    trainer.train()
    # The first pass in evaluation mode looks at the model's own loss.
    assert guessed == [False] + [True] * 3
    assert [weight.data_ptr() for weight in trainer.model.parameters()] == before


def test_without_a_mask_token_nothing_is_masked_and_it_is_said(tmp_path, caplog):
    trainer = make_trainer(tmp_path, **with_rows(MIXED, mask=0.2))
    assert trainer.unlabeled.mask == 0
    assert "unlabeled.mask=0.2: no tokens are masked: there is no tokenizer" in caplog.text


# ---- What it guards against ----

FOREIGN = 40  # no text of `examples` that is made for these tests has a token of this number or above


def cased(count, seed, foreign=False):
    """Texts of few tokens that a toy model learns in a moment, or of tokens that it never saw."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for number in range(count):
        kind, low, high = number % CLASSES, *((FOREIGN, VOCAB) if foreign else (10, 20))
        tokens = torch.randint(low, high, (6,), generator=generator).tolist()
        middle = tokens[:1] if foreign else [5 + kind]
        rows.append({"input_ids": [0, *middle, *tokens, 2], "attention_mask": [1] * 9, "labels": kind})
        rows[-1]["attention_mask"] = [1] * len(rows[-1]["input_ids"])
    return rows


def test_foreign_texts_weigh_less(tmp_path):
    found = {True: [], False: []}
    mixed = cased(30, 1) + cased(30, 2, foreign=True)
    given = {"max_steps": 60, "learning_rate": 5e-3, "per_device_train_batch_size": 12, "rows": cased(60, 0)}
    used = with_rows(PLAIN | {"alpha": 0.2}, start=0.6, weight=0.5) | {"unlabeled_dataset": without_labels(mixed)}
    trainer = make_trainer(tmp_path, steady_bert(), **given, **used)
    losses = trainer._losses

    def keep(logits, lesson, plan):
        for tokens, weight in zip(lesson.inputs["input_ids"][12:], lesson.weights[12:].tolist(), strict=True):
            found[bool((tokens >= FOREIGN).any())].append(weight)
        return losses(logits, lesson, plan)

    trainer._losses = keep
    trainer.train()
    real, foreign = (sum(found[kind]) / len(found[kind]) for kind in (False, True))
    print(f"mean weights: {real:.3f} of real rows, {foreign:.3f} of foreign ones")
    assert foreign < 0.8 * real


def test_guesses_of_other_classes_are_warned_of_once(tmp_path, said):
    only = without_labels([row for row in cased(60, 1) if row["labels"] == 1])
    given = {"max_steps": 40, "learning_rate": 5e-3, "per_device_train_batch_size": 12, "rows": cased(60, 0)}
    model = steady_bert(id2label={0: "bad", 1: "fine", 2: "good"})
    used = with_rows(PLAIN, start=0.6, weight=0.1) | {"unlabeled_dataset": only}
    trainer = make_trainer(tmp_path, model, **given, **used)
    trainer.train()
    drift = [entry["unlabeled_drift"] for entry in trainer.state.log_history if "unlabeled_drift" in entry]
    assert drift[-1] > 0.25
    assert said().count("unlabeled_dataset: the guesses drift") == 1
    assert "'fine', of the labels 33 %" in said() and "give their shares as class_prior" in said()


def test_given_guesses_of_other_classes_are_warned_of_in_other_words(tmp_path, said):
    rows = [row | {"labels": [0.1, 0.8, 0.1]} for row in UNLABELED]
    given = with_rows(PLAIN, guesses="given", start=None) | {"unlabeled_dataset": rows}
    make_trainer(tmp_path, max_steps=3, **given).train()
    assert "of the given guesses 80 % are" in said() and "they are aligned to the labels" in said()


def test_guesses_of_the_same_classes_are_not_warned_of(tmp_path, said):
    given = {"max_steps": 40, "learning_rate": 5e-3, "per_device_train_batch_size": 12, "rows": cased(60, 0)}
    used = with_rows(PLAIN, start=0.6, weight=0.1) | {"unlabeled_dataset": cased(60, 1)}
    trainer = make_trainer(tmp_path, steady_bert(), **given, **used)
    trainer.train()
    last = trainer.state.log_history[-2]
    assert last["unlabeled_accuracy"] > 0.8 and last["unlabeled_drift"] < 0.25
    assert "drift" not in said()


# ---- What is evaluated and saved ----


def test_what_is_evaluated_and_saved_is_the_average_and_the_best_of_it(tmp_path):
    seen, rows, logits = Seen(), examples(6), []

    def keep(predictions):
        logits.append(torch.tensor(predictions.predictions))
        return {}

    best = {"metric_for_best_model": "loss", "load_best_model_at_end": True, "greater_is_better": True}
    every = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    given = {"callbacks": [seen], "eval_dataset": rows, "compute_metrics": keep, "max_steps": 6, "learning_rate": 1e-2}
    trainer = make_trainer(tmp_path, **given, **every, **best, **with_rows(MIXED, decay=0.5))
    trainer.train()
    averages = [average_of(seen.weights[: step + 1], decay=0.5) for step in (2, 4, 6)]
    for found, average in zip(logits, averages, strict=True):
        model = steady_bert()
        model.load_state_dict(average, strict=False)
        torch.testing.assert_close(found, clean_logits(model, collate(rows)), rtol=1e-4, atol=1e-5)
    step = trainer.state.best_global_step
    assert_close(copied(trainer.model), averages[step // 2 - 1])
    trainer.save_model(str(tmp_path / "final"))
    assert same_weights(AutoModelForSequenceClassification.from_pretrained(tmp_path / "final"), trainer.model)


def test_the_config_beside_the_model_says_how_they_were_used(tmp_path):
    trainer = make_trainer(tmp_path, **with_rows(MIXED, ratio=2.0, class_prior=[1.0, 1.0, 2.0]))
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    saved = MixupConfig.from_file(tmp_path / "final" / CONFIG_NAME)
    assert saved == plain_config(**MIXED, unlabeled=USED | {"ratio": 2.0, "class_prior": [0.25, 0.25, 0.5]})
    assert isinstance(saved.unlabeled, UnlabeledConfig)
    trainer.create_model_card()
    assert "ratio: 2.0" in (tmp_path / "README.md").read_text()


def test_an_adapter_is_trained_and_averaged_alone(tmp_path):
    def adapted():
        return get_peft_model(steady_bert(), LoraConfig(task_type="SEQ_CLS", target_modules=["query"], r=2))

    seen = Seen()
    given = {"max_steps": 4, "learning_rate": 1e-2, "callbacks": [seen]}
    trainer = make_trainer(tmp_path, adapted(), **given, **with_rows(MIXED))
    sizes = []
    guess = trainer._guess
    trainer._guess = lambda batch: sizes.append(set(trainer._average.weights)) or guess(batch)
    trainer.train()
    names = {name for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    assert sizes == [names] * 4 and any("lora" in name for name in names)
    assert_close(copied(trainer.model), average_of(seen.weights, decay=0.99))
    assert not torch.equal(seen.weights[-1][min(names)], seen.weights[0][min(names)])
    trainer.save_model(str(tmp_path / "final"))
    assert same_weights(PeftModel.from_pretrained(steady_bert(), tmp_path / "final"), trainer.model)


# ---- In a search ----


def test_a_trial_uses_the_rows_as_it_says(tmp_path):
    trainer = make_trainer(tmp_path, **with_rows(MIXED, ratio=1.0))
    trainer.train()
    for ratio, temperature in ((2.0, 0.0), (3.0, 1.0)):
        config = MixupConfig(
            **PLAIN | {"unlabeled": UnlabeledConfig(**USED | {"ratio": ratio, "temperature": temperature})}
        )
        trainer._use_in_trial(config)
        assert trainer._rows.size == ratio * 8 and trainer._guesses.config.temperature == temperature
    trainer._use_in_trial(MixupConfig(**PLAIN))
    assert trainer.unlabeled == UnlabeledConfig(guesses="average", decay=0.99, mask=0.0)
    with pytest.raises(
        ValueError, match="unlabeled.guesses='model', .*: a search keeps those of the trainer, 'average'"
    ):
        trainer._use_in_trial(MixupConfig(**PLAIN | {"unlabeled": {"guesses": "model"}}))
