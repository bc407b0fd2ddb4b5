"""Every recipe of unlabelled texts against its formula, read here once more: loops over rows and classes."""

import math

import pytest
import torch

from hf_mixup import MixupTrainer
from hf_mixup.config.recipes import resolve_config
from hf_mixup.config.unlabeled_config import UnlabeledConfig
from tests.methods import OF_UNLABELED
from tests.plain_config import plain_config
from tests.toy_runs import CLASSES, arguments, collate, examples, steady_bert
from tests.zoo import VOCAB

STEPS, BATCH = 4, 6
MASK = VOCAB - 1


class Tokenizer:
    """What of a tokenizer is asked for when tokens are masked."""

    mask_token_id, pad_token_id, padding_side, all_special_ids = MASK, 1, "right", [0, 1, 2]
    model_input_names = ("input_ids", "attention_mask")

    def save_pretrained(self, folder):
        """Nothing to save."""


class Recorded(MixupTrainer):
    """Keeps what the last step was given and what it made of it."""

    def _guess(self, batch):
        self.state_at_guess = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.guessed = super()._guess(batch)
        self.raw = batch
        self.before = self._guesses.state_dict()
        return self.guessed

    def _pass(self, model, lesson):
        logits, outputs, plan = super()._pass(model, lesson)
        self.lesson, self.logits, self.plan = lesson, logits.detach(), plan
        return logits, outputs, plan

    def _losses(self, logits, lesson, plan):
        losses = super()._losses(logits, lesson, plan)
        self.losses = losses.detach()
        return losses


def last_step(recipe, folder):
    """The trainer after its last step, in which the weight of the unlabelled rows has risen."""
    torch.manual_seed(0)
    trainer = Recorded(
        model=steady_bert(),
        args=arguments(folder, max_steps=STEPS, per_device_train_batch_size=BATCH, learning_rate=1e-2),
        train_dataset=examples(12),
        unlabeled_dataset=examples(30, seed=1),
        data_collator=collate,
        processing_class=Tokenizer(),
        mixup=recipe,
    )
    trainer.train()
    return trainer


# Of each recipe: unlabelled rows per labelled one, the weight in the last of four steps, the prior of the alignment,
# the temperature, whether rows weigh as sure as they are, whether the error is squared, whether partners are apart,
# whether tokens are masked, and the parameter of the Beta distribution of lambda, if rows are mixed.
READ = {
    "few_labels": (2, 1.0, "labels", 0.5, True, False, False, True, 2.0),
    "mixtext": (2, 0.75, None, 0.5, False, False, False, False, 16.0),
    "ict": (1, 100.0, None, 1.0, False, True, True, False, 1.0),
    "softmatch": (1, 1.0, "uniform", 0.0, True, False, False, True, None),
    "mean_teacher": (1, 50.0, None, 1.0, False, True, False, False, None),
}


def slow_guesses(guessed, prior, temperature, is_weighed):
    """Targets and weights of a batch whose running means are its own."""
    count = len(guessed)
    mean = [sum(row[kind] for row in guessed) / count for kind in range(CLASSES)]
    targets, largest = [], []
    for row in guessed:
        aligned = [value * (prior[kind] / mean[kind] if prior else 1) for kind, value in enumerate(row)]
        aligned = [value / sum(aligned) for value in aligned]
        largest.append(max(aligned))
        if temperature == 0:
            targets.append([float(value == max(aligned)) for value in aligned])
        else:
            powers = [value ** (1 / temperature) for value in aligned]
            targets.append([power / sum(powers) for power in powers])
    middle = sum(largest) / count
    spread = math.sqrt(sum(value**2 for value in largest) / count - middle**2)
    weights = [math.exp(-(max(0, middle - value) ** 2) / (2 * (spread / 2) ** 2)) for value in largest]
    return targets, weights if is_weighed else [1.0] * count


@pytest.mark.parametrize("recipe", OF_UNLABELED)
def test_the_loss_of_a_step_is_that_of_the_formula(tmp_path, recipe):
    ratio, weight, prior, temperature, is_weighed, is_squared, is_apart, _, alpha = READ[recipe]
    trainer = last_step(recipe, tmp_path)
    plan, logits = trainer.plan, trainer.logits.double()
    shares = {"labels": [5 / 15] * 3, "uniform": [1 / 3] * 3, None: None}[prior]
    targets, weights = slow_guesses(trainer.guessed.double().tolist(), shares, temperature, is_weighed)
    assert len(targets) == ratio * BATCH == len(logits) - BATCH
    own = [[float(label == kind) for kind in range(CLASSES)] for label in trainer.lesson.labels[:BATCH].tolist()]
    targets, weights = own + targets, [1.0] * BATCH + [weight * value / ratio for value in weights]
    for row in range(len(logits)):
        logs = [float(value) for value in logits[row].log_softmax(-1)]
        lam, other = (float(plan.lam[row]), int(plan.partner[row])) if alpha else (1.0, row)
        assert not is_apart or (row < BATCH) == (other < BATCH)
        parts = ((lam * weights[row], targets[row]), ((1 - lam) * weights[other], targets[other]))
        total = sum(share for share, _ in parts)
        if is_squared and row >= BATCH:
            mixed = [sum(share * target[kind] for share, target in parts) / total for kind in range(CLASSES)]
            errors = [(math.exp(log) - value) ** 2 for log, value in zip(logs, mixed, strict=True)]
            expected = total * sum(errors) / CLASSES
        else:
            expected = -sum(share * target[kind] * logs[kind] for share, target in parts for kind in range(CLASSES))
        assert float(trainer.losses[row]) == pytest.approx(expected, rel=2e-3, abs=1e-5)


@pytest.mark.parametrize("recipe", OF_UNLABELED)
def test_rows_are_mixed_and_masked_as_the_recipe_says(tmp_path, recipe):
    is_masked, alpha = READ[recipe][-2:]
    trainer = last_step(recipe, tmp_path)
    assert (trainer.plan.active if trainer.plan else False) == (alpha is not None)
    if alpha is not None:
        assert trainer.mixup.config.alpha == alpha and trainer.plan.lam.unique().numel() == 1
        assert (float(trainer.plan.lam[0]) >= 0.5) or recipe == "ict"
        assert trainer.plan.site == ("embeddings" if recipe == "ict" else "hidden")
    seen, raw = trainer.lesson.inputs["input_ids"][BATCH:], trainer.raw["input_ids"]
    changed = seen[:, : raw.shape[1]] != raw
    assert bool(changed.any()) == is_masked
    assert bool((seen[:, : raw.shape[1]][changed] == MASK).all()) and not bool(changed[raw <= 2].any())


@pytest.mark.parametrize("recipe", OF_UNLABELED)
def test_who_guesses_is_what_the_recipe_says(tmp_path, recipe):
    trainer = last_step(recipe, tmp_path)
    model = steady_bert()
    model.load_state_dict(trainer.state_at_guess)
    with torch.no_grad():
        of_model = model.eval()(**trainer.raw).logits.softmax(-1)
    is_model = torch.allclose(of_model, trainer.guessed, atol=1e-5)
    assert is_model == (recipe in ("mixtext", "softmatch"))
    assert trainer._average.decay == {"few_labels": 0.99, "ict": 0.999, "mean_teacher": 0.999}.get(recipe, 0.999)


def test_what_is_tested_is_every_recipe():
    assert sorted(READ) == sorted(OF_UNLABELED)
    assert all(resolve_config(name).unlabeled is not None for name in OF_UNLABELED)


def test_without_an_argument_it_is_few_labels(tmp_path):
    trainer = last_step("default", tmp_path)
    assert trainer.unlabeled == resolve_config("few_labels").unlabeled
    assert trainer.mixup.config == plain_config(**(resolve_config("few_labels").to_dict() | {"unlabeled": None}))
    assert MixupTrainer(steady_bert(), arguments(tmp_path), mixup="default").unlabeled == UnlabeledConfig()
