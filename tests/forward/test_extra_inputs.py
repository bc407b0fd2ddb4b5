"""Inputs besides the tokens go with the example they belong to; state of the model is touched once."""

import pytest
import torch

from hf_mixup import Mixup, MixupPlan
from hf_mixup.cli.inspect.toy import toy_model
from tests.architectures import PARTNER, differences, layers_of
from tests.plain_config import PLAIN, plain_config
from tests.zoo import toy_batch

LENGTHS = (16, 10, 7, 13)


def of_every_token(high, columns, seed=0):
    """Integers for each token, zero at padding."""
    values = torch.randint(1, high, (4, 16, columns), generator=torch.Generator().manual_seed(seed))
    return values * toy_batch(LENGTHS)["attention_mask"].unsqueeze(-1)


def boxes():
    corner = of_every_token(400, 2)
    return torch.cat([corner, corner + of_every_token(90, 2, seed=1)], -1)


def pictures(size):
    return torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))


def segments():
    return {"token_type_ids": toy_batch(LENGTHS, segments=True)["token_type_ids"]}


def entities():
    present = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]])
    positions = torch.tensor([[[0, 1], [2, -1], [5, 6]]]).repeat(4, 1, 1)
    return {
        "entity_ids": torch.tensor([[4, 9, 12], [7, 0, 0], [3, 8, 0], [5, 2, 6]]) * present,
        "entity_position_ids": torch.where(present.bool().unsqueeze(-1), positions, -1),
        "entity_attention_mask": present,
        "entity_token_type_ids": torch.zeros(4, 3, dtype=torch.long),
    }


EXTRA = {
    "layoutlm": lambda: {"bbox": boxes()},
    "lilt": lambda: {"bbox": boxes()},
    "layoutlmv3": lambda: {"bbox": boxes(), "pixel_values": pictures(32)},
    "luke": entities,
    "tapas": lambda: {"token_type_ids": of_every_token(2, 7)},
    "markuplm": lambda: {"xpath_tags_seq": of_every_token(9, 4), "xpath_subs_seq": of_every_token(9, 4)},
    "bert": segments,
    "xlnet": segments,
    "funnel": segments,
}


@pytest.mark.parametrize("without", [False, True])
@pytest.mark.parametrize("model_type", EXTRA)
def test_extra_inputs_go_with_their_example(model_type, without):
    model, batch, extra = toy_model(model_type), toy_batch(LENGTHS), EXTRA[model_type]()
    with torch.no_grad():
        plain, told = model(**batch).logits, model(**batch, **extra).logits
    assert (plain - told).abs().max() > 1e-3 * plain.abs().max(), "the extra input says nothing"
    mixup = Mixup(model, plain_config(site="pooled"))
    batch, clean = (batch, plain) if without else (batch | extra, told)
    for site in ("embeddings", "hidden"):
        for layer in layers_of(mixup.prepare(), site):
            ends, near, half = differences(mixup, batch, site, layer, clean)
            assert ends < 1e-4 and near < 1e-2 and half > 1e-3, (site, layer)


def test_an_argument_that_the_probe_did_not_see_is_refused():
    model, batch = toy_model("luke"), toy_batch(LENGTHS) | entities()
    mixup = Mixup(model)
    for call in mixup.prepare().calls:
        call.seen.discard("entity_hidden_states")
        call.arguments.pop("entity_hidden_states", None)
    plan = MixupPlan(PARTNER, torch.full((4,), 0.5), "embeddings")
    with (
        pytest.raises(ValueError, match="entity_hidden_states: LukeLayer is given it for this batch"),
        mixup.apply(plan, batch),
    ):
        model(**batch)


@pytest.mark.parametrize("site", ["embeddings", "hidden", "pooled"])
@pytest.mark.parametrize("model_type", ["mixtral", "qwen2_moe", "jamba", "llama"])
def test_every_module_runs_as_often_as_in_a_clean_step(model_type, site):
    """So routers count each batch once, caches are written once and recurrent states advance once."""
    model, batch = toy_model(model_type), toy_batch(LENGTHS)
    mixup = Mixup(model, plain_config(site=site))
    runs = {}

    def count(module, args, output):
        runs[module] = runs.get(module, 0) + 1

    for module in model.modules():
        module.register_forward_hook(count)
    model(**batch)
    clean, runs = runs, {}
    with mixup.apply(mixup.draw(batch), batch):
        model(**batch)
    assert runs == clean


def test_values_that_differ_only_in_the_batch_are_refused():
    model, batch = toy_model("xmod"), toy_batch(LENGTHS)
    model.config.languages = ["en_XX", "de_DE"]
    mixup = Mixup(model)
    plan = MixupPlan(PARTNER, torch.full((4,), 0.5), "embeddings")
    with (
        pytest.raises(ValueError, match="lang_ids: XmodLayer is given other values for each example"),
        mixup.apply(plan, batch),
    ):
        model(**batch, lang_ids=torch.tensor([0, 0, 1, 0]))
    with mixup.apply(plan, batch):
        model(**batch, lang_ids=torch.tensor([0, 0, 0, 0]))


def test_images_enter_after_the_token_lookup():
    model = toy_model("gemma3")
    batch = toy_batch(LENGTHS) | {"pixel_values": pictures(32)}
    mixing = Mixup(model).apply(MixupPlan(PARTNER, torch.full((4,), 0.5), "word_embeddings"), batch)
    with pytest.raises(ValueError, match="pixel_values: enters the text after the token lookup"), mixing:
        pass


@pytest.mark.parametrize("model_type", ["bert", "llama", "t5gemma", "longformer", "reformer", "bart"])
def test_what_stands_at_padding_does_not_leak_into_a_mixture(model_type):
    # Longformer and Reformer pad these to 16 themselves.
    model, batch = toy_model(model_type), toy_batch((13, 10, 7, 12))
    mixup = Mixup(model, plain_config(site="pooled"))
    plans = [MixupPlan(PARTNER, torch.full((4,), 0.3), "embeddings")]
    plans += [MixupPlan(PARTNER, torch.full((4,), 0.3), "hidden", 0)]

    def logits():
        found = [model(**batch).logits]
        for plan in plans:
            with mixup.apply(plan, batch):
                found.append(model(**batch).logits)
        return torch.stack(found)

    with torch.no_grad():
        before = logits()
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding) and module.num_embeddings == 60:
                module.weight[1] += 3
        torch.testing.assert_close(logits(), before)


def test_other_outputs_of_a_head_that_reads_both_texts_have_one_row_an_example():
    model, batch = toy_model("eurobert"), toy_batch(LENGTHS)
    mixup = Mixup(model)
    with mixup.apply(mixup.draw(batch), batch):
        output = model(**batch, output_hidden_states=True)
    assert {states.shape[0] for states in output.hidden_states} == {4}


def test_short_texts_for_sparse_attention_are_named():
    model, batch = toy_model("big_bird"), toy_batch(LENGTHS)
    mixup = Mixup(model, PLAIN | {"site": "embeddings"})
    with pytest.raises(ValueError, match="set attention_type='original_full'"), mixup.apply(mixup.draw(batch), batch):
        model(**batch)


@pytest.mark.parametrize(
    ("model_type", "dtype"), [("xlnet", torch.bfloat16), ("deberta", torch.float64), ("xlm", torch.float64)]
)
def test_models_in_other_precisions_are_mixed(model_type, dtype):
    model, batch = toy_model(model_type).to(dtype), toy_batch(LENGTHS)
    mixup = Mixup(model)
    with mixup.apply(mixup.draw(batch), batch):
        assert model(**batch).logits.dtype == dtype
