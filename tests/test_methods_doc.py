"""The table of methods in the docs: as it is generated, complete, and true of the passes that a step takes."""

import re
from collections import Counter
from dataclasses import replace

import pytest
import torch

from hf_mixup import MixupTrainer
from hf_mixup.config.recipes import recipe_names, resolve_config
from tests import methods
from tests.forward.anatomy.test_images_and_sounds import toy
from tests.loss.test_token_task import collate as collate_tags
from tests.loss.test_token_task import named_tagger, sentences
from tests.toy_runs import CLASSES, arguments, collate, examples, steady_bert


def test_every_recipe_has_a_row_and_every_row_a_recipe():
    assert sorted(methods.METHODS) == recipe_names()


def test_the_docs_are_what_is_generated():
    text = methods.DOCS.read_text(encoding="utf-8")
    assert text == methods.written(text), "stale: run python -m tests.methods"


def _is_drawn(config, alpha, beta):
    return (alpha, beta) == (config.alpha, config.alpha if config.beta is None else config.beta)


@pytest.mark.parametrize("name", recipe_names())
def test_the_formula_names_the_distribution_of_lambda(name):
    config, formula = resolve_config(name), methods.METHODS[name].formula
    said = re.search(r"Beta\((\d[\d.]*), (\d[\d.]*)\)", formula.replace("b, b' ~ Beta(2, 5)", ""))
    has_none = config.strength == 0 or config.interpolation == "entity_span"
    assert _is_drawn(config, *map(float, said.groups())) if said else config.lam or config.similarity or has_none
    is_folded = config.dominant and config.similarity is None and not has_none
    assert ("max(lambda, 1 - lambda)" in formula) == is_folded


@pytest.mark.parametrize(
    "link", re.findall(r"\]\((?!https?:)([^)#]+)\)", methods.DOCS.read_text(encoding="utf-8").split("<!-- table")[0])
)
def test_links_lead_somewhere(link):
    assert (methods.DOCS.parent / link).exists()


def with_groups(rows):
    batch = collate(rows)
    return batch | {"group": torch.tensor([row["group"] for row in rows])} if "group" in rows[0] else batch


def trainer_of(name, folder):
    """A trainer of one step, with the recipe and data that suit it."""
    config, rows = resolve_config(name), examples(8)
    if name in methods.OF_PIXELS:
        images = [{"pixel_values": torch.randn(3, 32, 32), "labels": number % CLASSES} for number in range(8)]
        return MixupTrainer(toy("vit"), arguments(folder, max_steps=1), train_dataset=images, mixup=config)
    if name in methods.OF_TOKENS:
        args = arguments(folder, max_steps=1)
        rows = sentences(8)
        return MixupTrainer(named_tagger(), args, train_dataset=rows, data_collator=collate_tags, mixup=config)
    model = steady_bert()
    if name == "c_mixup":
        model, rows = steady_bert(num_labels=1), examples(8, float)
    if name == "lisa":
        rows = [row | {"group": number % 2} for number, row in enumerate(rows)]
    if name == "remix":
        config.class_counts = [3.0, 3.0, 2.0]
    more = {}
    if name in methods.OF_UNLABELED:
        config.unlabeled = replace(config.unlabeled, start=0.0, ramp=0.0, mask=0.0)
        more = {"unlabeled_dataset": examples(20)}
    args = arguments(folder, max_steps=1)
    return MixupTrainer(model, args, data_collator=with_groups, train_dataset=rows, mixup=config, **more)


@pytest.mark.parametrize("name", recipe_names())
def test_a_step_takes_the_passes_that_the_table_says(tmp_path, name):
    trainer = trainer_of(name, tmp_path)
    passes = Counter()
    # The first batch is looked at once more in evaluation mode.
    trainer.model.register_forward_pre_hook(lambda model, args: passes.update(["forward"] * model.training))
    trainer.model.classifier.register_full_backward_pre_hook(lambda *args: passes.update(["backward"]))
    trainer.train()
    assert (passes["forward"], passes["backward"]) == methods.METHODS[name].passes
