"""The average of the weights: what is evaluated, saved and left, while the training is as without it."""

import logging
import shutil

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, TrainerCallback
from transformers.training_args import OptimizerNames

from hf_mixup.training.averaging import EMA_DECAY, STATE_NAME
from tests.plain_config import PLAIN
from tests.toy_runs import clean_logits, collate, examples, make_trainer, same_weights, steady_bert
from tests.zoo import toy_model

MIXED = PLAIN | {"site": "hidden", "alpha": 1.0, "prob": 0.8}
STEPS = 6
# Evaluations and checkpoints in between, at which the weights are swapped.
SWAPS = {
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_strategy": "steps",
    "save_steps": 2,
    "eval_dataset": examples(6),
}


def copied(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


class Seen(TrainerCallback):
    """The weights of the model before the first update and after each, and at the end."""

    def __init__(self):
        self.weights, self.at_end = [], None

    def on_train_begin(self, *args, model=None, **kwargs):
        self.weights.append(copied(model))

    def on_step_end(self, *args, model=None, **kwargs):
        self.weights.append(copied(model))

    def on_train_end(self, *args, model=None, **kwargs):
        self.at_end = copied(model)


def trained(folder, model=None, resume=None, **options):
    """A trainer after its training, and the weights that were seen."""
    seen = Seen()
    options = {"averaging": "ema", "max_steps": STEPS, "learning_rate": 1e-2, "callbacks": [seen]} | options
    trainer = make_trainer(folder, model, **options)
    trainer.train(resume_from_checkpoint=resume)
    return trainer, seen


def average_of(weights, decay=EMA_DECAY):
    """The average of the weights that were seen, one by one."""
    average = {name: weight.double() for name, weight in weights[0].items()}
    for update, latest in enumerate(weights[1:], 1):
        kept = min(decay, (1 + update) / (10 + update))
        average = {name: kept * value + (1 - kept) * latest[name].double() for name, value in average.items()}
    return average


def assert_close(weights, expected, **tolerance):
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight.double(), expected[name], msg=name, **tolerance or {"rtol": 0, "atol": 1e-6})


@pytest.mark.parametrize("mixup", [None, MIXED], ids=["off", "mixed"])
def test_the_training_is_as_without_averaging(tmp_path, mixup):
    _, plain = trained(tmp_path / "plain", toy_model("bert"), averaging=None, mixup=mixup, **SWAPS)
    trainer, seen = trained(tmp_path / "averaged", toy_model("bert"), mixup=mixup, **SWAPS)
    assert len(seen.weights) == len(plain.weights) == STEPS + 1
    for one, other in zip(seen.weights, plain.weights, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in other)
    assert_close(copied(trainer.model), average_of(plain.weights))
    assert not torch.equal(seen.at_end["classifier.weight"], plain.at_end["classifier.weight"])


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_the_decay_is_the_smaller_of_the_given_and_that_of_the_updates(tmp_path, decay):
    trainer, seen = trained(tmp_path, ema_decay=decay, gradient_accumulation_steps=2, per_device_train_batch_size=2)
    assert_close(copied(trainer.model), average_of(seen.weights, decay))


def test_evaluation_and_prediction_are_those_of_the_average(tmp_path):
    logits, rows = [], examples(6)

    def keep(predictions):
        logits.append(predictions.predictions)
        return {}

    trainer, seen = trained(tmp_path, compute_metrics=keep, **SWAPS)
    assert len(logits) == STEPS
    for update in range(1, STEPS + 1):
        model = steady_bert()
        model.load_state_dict(average_of(seen.weights[: update + 1]), strict=False)
        np.testing.assert_allclose(logits[update - 1], clean_logits(model, collate(rows)), atol=1e-5)
    np.testing.assert_array_equal(trainer.predict(rows).predictions, logits[-1])


def test_what_is_saved_is_the_plain_model_with_the_average(tmp_path):
    trainer, seen = trained(tmp_path, **SWAPS)
    plain, _ = trained(tmp_path / "plain", averaging="none", **SWAPS)
    trainer.save_model(tmp_path / "final")
    for step in (2, 4, 6):
        saved = load_file(tmp_path / f"checkpoint-{step}" / "model.safetensors")
        assert saved.keys() == load_file(tmp_path / f"plain/checkpoint-{step}" / "model.safetensors").keys()
        assert_close(saved, average_of(seen.weights[: step + 1]))
        raw = torch.load(tmp_path / f"checkpoint-{step}" / STATE_NAME, weights_only=True)
        assert raw["updates"] == step and not raw["averages"]
        assert all(torch.equal(weight, seen.weights[step][name]) for name, weight in raw["weights"].items())
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "final")
    assert same_weights(loaded, trainer.model)
    names = [path.name for folder in ("final", "plain/checkpoint-2") for path in (tmp_path / folder).iterdir()]
    assert STATE_NAME not in names


def test_callbacks_see_the_average_at_the_end_and_the_next_training_starts_anew(tmp_path):
    trainer, seen = trained(tmp_path)
    assert_close(seen.at_end, average_of(seen.weights))
    first = seen.at_end
    seen.weights.clear()
    trainer.train()
    assert all(torch.equal(weight, first[name]) for name, weight in seen.weights[0].items())
    assert_close(copied(trainer.model), average_of(seen.weights))


def test_the_best_model_is_the_average_at_its_evaluation(tmp_path):
    best = {"metric_for_best_model": "loss", "load_best_model_at_end": True, "greater_is_better": True}
    trainer, seen = trained(tmp_path, **SWAPS | {"eval_steps": 2}, **best)
    step = trainer.state.best_global_step
    assert 0 < step < STEPS
    assert_close(copied(trainer.model), average_of(seen.weights[: step + 1]))


# ---- Checkpoints ----


def bert(dtype):
    return toy_model("bert").to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("step", [2, 4])
def test_a_resumed_training_ends_with_the_same_average(tmp_path, dtype, step):
    options = SWAPS | {"mixup": MIXED, "per_device_train_batch_size": 4}
    whole, seen = trained(tmp_path / "whole", bert(dtype), **options)
    shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", tmp_path / "resumed" / f"checkpoint-{step}")
    resumed, later = trained(tmp_path / "resumed", bert(dtype), resume=True, **options)
    assert same_weights(resumed.model, whole.model)
    assert len(later.weights) == STEPS - step + 1
    for one, other in zip(later.weights[1:], seen.weights[step + 1 :], strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    states = [torch.load(tmp_path / name / f"checkpoint-{STEPS}" / STATE_NAME) for name in ("whole", "resumed")]
    assert len(states[0]["averages"]) == (0 if dtype == torch.float32 else len(states[0]["weights"]))
    for name, average in states[0]["averages"].items():
        assert torch.equal(average, states[1]["averages"][name])


def test_the_average_of_a_low_precision_model_is_more_precise(tmp_path):
    trainer, seen = trained(tmp_path, bert(torch.bfloat16), max_steps=12)
    assert_close(copied(trainer.model), average_of(seen.weights), rtol=2**-8, atol=1e-6)
    assert {weight.dtype for weight in trainer.model.parameters()} == {torch.bfloat16}


def test_a_checkpoint_of_the_other_kind(tmp_path, caplog):
    trained(tmp_path, **SWAPS)
    with pytest.raises(ValueError, match="averaging=None: .*checkpoint-4 was saved with averaging='ema'"):
        trained(tmp_path / "x", averaging="none", resume=str(tmp_path / "checkpoint-4"), **SWAPS)
    trained(tmp_path / "plain", averaging=None, **SWAPS)
    with caplog.at_level(logging.WARNING):
        _, seen = trained(tmp_path / "y", resume=str(tmp_path / "plain" / "checkpoint-4"), **SWAPS)
    assert "saved without averaging, so the average starts anew" in caplog.text


def test_a_checkpoint_whose_average_is_cut_off_is_not_whole(tmp_path):
    trained(tmp_path, **SWAPS)
    state = tmp_path / "checkpoint-4" / STATE_NAME
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"no whole checkpoint: {STATE_NAME} cannot be read"):
        trained(tmp_path, resume=str(state.parent))


def test_a_checkpoint_of_other_layers_is_refused(tmp_path):
    models = [steady_bert(), steady_bert()]
    for number, model in enumerate(models):
        model.bert.encoder.layer[number].requires_grad_(False)
    trained(tmp_path, models[0], **SWAPS)
    with pytest.raises(ValueError, match=f"{STATE_NAME}: holds other weights than are trained now"):
        trained(tmp_path / "other", models[1], resume=str(tmp_path / "checkpoint-4"), **SWAPS)


# ---- Models ----


def adapted():
    return get_peft_model(steady_bert(), LoraConfig(task_type="SEQ_CLS", target_modules=["query"], r=2))


def test_an_adapter_is_averaged_alone_saved_and_resumed(tmp_path):
    trainer, seen = trained(tmp_path / "whole", adapted(), **SWAPS)
    names = {name for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    state = torch.load(tmp_path / "whole" / "checkpoint-2" / STATE_NAME)
    assert set(state["weights"]) == names
    assert_close(copied(trainer.model), average_of(seen.weights))
    loaded = PeftModel.from_pretrained(steady_bert(), tmp_path / "whole" / f"checkpoint-{STEPS}")
    assert same_weights(loaded, trainer.model)
    resumed, _ = trained(tmp_path / "r", adapted(), resume=str(tmp_path / "whole" / "checkpoint-2"), **SWAPS)
    assert same_weights(resumed.model, trainer.model)


def test_tied_weights_stay_tied_and_are_averaged_once(tmp_path):
    model = toy_model("bart")
    trainer, seen = trained(tmp_path, model, **SWAPS)
    tables = model.model.shared, model.model.encoder.embed_tokens, model.model.decoder.embed_tokens
    assert all(table.weight is tables[0].weight for table in tables)
    assert_close(copied(trainer.model), average_of(seen.weights))
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / f"checkpoint-{STEPS}")
    assert same_weights(loaded, model)


class Unfreeze(TrainerCallback):
    def on_step_begin(self, args, state, control, model=None, **kwargs):
        model.bert.encoder.requires_grad_(state.global_step >= 2)


def test_layers_that_are_unfrozen_later_are_averaged(tmp_path):
    seen, model = Seen(), steady_bert()
    trainer = make_trainer(tmp_path, model, averaging="ema", max_steps=STEPS, callbacks=[Unfreeze(), seen])
    trainer.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.bert.encoder.requires_grad_(False)
    trainer.train()
    name = "bert.encoder.layer.0.output.dense.weight"
    assert torch.equal(seen.weights[2][name], seen.weights[0][name])
    assert not torch.equal(seen.weights[3][name], seen.weights[0][name])
    assert_close(copied(model), average_of(seen.weights))


# ---- What is refused ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"averaging": "emma"}, "averaging='emma': expected one of ema, none. Did you mean 'ema'"),
        ({"averaging": "ema", "ema_decay": 1.5}, "ema_decay=1.5: expected a finite number >= 0 and <= 1"),
        ({"averaging": "none", "ema_decay": 0.9}, "ema_decay=0.9: used with averaging='ema' only"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, **options)


def test_sharded_weights_and_optimizers_that_average_are_refused(tmp_path):
    trainer = make_trainer(tmp_path, averaging="ema")
    trainer.is_fsdp_enabled = True
    with pytest.raises(ValueError, match="averaging='ema': not with FSDP"):
        trainer._average.attach(trainer)
    trainer.is_fsdp_enabled = False
    trainer.args.optim = OptimizerNames.SCHEDULE_FREE_ADAMW
    with pytest.raises(ValueError, match="optim='schedule_free_adamw' averages by itself"):
        trainer._average.attach(trainer)
