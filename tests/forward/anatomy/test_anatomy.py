"""Endpoint exactness and continuity, for every family, site and padding side."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch.utils._pytree import tree_map
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_mixup import Mixup, MixupPlan
from hf_mixup.forward import interpolation
from hf_mixup.forward.anatomy import masks
from hf_mixup.forward.anatomy.probe import trace
from tests.plain_config import PLAIN, plain_config
from tests.zoo import COMMON, DEPTH, FAMILIES, NO_SDPA, cached_toy_model, toy_batch, toy_model

SITES = ("word_embeddings", "embeddings", "hidden", "pooled")
PARTNER = torch.tensor([2, 0, 3, 1])
SEGMENTED = ("bert", "roberta", "deberta-v2", "electra", "albert", "xlnet", "gpt2")
VARIANTS = [
    (family, kernel) for family in FAMILIES for kernel in (["eager"] if family in NO_SDPA else ["eager", "sdpa"])
]


def logits_of(model, batch):
    with torch.no_grad():
        return model(**batch).logits


@cache
def mixup_of(model, site):
    return Mixup(model, plain_config(site=site))


def mixed_logits(model, batch, site, layer, lam):
    plan = MixupPlan(PARTNER, torch.as_tensor(lam).expand(4).float(), site, layer)
    with mixup_of(model, site).apply(plan, batch):
        return logits_of(model, batch)


def relative_difference(logits, expected):
    return ((logits - expected).abs().max() / expected.abs().max()).item()


def layers_of(model, site):
    return range(mixup_of(model, site).prepare().depth) if site == "hidden" else [None]


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
    model = cached_toy_model(family, None if family in NO_SDPA else kernel, **changes)
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
    mixup = Mixup(model, plain_config(site=site))
    with mixup.apply(plan, batch):
        model(**batch).logits.square().sum().backward()
    anatomy = mixup.prepare()
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


@pytest.mark.parametrize("broken", ["mix_bias", "mix_keep", "read_last_token"])
def test_exactness_needs_the_masks_and_the_read_out(monkeypatch, broken):
    """The control for the tests above: without the rule, the same comparison fails, and the model is refused."""
    unmixed = {
        "mix_bias": lambda bias, *rest: bias,
        "mix_keep": lambda keep, *rest: keep,
        "read_last_token": lambda hidden, position, partner, lam: hidden[torch.arange(len(lam)), position],
    }
    monkeypatch.setattr(interpolation if broken == "read_last_token" else masks, broken, unmixed[broken])
    model = cached_toy_model("llama", "eager" if broken == "mix_bias" else "sdpa")
    with pytest.raises(ValueError, match="site='hidden 0': in LlamaForSequenceClassification the logits .* differ"):
        Mixup(model, plain_config(site="hidden"))
    monkeypatch.setattr("hf_mixup.mixup.check_endpoints", lambda *args: None)
    batch = toy_batch()
    clean = logits_of(model, batch)
    assert relative_difference(mixed_logits(model, batch, "hidden", 0, 0.0), clean[PARTNER]) > 1e-2


@pytest.mark.parametrize("family", ["bert", "electra", "gpt2", "llama"])
@pytest.mark.parametrize("site", ["word_embeddings", "embeddings", "hidden"])
def test_positions_that_the_user_gives_follow_their_text(family, site):
    model, batch = cached_toy_model(family), toy_batch(side="left")
    batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp_min(0) * 2
    clean = logits_of(model, batch)
    layer = 0 if site == "hidden" else None
    if family in ("bert", "electra"):
        # What these read at position 0 is padding, so only rows of full length are compared.
        batch, clean = toy_batch((16,) * 4), None
        batch["position_ids"] = torch.stack([torch.arange(16) + 3 * row for row in range(4)])
        clean = logits_of(model, batch)
    assert relative_difference(mixed_logits(model, batch, site, layer, 0.0), clean[PARTNER]) < 1e-4


@pytest.mark.parametrize("family", ["t5", "bart"])
@pytest.mark.parametrize("site", SITES)
def test_encoder_decoders_are_read_at_the_end_of_text_wherever_it_is(family, site):
    model, batch = cached_toy_model(family), toy_batch()
    for row, length in enumerate(batch["attention_mask"].sum(1)):
        batch["input_ids"][row, length - 3], batch["input_ids"][row, length - 1] = 2, 9
    clean = logits_of(model, batch)
    for layer in layers_of(model, site):
        for lam, expected in ((1.0, clean), (0.0, clean[PARTNER])):
            assert relative_difference(mixed_logits(model, batch, site, layer, lam), expected) < 1e-4


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "llama"])
def test_adapters_on_the_embedding_are_mixed_with_it(family):
    peft = pytest.importorskip("peft", reason="peft is an optional package")
    name = {"roberta": "word_embeddings", "bert": "word_embeddings", "gpt2": "wte", "llama": "embed_tokens"}[family]
    config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=[name])
    model = peft.get_peft_model(toy_model(family), config).eval()
    with torch.no_grad():
        for parameter in (p for n, p in model.named_parameters() if "lora_" in n):
            parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    batch = toy_batch()
    clean = logits_of(model, batch)
    assert relative_difference(mixed_logits(model, batch, "word_embeddings", None, 0.0), clean[PARTNER]) < 1e-4


@pytest.mark.parametrize(("before", "after"), [("sdpa", "eager"), ("eager", "sdpa")])
def test_an_attention_kernel_may_change_later(before, after):
    model, batch = toy_model("bert", before), toy_batch()
    mixup = Mixup(model, plain_config(site="hidden"))
    model.set_attn_implementation(after)
    with mixup.apply(MixupPlan(PARTNER, torch.zeros(4), "hidden", 0), batch):
        mixed = logits_of(model, batch)
    assert relative_difference(mixed, logits_of(model, batch)[PARTNER]) < 1e-4


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_head_that_starts_at_zero_is_read_all_the_same(family):
    model = toy_model(family)
    head = model.classifier if family == "bert" else model.score
    torch.nn.init.zeros_(head.weight)
    assert trace(model).readout == {"bert": "first", "llama": "last_token"}[family]
    assert not head.weight.any()


class Quantised(torch.Tensor):
    """A weight that a Linear can be run with, and that cannot be compared with zero."""

    @staticmethod
    def __new__(cls, weight):
        return torch.Tensor._make_wrapper_subclass(cls, weight.shape, dtype=weight.dtype)

    def __init__(self, weight):
        self.weight = weight

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].weight)
        if func is torch.ops.aten.any.default:
            raise NotImplementedError("unimplemented operator: aten.any")
        return func(*tree_map(lambda value: value.weight if isinstance(value, cls) else value, args), **(kwargs or {}))


@pytest.mark.parametrize("site", ["embeddings", "hidden"])
def test_quantised_weights_of_a_head_stay_as_they_are(site):
    model, batch = toy_model("bert"), toy_batch()
    weight = torch.nn.Parameter(Quantised(model.classifier.weight.detach()), requires_grad=False)
    with pytest.raises(NotImplementedError, match="aten.any"):
        weight.any()
    model.classifier.weight = weight
    clean = logits_of(model, batch)
    assert Mixup(model, plain_config(site=site)).prepare().readout == "first"
    layer = 0 if site == "hidden" else None
    assert relative_difference(mixed_logits(model, batch, site, layer, 0.0), clean[PARTNER]) < 1e-4
    assert model.classifier.weight is weight


def test_the_last_encoder_block_is_mixed_before_the_norm_behind_it():
    model, batch, seen = cached_toy_model("t5"), toy_batch((9, 9, 9, 9)), {}
    blocks = model.transformer.encoder.block
    with Mixup(model, plain_config(site="hidden")).apply(
        plan := MixupPlan(PARTNER, torch.full((4,), 0.3), "hidden", 2), batch
    ):
        handles = [
            blocks[1].register_forward_hook(lambda m, args, output: seen.update(below=output[0])),
            model.transformer.encoder.final_layer_norm.register_forward_pre_hook(
                lambda m, args: seen.update(norm=args[0])
            ),
        ]
        logits_of(model, batch)
    [handle.remove() for handle in handles]
    with torch.no_grad():
        bias = blocks[0].layer[0].SelfAttention.compute_bias(9, 9)
        output = blocks[2](seen["below"], None, bias)[0]
    torch.testing.assert_close(seen["norm"], 0.3 * output + 0.7 * output[plan.partner], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", ["bert", "deberta-v2", "xlnet", "llama"])
def test_gradients_are_finite_under_autocast(family, side, lam):
    model, batch = toy_model(family), toy_batch(side=side)
    plan = MixupPlan(PARTNER, torch.full((4,), lam), "embeddings")
    with torch.autocast("cpu", torch.bfloat16), Mixup(model).apply(plan, batch):
        logits = model(**batch).logits
    logits.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_models_that_are_no_sequence_classifiers_are_refused():
    with pytest.raises(ValueError, match="Linear has no config with num_labels"):
        Mixup(torch.nn.Linear(3, 3))
    with pytest.raises(ValueError, match="BertForSequenceClassification: no list of blocks"):
        Mixup(toy_model("bert", num_hidden_layers=0), plain_config(site="embeddings"))
    with pytest.raises(ValueError, match=r"BertModel returns \(11, 32\) for 11 texts, not logits of shape \(11, 3\)"):
        Mixup(toy_model("bert").bert)


def test_an_attention_kernel_that_is_not_known_is_refused():
    model = toy_model("bert")
    model.config._attn_implementation = "paged|eager"
    with pytest.raises(ValueError, match=r"attn_implementation='paged\|eager'.*eager, sdpa, .* or a flash kernel"):
        Mixup(model)


def test_deberta_with_its_convolution_is_mixed_above_it_and_refused_below():
    config = AutoConfig.for_model("deberta-v2", **COMMON, **FAMILIES["deberta-v2"], conv_kernel_size=3)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        [p.normal_(0, 0.2, generator=torch.Generator().manual_seed(0)) for p in model.parameters() if p.dim() > 1]
    message = "site='embeddings': in DebertaV2.* exact. Mix at 'hidden' or 'pooled', exact in this model."
    with pytest.raises(ValueError, match=message):
        Mixup(model, PLAIN | {"site": "embeddings"})
    batch = toy_batch()
    clean = logits_of(model, batch)
    for layer in range(DEPTH):
        assert relative_difference(mixed_logits(model, batch, "hidden", layer, 0.0), clean[PARTNER]) < 1e-4


class ReadsEveryLayer(BertForSequenceClassification):
    """The head sees the first token of what every layer returns."""

    def forward(self, input_ids, attention_mask=None):
        states = self.bert(input_ids, attention_mask=attention_mask, output_hidden_states=True).hidden_states
        return SequenceClassifierOutput(logits=self.classifier(sum(layer[:, 0] for layer in states)))


def test_a_site_that_is_not_exact_is_refused_with_those_that_are():
    model = ReadsEveryLayer(AutoConfig.for_model("bert", **COMMON, **FAMILIES["bert"])).eval()
    with pytest.raises(ValueError, match="site='hidden 0'.* Mix at 'embeddings' or 'pooled', exact in this model."):
        Mixup(model, PLAIN | {"site": "hidden"})
    for site in ("embeddings", "pooled"):
        Mixup(model, PLAIN | {"site": site})


DROPPING = {
    **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48},
    **{"conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2},
    **{"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4, "classifier_proj_size": 16},
    **{"hidden_dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "feat_proj_dropout": 0.0},
    **{"final_dropout": 0.0, "apply_spec_augment": False},
}
BART = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "encoder_layerdrop": 0.5}


def test_layerdrop_is_refused_where_it_acts():
    model, config = toy_model("bart", **BART), plain_config(site="hidden", layers=[1])
    name = "model.model.encoder.layerdrop"
    message = f"{name}=0.5: a dropped block may hold the site; set {name} = 0.0 .the config is only read"
    for rate in (0.5, 0.0):
        # A value that the model has read already.
        model.config.encoder_layerdrop = rate
        with pytest.raises(ValueError, match=message):
            Mixup(model, config)
    with pytest.raises(ValueError, match=f"{name} = 0.0 and model.model.decoder.layerdrop = 0.0 "):
        Mixup(toy_model("bart", **BART, decoder_layerdrop=0.1), config)


def test_after_layerdrop_is_set_to_zero_every_step_is_exact():
    model, batch = toy_model("bart", **BART), toy_batch()
    model.model.encoder.layerdrop = 0.0
    mixup = Mixup(model, plain_config(site="hidden", layers=[1]))
    assert model.config.encoder_layerdrop == 0.5
    model.train()
    for seed in range(20):
        torch.manual_seed(seed)
        clean = logits_of(model, batch)
        torch.manual_seed(seed)
        with mixup.apply(MixupPlan(PARTNER, torch.zeros(4), "hidden", 1), batch):
            assert relative_difference(logits_of(model, batch), clean[PARTNER]) < 1e-4


@pytest.mark.parametrize(
    "changes", [{"site": "word_embeddings"}, {"site": "pooled"}, {"site": "input", "interpolation": "span"}]
)
def test_layerdrop_is_accepted_where_no_block_matters_and_exact_in_every_step(changes):
    model, batch = toy_model("bart", **BART, decoder_layerdrop=0.5), toy_batch()
    mixup = Mixup(model, plain_config(**changes))
    plan = MixupPlan(PARTNER, torch.zeros(4), changes["site"])
    if "interpolation" in changes:
        columns = torch.arange(batch["input_ids"].shape[1]).expand(4, -1)
        plan = replace(plan, source=columns)
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    model.train()
    dropped = set()
    for seed in range(20):
        torch.manual_seed(seed)
        clean = logits_of(model, batch)
        dropped.add(clean.sum().item())
        torch.manual_seed(seed)
        with mixup.apply(plan, batch):
            assert relative_difference(logits_of(model, batch), clean[PARTNER]) < 1e-4
    assert len(dropped) > 10


@pytest.mark.parametrize(
    "changes",
    [
        {"site": "embeddings"},
        {"site": "hidden"},
        {"site": "pooled", "partner": "previous_batch"},
        {"site": "input", "interpolation": "salient_span"},
    ],
)
def test_layerdrop_is_refused_where_a_block_acts_for_others(changes):
    with pytest.raises(ValueError, match="encoder.layerdrop=0.5: a dropped block .*, or mix at 'pooled'"):
        Mixup(toy_model("bart", **BART), plain_config(**changes))


def test_layerdrop_is_accepted_at_a_float_input_and_exact_in_every_step():
    model = Wav2Vec2ForSequenceClassification(Wav2Vec2Config(**DROPPING, layerdrop=0.5))
    for name in ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout"):
        assert getattr(model.config, name) == 0
    mixup, sounds = Mixup(model, plain_config(site="input")), {"input_values": torch.randn(4, 800)}
    model.train()
    dropped = set()
    for seed in range(20):
        torch.manual_seed(seed)
        clean = logits_of(model, sounds)
        dropped.add(clean.sum().item())
        torch.manual_seed(seed)
        with mixup.apply(MixupPlan(PARTNER, torch.zeros(4), "input"), sounds):
            assert relative_difference(logits_of(model, sounds), clean[PARTNER]) < 1e-4
    assert 1 < len(dropped) < 20


def test_layerdrop_that_the_config_decides_is_refused():
    config = Wav2Vec2Config(**DROPPING, layerdrop=0.1)
    with pytest.raises(ValueError, match=r"^model.config.layerdrop=0.1: .*; set model.config.layerdrop = 0.0"):
        Mixup(Wav2Vec2ForSequenceClassification(config))


def test_a_layer_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"layer 3 is out of range, the model has 3 blocks \(allowed: 0 to 2"):
        Mixup(toy_model("bert"), plain_config(site="hidden", layers=[3]))


def test_a_model_that_cannot_run_the_probe_is_refused():
    config = BertConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=2, max_position_embeddings=4)
    with pytest.raises(ValueError, match="the probe that looks for mixup sites failed: RuntimeError: "):
        trace(AutoModelForSequenceClassification.from_config(config))


class Unwilling(BertForSequenceClassification):
    """Fails without a message."""

    def forward(self, input_ids, attention_mask=None):
        raise AssertionError


def test_a_failure_without_a_message_is_named_by_its_type():
    with pytest.raises(ValueError, match="looks for mixup sites failed: AssertionError$"):
        trace(Unwilling(AutoConfig.for_model("bert", **COMMON, **FAMILIES["bert"])))


def test_a_decoder_without_pad_token_is_refused_when_it_would_be_mixed():
    model = toy_model("gpt2", pad_token_id=None)
    mixup = Mixup(model)
    with pytest.raises(ValueError, match="pad_token_id is not set.*tokenizer.pad_token_id"):
        mixup.prepare()
    single = toy_batch((5,))
    plan = mixup.draw(single)
    with mixup.apply(plan, single):
        assert not plan.active and logits_of(model, single).isfinite().all()


def test_special_tokens_outside_the_vocabulary_do_not_stop_the_probe():
    model = toy_model("gpt2", eos_token_id=50256, bos_token_id=50256)
    assert Mixup(model).prepare().readout == "last_token"
