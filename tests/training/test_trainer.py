from functools import partial

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.nn import functional as F
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback
from transformers.trainer_pt_utils import LabelSmoother

from hf_mixup import MixupCollator, MixupModel, MixupTrainer
from hf_mixup.config.recipes import resolve_config
from hf_mixup.training.trainer_seams import SMOOTHS_BY_STEP
from tests.hosts import checkpointing
from tests.plain_config import PLAIN, plain_config
from tests.toy_runs import (
    CLASSES,
    a_plan,
    arguments,
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
    training_inputs,
    two_term,
)
from tests.zoo import toy_model

MIXED = PLAIN | {"site": "embeddings", "alpha": 1.0, "self_pairs": False}


def mixed_step(trainer, inputs, plan):
    """The loss of one training batch under `plan`, and its logits."""
    trainer.mixup.draw = lambda *args, **kwargs: plan
    trainer.model.train()
    loss, outputs = trainer.compute_loss(trainer.model, inputs, return_outputs=True)
    return loss, outputs["logits"].detach()


def train_losses(trainer):
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


# ---- The one-line change, and mixup off ----


def test_replacing_trainer_by_mixup_trainer_trains_and_the_loss_falls(tmp_path):
    model = steady_bert()
    args = arguments(tmp_path, max_steps=50, learning_rate=3e-3)
    trainer = MixupTrainer(model=model, args=args, train_dataset=examples(48), data_collator=collate)
    losses = train_losses(trainer)
    assert trainer.mixup.config == resolve_config("default")
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
    unmixed = F.cross_entropy(clean_logits(model.eval(), training_inputs()), training_inputs()["labels"])
    assert unmixed < 0.5 < np.mean(losses[:10])


def test_without_mixup_the_weights_are_those_of_trainer_bit_for_bit(tmp_path):
    models = [toy_model("bert") for _ in range(3)]
    for model, trainer, mixup in zip(models, (Trainer, MixupTrainer, MixupTrainer), (None, None, "tmix"), strict=True):
        make_trainer(tmp_path, model, trainer, mixup=mixup, max_steps=4).train()
    assert same_weights(models[0], models[1])
    assert not same_weights(models[0], models[2])


@pytest.mark.skipif(not SMOOTHS_BY_STEP, reason="transformers < 5.15: Trainer itself adds up the means of the batches")
def test_without_mixup_smoothed_batches_of_unequal_size_accumulate_as_in_trainer(tmp_path):
    sizes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_train_epochs": 2, "max_steps": -1}
    models = [steady_bert(), steady_bert()]
    for model, trainer in zip(models, (Trainer, MixupTrainer), strict=True):
        make_trainer(tmp_path, model, trainer, examples(13), label_smoothing_factor=0.2, **sizes).train()
    assert same_weights(*models)


@pytest.mark.parametrize("label", [int, one_hot], ids=["single-label", "multi-label"])
def test_evaluation_and_prediction_are_those_of_trainer(tmp_path, label):
    rows = examples(13, label)
    plain, mixing = (
        make_trainer(tmp_path, steady_bert(), trainer, mixup=MIXED, compute_metrics=accuracy, eval_dataset=rows)
        for trainer in (Trainer, MixupTrainer)
    )
    mixing.model.train()
    for name in ("eval_loss", "eval_accuracy"):
        assert mixing.evaluate()[name] == plain.evaluate()[name]
    assert np.array_equal(mixing.predict(rows).predictions, plain.predict(rows).predictions)


def accuracy(prediction):
    labels = prediction.label_ids
    classes = labels if labels.ndim == 1 else labels.argmax(-1)
    return {"accuracy": float((prediction.predictions.argmax(-1) == classes).mean())}


def test_a_model_that_returns_tuples_has_the_same_losses(tmp_path):
    rows, seen = examples(13), []
    for return_dict in (True, False):
        trainer = make_trainer(tmp_path, steady_bert(return_dict=return_dict), mixup=MIXED, eval_dataset=rows)
        seen.append([*train_losses(trainer), trainer.evaluate()["eval_loss"]])
    assert seen[0] == seen[1]


def test_training_leaves_the_models_config_as_it_was(tmp_path):
    untrained = make_trainer(tmp_path, trainer=Trainer).model.config
    for label in (int, one_hot):
        trainer = make_trainer(tmp_path, mixup=MIXED, rows=examples(label=label))
        trainer.train()
        assert trainer.model.config.to_dict() == untrained.to_dict()
        assert trainer.model.config.problem_type is None


def test_a_last_batch_of_one_is_trained_clean(tmp_path):
    plans = []
    trainer = make_trainer(tmp_path, mixup=PLAIN | {"lam": 0.5}, rows=examples(9), max_steps=-1, num_train_epochs=1)
    draw = trainer.mixup.draw
    trainer.mixup.draw = lambda *args, **kwargs: plans.append(draw(*args, **kwargs)) or plans[-1]
    losses = train_losses(trainer)
    assert [len(plan.lam) for plan in plans] == [8, 1]
    assert [plan.active for plan in plans] == [True, False]
    assert len(losses) == 2 and np.isfinite(losses).all()


def test_columns_that_the_model_does_not_take_are_dropped(tmp_path):
    rows = [row | {"text": "some words", "weight": 0.5} for row in examples()]
    seen = []

    def strict_collate(rows):
        seen.extend(rows)
        return collate(rows)

    trainer = make_trainer(tmp_path, rows=Dataset.from_list(rows), mixup=MIXED)
    trainer.data_collator = strict_collate
    trainer.train()
    assert all(set(row) == {"input_ids", "attention_mask", "labels"} for row in seen) and seen


# ---- The loss ----


def test_the_loss_is_the_two_term_loss_of_the_mixed_logits(tmp_path):
    inputs, plan = training_inputs(), a_plan(8)
    loss, logits = mixed_step(make_trainer(tmp_path, mixup=MIXED), inputs, plan)
    torch.testing.assert_close(loss, two_term(F.cross_entropy, logits, inputs["labels"], plan))
    assert not torch.allclose(logits, clean_logits(steady_bert(), inputs), atol=1e-2)


def test_label_smoothing_is_that_of_trainer_on_each_of_the_two_labels(tmp_path):
    inputs, plan = training_inputs(), a_plan(8)
    loss, logits = mixed_step(make_trainer(tmp_path, mixup=MIXED, label_smoothing_factor=0.3), inputs, plan)
    smoother = LabelSmoother(epsilon=0.3)
    expected = two_term(lambda row, label: smoother({"logits": row}, label), logits, inputs["labels"], plan)
    torch.testing.assert_close(loss, expected)


def test_class_weights_weigh_each_of_the_two_labels(tmp_path):
    inputs, plan, weights = training_inputs(), a_plan(8), [0.5, 1.0, 3.0]
    loss, logits = mixed_step(make_trainer(tmp_path, mixup=MIXED | {"class_weights": weights}), inputs, plan)

    def weighted(row, label):
        return F.cross_entropy(row, label) * weights[label.item()]

    torch.testing.assert_close(loss, two_term(weighted, logits, inputs["labels"], plan))


@pytest.mark.parametrize("num_labels", [1, CLASSES])
def test_regression_is_the_squared_error_of_the_mixed_scores(tmp_path, num_labels):
    def score(kind):
        return kind - 0.5 if num_labels == 1 else [kind - 0.5, kind * 0.1, -float(kind)]

    rows = examples(8, score)
    inputs, plan = collate(rows), a_plan(8)
    model = steady_bert(num_labels=num_labels, problem_type=None if num_labels == 1 else "regression")
    trainer = make_trainer(tmp_path, model, mixup=MIXED, rows=rows, eval_dataset=rows)
    loss, logits = mixed_step(trainer, inputs, plan)
    scores = inputs["labels"].reshape(8, num_labels)
    lam = plan.lam[:, None]
    mixed = lam * scores + (1 - lam) * scores[plan.partner]
    torch.testing.assert_close(loss, ((logits - mixed) ** 2).mean())
    assert np.isfinite(train_losses(trainer)).all()
    expected = ((clean_logits(model.eval(), inputs) - scores) ** 2).mean()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_multi_label_is_the_binary_loss_of_the_mixed_vectors(tmp_path):
    inputs, plan = training_inputs(examples(8, one_hot)), a_plan(8)
    loss, logits = mixed_step(make_trainer(tmp_path, mixup=MIXED), inputs, plan)
    binary = F.binary_cross_entropy_with_logits
    torch.testing.assert_close(loss, two_term(binary, logits, inputs["labels"], plan))


def probabilities(kind):
    return (0.1 + 0.7 * np.eye(CLASSES)[kind]).tolist()


@pytest.mark.parametrize("mixup", [MIXED, None], ids=["mixed", "off"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_class_probabilities_train_and_evaluate(tmp_path, mixup, smoothing):
    rows = examples(16, probabilities)
    inputs = collate(rows)
    model = steady_bert(problem_type="single_label_classification")
    trainer = make_trainer(tmp_path, model, mixup=mixup, rows=rows, eval_dataset=rows, label_smoothing_factor=smoothing)
    assert np.isfinite(train_losses(trainer)).all()
    targets = (1 - smoothing) * inputs["labels"] + smoothing / CLASSES
    expected = -(targets * clean_logits(model.eval(), inputs).log_softmax(-1)).sum(-1).mean()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert trainer.predict(rows).predictions.shape == (16, CLASSES)


# ---- Gradient accumulation ----


def summed_loss(outputs, labels, num_items_in_batch=None):
    """A loss that is normalised over the accumulated batch, as Trainer asks of a `compute_loss_func`."""
    return F.cross_entropy(outputs["logits"], labels, reduction="sum") / num_items_in_batch


def accumulated_step(folder, size, **options):
    """The first step over eight texts in batches of `size`."""
    accumulated = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
    return first_step(folder, **accumulated, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"mixup": MIXED},
        {"mixup": MIXED | {"class_weights": [0.5, 1.0, 3.0]}},
        {"mixup": MIXED, "label_smoothing_factor": 0.2},
        {"mixup": MIXED, "compute_loss_func": summed_loss, "soft_targets": True},
        {"mixup": None},
        {"mixup": None, "label_smoothing_factor": 0.2},
        {"mixup": None, "compute_loss_func": summed_loss},
    ],
    ids=["mixed", "class weights", "label smoothing", "own loss", "off", "off, label smoothing", "off, own loss"],
)
def test_one_batch_of_eight_is_four_accumulated_batches_of_two(tmp_path, options):
    draw = swap_neighbours if options["mixup"] else None
    steps = [
        first_step(
            tmp_path, draw=draw, per_device_train_batch_size=size, gradient_accumulation_steps=8 // size, **options
        )
        for size in (8, 2)
    ]
    assert_same_step(*steps)


@pytest.mark.parametrize("mixup", [MIXED, None], ids=["mixed", "off"])
def test_accumulated_multi_label_batches_are_normalised_by_their_examples(tmp_path, mixup):
    options = {"draw": swap_neighbours if mixup else None, "rows": examples(label=one_hot), "mixup": mixup}
    assert_same_step(*(accumulated_step(tmp_path, size, **options) for size in (8, 2)))


@pytest.mark.parametrize("mixup", [MIXED, None], ids=["mixed", "off"])
@pytest.mark.parametrize("accepts", [True, False], ids=["", "takes no loss arguments"])
@pytest.mark.parametrize(
    ("label", "labels"), [(int, CLASSES), (one_hot, CLASSES), (float, 1)], ids=["classes", "multi-hot", "scores"]
)
def test_an_accumulated_step_of_gradient_descent_is_that_of_one_batch(tmp_path, label, labels, accepts, mixup):
    """Trainer divides the loss of some models and not of others."""
    models = []
    for size in (8, 2):
        model = steady_bert(num_labels=labels)
        model.accepts_loss_kwargs = accepts
        options = {"rows": examples(label=label), "mixup": mixup, "optim": "sgd", "learning_rate": 0.1}
        accumulated_step(tmp_path, size, model=model, draw=swap_neighbours if mixup else None, **options)
        models.append(model.state_dict())
    for name, value in models[0].items():
        torch.testing.assert_close(value, models[1][name], rtol=1e-5, atol=1e-5, msg=name)


def test_a_mean_of_the_users_own_is_divided_by_the_number_of_accumulated_batches(tmp_path):
    class OwnLoss(MixupTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return model(**inputs).loss

    assert_same_step(*(accumulated_step(tmp_path, size, trainer=partial(OwnLoss, mixup=None)) for size in (8, 2)))


@pytest.mark.parametrize("mixup", [PLAIN | {"lam": 1.0}, None], ids=["mixed", "off"])
@pytest.mark.parametrize(
    "options",
    [{}, {"label_smoothing_factor": 0.2}, {"compute_loss_func": summed_loss}],
    ids=["", "label smoothing", "own loss"],
)
def test_with_as_many_texts_on_a_second_process_the_loss_is_the_same(tmp_path, mixup, options, monkeypatch):
    trainer = make_trainer(tmp_path, mixup=mixup, **options)
    trainer.model.train()
    alone = trainer.compute_loss(trainer.model, training_inputs(), num_items_in_batch=8)
    monkeypatch.setattr(type(trainer.accelerator), "num_processes", 2)
    assert trainer.args.average_tokens_across_devices
    assert trainer.compute_loss(trainer.model, training_inputs(), num_items_in_batch=16) == alone


# ---- compute_loss_func ----


def test_compute_loss_func_gets_the_mixed_targets_and_the_number_of_items(tmp_path):
    calls = []

    def keep(outputs, labels, num_items_in_batch=None):
        calls.append((labels, num_items_in_batch))
        return outputs["logits"].sum() * 0 + 42.0 / num_items_in_batch

    inputs, plan = training_inputs(), a_plan(8)
    trainer = make_trainer(tmp_path, mixup=MIXED, compute_loss_func=keep, soft_targets=True)
    trainer.mixup.draw = lambda *args, **kwargs: plan
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, inputs, num_items_in_batch=21)
    targets, items = calls[0]
    expected = torch.zeros(8, CLASSES)
    for i, (j, lam) in enumerate(zip(plan.partner, plan.lam, strict=True)):
        expected[i, inputs["labels"][i]] += lam
        expected[i, inputs["labels"][j]] += 1 - lam
    torch.testing.assert_close(targets, expected)
    assert (loss.item(), items) == (2.0, 21)
    train_losses(trainer)
    assert calls[-1][1] == 8 and trainer.state.log_history[0]["loss"] == pytest.approx(42 / 8)


def test_compute_loss_func_of_a_single_score_gets_scores_of_the_labels_shape(tmp_path):
    def squared(outputs, labels, num_items_in_batch=None):
        assert labels.shape == (8,)
        return ((outputs["logits"][:, 0] - labels) ** 2).sum() / num_items_in_batch

    model = steady_bert(num_labels=1)
    trainer = make_trainer(tmp_path, model, mixup=MIXED, rows=examples(16, float), compute_loss_func=squared)
    assert np.isfinite(train_losses(trainer)).all()


def test_compute_loss_func_evaluates_on_the_labels_as_they_came(tmp_path):
    def integer_or_mixed(outputs, labels, num_items_in_batch=None):
        assert outputs["logits"].requires_grad or labels.dtype == torch.long
        return F.cross_entropy(outputs["logits"], labels)

    trainer = make_trainer(tmp_path, mixup=MIXED, compute_loss_func=integer_or_mixed, eval_dataset=examples(8))
    trainer.train()
    expected = F.cross_entropy(clean_logits(trainer.model.eval(), training_inputs()), training_inputs()["labels"])
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.item(), rel=1e-6)


def of_class_indices(outputs, labels, num_items_in_batch=None):
    return -outputs["logits"].log_softmax(-1).gather(-1, labels[:, None]).mean()


def of_class_indices_by_nll(outputs, labels, num_items_in_batch=None):
    return F.nll_loss(outputs["logits"].log_softmax(-1), labels)


@pytest.mark.parametrize("loss_func", [of_class_indices, of_class_indices_by_nll])
def test_a_compute_loss_func_of_soft_targets_that_takes_class_indices_is_told_so(tmp_path, loss_func):
    trainer = make_trainer(tmp_path, mixup=MIXED, compute_loss_func=loss_func, soft_targets=True)
    with pytest.raises(ValueError, match=r"compute_loss_func failed.*floats of shape \(8, 3\).*class probabilities"):
        trainer.train()


def test_running_out_of_memory_in_compute_loss_func_stays_what_it_is(tmp_path):
    def too_large(outputs, labels, num_items_in_batch=None):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError):
        make_trainer(tmp_path, mixup=MIXED, compute_loss_func=too_large).train()


# ---- Callbacks, metrics, sampling ----


class Counting(TrainerCallback):
    def __init__(self):
        self.steps = 0

    def on_step_end(self, args, state, control, **kwargs):
        self.steps += 1


def test_early_stopping_brings_the_best_model_back(tmp_path):
    counting, metrics = Counting(), iter([0.3, 0.9, 0.2, 0.1, 0.0])
    trainer = make_trainer(
        tmp_path,
        mixup=MIXED,
        rows=examples(24),
        eval_dataset=examples(6),
        callbacks=[counting, EarlyStoppingCallback(early_stopping_patience=2)],
        compute_metrics=lambda prediction: {"score": next(metrics)},
        max_steps=10,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="score",
    )
    trainer.train()
    assert counting.steps == trainer.state.global_step == 8
    best = type(trainer.model).from_pretrained(tmp_path / "checkpoint-4")
    last = type(trainer.model).from_pretrained(tmp_path / "checkpoint-8")
    assert same_weights(trainer.model, best) and not same_weights(best, last)


def test_batches_grouped_by_length_are_mixed(tmp_path):
    trainer = make_trainer(
        tmp_path, mixup=MIXED, rows=Dataset.from_list(examples(48)), train_sampling_strategy="group_by_length"
    )
    assert np.isfinite(train_losses(trainer)).all()
    assert trainer.state.log_history[0]["mixup_lambda"] < 1


# ---- Precision, checkpointing, compilation ----


def test_bf16_gives_the_loss_of_float32_within_its_precision(tmp_path):
    losses = [first_step(tmp_path, draw=swap_neighbours, mixup=MIXED, bf16=bf16)[0] for bf16 in (False, True)]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.05)


@pytest.mark.parametrize("site", ["word_embeddings", "embeddings", "hidden"])
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
@pytest.mark.parametrize("family", ["bert", "deberta-v2"])
def test_gradient_checkpointing_gives_the_same_gradients(tmp_path, family, reentrant, site):
    plan = a_plan(8, site, layer=1 if site == "hidden" else None)
    steps = [
        first_step(
            tmp_path,
            toy_model(family, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
            draw=lambda *args, **kwargs: plan,
            mixup=PLAIN | {"site": site},
            **options,
        )
        for options in (
            {},
            checkpointing(use_reentrant=reentrant),
        )
    ]
    assert_same_step(*steps)


def test_a_compiled_model_gives_the_same_loss_and_gradients(tmp_path):
    torch._dynamo.reset()
    steps = [
        first_step(tmp_path, draw=swap_neighbours, mixup=MIXED, **options)
        for options in ({}, {"torch_compile": True, "torch_compile_backend": "aot_eager"})
    ]
    assert_same_step(*steps)


# ---- NEFTune, PEFT, search ----


def noisy_logits(trainer, inputs, plan):
    trainer.mixup.draw = lambda *args, **kwargs: plan
    trainer.model.train()
    torch.manual_seed(0)
    return trainer.compute_loss(trainer.model, inputs, return_outputs=True)[1]["logits"].detach()


@pytest.mark.parametrize("site", ["word_embeddings", "embeddings"])
def test_neftune_noise_comes_before_the_mixture(tmp_path, site):
    class Probe(TrainerCallback):
        """NEFTune is on only while training goes on."""

        def on_train_begin(self, args, state, control, **kwargs):
            ones, zeros = torch.ones(8), torch.zeros(8)
            plan = a_plan(8, site)
            own, other, mixed = (
                noisy_logits(trainer, dict(inputs), type(plan)(plan.partner, lam, site))
                for lam in (ones, zeros, plan.lam)
            )
            self.seen = plan, own, other, mixed

    inputs, probe = training_inputs(), Probe()
    trainer = make_trainer(
        tmp_path, mixup=PLAIN | {"site": site}, neftune_noise_alpha=5.0, callbacks=[probe], max_steps=1
    )
    trainer.train()
    plan, own, other, mixed = probe.seen
    assert (own - clean_logits(steady_bert(), inputs)).abs().max() > 0.05
    torch.testing.assert_close(other, own[plan.partner], rtol=1e-4, atol=1e-4)
    assert (mixed - own).abs().max() > 0.05 and (mixed - other).abs().max() > 0.05


@pytest.mark.parametrize("site", ["word_embeddings", "embeddings", "hidden", "pooled"])
def test_a_lora_adapter_is_trained_and_its_base_is_not(tmp_path, site):
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(
        task_type="SEQ_CLS", r=4, target_modules=["query", "value"], modules_to_save=["classifier"], lora_dropout=0.0
    )
    model = peft.get_peft_model(steady_bert(), lora)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    trainer = make_trainer(tmp_path, model, mixup=PLAIN | {"site": site}, max_steps=3)
    trainer.train()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert any("lora_A" in name for name in moved) and any("classifier" in name for name in moved)
    assert trainer.state.log_history[0]["mixup_site"].startswith(site)
    trainer.save_model(str(tmp_path / "adapter"))
    loaded = peft.PeftModel.from_pretrained(steady_bert(), tmp_path / "adapter").eval()
    inputs = training_inputs()
    torch.testing.assert_close(clean_logits(loaded, inputs), clean_logits(model.eval(), inputs))


# ---- Logs and files ----


def test_the_logs_hold_the_mean_lambda_the_site_and_the_accuracy_on_the_mixed_target(tmp_path):
    inputs = training_inputs()
    trainer = make_trainer(
        tmp_path,
        mixup=PLAIN | {"site": "hidden", "layers": [1]},
        rows=examples(8),
        max_steps=2,
        logging_steps=2,
        learning_rate=0.0,
        train_sampling_strategy="sequential",
    )
    plans = [a_plan(8, "hidden", seed, layer=1) for seed in (0, 1)]
    expected = []
    for plan in plans:
        predicted = mixed_step(trainer, dict(inputs), plan)[1].argmax(-1).tolist()
        labels, lams = inputs["labels"].tolist(), plan.lam.tolist()
        for i, j in enumerate(plan.partner.tolist()):
            expected.append(lams[i] * (predicted[i] == labels[i]) + (1 - lams[i]) * (predicted[i] == labels[j]))
    queue = iter(plans)
    trainer.mixup.draw = lambda *args, **kwargs: next(queue)
    trainer.train()
    logs = trainer.state.log_history[0]
    assert logs["mixup_accuracy"] == pytest.approx(np.mean(expected), abs=1e-4)
    assert 0 < np.mean(expected) < 1
    assert logs["mixup_lambda"] == pytest.approx(torch.stack([plan.lam for plan in plans]).mean().item(), abs=1e-4)
    assert logs["mixup_site"] == "hidden 1"


def test_no_accuracy_is_logged_where_it_has_no_meaning(tmp_path):
    trainer = make_trainer(tmp_path, mixup=MIXED, rows=examples(label=one_hot))
    trainer.train()
    assert "mixup_lambda" in trainer.state.log_history[0]
    assert "mixup_accuracy" not in trainer.state.log_history[0]


def test_the_config_lies_beside_every_checkpoint_and_in_the_model_card(tmp_path):
    config = plain_config(site="hidden", layers=[0, "2/3"], alpha=0.7, class_weights=[1.0, 2.0, 0.5])
    trainer = make_trainer(tmp_path, mixup=config, save_strategy="steps", save_steps=1)
    trainer.train()
    trainer.save_model()
    for folder in (tmp_path, tmp_path / "checkpoint-1", tmp_path / "checkpoint-2"):
        assert resolve_config(str(folder / "mixup_config.yaml")) == config
    trainer.create_model_card()
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert card.count(config.to_yaml()) == 1


def test_without_mixup_no_mixup_files_are_written(tmp_path):
    trainer = make_trainer(tmp_path, mixup=None, save_strategy="steps", save_steps=1)
    trainer.train()
    trainer.save_model()
    assert list(tmp_path.rglob("model.safetensors")) and not list(tmp_path.rglob("mixup*"))
    assert "mixup_lambda" not in trainer.state.log_history[0]


# ---- What mixup= accepts, and what is refused ----


def test_mixup_may_be_a_config_a_name_a_mapping_a_file_or_nothing(tmp_path):
    config = plain_config(site="hidden", layers=[1], alpha=0.3)
    config.save(tmp_path / "own.yaml")
    for spec in (config, config.to_dict(), str(tmp_path / "own.yaml"), tmp_path / "own.yaml"):
        assert make_trainer(tmp_path, mixup=spec).mixup.config == config
    assert make_trainer(tmp_path, mixup="manifold").mixup.config.site == "hidden"
    assert make_trainer(tmp_path, mixup=None).mixup is None


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("manifol", "manifol.*Did you mean 'manifold'"),
        ({"alhpa": 0.4}, "alhpa.*Did you mean 'alpha'"),
        ({"site": "embedings"}, "site='embedings'.*Did you mean 'embeddings'"),
        (PLAIN | {"site": "hidden", "layers": [3]}, "layer 3 is out of range.*3 blocks"),
        ({"alpha": 0.0}, "alpha=0.0"),
        ({"class_weights": [1.0, 2.0]}, "class_weights: 2 weights for num_labels=3"),
    ],
)
def test_a_config_that_cannot_work_is_refused_before_training(tmp_path, spec, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, mixup=spec)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (lambda kind: kind - 1, "labels: found -1 to 1.*0 to 2; row 1 is the first"),
        (lambda kind: kind + 1, "labels: found 1 to 3.*num_labels=3"),
        (lambda kind: [0.5, 0.5], r"labels: shape \(8, 2\).*num_labels=3"),
    ],
    ids=["too small", "too large", "too few"],
)
def test_labels_that_do_not_fit_are_refused_before_the_first_step(tmp_path, label, message):
    model = steady_bert()
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, model, mixup=MIXED, rows=examples(label=label)).train()
    assert same_weights(model, steady_bert())


def test_missing_labels_are_refused_before_the_first_step(tmp_path):
    rows = [{name: value for name, value in row.items() if name != "labels"} for row in examples()]
    with pytest.raises(ValueError, match="labels: none in this training batch"):
        make_trainer(tmp_path, mixup=MIXED, rows=rows).train()


def test_several_gpus_without_a_launcher_are_refused(tmp_path):
    args = arguments(tmp_path)
    args._n_gpu = 2
    with pytest.raises(ValueError, match="2 GPUs without a launcher"):
        MixupTrainer(model=steady_bert(), args=args, train_dataset=examples())
    MixupTrainer(model=steady_bert(), args=args, train_dataset=examples(), mixup=None)


def test_a_mixup_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="MixupModel.*plain model"):
        make_trainer(tmp_path, MixupModel(steady_bert()), mixup=MIXED)


def test_a_mixup_collator_is_refused(tmp_path):
    with pytest.raises(ValueError, match="data_collator: a MixupCollator mixes by itself"):
        collator = MixupCollator(collate, "span_mix", num_labels=CLASSES)
        MixupTrainer(model=steady_bert(), args=arguments(tmp_path), data_collator=collator, train_dataset=examples())


def test_label_smoothing_of_a_multi_label_model_is_refused(tmp_path):
    model = steady_bert(problem_type="multi_label_classification")
    with pytest.raises(ValueError, match="label_smoothing_factor=0.1 needs single-label"):
        make_trainer(tmp_path, model, mixup=MIXED, label_smoothing_factor=0.1)


def test_class_weights_beside_a_compute_loss_func_are_refused(tmp_path):
    with pytest.raises(ValueError, match="class_weights: not used by a compute_loss_func"):
        make_trainer(tmp_path, mixup=MIXED | {"class_weights": [1.0, 1.0, 2.0]}, compute_loss_func=summed_loss)


def test_every_training_of_a_trainer_draws_the_same_plans(tmp_path):
    trainer = make_trainer(tmp_path, mixup=MIXED)
    lambdas = []
    for _ in range(2):
        trainer.train()
        lambdas.append([entry.get("mixup_lambda") for entry in trainer.state.log_history])
    assert lambdas[0] == lambdas[1] and lambdas[0][0] != lambdas[0][1]


def test_mixing_stops_at_off_epoch(tmp_path):
    trainer = make_trainer(tmp_path, mixup=MIXED | {"off_epoch": 1.0}, max_steps=4)
    trainer.train()
    assert ["mixup_lambda" in entry for entry in trainer.state.log_history[:4]] == [True, True, False, False]


def test_a_label_that_the_model_does_not_have_is_refused_before_the_first_step_wherever_it_is(tmp_path):
    rows = examples(24)
    rows[20]["labels"] = 3
    trainer = make_trainer(tmp_path, mixup="default", rows=Dataset.from_list(rows))
    with pytest.raises(ValueError, match="labels: found 0 to 3, but the model has num_labels=3"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_the_classes_of_remix_are_counted_in_the_data(tmp_path):
    trainer = make_trainer(tmp_path, mixup="remix", rows=Dataset.from_list(examples(16)), max_steps=1)
    trainer.train()
    assert trainer.mixup.config.class_counts == [6.0, 5.0, 5.0]
    assert trainer.state.global_step == 1


def test_a_short_last_batch_of_an_accumulated_step_weighs_what_its_examples_weigh(tmp_path):
    """9 texts in batches of 8 and 1, accumulated: the same step as one batch of 9, with mixup off and clean plans."""
    whole = {"per_device_train_batch_size": 9}
    parts = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
    expected = first_step(tmp_path, rows=examples(9), **whole)
    for mixup in (None, PLAIN | {"prob": 0.0}):
        assert_same_step(first_step(tmp_path, rows=examples(9), mixup=mixup, **parts), expected)


def test_prompt_learning_is_refused(tmp_path):
    peft = pytest.importorskip("peft", reason="peft is an optional package")
    model = peft.get_peft_model(toy_model("bert"), peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2))
    with pytest.raises(ValueError, match="peft_type='PROMPT_TUNING': learned prompts lengthen the texts"):
        make_trainer(tmp_path, mixup="default", model=model)


def test_a_batch_size_of_one_is_warned_about(tmp_path, caplog):
    with caplog.at_level("WARNING", logger="transformers"):
        make_trainer(tmp_path, mixup="default", per_device_train_batch_size=1)
    assert "a batch of one has no partners" in caplog.text


def test_a_loss_computed_after_training_is_a_mean_again(tmp_path):
    trainer = make_trainer(tmp_path, gradient_accumulation_steps=2, per_device_train_batch_size=4)
    inputs = training_inputs()
    trainer.train()
    expected = F.cross_entropy(clean_logits(trainer.model.eval(), inputs), inputs["labels"])
    trainer.model.train()
    torch.testing.assert_close(trainer.compute_loss(trainer.model, inputs), expected)
