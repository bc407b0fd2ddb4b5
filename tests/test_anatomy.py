"""Endpoint exactness and continuity, for every family, site and padding side."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig

from hf_mixup import Mixup, MixupConfig, MixupPlan
from hf_mixup import interpolation as interpolation_module
from hf_mixup.probe import trace
from tests.zoo import DEPTH, FAMILIES, NO_SDPA, cached_toy_model, toy_batch, toy_model

SITES = ("word_embeddings", "embeddings", "hidden", "pooled")
PARTNER = torch.tensor([2, 0, 3, 1])
SEGMENTED = ("bert", "roberta", "deberta-v2", "electra", "albert", "xlnet", "gpt2")
VARIANTS = [
    (family, kernel) for family in FAMILIES for kernel in (["eager"] if family in NO_SDPA else ["eager", "sdpa"])
]


def logits_of(model, batch):
    with torch.no_grad():
        return model(**batch).logits


def mixed_logits(model, batch, site, layer, lam):
    plan = MixupPlan(PARTNER, torch.as_tensor(lam).expand(4).float(), site, layer)
    with Mixup(model, MixupConfig(site=site)).apply(plan, batch):
        return logits_of(model, batch)


def relative_difference(logits, expected):
    return ((logits - expected).abs().max() / expected.abs().max()).item()


def layers_of(model, site):
    return range(trace(model).depth) if site == "hidden" else [None]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize(("family", "kernel"), VARIANTS)
def test_endpoints_are_the_clean_logits_of_either_text(family, kernel, site, side):
    model = cached_toy_model(family, None if family in NO_SDPA else kernel)
    batch = toy_batch(side=side, segments=family in SEGMENTED)
    clean = logits_of(model, batch)
    for layer in layers_of(model, site):
        assert relative_difference(mixed_logits(model, batch, site, layer, 1.0), clean) < 1e-4
        assert relative_difference(mixed_logits(model, batch, site, layer, 0.0), clean[PARTNER]) < 1e-4
        one_each = torch.tensor([1.0, 0.0, 0.0, 1.0])
        expected = torch.where(one_each.bool().unsqueeze(1), clean, clean[PARTNER])
        assert relative_difference(mixed_logits(model, batch, site, layer, one_each), expected) < 1e-4


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize(("family", "kernel"), VARIANTS)
def test_logits_are_continuous_at_the_endpoints_and_mixed_between(family, kernel, site, side):
    changes = {"local_attention": 64} if family == "modernbert" else {}
    model = toy_model(family, None if family in NO_SDPA else kernel, **changes)
    batch = toy_batch(side=side, segments=family in SEGMENTED)
    clean = logits_of(model, batch)
    for layer in layers_of(model, site):
        for near, end in ((1e-6, clean[PARTNER]), (1 - 1e-6, clean)):
            assert relative_difference(mixed_logits(model, batch, site, layer, near), end) < 0.01
        halfway = mixed_logits(model, batch, site, layer, 0.5)
        assert relative_difference(halfway, clean) > 0.05
        assert relative_difference(halfway, clean[PARTNER]) > 0.05


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("site", SITES)
def test_gradients_are_finite_and_reach_every_part(family, site):
    model = toy_model(family)
    batch = toy_batch()
    plan = MixupPlan(PARTNER, torch.full((4,), 0.3), site, 1 if site == "hidden" else None)
    with Mixup(model, MixupConfig(site=site)).apply(plan, batch):
        model(**batch).logits.square().sum().backward()
    anatomy = trace(model)
    for index in (0, 1, anatomy.depth - 1):
        gradients = [p.grad for p in anatomy.calls[index].module.parameters() if p.grad is not None]
        assert gradients and all(gradient.isfinite().all() for gradient in gradients)
        assert any(gradient.abs().max() > 0 for gradient in gradients)
    assert model.get_input_embeddings().weight.grad.abs().max() > 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("site", ["word_embeddings", "embeddings", "hidden"])
def test_more_padding_changes_nothing(family, site):
    model = cached_toy_model(family)
    # XLNet reads its result at the last position, so its texts are padded on the left.
    side, widths = ("left", (5, 0)) if family == "xlnet" else ("right", (0, 5))
    short = toy_batch(side=side)
    fillers = {"input_ids": 1, "attention_mask": 0}
    long = {name: torch.nn.functional.pad(short[name], widths, value=filler) for name, filler in fillers.items()}
    layer = 1 if site == "hidden" else None
    expected = mixed_logits(model, short, site, layer, 0.4)
    assert relative_difference(mixed_logits(model, long, site, layer, 0.4), expected) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_the_probe_leaves_the_model_as_it_was(family):
    model = toy_model(family).train()
    model.requires_grad_(False)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    config = model.config.to_dict()
    random_state = torch.get_rng_state()
    trace(model)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(module.training for module in model.modules())
    assert model.config.to_dict() == config
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_depth_counts_the_blocks_that_run(family):
    assert trace(cached_toy_model(family)).depth == (2 * DEPTH if family in ("t5", "bart") else DEPTH)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_mean_pooling_is_interpolated(pooling):
    model = toy_model("modernbert", classifier_pooling=pooling)
    batch = toy_batch()
    clean = logits_of(model, batch)
    assert trace(model).readout == {"cls": "first", "mean": "mean"}[pooling]
    assert relative_difference(mixed_logits(model, batch, "hidden", 1, 0.0), clean[PARTNER]) < 1e-4
    assert relative_difference(mixed_logits(model, batch, "hidden", 1, 1e-6), clean[PARTNER]) < 0.01


def test_position_ids_of_one_text_follow_it_into_the_mixture():
    model = cached_toy_model("llama")
    batch = toy_batch(side="left")
    batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp_min(0) * 2
    clean = logits_of(model, batch)
    assert relative_difference(mixed_logits(model, batch, "hidden", 0, 0.0), clean[PARTNER]) < 1e-4


@pytest.mark.parametrize(
    "broken",
    ["mix_bias", "mix_keep", "read_last_token"],
)
def test_exactness_needs_the_masks_and_the_read_out(monkeypatch, broken):
    """The control for the tests above: without the rule, the same comparison fails."""
    unmixed = {
        "mix_bias": lambda bias, *rest: bias,
        "mix_keep": lambda keep, *rest: keep,
        "read_last_token": lambda hidden, position, partner, lam: hidden[torch.arange(4), position],
    }
    monkeypatch.setattr(interpolation_module, broken, unmixed[broken])
    model = cached_toy_model("llama", "eager" if broken == "mix_bias" else "sdpa")
    batch = toy_batch()
    clean = logits_of(model, batch)
    assert relative_difference(mixed_logits(model, batch, "hidden", 0, 0.0), clean[PARTNER]) > 1e-2


def test_models_that_are_no_sequence_classifiers_are_refused():
    with pytest.raises(ValueError, match="Linear has no config with num_labels"):
        Mixup(torch.nn.Linear(3, 3))
    with pytest.raises(ValueError, match="BertForSequenceClassification: no list of blocks"):
        trace(toy_model("bert", num_hidden_layers=0))
    with pytest.raises(
        ValueError, match=r"BertModel returns \(11, 13, 32\) for 11 texts, not logits of shape \(11, 3\)"
    ):
        Mixup(toy_model("bert").bert)


def test_an_attention_kernel_without_bias_is_refused():
    model = toy_model("bert")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="attn_implementation='flash_attention_2'.*eager, sdpa"):
        Mixup(model)


def test_layerdrop_is_refused():
    with pytest.raises(ValueError, match=r"encoder_layerdrop=0.1"):
        Mixup(toy_model("bart", encoder_layerdrop=0.1))


def test_a_layer_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"layer 3 is out of range, the model has 3 blocks \(allowed: 0 to 2"):
        Mixup(toy_model("bert"), MixupConfig(site="hidden", layers=[3]))


def test_a_model_that_cannot_run_the_probe_is_refused():
    config = BertConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=2, max_position_embeddings=4)
    with pytest.raises(ValueError, match="the probe that looks for mixup sites failed"):
        trace(AutoModelForSequenceClassification.from_config(config))


def test_a_decoder_without_pad_token_is_refused_when_it_would_be_mixed():
    model = toy_model("gpt2", pad_token_id=None)
    mixup = Mixup(model)
    with pytest.raises(ValueError, match="pad_token_id is not set.*tokenizer.pad_token_id"):
        mixup.prepare()
    single = toy_batch((5,))
    plan = mixup.draw(single)
    with mixup.apply(plan, single):
        assert not plan.active and logits_of(model, single).isfinite().all()
