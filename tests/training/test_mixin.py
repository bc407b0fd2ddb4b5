"""Mixup around the loss of any Trainer: kept, mixed exactly, in one forward pass, and never silently left out."""

import itertools
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import Trainer

from hf_mixup import Mixup, MixupMixin, MixupModel, MixupTrainer
from hf_mixup.loss.token_task import SINGLE
from hf_mixup.plan.strength import Check, surplus_of
from tests.plain_config import PLAIN
from tests.toy_runs import (
    CLASSES,
    Gradients,
    arguments,
    assert_same_step,
    clean_logits,
    collate,
    examples,
    one_hot,
    same_weights,
    steady_bert,
    training_inputs,
)

MIXED = PLAIN | {"site": "hidden", "layers": [1], "alpha": 1.0}
WEIGHTS = torch.tensor([1.0, 2.0, 5.0])


def focal(logits, labels):
    """Focal loss of class indices (Lin et al. 2017, eq. 4)."""
    picked = logits.log_softmax(-1).gather(-1, labels[:, None]).squeeze(-1)
    return -((1 - picked.exp()) ** 2 * picked).mean()


class ArcFace(nn.Module):
    """A loss with parameters of its own: an additive angular margin (Deng et al. 2019, eq. 3)."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.centers = nn.Parameter(torch.randn(CLASSES, CLASSES))

    def forward(self, logits, labels):
        cosine = F.linear(F.normalize(logits), F.normalize(self.centers)).clamp(-0.99, 0.99)
        margin = 0.2 * F.one_hot(labels, CLASSES)
        return F.cross_entropy(4 * (cosine.acos() + margin).cos(), labels)


LOSSES = {
    "weighted": lambda: lambda logits, labels: F.cross_entropy(logits, labels, weight=WEIGHTS),
    "focal": lambda: focal,
    "arcface": ArcFace,
}


class Keeping(Trainer):
    """A trainer with a loss of its own, in the way of transformers' docs."""

    def __init__(self, *args, loss="weighted", **kwargs):
        self.loss_of, self.seen = LOSSES[loss](), []
        super().__init__(*args, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        self.seen.append((outputs.logits.detach(), labels))
        loss = self.loss_of(outputs.logits, labels)
        return (loss, outputs) if return_outputs else loss


class First(MixupMixin, Keeping):
    pass


class Second(Keeping, MixupMixin):
    pass


class OnTrainer(MixupMixin, Trainer):
    pass


def trainer_of(kind, folder, model=None, rows=None, **options):
    own = ("mixup", "soft_targets", "rows_per_example", "loss", "callbacks", "compute_loss_func", "model_init")
    given = {name: options.pop(name) for name in own if name in options}
    if "model_init" not in given:
        given["model"] = model or steady_bert()
    rows = examples() if rows is None else rows
    args = arguments(folder, **options)
    return kind(args=args, train_dataset=rows, eval_dataset=rows, data_collator=collate, **given)


def losses(trainer):
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def step_on(trainer, inputs):
    """One training step outside of `train`; the loss."""
    trainer.current_gradient_accumulation_steps = 1
    return trainer.training_step(trainer.model, inputs)


def passes_of(model):
    """Counts the forward passes of a model from now on."""
    count = itertools.count()
    model.bert.embeddings.register_forward_hook(lambda *_: (next(count), None)[1])
    return count


# ---- The loss is kept ----


@pytest.mark.parametrize("kind", [First, Second, OnTrainer])
@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_the_automatic_strength_learns_of_each_training_batch_once(tmp_path, kind, strength):
    trainer, inputs = trainer_of(kind, tmp_path, mixup=MIXED | {"strength": "auto"}), training_inputs()
    auto = trainer.mixup.planner.auto_strength
    auto.checks.append(Check(0.1, 0.0, 9, 0.0, strength, False, False))
    trainer._surplus = []
    step_on(trainer, dict(inputs))
    assert trainer.mixup.mixed == (strength > 0) and auto.trained[0].item() == len(inputs["labels"])
    if not strength:
        surplus = surplus_of(clean_logits(trainer.model, inputs), torch.eye(CLASSES)[inputs["labels"]], SINGLE)
        torch.testing.assert_close(auto.trained[1:, 0], torch.stack([surplus.sum(), surplus.square().sum()]))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", [First, Second])
def test_off_and_at_lambda_1_the_losses_are_those_of_the_plain_trainer(tmp_path, kind, loss):
    plain = trainer_of(Keeping, tmp_path, loss=loss)
    expected = losses(plain)
    for mixup in (None, MIXED | {"lam": 1.0}):
        trainer = trainer_of(kind, tmp_path, loss=loss, mixup=mixup)
        assert losses(trainer) == expected
        assert same_weights(trainer.model, plain.model)
        assert trainer.evaluate()["eval_loss"] == plain.evaluate()["eval_loss"]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", [First, Second])
def test_a_loss_of_class_indices_is_that_of_both_label_sets_in_one_pass(tmp_path, kind, loss):
    trainer = trainer_of(kind, tmp_path, loss=loss, mixup=MIXED)
    model, inputs, labels = trainer.model.train(), training_inputs(), training_inputs()["labels"]
    reference = Mixup(model, MIXED, trainer.args.seed)
    batch = {name: value for name, value in inputs.items() if name != "labels"}
    plan = reference.draw(batch, one_lambda=True)
    with reference.apply(plan, batch):
        logits = model(**batch).logits
    assert len(set(plan.lam.tolist())) == 1 and 0 < plan.lam[0] < 1
    lam, f = plan.lam[0], LOSSES[loss]()
    expected = lam * f(logits, labels) + (1 - lam) * f(logits, labels[plan.partner])
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    count = passes_of(model)
    found = step_on(trainer, inputs)
    assert next(count) == 1 and len(trainer.seen) == 2
    torch.testing.assert_close(found, expected.detach(), rtol=1e-6, atol=0)
    for name, parameter in model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-5, atol=1e-7, msg=name)
    assert torch.equal(inputs["labels"], labels)


def test_the_parameters_of_a_loss_get_the_gradient_of_both_label_sets(tmp_path):
    trainer = trainer_of(First, tmp_path, loss="arcface", mixup=MIXED)
    step_on(trainer, training_inputs())
    (logits, own), (_, partners) = trainer.seen[:2]
    lam = trainer._logs.weight
    f = ArcFace()
    (lam * f(logits, own) + (1 - lam) * f(logits, partners)).backward()
    torch.testing.assert_close(trainer.loss_of.centers.grad, f.centers.grad)


@pytest.mark.parametrize("kind", [First, Second])
def test_labels_that_are_numbers_reach_the_loss_mixed_and_once(tmp_path, kind):
    rows = examples(label=one_hot)
    trainer = trainer_of(kind, tmp_path, rows=rows, mixup=MIXED)
    trainer.loss_of = F.binary_cross_entropy_with_logits
    step_on(trainer, collate(rows[:8]))
    ((_, mixed),) = trainer.seen
    assert mixed.shape == (8, CLASSES) and not set(mixed.flatten().tolist()) <= {0.0, 1.0}
    plan = Mixup(steady_bert(), MIXED, trainer.args.seed).draw(training_inputs())
    torch.testing.assert_close(mixed, Mixup(steady_bert(), MIXED).targets(collate(rows[:8])["labels"], plan))
    assert len(set(plan.lam.tolist())) == 8


def test_soft_targets_are_mixed_probabilities_with_a_lambda_each(tmp_path):
    trainer = trainer_of(First, tmp_path, mixup=MIXED, soft_targets=True)
    step_on(trainer, training_inputs())
    ((_, mixed),) = trainer.seen
    plan = Mixup(steady_bert(), MIXED, trainer.args.seed).draw(training_inputs())
    torch.testing.assert_close(mixed, Mixup(steady_bert(), MIXED).targets(training_inputs()["labels"], plan))


def test_a_loss_that_runs_the_model_twice_is_given_the_same_mixture_each_time(tmp_path):
    class Twice(MixupMixin, Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels = inputs.pop("labels")
            self.logits = [model(**inputs).logits for _ in range(2)]
            return F.cross_entropy(self.logits[0], labels) + F.mse_loss(*self.logits)

    trainer = trainer_of(Twice, tmp_path, mixup=MIXED)
    count = passes_of(trainer.model)
    step_on(trainer, training_inputs())
    assert next(count) == 2
    torch.testing.assert_close(*trainer.logits)


class Explicit(Keeping):
    """A trainer that takes no arguments but its own, as TRL's do."""

    def __init__(self, model, args, train_dataset, eval_dataset, data_collator):
        super().__init__(model, args, data_collator, train_dataset, eval_dataset)


@pytest.mark.parametrize("bases", [(Explicit, MixupMixin), (MixupMixin, Explicit)], ids=["after", "before"])
def test_arguments_of_mixup_pass_an_init_that_does_not_know_them(tmp_path, bases):
    class Mixed(type("Both", bases, {})):
        pass

    given = {"mixup": MIXED, "soft_targets": True, "rows_per_example": 1}
    trainer = trainer_of(Mixed, tmp_path, **given)
    assert trainer.mixup.config.site == "hidden" and trainer.soft_targets
    assert trainer_of(Mixed, tmp_path, mixup=None).mixup is None
    assert len(losses(trainer)) == 2


# ---- The model's own loss ----


@pytest.mark.parametrize("label", [int, one_hot], ids=["indices", "multi-hot"])
def test_a_model_that_is_given_labels_returns_the_loss_of_the_mixed_ones(tmp_path, label):
    rows = examples(label=label) if label is one_hot else examples()
    expected = losses(trainer_of(Trainer, tmp_path, rows=rows))
    assert losses(trainer_of(OnTrainer, tmp_path, rows=rows, mixup=None)) == expected
    assert losses(trainer_of(OnTrainer, tmp_path, rows=rows, mixup=MIXED | {"lam": 1.0})) == pytest.approx(expected)
    mixed = losses(trainer_of(OnTrainer, tmp_path, rows=rows, mixup=MIXED))
    assert mixed == pytest.approx(losses(trainer_of(MixupTrainer, tmp_path, rows=rows, mixup=MIXED)))


def test_a_compute_loss_that_calls_trainers_mixes_labels_once(tmp_path):
    class Calling(MixupMixin, Trainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            return super().compute_loss(model, inputs, *args, **kwargs)

    rows = examples(label=one_hot)
    expected = losses(trainer_of(OnTrainer, tmp_path, rows=rows, mixup=MIXED))
    assert losses(trainer_of(Calling, tmp_path, rows=rows, mixup=MIXED)) == expected


def test_a_model_that_names_none_of_its_arguments_is_given_its_labels(tmp_path):
    peft = pytest.importorskip("peft", reason="peft is an optional package")

    def adapted():
        torch.manual_seed(0)
        return peft.get_peft_model(steady_bert(), peft.LoraConfig(target_modules=["query"]))

    found = [losses(trainer_of(kind, tmp_path, adapted(), mixup=MIXED)) for kind in (OnTrainer, MixupTrainer)]
    assert found[0] == pytest.approx(found[1])


@pytest.mark.parametrize("kind", [OnTrainer, MixupTrainer])
def test_a_model_with_another_loss_than_mixed_labels_would_get_is_an_error(tmp_path, kind):
    class Focal(type(steady_bert())):
        def forward(self, labels=None, **inputs):
            outputs = super().forward(**inputs)
            if labels is not None:
                outputs.loss = focal(outputs.logits, labels)
            return outputs

    model = Focal(steady_bert().config)
    with pytest.raises(ValueError, match="loss that Focal computes by itself.*compute_loss_func"):
        trainer_of(kind, tmp_path, model=model, mixup=MIXED, remove_unused_columns=False).train()
    assert model.training and model.config.problem_type is None


def test_under_accumulation_a_models_loss_is_scaled_as_without_mixup(tmp_path):
    def step(kind, **options):
        seen = Gradients()
        trainer = trainer_of(kind, tmp_path, callbacks=[seen], max_steps=1, max_grad_norm=0.0, **sizes, **options)
        return losses(trainer)[0], seen.first

    sizes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    assert_same_step(step(OnTrainer, mixup=MIXED | {"lam": 1.0}), step(Trainer))


def test_accumulated_batches_of_a_kept_loss_have_plans_of_their_own(tmp_path):
    trainer = trainer_of(
        First, tmp_path, mixup=MIXED, max_steps=2, per_device_train_batch_size=2, gradient_accumulation_steps=4
    )
    count = passes_of(trainer.model)
    trainer.train()
    assert next(count) == 8 and trainer.mixup.mixed == 8 and len(trainer.seen) == 16


# ---- Losses of many kinds ----


class Bare(nn.Module):
    """A head of one's own that returns the logits alone."""

    def __init__(self):
        super().__init__()
        self.body = steady_bert()
        self.config = self.body.config

    def forward(self, input_ids, attention_mask):
        return self.body(input_ids, attention_mask).logits


def of_bare(outputs, labels, num_items_in_batch=None):
    return F.cross_entropy(outputs, labels)


class KeepingBare(MixupMixin, Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return of_bare(model(inputs["input_ids"], inputs["attention_mask"]), inputs["labels"])


@pytest.mark.parametrize("kind", [MixupTrainer, KeepingBare])
def test_logits_that_are_a_tensor_get_their_gradient(tmp_path, kind):
    options = {"compute_loss_func": of_bare} if kind is MixupTrainer else {}
    trainer = trainer_of(kind, tmp_path, Bare(), mixup=MIXED, remove_unused_columns=False, **options)
    step_on(trainer, training_inputs())
    assert all(parameter.grad is not None for parameter in trainer.model.body.bert.encoder.parameters())


def test_a_loss_may_write_into_the_outputs(tmp_path):
    seen = []

    def tempered(outputs, labels, num_items_in_batch=None):
        outputs.logits.div_(10.0)
        seen.append(outputs.logits.detach())
        return F.cross_entropy(outputs.logits, labels)

    step_on(trainer_of(OnTrainer, tmp_path, mixup=MIXED, compute_loss_func=tempered), training_inputs())
    torch.testing.assert_close(*seen)


def test_a_pass_that_depends_on_the_label_is_run_for_both(tmp_path):
    class Hinted(type(steady_bert())):
        def forward(self, input_ids, attention_mask, hint=None):
            outputs = super().forward(input_ids, attention_mask)
            if hint is not None:
                outputs.logits = outputs.logits + F.one_hot(hint, CLASSES)
            return outputs

    class Hinting(MixupMixin, Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels = inputs.pop("labels")
            self.logits = [*getattr(self, "logits", []), model(**inputs, hint=labels).logits]
            return F.cross_entropy(self.logits[-1], labels)

    trainer = trainer_of(
        Hinting, tmp_path, Hinted(steady_bert().config), mixup=MIXED | {"site": "pooled", "layers": None}
    )
    step_on(trainer, training_inputs())
    assert len(trainer.logits) == 2 and not torch.equal(*trainer.logits)


def test_a_compute_loss_that_is_put_on_a_trainer_is_mixed_and_stays(tmp_path):
    trainer, labels = trainer_of(OnTrainer, tmp_path, mixup=MIXED), []

    def mine(model, inputs, return_outputs=False, num_items_in_batch=None):
        labels.append(inputs.pop("labels"))
        return F.cross_entropy(model(**inputs).logits, labels[-1])

    trainer.compute_loss = mine
    trainer.train()
    assert trainer.compute_loss is mine and len(labels) == 2 * trainer.state.global_step
    assert not torch.equal(labels[0], labels[1])


class TakesLabel(Bare):
    def forward(self, input_ids, attention_mask, label=None):
        logits = super().forward(input_ids, attention_mask)
        return {"logits": logits} | ({} if label is None else {"loss": F.cross_entropy(logits, label)})


@pytest.mark.parametrize("kind", [OnTrainer, MixupTrainer])
def test_a_model_may_call_its_labels_label(tmp_path, kind):
    inputs = training_inputs()
    inputs["label"] = inputs.pop("labels")
    trainer = trainer_of(kind, tmp_path, TakesLabel(), mixup=MIXED | {"lam": 0.0})
    found = step_on(trainer, inputs)
    plan = Mixup(TakesLabel(), MIXED | {"lam": 0.0}, trainer.args.seed).draw({"input_ids": inputs["input_ids"]})
    clean = trainer.model.eval()(inputs["input_ids"], inputs["attention_mask"])["logits"][plan.partner]
    torch.testing.assert_close(found, F.cross_entropy(clean, inputs["label"][plan.partner]).detach())


def renamed(inputs):
    return {**inputs, "label": inputs["labels"]} | {"labels": None}


def scaled(inputs):
    return {**inputs, "labels": inputs["labels"] / 5}


@pytest.mark.parametrize(
    ("change", "rows", "message"),
    [
        (renamed, int, "computed a loss, and it is not known of which labels"),
        (scaled, float, "labels: compute_loss gives"),
    ],
)
def test_labels_that_do_not_reach_the_model_as_they_are_are_an_error(tmp_path, change, rows, message):
    class Changing(MixupMixin, Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            outputs = model(**{name: value for name, value in change(inputs).items() if value is not None})
            return outputs["loss"]

    model = TakesLabel() if change is renamed else steady_bert(num_labels=1)
    trainer = trainer_of(Changing, tmp_path, model, mixup=MIXED)
    inputs = training_inputs(examples(8, rows))
    with pytest.raises(ValueError, match=message):
        step_on(trainer, inputs)


def test_class_indices_that_are_floats_are_an_error(tmp_path):
    trainer = trainer_of(First, tmp_path, mixup=MIXED)
    with pytest.raises(ValueError, match=r"labels: torch.float32 of one dimension; .* use labels.long\(\)"):
        step_on(trainer, training_inputs() | {"labels": torch.arange(8.0) % 3})


@pytest.mark.parametrize("kind", [OnTrainer, MixupTrainer, MixupModel])
@pytest.mark.parametrize("options", [{"weight": WEIGHTS}, {"label_smoothing": 0.3}], ids=["weights", "smoothing"])
def test_another_loss_of_a_model_is_told_by_its_gradient_though_all_logits_are_alike(tmp_path, kind, options):
    class Other(type(steady_bert())):
        def forward(self, input_ids=None, attention_mask=None, labels=None):
            outputs = super().forward(input_ids, attention_mask)
            if labels is not None:
                outputs.loss = F.cross_entropy(outputs.logits, labels, **options)
            return outputs

    model = Other(steady_bert().config).train()
    nn.init.zeros_(model.classifier.weight)
    nn.init.zeros_(model.classifier.bias)
    with pytest.raises(ValueError, match="loss that Other computes by itself.*or not for all logits"):
        if kind is MixupModel:
            MixupModel(model, MIXED)(**training_inputs())
        else:
            trainer_of(kind, tmp_path, model, mixup=MIXED).train()


def test_an_init_that_passes_by_mixup_is_an_error(tmp_path):
    class Past(Trainer):
        def __init__(self, **kwargs):
            Trainer.__init__(self, **kwargs)

    class Mixed(type("Both", (Past, MixupMixin), {})):
        pass

    with pytest.raises(ValueError, match="Mixed: its __init__ never came to that of MixupMixin"):
        trainer_of(Mixed, tmp_path, mixup=MIXED)


# ---- Pairs of rows ----


class Preferring(Trainer):
    """The loss of a reward model: without labels, of a chosen and a rejected row for each example."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        chosen, rejected = model(**inputs).logits.squeeze(-1).chunk(2)
        self.scores = chosen.detach(), rejected.detach()
        loss = -F.logsigmoid(chosen - rejected).mean()
        return (loss, {}) if return_outputs else loss


class MixedPreferring(MixupMixin, Preferring):
    pass


def preferences():
    batch = training_inputs(examples(16))
    return {name: value for name, value in batch.items() if name != "labels"}


@pytest.mark.parametrize("lam", [1.0, 0.0])
def test_rows_of_a_pair_are_mixed_with_those_of_one_other_pair(tmp_path, lam):
    model, inputs = steady_bert(num_labels=1), preferences()
    mixup = MIXED | {"lam": lam, "site": "pooled", "layers": None}
    trainer = trainer_of(MixedPreferring, tmp_path, model=model, mixup=mixup, rows_per_example=2)
    step_on(trainer, inputs)
    plan = Mixup(model, mixup, trainer.args.seed).draw(inputs, rows_per_example=2)
    assert plan.of_examples.partner.tolist() != list(range(8))
    chosen, rejected = clean_logits(model, inputs).squeeze(-1).chunk(2)
    partner = plan.of_examples.partner if lam == 0 else slice(None)
    torch.testing.assert_close(trainer.scores[0], chosen[partner], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(trainer.scores[1], rejected[partner], rtol=1e-4, atol=1e-5)


def test_a_margin_is_mixed_with_its_pair(tmp_path):
    class WithMargin(MixedPreferring):
        def compute_loss(self, model, inputs, *args, **kwargs):
            self.margin = inputs["margin"]
            return super().compute_loss(model, inputs, *args, **kwargs)

    trainer = trainer_of(WithMargin, tmp_path, model=steady_bert(num_labels=1), mixup=MIXED, rows_per_example=2)
    margin = torch.arange(8.0)
    step_on(trainer, preferences() | {"margin": margin})
    plan = Mixup(steady_bert(num_labels=1), MIXED, trainer.args.seed).draw(preferences(), rows_per_example=2)
    rows = plan.of_examples
    torch.testing.assert_close(trainer.margin, rows.lam * margin + (1 - rows.lam) * margin[rows.partner])


# ---- Nothing is silent ----


def test_a_batch_without_labels_is_an_error(tmp_path):
    trainer = trainer_of(MixedPreferring, tmp_path, model=steady_bert(num_labels=1), mixup=MIXED)
    with pytest.raises(ValueError, match="labels: no tensor of labels in this training batch.*rows_per_example=2"):
        step_on(trainer, preferences())


def test_a_loss_that_calls_another_model_is_an_error(tmp_path):
    class Elsewhere(MixupMixin, Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return F.cross_entropy(self.other(input_ids=inputs["input_ids"]).logits, inputs["labels"])

    trainer = trainer_of(Elsewhere, tmp_path, mixup=MIXED)
    trainer.other = steady_bert()
    with pytest.raises(ValueError, match="compute_loss did not call the model that it was given"):
        trainer.train()


def test_a_training_step_that_does_not_come_here_is_an_error_before_the_first_update(tmp_path):
    class Stepping(Trainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            loss = self.compute_loss(model, inputs)
            self.accelerator.backward(loss)
            return loss.detach()

    class Mixed(Stepping, MixupMixin):
        pass

    trainer = trainer_of(Mixed, tmp_path, mixup=MIXED)
    with pytest.raises(ValueError, match="no training step came to MixupMixin"):
        trainer.train()
    assert same_weights(trainer.model, steady_bert())
    trainer.save_model(str(tmp_path / "saved"))
    trainer.create_model_card()
    assert not (tmp_path / "saved/mixup_config.yaml").exists()
    assert "hf_mixup" not in Path(tmp_path, "README.md").read_text()
    losses(trainer_of(Mixed, tmp_path, mixup=None))


@pytest.mark.parametrize(
    ("mixup", "named"),
    [
        ({"similarity": 1.0, "alpha": 2.0}, "similarity=1.0"),
        ({"partner": "previous_batch"}, "partner='previous_batch'"),
        ({"clean_weight": 0.5}, "clean_weight=0.5"),
    ],
)
def test_what_needs_mixups_own_loss_is_refused_at_construction(tmp_path, mixup, named):
    with pytest.raises(ValueError, match=rf"{named}: not with a loss of the trainer's own; expected"):
        trainer_of(First, tmp_path, mixup=MIXED | mixup)


def test_a_lambda_for_each_example_is_refused_for_a_loss_of_class_indices(tmp_path):
    trainer = trainer_of(First, tmp_path, mixup=MIXED | {"interpolation": "dimensions"})
    with pytest.raises(ValueError, match="interpolation='dimensions'.*soft_targets=True.*expected 'line'"):
        trainer.train()
    losses(trainer_of(First, tmp_path, mixup=MIXED | {"interpolation": "dimensions"}, soft_targets=True))


# ---- What a training does around its steps ----


def test_what_is_logged_and_saved_names_mixup(tmp_path):
    trainer = trainer_of(First, tmp_path, mixup=MIXED)
    trainer.train()
    assert all(0 < entry["mixup_lambda"] < 1 for entry in trainer.state.log_history if "loss" in entry)
    trainer.save_model(str(tmp_path / "saved"))
    trainer.create_model_card()
    assert (tmp_path / "saved/mixup_config.yaml").exists()
    assert "hf_mixup" in Path(tmp_path, "README.md").read_text()


@pytest.mark.parametrize("kind", [First, Second, OnTrainer])
def test_a_resumed_training_equals_the_uninterrupted_one(tmp_path, kind):
    options = {"mixup": MIXED, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = trainer_of(kind, tmp_path / "whole", **options)
    expected = losses(whole)
    resumed = trainer_of(kind, tmp_path / "whole", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-2"))
    found = [entry["loss"] for entry in resumed.state.log_history if "loss" in entry]
    assert found == expected and same_weights(resumed.model, whole.model)


def test_a_search_runs_over_recipes_with_none_among_them(tmp_path):
    trainer = trainer_of(First, tmp_path, model_init=lambda: steady_bert(), mixup="none", max_steps=2)
    seen = []

    class Noting(type(trainer)):
        def train(self, *args, **kwargs):
            output = super().train(*args, **kwargs)
            seen.append((self.mixup and self.mixup.config.site, self.mixup and self.mixup.config.alpha))
            return output

    trainer.__class__ = Noting
    trials = iter([{"mixup": "none"}, {"recipe": "tmix", "mixup.alpha": 0.3}, {"mixup": "embed_mix", "alpha": 0.7}])
    trainer.hyperparameter_search(hp_space=lambda trial: next(trials), backend="optuna", n_trials=3)
    assert seen == [(None, None), ("hidden", 0.3), ("embeddings", 0.7)]
