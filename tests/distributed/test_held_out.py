"""`strength="auto"` on two ranks: both follow the predictions of both, each row once."""

import tempfile

import pytest
import torch
from torch import distributed

from hf_mixup import MixupTrainer
from hf_mixup.loss.token_task import TokenTask
from hf_mixup.plan.strength import AutoStrength, surplus_of
from tests.distributed.halves import steady_model
from tests.distributed.launch import WORLD, on_two_ranks
from tests.loss.test_token_task import collate as collate_tags
from tests.loss.test_token_task import named_tagger, sentences
from tests.plain_config import PLAIN, plain_config
from tests.toy_runs import CLASSES, arguments, clean_logits, collate, examples

# A number of rows that two ranks and their batches do not share evenly.
ROWS = 13


def sure_model():
    """A model that is sure of everything."""
    model = steady_model("bert")
    with torch.no_grad():
        model.classifier.weight.mul_(20)
    return model


def labelled(count, seed, shift):
    """Texts with the labels that the model predicts, or others."""
    rows = examples(count, seed=seed)
    predicted = clean_logits(sure_model().eval(), collate(rows)).argmax(-1).tolist()
    return [row | {"labels": (label + shift) % CLASSES} for row, label in zip(rows, predicted, strict=True)]


def train_on_both():
    found = {}
    texts = sure_model(), labelled(16, 0, 0), labelled(ROWS, 1, 1), collate
    tags = named_tagger(), sentences(16), sentences(ROWS, 1), collate_tags
    for kind, (model, rows, others, collator) in {"evaluated": texts, "checked": texts, "tags": tags}.items():
        evaluations = {} if kind == "checked" else {"eval_strategy": "steps", "eval_steps": 2}
        with tempfile.TemporaryDirectory() as folder:
            # The weights stay what they are.
            args = arguments(
                folder, max_steps=6, learning_rate=0.0, per_device_eval_batch_size=3, report_to="none", **evaluations
            )
            trainer = MixupTrainer(
                model=model,
                args=args,
                train_dataset=rows,
                eval_dataset=others,
                data_collator=collator,
                mixup=PLAIN | {"strength": "auto", "alpha": 1.0, "check_rows": ROWS if kind == "checked" else 0},
            )
            trainer.train()
        assert distributed.get_world_size() == trainer.args.world_size == WORLD
        checks = [tuple(check) for check in trainer.mixup.planner.auto_strength.checks]
        found[kind] = {"checks": checks, "mixed": trainer.mixup.mixed}
    return found


@pytest.fixture(scope="module")
def ranks():
    return on_two_ranks(train_on_both)


@pytest.mark.parametrize("kind", ["evaluated", "checked"])
def test_both_ranks_follow_every_row_once(ranks, kind):
    batch, expected = collate(labelled(ROWS, 1, 1)), AutoStrength()
    logits = clean_logits(sure_model().eval(), batch)
    surplus = surplus_of(logits, torch.eye(CLASSES)[batch["labels"]], "single_label_classification")
    assert len(ranks) == WORLD and ranks[0][kind] == ranks[1][kind]
    for check in ranks[0][kind]["checks"]:
        expected.see(surplus, check[-1])
        assert check == pytest.approx((*expected.checks[-1][:3], check[3], expected.value, False, check[-1]), abs=1e-5)
        assert check[2] == ROWS and check[0] - check[3] > 0.2
    assert ranks[0][kind]["checks"][-1][4] == 1.0 and ranks[0][kind]["mixed"] > 0


def test_both_ranks_follow_all_tokens_and_entities(ranks):
    model, batch = named_tagger(), collate_tags(sentences(ROWS, 1))
    surplus = TokenTask(model.config, plain_config()).surplus(clean_logits(model, batch), batch["labels"])
    means = [pytest.approx(mean, abs=1e-5) for mean in surplus.mean(0).tolist()]
    assert ranks[0]["tags"] == ranks[1]["tags"] and len(ranks[0]["tags"]["checks"]) > 1
    for check in ranks[0]["tags"]["checks"]:
        assert check[0] in means and check[2] == ROWS and -1 < check[3] < 1
