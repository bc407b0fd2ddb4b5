"""What MixupTrainer says before the first step, and that nothing is passed over in silence."""

import logging

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.nn import functional as F
from transformers import Trainer, default_data_collator

from hf_mixup import MixupTrainer
from hf_mixup.evaluation import compute_metrics_for
from tests.hosts import NEEDS_SCALE
from tests.plain_config import PLAIN
from tests.toy_runs import (
    CLASSES,
    arguments,
    assert_same_step,
    clean_logits,
    collate,
    examples,
    first_step,
    make_trainer,
    one_hot,
    steady_bert,
    swap_neighbours,
    training_inputs,
)

MIXED = PLAIN | {"site": "embeddings", "alpha": 1.0}
WEIGHTS = [1.0, 2.0, 5.0]


def losses(trainer):
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def weighted_loss(outputs, labels, num_items_in_batch=None):
    return F.cross_entropy(outputs.logits, labels, weight=torch.tensor(WEIGHTS))


class Weighted(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = F.cross_entropy(outputs.logits, labels, weight=torch.tensor(WEIGHTS))
        return (loss, outputs) if return_outputs else loss


def trainer_of(kind, folder, model=None, rows=None, collator=collate, **options):
    """A trainer of any class, whose keyword arguments are its own."""
    rows, args = examples() if rows is None else rows, options.pop("args", arguments(folder))
    given = {"args": args, "train_dataset": rows, "eval_dataset": rows, "data_collator": collator}
    return kind(model=model or steady_bert(), **given | options)


def equally_long(count):
    """Rows for a collator of transformers that does not pad."""
    return [{name: value[:4] if name != "labels" else value for name, value in row.items()} for row in examples(count)]


class Own(MixupTrainer):
    compute_loss = Weighted.compute_loss


class Before(Weighted, MixupTrainer):
    pass


class Behind(MixupTrainer, Weighted):
    pass


class Calling(MixupTrainer):
    def compute_loss(self, model, inputs, **kwargs):
        return super().compute_loss(model, inputs, **kwargs)


class Drawing(MixupTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        plan = self.mixup.draw(inputs, labels=labels)
        with self.mixup.apply(plan, inputs):
            outputs = model(**inputs)
        loss = F.cross_entropy(outputs.logits, self.mixup.targets(labels, plan), weight=torch.tensor(WEIGHTS))
        return (loss, outputs) if return_outputs else loss


# ---- A loss of one's own ----


@pytest.mark.parametrize("kind", [Own, Before, Behind, Calling])
def test_a_compute_loss_of_ones_own_is_mixed_around(tmp_path, kind):
    plain = losses(trainer_of(Trainer if kind is Calling else Weighted, tmp_path))
    assert losses(trainer_of(kind, tmp_path, mixup=None)) == plain
    # Calling calls the loss of MixupTrainer, which is that of probabilities.
    expected = pytest.approx(plain, rel=1e-6) if kind is Calling else plain
    assert losses(trainer_of(kind, tmp_path, mixup=MIXED | {"lam": 1.0})) == expected
    trainer = trainer_of(kind, tmp_path, mixup=MIXED)
    assert losses(trainer) != plain
    trainer.save_model(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "mixup_config.yaml").exists()


def test_a_compute_loss_that_mixes_by_hand_as_well_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="apply is already under way.*MixupMixin"):
        trainer_of(Drawing, tmp_path, mixup=MIXED).train()


def test_a_compute_loss_func_gets_the_labels_where_nothing_is_mixed(tmp_path):
    plain = losses(make_trainer(tmp_path, compute_loss_func=weighted_loss, mixup=None))
    assert losses(make_trainer(tmp_path, compute_loss_func=weighted_loss, mixup=MIXED | {"prob": 0.0})) == plain


# ---- Class weights ----


def mean_weighted_loss(model, rows):
    inputs = training_inputs(rows)
    weights = torch.tensor(WEIGHTS)
    return F.cross_entropy(clean_logits(model, inputs), inputs["labels"], weight=weights, reduction="none").mean()


@pytest.mark.parametrize("options", [{"mixup": MIXED | {"class_weights": WEIGHTS}}, {"mixup": MIXED}, {"mixup": None}])
def test_class_weights_hold_in_evaluation_and_without_mixup(tmp_path, options):
    model, rows = steady_bert().eval(), examples(16)
    if not (options["mixup"] and "class_weights" in options["mixup"]):
        options = options | {"class_weights": WEIGHTS}
    expected = mean_weighted_loss(model, rows).item()
    trainer = trainer_of(MixupTrainer, tmp_path, model, rows, **options)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
    if options["mixup"] is None:
        args = arguments(tmp_path, max_steps=1, per_device_train_batch_size=16)
        trained = losses(trainer_of(MixupTrainer, tmp_path, rows=rows, args=args, **options))
        assert trained == [pytest.approx(expected, rel=1e-4)]


def test_class_weights_that_do_not_fit_are_refused_without_mixup_too(tmp_path):
    with pytest.raises(ValueError, match="class_weights: 2 weights for num_labels=3"):
        trainer_of(MixupTrainer, tmp_path, mixup=None, class_weights=[1.0, 2.0])
    with pytest.raises(ValueError, match="class_weights: not used by a compute_loss_func"):
        trainer_of(MixupTrainer, tmp_path, mixup=None, class_weights=WEIGHTS, compute_loss_func=weighted_loss)


class MeanWeighted(Trainer):
    """The weighted cross-entropy as a mean over examples, not over weights."""

    loss_is_scaled_for_ga = False

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = F.cross_entropy(outputs.logits, labels, weight=torch.tensor(WEIGHTS), reduction="none").mean()
        return (loss, outputs) if return_outputs else loss


@pytest.mark.parametrize("mixup", [None, MIXED | {"prob": 0.0}])
@pytest.mark.parametrize("parts", [1, pytest.param(2, marks=NEEDS_SCALE)])
def test_class_weights_train_and_evaluate_as_a_weighted_trainer(tmp_path, mixup, parts):
    trained = []
    for kind, options in ((MeanWeighted, {}), (MixupTrainer, {"mixup": mixup, "class_weights": WEIGHTS})):
        args = arguments(tmp_path, max_steps=3, gradient_accumulation_steps=parts)
        trainer = trainer_of(kind, tmp_path, rows=examples(32), args=args, **options)
        trained.append([*losses(trainer), trainer.evaluate()["eval_loss"]])
    assert trained[0] == pytest.approx(trained[1], rel=1e-5)


@pytest.mark.parametrize("mixup", [None, MIXED | {"prob": 0.0}, MIXED | {"lam": 1.0}])
def test_class_weights_of_each_epoch_in_training_and_evaluation(tmp_path, mixup):
    """Two epochs of a step each, the second of which has the weights, and evaluations after both."""
    args = arguments(tmp_path, max_steps=2, per_device_train_batch_size=16, learning_rate=0.0, eval_strategy="epoch")
    trainer = trainer_of(
        MixupTrainer, tmp_path, args=args, mixup=mixup, class_weights={0: None, 1: torch.tensor(WEIGHTS)}
    )
    model = steady_bert().eval()
    inputs = training_inputs(examples(16))
    plain = F.cross_entropy(clean_logits(model, inputs), inputs["labels"]).item()
    later = mean_weighted_loss(model, examples(16)).item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(plain, rel=1e-5)
    trainer.train()
    log = trainer.state.log_history
    assert [entry["loss"] for entry in log if "loss" in entry] == [
        pytest.approx(loss, rel=1e-4) for loss in (plain, later)
    ]
    # The first one comes when epoch 1 begins.
    seen = [entry["eval_loss"] for entry in log if "eval_loss" in entry and entry["epoch"] > 0]
    assert seen == [pytest.approx(later, rel=1e-4)] * 2
    assert abs(plain - later) > 0.1


def test_class_weights_by_epoch_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="class_weights: 2 weights for num_labels=3"):
        trainer_of(MixupTrainer, tmp_path, mixup=None, class_weights={0: None, 1: [1.0, 2.0]})


# ---- Labels ----

DTYPES = {
    "bool": ("single_label_classification", 2, lambda kind: kind > 0, torch.bool),
    "bool, by the labels": (None, 2, lambda kind: kind > 0, torch.bool),
    "uint8": ("single_label_classification", 3, int, torch.uint8),
    "int32": (None, 3, int, torch.int32),
    "multi-hot integers": ("multi_label_classification", 3, lambda kind: [kind % 2, 1, 0], torch.int64),
    "multi-hot booleans": ("multi_label_classification", 3, lambda kind: [kind > 0, True, False], torch.bool),
    "integer scores": ("regression", 1, int, torch.int64),
}


@pytest.mark.parametrize("mixup", [MIXED, None], ids=["mixed", "off"])
@pytest.mark.parametrize("case", DTYPES)
def test_labels_of_other_dtypes_train_and_evaluate_alike(tmp_path, case, mixup):
    problem_type, num_labels, label, dtype = DTYPES[case]
    usual = torch.float32 if problem_type in ("multi_label_classification", "regression") else torch.int64

    def collator(wanted):
        return lambda rows: collate(rows) | {"labels": torch.tensor([row["labels"] for row in rows]).to(wanted)}

    def run(wanted):
        model = steady_bert(num_labels=num_labels, problem_type=problem_type)
        rows = examples(label=label)
        trainer = trainer_of(MixupTrainer, tmp_path, model, rows, collator(wanted), mixup=mixup)
        return losses(trainer), trainer.evaluate()["eval_loss"]

    assert run(dtype) == run(usual)


BAD_LABELS = {
    "nan": (1, None, lambda n: float("nan") if n == 3 else n / 3, "nan in row 4: not finite"),
    "sum": (3, "single_label_classification", lambda n: [0.7, 0.7, 0.0] if n == 2 else one_hot(0), "row 3: .*sum to 1"),
    "negative": (3, "single_label_classification", lambda n: [1.5, -0.5, 0.0], r"row 1: .*values in \[0, 1\]"),
    "multi-hot": (
        3,
        "multi_label_classification",
        lambda n: [0, 1, 2],
        r"row 1: .*values in \[0, 1\]",
    ),
    "floats": (3, "single_label_classification", float, r"torch.float64 of shape \(16,\); class indices are integers"),
    "several": (3, "single_label_classification", lambda n: [0, 1, 1], "set problem_type='multi_label_classification'"),
}


@pytest.mark.parametrize("as_list", [True, False], ids=["list", "dataset"])
@pytest.mark.parametrize("case", BAD_LABELS)
def test_labels_that_cannot_be_trained_on_are_refused_with_their_row(tmp_path, case, as_list):
    num_labels, problem_type, label, message = BAD_LABELS[case]
    rows = [row | {"labels": label(number)} for number, row in enumerate(equally_long(16))]
    model = steady_bert(num_labels=num_labels, problem_type=problem_type)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows = rows if as_list else Dataset.from_list(rows)
    trainer = trainer_of(MixupTrainer, tmp_path, model, rows, default_data_collator, mixup=MIXED)
    with pytest.raises(ValueError, match=f"train_dataset: labels: .*{message}"):
        trainer.train()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


def test_labels_of_the_evaluation_are_looked_at_before_the_first_step(tmp_path):
    rows = examples(8)
    rows[5]["labels"] = 3
    rows = Dataset.from_list(rows)
    for data, name in ((rows, "eval_dataset"), ({"dev": rows}, r"eval_dataset\['dev'\]")):
        trainer = make_trainer(tmp_path, mixup=MIXED, eval_dataset=data, eval_strategy="steps", eval_steps=2)
        with pytest.raises(ValueError, match=f"{name}: labels: found 0 to 3.*row 6 is the first"):
            trainer.train()
        assert trainer.state.global_step == 0


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}])
@pytest.mark.parametrize("mixup", [MIXED, MIXED | {"class_weights": WEIGHTS}])
def test_rows_without_a_label_are_left_out_of_their_batch(tmp_path, options, mixup):
    rows = examples(16)
    for number in (1, 4, 5, 6):
        rows[number] = rows[number] | {"labels": -100}

    def own_partner(batch, epoch=None, **kwargs):
        plan = swap_neighbours(batch)
        return type(plan)(torch.arange(len(plan.lam)), plan.lam, "embeddings")

    kept = [row for row in rows if row["labels"] != -100]
    shared = {"draw": own_partner, "mixup": mixup, "train_sampling_strategy": "sequential"}
    whole = {"per_device_train_batch_size": 16} | options
    some = {"per_device_train_batch_size": 12}
    if options:
        rows, kept = rows[:8], [row for row in rows[:8] if row["labels"] != -100]
        some = {"per_device_train_batch_size": 4}
    assert_same_step(
        first_step(tmp_path, rows=rows, **shared, **whole), first_step(tmp_path, rows=kept, **shared, **some)
    )


# ---- Losses that are not finite ----


@pytest.mark.parametrize("mixup", [MIXED, None], ids=["mixed", "off"])
def test_the_first_loss_that_is_not_finite_is_said_once(tmp_path, caplog, mixup):
    trainer = make_trainer(tmp_path, mixup=mixup, max_steps=6, learning_rate=1e25, max_grad_norm=0.0)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert caplog.text.count("the training has diverged") == 1
    assert np.isnan([entry["loss"] for entry in trainer.state.log_history if "loss" in entry][-1])
    assert trainer.args.logging_nan_inf_filter


def test_a_training_can_be_stopped_where_it_diverges(tmp_path):
    def trainer(policy):
        args = arguments(tmp_path, max_steps=20, learning_rate=1e25, max_grad_norm=0.0)
        return trainer_of(MixupTrainer, tmp_path, args=args, nonfinite_loss=policy)

    stopped = trainer("stop")
    with pytest.raises(FloatingPointError, match="step [23]: the loss is (nan|inf)"):
        stopped.train()
    with pytest.raises(ValueError, match="nonfinite_loss='stopp'.*Did you mean 'stop'"):
        trainer("stopp")


# ---- Rows of an evaluation ----


@pytest.mark.parametrize("mixup", [MIXED, None], ids=["mixed", "off"])
def test_every_row_is_evaluated_and_predicted(tmp_path, mixup):
    trainer = make_trainer(
        tmp_path,
        mixup=mixup,
        rows=examples(20),
        eval_dataset=examples(13),
        dataloader_drop_last=True,
        per_device_eval_batch_size=8,
        num_train_epochs=1,
        max_steps=-1,
    )
    assert trainer.evaluate() and trainer.predict(examples(13)).predictions.shape == (13, CLASSES)
    assert len(trainer.get_eval_dataloader()) == 2
    trainer.train()
    assert trainer.state.global_step == 2


def test_an_evaluation_loss_that_is_not_finite_counts(tmp_path):
    class Half(MixupTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            loss, outputs = super().compute_loss(model, inputs, True, **kwargs)
            loss = loss * float("nan") if bool((inputs["labels"] == 0).all()) else loss
            return (loss, outputs) if return_outputs else loss

    rows = sorted(examples(24), key=lambda row: row["labels"])
    assert np.isnan(trainer_of(Half, tmp_path, rows=rows, mixup=None).evaluate()["eval_loss"])


# ---- The best model ----


BEST = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
METRICS = compute_metrics_for("single_label_classification")


def judging(tmp_path, metric, compute_metrics=METRICS, eval_dataset=None, **options):
    return make_trainer(
        tmp_path,
        mixup=MIXED,
        eval_dataset=examples() if eval_dataset is None else eval_dataset,
        compute_metrics=compute_metrics,
        metric_for_best_model=metric,
        load_best_model_at_end=True,
        **BEST,
        **options,
    )


@pytest.mark.parametrize(("metric", "up"), [("nll", False), ("eval_ece", False), ("accuracy", True), ("loss", False)])
def test_the_best_model_goes_by_the_direction_of_its_metric(tmp_path, metric, up):
    assert judging(tmp_path, metric).args.greater_is_better == up


def test_the_direction_of_a_metric_is_known_on_each_of_several_evaluation_sets(tmp_path):
    assert not judging(
        tmp_path, "eval_val_nll", eval_dataset={"val": examples(), "ood": examples()}
    ).args.greater_is_better


def test_the_direction_of_a_wrapped_metric_is_known_too(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        wrapped = judging(tmp_path, "nll", lambda prediction: METRICS(prediction) | {"own": 1.0})
    assert not wrapped.args.greater_is_better and "greater_is_better is set to False" in caplog.text
    assert judging(tmp_path, "own", METRICS).args.greater_is_better
    nested = judging(tmp_path, "eval_a_b_nll", eval_dataset={"a": examples(), "a_b": examples()})
    assert not nested.args.greater_is_better


def test_a_metric_that_no_evaluation_returns_is_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match="metric_for_best_model='nll': there is no compute_metrics"):
        judging(tmp_path, "nll", compute_metrics=None).train()


def test_persistent_workers_evaluate_the_data_set_that_is_given(tmp_path):
    trainer = make_trainer(
        tmp_path,
        mixup=MIXED,
        eval_dataset=examples(6),
        dataloader_num_workers=1,
        dataloader_persistent_workers=True,
    )
    assert trainer.evaluate()["eval_samples_per_second"] and trainer.evaluate()
    assert trainer.evaluation_loop(trainer.get_eval_dataloader(examples(11)), "rows").num_samples == 11


# ---- With mixup off it is Trainer ----


def seen_dtype(outputs, labels, num_items_in_batch=None):
    assert labels.dtype == torch.int64
    return outputs.logits.float().pow(2).mean() + 0 * labels.sum()


AS_IN_TRAINER = {
    "classes beyond the head": ({"num_labels": 2}, int, {"compute_loss_func": seen_dtype}),
    "scores as integers": ({"num_labels": 1}, int, {"compute_loss_func": seen_dtype}),
    "two heads": ({"num_labels": 5}, lambda kind: [kind, 0], {"compute_loss_func": seen_dtype}),
}


@pytest.mark.parametrize("case", AS_IN_TRAINER)
def test_without_mixup_labels_are_the_business_of_the_users_loss(tmp_path, case):
    changes, label, options = AS_IN_TRAINER[case]

    def run(kind, **more):
        rows = examples(label=label)
        return losses(trainer_of(kind, tmp_path, steady_bert(**changes), rows, **options, **more))

    assert run(MixupTrainer, mixup=None) == run(Trainer)


def test_labels_that_a_transform_or_a_collator_changes_are_left_alone(tmp_path):
    rows = [row | {"labels": row["labels"] + 1} for row in examples()]

    def lower(batch):
        return {name: [v - 1 for v in value] if name == "labels" else value for name, value in batch.items()}

    data = Dataset.from_list(rows).with_transform(lower)
    losses(make_trainer(tmp_path, mixup=MIXED, rows=data, remove_unused_columns=False))
    collator = lambda rows: collate([row | {"labels": row["labels"] - 1} for row in rows])  # noqa: E731
    losses(trainer_of(MixupTrainer, tmp_path, rows=rows, collator=collator, mixup=MIXED))


@pytest.mark.parametrize("label", [lambda kind: kind > 0, lambda kind: [kind > 0, True]])
def test_labels_are_cast_for_a_users_loss_of_mixed_targets_too(tmp_path, label):
    several = isinstance(label(0), list)
    loss_of = F.binary_cross_entropy_with_logits if several else F.cross_entropy
    model = steady_bert(num_labels=2, problem_type="multi_label_classification" if several else None)
    trainer = make_trainer(
        tmp_path,
        model,
        mixup=MIXED,
        rows=examples(label=label),
        eval_dataset=examples(label=label),
        compute_loss_func=lambda outputs, labels, num_items_in_batch=None: loss_of(outputs.logits, labels),
    )
    trainer.train()
    assert np.isfinite(trainer.evaluate()["eval_loss"])


# ---- Rows without a label, what is saved ----


def test_weighted_evaluation_leaves_rows_without_a_label_out_whatever_was_trained_on(tmp_path):
    trainer = trainer_of(
        MixupTrainer, tmp_path, rows=equally_long(16), collator=default_data_collator, mixup=None, class_weights=WEIGHTS
    )
    trainer.train()
    evaluated = [row | {"labels": -100 if n % 4 == 0 else row["labels"]} for n, row in enumerate(equally_long(16))]
    assert np.isfinite(trainer.evaluate(evaluated)["eval_loss"])


def test_data_without_any_label_are_refused(tmp_path):
    rows = Dataset.from_list([row | {"labels": -100} for row in examples()])
    with pytest.raises(ValueError, match="train_dataset: labels: -100 in every row"):
        make_trainer(tmp_path, mixup=MIXED, rows=rows).train()


def test_a_resumed_training_that_mixes_no_more_keeps_its_record(tmp_path):
    options = {"mixup": MIXED | {"off_epoch": 1.0}, "max_steps": 6, "save_strategy": "steps", "save_steps": 4}
    make_trainer(tmp_path, **options).train()
    resumed = make_trainer(tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    resumed.save_model(str(tmp_path / "final"))
    assert (tmp_path / "final" / "mixup_config.yaml").exists()


def test_the_training_arguments_are_saved_as_they_were_given(tmp_path):
    make_trainer(tmp_path, mixup=MIXED, save_strategy="steps", save_steps=2).train()
    saved = torch.load(tmp_path / "checkpoint-2" / "training_args.bin", weights_only=False)
    assert saved.logging_nan_inf_filter


def test_class_weights_may_be_a_tensor(tmp_path):
    trainer = trainer_of(MixupTrainer, tmp_path, mixup=MIXED, class_weights=torch.tensor(WEIGHTS))
    assert trainer.mixup.config.class_weights == WEIGHTS


def test_remix_counts_booleans(tmp_path):
    rows = Dataset.from_list(examples(6, label=lambda kind: kind > 0))
    trainer = make_trainer(tmp_path, steady_bert(num_labels=2), mixup="remix", rows=rows, max_steps=1)
    trainer.train()
    assert trainer.mixup.config.class_counts == [2.0, 4.0]


def test_remix_counts_the_mass_of_class_probabilities(tmp_path):
    rows = Dataset.from_list(examples(6, label=one_hot))
    model = steady_bert(problem_type="single_label_classification")
    trainer = make_trainer(tmp_path, model, mixup="remix", rows=rows, max_steps=1)
    trainer.train()
    assert trainer.mixup.config.class_counts == [2.0, 2.0, 2.0]


def test_a_batch_without_any_label_changes_nothing(tmp_path):
    rows = [row | {"labels": -100} for row in examples(8)] + examples(8)
    options = {"mixup": MIXED, "train_sampling_strategy": "sequential", "gradient_accumulation_steps": 2}
    both = first_step(tmp_path, rows=rows, draw=swap_neighbours, **options)
    alone = first_step(tmp_path, rows=rows[8:], draw=swap_neighbours, **options | {"gradient_accumulation_steps": 1})
    assert_same_step(both, alone)


def test_labels_that_are_no_tensor_are_named(tmp_path):
    def listed(rows):
        return collate(rows) | {"labels": [row["labels"] for row in rows]}

    with pytest.raises(ValueError, match="labels: expected a tensor, got list"):
        trainer_of(MixupTrainer, tmp_path, collator=listed, mixup=MIXED).train()
