"""Every classifier of transformers, of texts and of tokens: exact at the ends, continuous near them, gradients."""

import pytest
import torch
from torch import nn
from transformers import PretrainedConfig

from hf_mixup import Mixup, MixupPlan
from hf_mixup.cli.inspect.toy import toy_config
from hf_mixup.forward.anatomy.host import UNDECLARED_BLOCKS
from hf_mixup.forward.anatomy.quirks import QUIRKS
from tests.architectures import (
    ALL_LIMITS,
    AT_THE_END,
    DOCS,
    NEAR_IT,
    NOT_BUILT,
    PARTNER,
    SIDES,
    SITES,
    TEXTS,
    TOKEN_LIMITS,
    TOKEN_TYPES,
    TOKENS,
    TYPES,
    batch_of,
    build,
    differences,
    layers_of,
    logits_of,
    measure,
    mixup_of,
    row,
)
from tests.hosts import OTHER_ROWS
from tests.plain_config import plain_config
from tests.zoo import toy_batch

BUILT = [(name, TEXTS) for name in TYPES if name not in NOT_BUILT]
# One or more of every kind: masks added, compared, multiplied, absent; first, last, mean, own rule; experts; recurrent.
KINDS = ["albert", "bart", "bert", "bloom", "convbert", "deberta-v2", "eurobert", "flaubert", "fnet", "funnel"]
KINDS += ["gpt_oss", "llama", "longformer", "minimax", "modernbert", "mra", "qwen3_next", "t5", "xlnet", "zamba2"]
TOKEN_KINDS = [name for name in ("bros", "t5gemma", *KINDS) if name in TOKEN_TYPES and name not in TOKEN_LIMITS]
TOKENS_BUILT = [(name, TOKENS) for name in TOKEN_TYPES if name not in NOT_BUILT]


@pytest.mark.parametrize(("model_type", "head"), BUILT + TOKENS_BUILT, scope="module")
def test_every_site_is_exact_and_continuous(model_type, head):
    measured = measure(model_type, head)
    assert (measured.anatomy.readout == "tokens") == (head == TOKENS)
    broken_sides, broken_bound, _ = ALL_LIMITS[head].get(model_type, ((), None, None))
    for found, bound in ((measured.at_the_end, AT_THE_END), (measured.near_it, NEAR_IT)):
        for side in SIDES:
            worst = max(found[side, site] for site in SITES)
            if side in broken_sides and bound == broken_bound:
                assert worst >= bound, "this limit is gone: take it out of LIMITS"
            elif side not in broken_sides:
                assert worst < bound, (side, {site: found[side, site] for site in SITES})
    assert min(measured.between.values()) > 1e-3
    assert model_type in OTHER_ROWS or row(model_type) in DOCS.read_text(), "run: python -m tests.architectures"


@pytest.mark.parametrize(("model_type", "head"), BUILT + [(name, TOKENS) for name in TOKEN_KINDS], scope="module")
def test_gradients_are_finite_and_reach_both_sides_of_the_site(model_type, head):
    mixup, batch = mixup_of(model_type, head), batch_of(model_type)
    model, anatomy = mixup.model.train(), mixup.prepare()
    for site, layer in (("embeddings", None), ("hidden", anatomy.depth // 2 - (anatomy.depth < 2)), ("pooled", None)):
        layer = None if layer is None else max(layer, 0)
        torch.manual_seed(0)
        model.zero_grad()
        with mixup.apply(MixupPlan(PARTNER, torch.tensor([0.3, 0.9, 0.5, 0.7]), site, layer), batch):
            logits = model(**batch).logits
        (logits * torch.randn(logits.shape)).sum().backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert all(gradient.isfinite().all() for gradient in gradients.values()), (site, layer)
        blocks = {call.module for call in anatomy.calls}
        for part in (anatomy.calls[0].module, anatomy.calls[-1].module):
            assert any(p.grad is not None and p.grad.any() for p in part.parameters()), (site, layer)
        inside = {p for block in blocks for p in block.parameters()}
        outside = [p for p in model.parameters() if p not in inside and p.grad is not None and p.grad.any()]
        assert any(p.shape[0] > 3 for p in outside) and any(3 in p.shape for p in outside), (site, layer)


@pytest.mark.parametrize("model_type", TOKEN_LIMITS)
def test_a_token_classifier_that_states_pass_by_is_mixed_elsewhere(model_type):
    model = build(model_type, TOKENS)
    with pytest.raises(ValueError, match="site='hidden [0-3]'.* Mix at 'embeddings' or 'pooled', exact in this model"):
        Mixup(model, plain_config(site="hidden"))
    assert Mixup(model, plain_config(site="hidden", layers=[4])).config.site == "hidden"


@pytest.mark.parametrize("head", [TEXTS, TOKENS])
def test_what_is_not_built_cannot_be(head):
    with pytest.raises(ImportError, match="detectron2"):
        build("layoutlmv2", head)
    assert list(NOT_BUILT) == ["layoutlmv2"] and row("layoutlmv2") in DOCS.read_text()


def test_few_architectures_need_to_be_told_of():
    assert len(QUIRKS) <= 20
    assert set(QUIRKS) <= {*TYPES, *TOKEN_TYPES, *UNDECLARED_BLOCKS}


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize("model_type", KINDS)
def test_kernels_are_exact(model_type, kernel):
    try:
        model = build(model_type, attention=kernel)
    except ValueError as error:
        assert kernel == "sdpa" and "does not support" in str(error)
        return
    check(model, model_type, AT_THE_END, NEAR_IT)


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize("model_type", TOKEN_KINDS)
def test_kernels_are_exact_with_a_class_per_token(model_type, kernel):
    try:
        model = build(model_type, TOKENS, attention=kernel)
    except ValueError as error:
        assert kernel == "sdpa" and "does not support" in str(error)
        return
    check(model, model_type, AT_THE_END, NEAR_IT)


@pytest.mark.parametrize("model_type", [name for name in TOKEN_KINDS if name != "flaubert"])
def test_word_embeddings_of_tokens_are_exact(model_type):
    mixup, batch = mixup_of(model_type, TOKENS), batch_of(model_type)
    mixup.model.eval()
    ends, near, _ = differences(mixup, batch, "word_embeddings", None, logits_of(mixup.model, batch))
    assert ends < AT_THE_END and near < NEAR_IT


@pytest.mark.parametrize("model_type", KINDS)
def test_autocast_is_exact(model_type):
    with torch.autocast("cpu", torch.bfloat16):
        check(build(model_type), model_type, 0.03, 0.1)


@pytest.mark.parametrize("model_type", KINDS)
def test_checkpointed_blocks_are_mixed_once(model_type):
    model = without_dropout(model_type)
    if not model.supports_gradient_checkpointing:
        with pytest.raises(ValueError, match="does not support"):
            model.gradient_checkpointing_enable()
        return
    model.train()
    mixup, batch = Mixup(model, plain_config(site="pooled")), batch_of(model_type)
    plans = [MixupPlan(PARTNER, torch.tensor([0.3, 0.9, 0.5, 0.0]), site, layer) for site, layer in sites_of(mixup)]
    plain = [gradients(model, mixup, batch, plan) for plan in plans]
    model.gradient_checkpointing_enable()
    for plan, expected in zip(plans, plain, strict=True):
        for name, gradient in gradients(model, mixup, batch, plan).items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5, msg=f"{plan.site} {name}")


def check(model, model_type, at_the_end, near_it):
    mixup, batch = Mixup(model, plain_config(site="pooled")), batch_of(model_type)
    clean = logits_of(model, batch)
    for site, layer in sites_of(mixup):
        ends, near, _ = differences(mixup, batch, site, layer, clean)
        assert ends < at_the_end and near < near_it, (site, layer)


def sites_of(mixup):
    return [(site, layer) for site in SITES for layer in layers_of(mixup.prepare(), site)]


def without_dropout(model_type):
    names = [name for name in toy_config(model_type).to_dict() if "drop" in name]
    values = {name: 0.0 for name in names if isinstance(getattr(toy_config(model_type), name), float)}
    return build(model_type, **values)


def gradients(model, mixup, batch, plan):
    torch.manual_seed(0)
    model.zero_grad()
    with mixup.apply(plan, batch):
        logits = model(**batch).logits
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.feed_forward = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())

    def forward(self, states, padding):
        states = states + self.attention(states, states, states, key_padding_mask=padding)[0]
        return states + self.feed_forward(states)


class OwnModel(nn.Module):
    """A classifier that transformers does not know: its blocks are in no list, its head pools by attention."""

    base_model_prefix = "body"

    def __init__(self):
        super().__init__()
        self.config = PretrainedConfig(num_labels=3, pad_token_id=1, vocab_size=60)
        self.body = nn.Module()
        self.body.embedding = nn.Embedding(60, 32)
        self.body.lower, self.body.upper = Block(32), Block(32)
        self.body.forward = self.states
        self.attend, self.classify = nn.Linear(32, 1), nn.Linear(32, 3)

    def states(self, input_ids, attention_mask):
        states, padding = self.body.embedding(input_ids), (attention_mask == 0).float() * -1e9
        return self.body.upper(self.body.lower(states, padding), padding)

    def forward(self, input_ids, attention_mask):
        states = self.body(input_ids, attention_mask)
        scores = self.attend(states).masked_fill(attention_mask.unsqueeze(-1) == 0, -1e9)
        return {"logits": self.classify((states * scores.softmax(1)).sum(1))}


def own_model():
    torch.manual_seed(0)
    model = OwnModel().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0, 0.2)
    return model


def test_a_model_of_ones_own_is_told_by_module_paths():
    model = own_model()
    with pytest.raises(ValueError, match="OwnModel: no list of blocks.*in the config's field blocks"):
        Mixup(model)
    paths = ["body.lower", "body.upper"]
    mixup = Mixup(model, plain_config(site="pooled", blocks=paths))
    clean = model(**toy_batch())["logits"]
    for site, layer in sites_of(mixup):
        mixup = Mixup(model, plain_config(site=site, blocks=paths))
        for lam, expected in ((1.0, clean), (0.0, clean[PARTNER])):
            with mixup.apply(MixupPlan(PARTNER, torch.full((4,), lam), site, layer), toy_batch()):
                torch.testing.assert_close(model(**toy_batch())["logits"], expected)
    assert mixup.prepare().readout == "text"


def test_a_path_that_is_no_module_is_refused():
    with pytest.raises(ValueError, match=r"blocks: 'body.lover' is not a module of OwnModel.*body.lower"):
        Mixup(own_model(), plain_config(blocks=["body.lover", "body.upper"]))


@pytest.mark.parametrize("blocks", [[], "", [3], {"a": 1}])
def test_blocks_are_module_paths(blocks):
    with pytest.raises(ValueError, match="blocks=.*expected module paths"):
        plain_config(blocks=blocks)
