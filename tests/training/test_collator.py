"""Mixing in the collator: with a plain Trainer, with a loop, in workers; and what is refused."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback

from hf_mixup import Mixup, MixupCollator, MixupConfig, MixupPlan
from hf_mixup.config.recipes import recipe_names
from hf_mixup.plan.boxes import swap_boxes
from hf_mixup.plan.examples import Examples
from hf_mixup.plan.planner import Planner
from hf_mixup.training.collator_callback import collators_in
from tests.distributed.launch import SERVER
from tests.plain_config import PLAIN
from tests.toy_runs import CLASSES, arguments, collate, examples, one_hot, same_weights, steady_bert, two_term
from tests.zoo import WIDTH

SPANS = PLAIN | {"site": "input", "interpolation": "span", "alpha": 2.0, "mode": "batch", "self_pairs": False}
VECTORS = PLAIN | {"site": "input", "alpha": 1.0, "self_pairs": False}
PLANS = PLAIN | {"site": "embeddings", "alpha": 1.0, "self_pairs": False}
PROBABILITIES = {"problem_type": "single_label_classification"}
SEVERAL = {"problem_type": "multi_label_classification"}


def vectors(count=16, label=int, seed=0):
    """Examples of five float vectors each."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(count, 5, WIDTH, generator=generator)
    return [{"inputs_embeds": row, "labels": label(number % CLASSES)} for number, row in enumerate(drawn)]


def stack(rows):
    """A batch of examples of one length."""
    return {
        "inputs_embeds": torch.stack([row["inputs_embeds"] for row in rows]),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }


class Seen:
    """A collator's loss that keeps the labels and losses of training and evaluation batches."""

    def __init__(self, collator):
        self.collator, self.trained, self.evaluated = collator, [], []

    def __call__(self, outputs, labels, num_items_in_batch=None):
        (self.trained if torch.is_grad_enabled() else self.evaluated).append(labels)
        return self.collator.loss(outputs, labels, num_items_in_batch)


def plain_trainer(folder, collator, model=None, rows=None, callbacks=None, loss=None, **options):
    """A Trainer of transformers' own, with the collator as its callback unless `callbacks` says otherwise."""
    eval_dataset = options.pop("eval_dataset", None)
    return Trainer(
        model=model or steady_bert(),
        args=arguments(folder, **options),
        train_dataset=examples() if rows is None else rows,
        eval_dataset=eval_dataset,
        data_collator=options.pop("data_collator", collator),
        callbacks=[collator] if callbacks is None else callbacks,
        compute_loss_func=loss or collator.loss,
    )


def is_mixed(labels):
    return labels.dim() == 2 and bool(((labels > 0) & (labels < 1)).any())


def clean_loss(model, rows):
    model.eval()
    batch = collate(rows)
    labels = batch.pop("labels")
    with torch.no_grad():
        return F.cross_entropy(model(**batch).logits, labels).item()


# ---- With a plain Trainer ----


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_a_trainer_trains_on_mixed_batches_and_never_evaluates_them(tmp_path, workers, strategy):
    collator = MixupCollator(collate, SPANS, CLASSES)
    seen = Seen(collator)
    held_out = {"one": examples(6, seed=1), "two": examples(5, seed=2)}
    trainer = plain_trainer(
        tmp_path,
        collator,
        loss=seen,
        eval_dataset=held_out,
        eval_strategy=strategy,
        eval_steps=1,
        eval_on_start=True,
        max_steps=4,
        dataloader_num_workers=workers,
    )
    before = trainer.evaluate()
    assert before["eval_one_loss"] == pytest.approx(clean_loss(trainer.model, held_out["one"]), rel=1e-5)
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_two_loss"] == pytest.approx(clean_loss(trainer.model, held_out["two"]), rel=1e-5)
    trainer.predict(held_out["one"])
    trainer.evaluate(examples())
    assert len(seen.trained) == 4 and all(is_mixed(labels) for labels in seen.trained)
    evaluations = 4 if strategy == "steps" else 2
    assert len(seen.evaluated) == 2 * (3 + evaluations) + 1 + 2
    assert all(labels.dim() == 1 and labels.dtype == torch.long for labels in seen.evaluated)
    trainer.train()
    assert len(seen.trained) == 8 and all(is_mixed(labels) for labels in seen.trained)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_evaluation_without_the_callback_is_refused(tmp_path, workers):
    collator = MixupCollator(collate, SPANS, CLASSES)
    rows = examples(6, seed=1)
    trainer = plain_trainer(
        tmp_path, collator, callbacks=[], eval_dataset=rows, eval_strategy="steps", dataloader_num_workers=workers
    )
    with pytest.raises(ValueError, match=r"was mixed: give the Trainer callbacks=\[collator\]"):
        trainer.evaluate()
    with pytest.raises(ValueError, match=r"callbacks=\[collator\]"):
        trainer.train()
    with pytest.raises(ValueError, match=r"callbacks=\[collator\]"):
        trainer.predict(rows)


def test_a_callback_that_evaluates_in_the_middle_of_an_epoch_gets_clean_batches(tmp_path):
    class Evaluating(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            trainer.evaluate()

    collator = MixupCollator(collate, SPANS, CLASSES)
    seen = Seen(collator)
    callbacks = [collator, Evaluating()]
    trainer = plain_trainer(tmp_path, collator, loss=seen, callbacks=callbacks, eval_dataset=examples(6), max_steps=3)
    trainer.train()
    assert [is_mixed(labels) for labels in seen.trained] == [True] * 3
    assert len(seen.evaluated) == 3 and all(labels.dim() == 1 for labels in seen.evaluated)


def test_the_forgotten_loss_is_found_before_the_model_learns_from_it(tmp_path):
    collator = MixupCollator(collate, SPANS, CLASSES)
    model = steady_bert()
    trainer = plain_trainer(tmp_path, collator, model)
    trainer.compute_loss_func = None
    with pytest.raises(ValueError, match=r"compute_loss_func=collator\.loss as well"):
        trainer.train()
    assert same_weights(model, steady_bert())


def test_the_forgotten_collator_is_found(tmp_path):
    collator = MixupCollator(collate, SPANS, CLASSES)
    trainer = plain_trainer(tmp_path, collator)
    trainer.data_collator = collate
    with pytest.raises(ValueError, match="training batch was not mixed: give the Trainer data_collator=collator"):
        trainer.train()


HEADS = {
    "single label": (int, CLASSES, {}),
    "several labels": (one_hot, CLASSES, SEVERAL),
    "score": (float, 1, {}),
}
ALL_THREE = r"data_collator: .* callbacks=\[collator\] and compute_loss_func=collator\.loss"


def lone_collator(folder, head="single label", wrap=lambda collator: collator, rows=examples, **options):
    """A plain Trainer of which the collator does not hear, and a copy of the config of its model."""
    label, num_labels, about = HEADS[head]
    collator, model = MixupCollator(collate, SPANS, num_labels, **about), steady_bert(num_labels=num_labels)
    trainer = Trainer(
        model=model,
        args=arguments(folder, **options),
        train_dataset=rows(16, label),
        eval_dataset=rows(6, label),
        data_collator=wrap(collator),
    )
    return trainer, model.config.to_dict()


def assert_refused(trainer, config, call, message=ALL_THREE):
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        call()
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    after = trainer.model.config.to_dict()
    # Trainer itself sets this one.
    assert after == config | {"use_cache": after.get("use_cache")} and trainer.state.global_step == 0


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("head", HEADS)
def test_a_collator_alone_is_refused_before_the_first_step(tmp_path, head, workers):
    trainer, config = lone_collator(tmp_path, head, dataloader_num_workers=workers)
    assert_refused(trainer, config, trainer.train)
    assert_refused(trainer, config, trainer.evaluate)
    assert_refused(trainer, config, lambda: trainer.predict(trainer.eval_dataset))


def make_a_collator_after_the_trainer(folder):
    trainer = Trainer(model=steady_bert(), args=arguments(folder), train_dataset=examples())
    trainer.data_collator = MixupCollator(collate, "span_mix", 3)
    with pytest.raises(ValueError, match="data_collator: a MixupCollator alone"):
        trainer.train()


def test_a_collator_that_is_made_after_the_trainer_is_refused_as_well(tmp_path):
    # In a process in which none was made before.
    process = SERVER.Process(target=make_a_collator_after_the_trainer, args=(tmp_path,))
    process.start()
    process.join(300)
    assert process.exitcode == 0


def test_a_collator_alone_is_refused_by_an_evaluation_on_start(tmp_path):
    trainer, config = lone_collator(tmp_path, eval_on_start=True, eval_strategy="epoch")
    assert_refused(trainer, config, trainer.train)


class Wrapping:
    """A collator around another one."""

    def __init__(self, collator):
        self.inner = collator

    def __call__(self, rows):
        return self.inner(rows)


WRAPPERS = {
    "object": Wrapping,
    "closure": lambda collator: lambda rows: collator(rows),
    "partial": lambda collator: partial(collator),
    "method": lambda collator: Wrapping(collator).__call__,
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("rows", [examples, lambda *args: Dataset.from_list(examples(*args))], ids=["list", "Dataset"])
def test_a_collator_inside_a_wrapper_is_refused_too(tmp_path, wrapper, rows):
    trainer, config = lone_collator(tmp_path, wrap=WRAPPERS[wrapper], rows=rows)
    assert_refused(trainer, config, trainer.train)
    assert_refused(trainer, config, trainer.evaluate)


GLOBAL = {}
NAMED = None


def calls_a_global(rows):
    return NAMED(rows) if GLOBAL.get("calls") else collate(rows)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("calls", [True, False])
def test_a_collator_among_the_globals_counts_if_it_is_called(tmp_path, monkeypatch, calls, workers):
    monkeypatch.setattr(f"{__name__}.NAMED", MixupCollator(collate, SPANS, CLASSES))
    monkeypatch.setitem(GLOBAL, "calls", calls)
    trainer, config = lone_collator(tmp_path, wrap=lambda _: calls_a_global, dataloader_num_workers=workers)
    if calls:
        assert_refused(trainer, config, trainer.train)
    else:
        trainer.train()
        assert trainer.evaluate()["eval_loss"] > 0


def test_a_variable_that_is_not_assigned_yet_hides_no_collator():
    collator = MixupCollator(collate, SPANS, CLASSES)

    def wrapped(rows):
        return collator(late(rows))

    assert [*collators_in(wrapped)] == [collator]
    late = list
    assert wrapped.__closure__ and late


def test_the_callback_of_another_trainer_or_collator_does_not_count(tmp_path):
    collator = MixupCollator(collate, SPANS, CLASSES)
    plain_trainer(tmp_path, collator).train()
    for callbacks in ([], [MixupCollator(collate, SPANS, CLASSES)]):
        trainer = plain_trainer(tmp_path, collator, callbacks=callbacks)
        assert_refused(trainer, trainer.model.config.to_dict(), trainer.train)


def test_a_collator_that_is_a_callback_alone_is_refused(tmp_path):
    trainer = plain_trainer(tmp_path, MixupCollator(collate, SPANS, CLASSES))
    trainer.data_collator, trainer.compute_loss_func = collate, None
    # By then the model's own loss was that of its labels, so its problem type is known.
    config = trainer.model.config.to_dict() | PROBABILITIES
    assert_refused(trainer, config, trainer.train, "training batch was not mixed: give the Trainer data_collator=coll")


def test_other_trainers_do_not_notice(tmp_path):
    MixupCollator(collate, SPANS, CLASSES)
    trainer = plain_trainer(tmp_path, collate, callbacks=[], loss=F.cross_entropy, eval_dataset=examples(6))
    trainer.compute_loss_func = None
    trainer.train()
    assert trainer.state.global_step == 2 and trainer.evaluate()["eval_loss"] > 0
    # A collator that is added to a Trainer later is heard of when the training begins.
    late, seen = MixupCollator(collate, SPANS, CLASSES), []
    trainer = plain_trainer(tmp_path, late, callbacks=[], loss=lambda *a, **k: seen.append(a[1]) or late.loss(*a, **k))
    trainer.add_callback(late)
    trainer.train()
    assert len(seen) == 2 and all(map(is_mixed, seen))


def plan_of_the_data(batch, *args):
    """Neighbours are partners, lambda comes from the example: the same plan however the data are split."""
    lam = torch.sigmoid(batch["inputs_embeds"][:, 0, 0])
    return MixupPlan(torch.arange(len(lam)) ^ 1, lam, "input")


LABELS = {
    "indices": (int, CLASSES, {}),
    "probabilities": (lambda kind: [0.7, 0.2, 0.1][kind:] + [0.7, 0.2, 0.1][:kind], CLASSES, PROBABILITIES),
    "several": (lambda kind: [1.0, float(kind == 1), 0.0], CLASSES, SEVERAL),
    "score": (float, 1, {}),
    "scores": (lambda kind: [kind / 2, 1.0], 2, {"problem_type": "regression"}),
}


def trained_epoch(folder, kind, count, size, steps):
    label, num_labels, options = LABELS[kind]
    collator = MixupCollator(stack, VECTORS, num_labels, **options)
    collator._draw = plan_of_the_data
    model = steady_bert(num_labels=num_labels, **options)
    trainer = plain_trainer(
        folder,
        collator,
        model,
        vectors(count, label),
        max_steps=-1,
        num_train_epochs=1,
        optim="sgd",
        learning_rate=0.1,
        max_grad_norm=0.0,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=steps,
    )
    trainer.train()
    return [log["loss"] for log in trainer.state.log_history if "loss" in log], model


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize(("count", "split"), [(14, (2, 4)), (6, (4, 2))])
def test_accumulated_batches_count_by_their_examples(tmp_path, kind, count, split):
    losses, model = trained_epoch(tmp_path, kind, count, 8, 1)
    other_losses, other = trained_epoch(tmp_path, kind, count, *split)
    assert losses == pytest.approx(other_losses, rel=1e-4) and len(losses) == -(-count // 8)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("kind", LABELS)
def test_the_loss_is_that_of_both_labels(kind):
    label, num_labels, options = LABELS[kind]
    collator = MixupCollator(stack, VECTORS, num_labels, **options)
    collator._draw = plan_of_the_data
    clean = stack(vectors(8, label))
    batch = collator(vectors(8, label))
    model = steady_bert(num_labels=num_labels, problem_type=options.get("problem_type"))
    logits = model(inputs_embeds=batch["inputs_embeds"]).logits

    def loss_of(logits, labels):
        if kind in ("score", "scores"):
            return F.mse_loss(logits.squeeze(-1), labels.float().view_as(logits.squeeze(-1)))
        if kind == "several":
            return F.binary_cross_entropy_with_logits(logits, labels)
        return F.cross_entropy(logits, labels)

    # A squared error is not linear in its target: the two terms differ from it by lambda (1 - lambda) (y - y')^2.
    plan = plan_of_the_data(clean)
    expected = two_term(loss_of, logits, clean["labels"], plan)
    if kind in ("score", "scores"):
        labels = clean["labels"].float().reshape(8, -1)
        spread = (labels - labels[plan.partner]).square().mean(-1)
        expected = expected - (plan.lam * (1 - plan.lam) * spread).mean()
    torch.testing.assert_close(collator.loss({"logits": logits}, batch["labels"]), expected)
    torch.testing.assert_close(collator.loss(logits, batch["labels"]), expected)
    # Of a Trainer that has counted the labels of two such batches.
    half = collator.loss(logits, batch["labels"], num_items_in_batch=2 * batch["labels"].numel())
    torch.testing.assert_close(half, expected / 2)


class Watching(TrainerCallback):
    """Keeps the names of the inputs that the model is called with."""

    def __init__(self, model):
        self.names = set()
        model.register_forward_pre_hook(lambda module, args, kwargs: self.names.update(kwargs), with_kwargs=True)


def test_labels_do_not_reach_the_model_and_its_config_stays(tmp_path):
    collator = MixupCollator(collate, SPANS, CLASSES)
    model = steady_bert()
    before, watching = model.config.to_dict(), Watching(model)
    trainer = plain_trainer(tmp_path, collator, model, eval_dataset=examples(6), eval_strategy="steps", eval_steps=1)
    trainer.train()
    after = model.config.to_dict()
    assert after == before | {"use_cache": after.get("use_cache")} and after["problem_type"] is None
    assert watching.names <= {"input_ids", "attention_mask", "num_items_in_batch"}


def test_label_smoothing_is_honoured(tmp_path):
    losses = {}
    for smoothing in (0.0, 0.2):
        collator = MixupCollator(collate, SPANS, CLASSES)
        trainer = plain_trainer(tmp_path, collator, label_smoothing_factor=smoothing, max_steps=1)
        trainer.train()
        losses[smoothing] = trainer.state.log_history[0]["loss"]
        logits, mixed = torch.randn(4, CLASSES), torch.full((4, CLASSES), 1 / 3)
        expected = F.cross_entropy(logits, mixed, label_smoothing=smoothing)
        torch.testing.assert_close(collator.loss({"logits": logits}, mixed), expected)
    assert losses[0.0] != losses[0.2]


def test_groups_of_lisa_go_to_the_plan_and_not_to_the_model(tmp_path):
    config = SPANS | {"partner": "lisa", "self_pairs": True}
    rows = [row | {"group": number % 2} for number, row in enumerate(examples())]

    def with_groups(rows):
        return collate(rows) | {"group": torch.tensor([row["group"] for row in rows])}

    collator = MixupCollator(with_groups, config, CLASSES)
    model = steady_bert()
    seen, watching = Seen(collator), Watching(model)
    options = {"loss": seen, "eval_dataset": rows[:6], "eval_strategy": "steps", "eval_steps": 1}
    with pytest.raises(ValueError, match="remove_unused_columns: partner='lisa' needs the column 'group'"):
        plain_trainer(tmp_path, collator, model, rows, **options)
    collator = seen.collator = MixupCollator(with_groups, config, CLASSES)
    plain_trainer(tmp_path, collator, model, rows, remove_unused_columns=False, **options).train()
    assert "group" not in watching.names and len(seen.trained) == 2 and len(seen.evaluated) == 2
    assert all(labels.dim() == 2 for labels in seen.trained)


# ---- Progress ----


def test_a_schedule_follows_the_trainer(tmp_path):
    collator = MixupCollator(collate, SPANS | {"schedule": {0: 0, 0.5: 1}, "ramp": "step"}, CLASSES)
    seen = Seen(collator)
    trainer = plain_trainer(tmp_path, collator, loss=seen, max_steps=8, per_device_train_batch_size=4)
    for _ in range(2):
        seen.trained = []
        trainer.train()
        assert [is_mixed(labels) for labels in seen.trained] == [False] * 4 + [True] * 4


@pytest.mark.parametrize("workers", [0, 2])
def test_the_epoch_follows_the_trainer_into_the_workers(tmp_path, workers):
    collator = MixupCollator(collate, SPANS | {"off_epoch": 1}, CLASSES)
    seen = Seen(collator)
    options = {"max_steps": -1, "num_train_epochs": 2, "dataloader_num_workers": workers}
    plain_trainer(tmp_path, collator, loss=seen, **options).train()
    assert [is_mixed(labels) for labels in seen.trained] == [True] * 2 + [False] * 2


def test_progress_reaches_workers_that_are_running():
    collator = MixupCollator(collate, SPANS | {"schedule": {0: 0, 1: 1}}, CLASSES)
    collator.set_progress(progress=0.0)
    loader = DataLoader(examples(), 8, collate_fn=collator, num_workers=1, persistent_workers=True)
    assert not any(is_mixed(batch["labels"]) for batch in loader)
    collator.set_progress(progress=1.0)
    assert all(is_mixed(batch["labels"]) for batch in loader)


@pytest.mark.parametrize("field", [{"off_epoch": 1}, {"alpha": {0: 0.1, 1: 0.4}}, {"schedule": {0: 0, 1: 1}}])
def test_progress_that_nobody_says_is_asked_for(field):
    collator = MixupCollator(collate, SPANS | field, CLASSES)
    [name] = field
    with pytest.raises(ValueError, match=rf"^{name}=.*callbacks=\[collator\], or call collator.set_progress"):
        collator(examples(8))
    collator.set_progress(epoch=0.0, progress=0.5)
    collator(examples(8))


# ---- Plans ----


def lambdas(collator, workers=2, seed=0, epochs=1, **options):
    """The lambdas of every batch, as text."""
    torch.manual_seed(seed)
    loader = DataLoader(examples(16), 4, collate_fn=collator, num_workers=workers, **options)
    return [str(batch["mixup_lam"].tolist()) for _ in range(epochs) for batch in loader]


@pytest.mark.parametrize("options", [{"workers": 0}, {"workers": 2}, {"workers": 2, "persistent_workers": True}])
def test_batches_workers_and_epochs_draw_different_plans(options):
    drawn = lambdas(MixupCollator(collate, PLANS, CLASSES), epochs=2, **options)
    assert len(set(drawn)) == len(drawn) == 8


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_seeds_draw_the_same_plans_and_others_others(workers):
    first = lambdas(MixupCollator(collate, PLANS, CLASSES), workers)
    assert lambdas(MixupCollator(collate, PLANS, CLASSES), workers) == first
    assert not {*lambdas(MixupCollator(collate, PLANS, CLASSES, seed=1), workers)} & {*first}
    assert not {*lambdas(MixupCollator(collate, PLANS, CLASSES, rank=1), workers)} & {*first}


def test_seeds_of_neighbouring_workers_do_not_meet():
    """The worker after the first has a seed one larger: as if the seed of the plans were one larger."""
    first = lambdas(MixupCollator(collate, PLANS, CLASSES))
    assert not {*lambdas(MixupCollator(collate, PLANS, CLASSES, seed=1))} & {*first}


def test_the_rank_is_that_of_the_launcher_or_the_trainer(monkeypatch):
    assert MixupCollator(collate, SPANS, CLASSES).rank == 0
    monkeypatch.setenv("RANK", "3")
    collator = MixupCollator(collate, SPANS, CLASSES)
    assert collator.rank == 3
    collator.on_init_end(told(process_index=2), None, None)
    assert collator.rank == 2


def test_every_training_draws_the_same_plans(tmp_path):
    collator = MixupCollator(collate, SPANS, CLASSES)
    seen = Seen(collator)
    trainer = plain_trainer(tmp_path, collator, loss=seen)
    trainer.train()
    trainer.train()
    first, second = seen.trained[:2], seen.trained[2:]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# ---- What is mixed ----


@pytest.mark.parametrize("name", ["inputs_embeds", "pixel_values", "input_values", "input_features"])
def test_float_inputs_are_averaged_with_their_partners(name):
    generator = torch.Generator().manual_seed(0)
    values, labels = torch.randn(6, 3, 4, generator=generator), torch.tensor([0, 1, 2, 0, 1, 2])
    collator = MixupCollator(lambda rows: {name: values, "labels": labels, "ids": rows}, VECTORS, CLASSES)
    batch = collator([1, 2])
    plan = Planner(collator.config).draw(Examples(6))
    assert (plan.partner != torch.arange(6)).all() and batch["ids"] == [1, 2]
    for i, (j, lam) in enumerate(zip(plan.partner.tolist(), plan.lam.tolist(), strict=True)):
        torch.testing.assert_close(batch[name][i], lam * values[i] + (1 - lam) * values[j])
        target = torch.zeros(CLASSES)
        target[labels[i]] += lam
        target[labels[j]] += 1 - lam
        torch.testing.assert_close(batch["labels"][i], target)


def test_boxes_of_pixels_come_from_the_partner():
    images, labels = torch.randn(6, 3, 16, 16), torch.tensor([0, 1, 2, 0, 1, 2])
    collator = MixupCollator(
        lambda rows: {"pixel_values": images, "labels": labels}, {"recipe": "cutmix", "lam": 0.5}, CLASSES
    )
    batch = collator([])
    plan = Planner(collator.config).draw(Examples(6, inputs={"pixel_values": images}))
    mixed = swap_boxes(images, plan.partner, plan.box)
    assert torch.equal(batch["pixel_values"], mixed) and not torch.equal(mixed, images)
    torch.testing.assert_close(batch["labels"], collator.task.targets(labels, plan))


def test_boxes_are_refused_in_a_collator_for_anything_but_images():
    rows = {"input_features": torch.randn(6, 8, 16), "labels": torch.arange(6) % CLASSES}
    with pytest.raises(ValueError, match="interpolation='box': expected pixel_values alone, got input_features"):
        MixupCollator(lambda _: rows, "cutmix", CLASSES)([])


def test_spans_of_tokens_come_from_the_partner():
    rows = examples(12)
    collator = MixupCollator(collate, SPANS, CLASSES)
    clean, batch = collate(rows), collator(rows)
    plan = Planner(collator.config).draw(Examples(12, inputs=clean))
    replaced = plan.source >= 0
    assert replaced.any() and torch.equal(batch["attention_mask"], clean["attention_mask"])
    for i, j in enumerate(plan.partner.tolist()):
        text, mixed = clean["input_ids"][i], batch["input_ids"][i]
        span = plan.source[i][replaced[i]]
        assert torch.equal(mixed[~replaced[i]], text[~replaced[i]])
        assert torch.equal(mixed[replaced[i]], clean["input_ids"][j][span])
        own = int(clean["attention_mask"][i].sum())
        kept = 1 - len(span) / (own - 2)
        target = torch.zeros(CLASSES)
        target[rows[i]["labels"]] += kept
        target[rows[j]["labels"]] += 1 - kept
        torch.testing.assert_close(batch["labels"][i], target)


def test_a_batch_that_prob_leaves_out_stays_as_it_is():
    collator = MixupCollator(collate, SPANS | {"prob": 0.0}, CLASSES)
    clean, batch = collate(examples(8)), collator(examples(8))
    assert torch.equal(batch["input_ids"], clean["input_ids"])
    assert torch.equal(batch["labels"], torch.tensor([one_hot(label) for label in clean["labels"].tolist()]))


@pytest.mark.parametrize(
    ("changes", "config", "message"),
    [
        ({"attention_mask": torch.tensor([[1, 1], [1, 0]])}, VECTORS, "attention_mask: padded inputs"),
        ({"pixel_mask": torch.tensor([[1, 0], [1, 1]])}, VECTORS, "pixel_mask: padded inputs"),
        ({"input_ids": torch.ones(2, 3).long()}, VECTORS, "and no input_ids, got inputs_embeds, input_ids"),
        ({"inputs_embeds": torch.ones(2, 3, 4).long()}, VECTORS, "inputs_embeds: torch.int64 cannot be averaged"),
        ({"inputs_embeds": None}, VECTORS, "expected one of pixel_values, "),
        ({"pixel_values": [torch.ones(3, 4)] * 2}, VECTORS, "pixel_values: expected a tensor, got list"),
        ({"input_ids": torch.ones(2, 3).long()}, SPANS, "inputs_embeds: interpolation='span' mixes tokens alone"),
        ({}, SPANS, "interpolation='span': the batch has no input_ids, only inputs_embeds"),
        ({"labels": None}, VECTORS, "labels: none in this batch, which has only inputs_embeds"),
        ({"labels": [0, 1]}, VECTORS, "labels: expected a tensor, got list"),
        ({"labels": torch.tensor([0, 3])}, VECTORS, "labels must lie in 0 to 2"),
        ({"labels": torch.rand(2, 3)}, VECTORS, "say problem_type='single_label_classification' for"),
    ],
)
@pytest.mark.parametrize("prob", [1.0, 0.0])
def test_batches_that_cannot_be_mixed_are_refused(changes, config, message, prob):
    batch = {"inputs_embeds": torch.ones(2, 3, 4), "labels": torch.tensor([0, 1])} | changes
    collator = MixupCollator(lambda rows: batch, config | {"prob": prob}, CLASSES)
    with pytest.raises(ValueError, match=message):
        collator([])


def test_a_mask_of_inputs_of_one_length_is_no_padding():
    batch = {"inputs_embeds": torch.rand(2, 3, 4), "labels": torch.tensor([0, 1]), "attention_mask": torch.ones(2, 3)}
    mixed = MixupCollator(lambda rows: batch, VECTORS, CLASSES)([])
    assert not torch.equal(mixed["inputs_embeds"], batch["inputs_embeds"])


# ---- Sites that need the model ----


def test_a_loop_trains_with_the_plan_in_the_batch():
    collator = MixupCollator(collate, PLANS, CLASSES)
    model = steady_bert().train()
    mixup = Mixup(model, "fixed")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch, clean in zip(
        DataLoader(examples(), 8, collate_fn=collator), DataLoader(examples(), 8, collate_fn=collate), strict=True
    ):
        labels, partner, lam = (batch.pop(name) for name in ("labels", "mixup_partner", "mixup_lam"))
        plan = MixupPlan(partner, lam, "embeddings")
        with mixup.apply(plan, batch):
            logits = model(**batch).logits
        loss = collator.loss(logits, labels)
        torch.testing.assert_close(loss, two_term(F.cross_entropy, logits, clean["labels"], plan))
        torch.testing.assert_close(loss, mixup.loss(logits, clean["labels"], plan))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not same_weights(model, steady_bert())


def test_a_trainer_cannot_mix_inside_the_model(tmp_path):
    message = "site='embeddings': a plain Trainer cannot mix inside the model; use MixupTrainer"
    collator = MixupCollator(collate, PLANS, CLASSES)
    with pytest.raises(ValueError, match=message):
        plain_trainer(tmp_path, collator)
    model = steady_bert()
    trainer = plain_trainer(tmp_path, collator, model, callbacks=[])
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert same_weights(model, steady_bert())


# ---- Refused at once ----


@pytest.mark.parametrize(
    "config",
    [
        {"site": "hidden", "layers": [1]},
        {"site": "word_embeddings", "interpolation": "dimensions"},
        {"site": "input", "interpolation": "salient_span"},
        {"partner": "margin", "clean_weight": 0.5},
        {"alpha": 2.0, "similarity": 1.0},
        {"clean_weight": 0.5},
        {"add_noise": 0.1},
        {"mult_noise": 0.1},
    ],
)
def test_a_config_that_needs_a_model_is_refused(config):
    name = {"margin": "partner", "dimensions": "interpolation", "salient_span": "interpolation"}
    field = next((name[value] for value in config.values() if value in tuple(name)), [*config][-1])
    with pytest.raises(ValueError, match=f"^{field}=.*needs a model"):
        MixupCollator(collate, PLAIN | config, CLASSES)


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (None, {}, "config=None: leave the MixupCollator out"),
        ("sapn_mix", {}, "Did you mean 'span_mix'"),
        (SPANS, {"problem_type": "single_label"}, "problem_type='single_label': expected one of regression"),
        (SPANS, {"problem_type": "regresion"}, "Did you mean 'regression'"),
        (SPANS, {"num_labels": "3"}, "num_labels='3': expected a whole number of 1 or more"),
        (SPANS, {"num_labels": 0}, "num_labels=0: expected a whole number of 1 or more"),
        (SPANS | {"label_rule": "remix"}, {}, "class_counts=None: label_rule='remix' needs"),
        (SPANS | {"label_rule": "remix", "class_counts": [1, 2]}, {}, "of each of the 3 classes"),
        (SPANS | {"warmup_batches": 10}, {}, "warmup_batches=10: a collator cannot count them.*use schedule"),
        (SPANS | {"class_weights": [1, 2]}, {}, "class_weights: 2 weights for num_labels=3"),
    ],
)
def test_what_cannot_work_is_refused_at_once(config, options, message):
    with pytest.raises(ValueError, match=message):
        MixupCollator(collate, config, **{"num_labels": CLASSES} | options)


def told(**changes):
    """The arguments that a Trainer tells its callbacks."""
    defaults = {"n_gpu": 0, "process_index": 0, "label_smoothing_factor": 0.0, "remove_unused_columns": True}
    return SimpleNamespace(**defaults | changes)


@pytest.mark.parametrize(
    ("args", "about", "message"),
    [
        ({"n_gpu": 2}, {}, "2 GPUs without a launcher"),
        ({}, {"num_labels": 2}, "num_labels=3: the model has num_labels=2"),
        ({}, SEVERAL, "the model has problem_type='multi_label_classification'"),
    ],
)
def test_a_trainer_that_cannot_work_is_refused(args, about, message):
    collator = MixupCollator(collate, SPANS, CLASSES)
    with pytest.raises(ValueError, match=message):
        collator.on_init_end(told(**args), None, None, model=steady_bert(**about))


def test_a_mapping_without_a_warm_up_has_none_and_layers_are_said_by_the_loop():
    collator = MixupCollator(collate, {"site": "hidden", "alpha": 1.0}, CLASSES)
    assert collator.config.warmup_batches == 0 and set(collator(examples(4))) >= {"mixup_partner", "mixup_lam"}
    with pytest.raises(ValueError, match=r"warmup_batches=100: .*set it to 0 \(it is 100"):
        MixupCollator(collate, MixupConfig(site="embeddings"), CLASSES)
    with pytest.raises(ValueError, match=r"layers=\[1\]: needs a model"):
        MixupCollator(collate, {"site": "hidden", "layers": [1]}, CLASSES)


def test_every_recipe_is_taken_or_refused_by_name():
    taken = {"balanced", "c_mixup", "input_mixup", "intra_class", "lisa", "mixup_io", "sent_mixup"}
    taken |= {"cutmix", "embed_mix", "span_mix", "word_mixup", "mixup_transformer"}
    for name in recipe_names():
        if name in taken:
            assert isinstance(MixupCollator(collate, name, CLASSES).config, MixupConfig)
        else:
            with pytest.raises(ValueError, match="needs a model|class_counts"):
                MixupCollator(collate, name, CLASSES)
