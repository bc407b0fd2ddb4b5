"""On a GPU: the same equality in bfloat16, and the memory of a step."""

from contextlib import nullcontext

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from benchmarks.flash_stand_in import KERNEL, flash_stand_in
from hf_mixup import Mixup, MixupPlan
from tests.plain_config import plain_config
from tests.zoo import toy_batch, toy_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def on_gpu(batch):
    return {name: value.cuda() for name, value in batch.items()}


def mixed_logits(mixup, model, batch, labels):
    plan = mixup.draw(batch, labels=labels)
    with mixup.apply(plan, batch):
        return plan, model(**batch).logits


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)])
@pytest.mark.parametrize("site", ["embeddings", "hidden", "pooled"])
@pytest.mark.parametrize("family", ["bert", "llama", "bart"])
def test_the_text_before_is_exact_at_both_ends(family, site, dtype, bound):
    model, labels = toy_model(family).cuda(), torch.tensor([0], device="cuda")
    texts = [on_gpu(toy_batch((length,), seed=length)) for length in (9, 14, 6)]
    # Every layer has a memory of its own, so only one is drawn.
    layers = [1] if site == "hidden" else None
    for lam in (0.0, 1.0):
        mixup = Mixup(model, plain_config(site=site, layers=layers, partner="previous_batch", lam=lam, memory=1))
        with torch.no_grad(), torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            mixed_logits(mixup, model, texts[0], labels)
            for before, text in zip(texts, texts[1:], strict=False):
                _, logits = mixed_logits(mixup, model, text, labels)
                expected = model(**(text if lam else before)).logits
                assert (logits - expected).abs().max() < bound * expected.abs().max()


def peak_of_a_step(model, mixup, batch, labels, mixed):
    """Bytes that a step allocates at most beyond what is there before it."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    plan = mixup.draw(batch) if mixed else None
    with nullcontext() if plan is None else mixup.apply(plan, batch):
        logits = model(**batch).logits
    mixup.loss(logits, labels, plan).backward()
    return torch.cuda.max_memory_allocated() - before


def test_a_mixed_step_needs_no_more_memory():
    batch = on_gpu(toy_batch((64, 40, 50, 60) * 8))
    labels = torch.zeros(32, dtype=torch.long, device="cuda")
    # The size of MiniLM-L6.
    shape = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    model = BertForSequenceClassification(BertConfig(num_labels=2, **shape)).cuda().train()
    mixup = Mixup(model, "fixed")
    for mixed in (False, True):  # makes the gradients, and looks at the first batch
        peak_of_a_step(model, mixup, batch, labels, mixed)
    plain, *with_mixup = (peak_of_a_step(model, mixup, batch, labels, mixed) for mixed in (False, True, True, True))
    assert max(with_mixup) <= 1.03 * plain


FLASH, FLEX = KERNEL, "flex_attention"
PARTNER = torch.tensor([1, 2, 3, 0])


def mixed_step(model, lam, is_half):
    """Logits and gradients of a mixture in a middle layer."""
    batch, mixup = on_gpu(toy_batch()), Mixup(model, plain_config(site="hidden", layers=[1]))
    plan = MixupPlan(PARTNER, torch.full((4,), lam), "hidden", 1)
    with torch.autocast("cuda", torch.bfloat16, enabled=is_half), mixup.apply(plan, batch):
        logits = model(**batch).logits.float()
    logits.square().sum().backward()
    found = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=is_half):
        return logits.detach(), found, model(**batch).logits.float()


# In float32 with autocast the weights stay in float32, and the probe has to run all the same. transformers has no flex
# attention for GPT-2.
KERNELS = [(FLASH, torch.float32), (FLASH, torch.bfloat16), (FLEX, torch.float32)]
CASES = [(family, *kernel) for family in ("bert", "modernbert", "llama", "gpt2") for kernel in KERNELS]


@pytest.mark.parametrize(("family", "kernel", "dtype"), [case for case in CASES if case[:2] != ("gpt2", FLEX)])
def test_kernels_without_bias_mix_as_the_eager_one(family, kernel, dtype):
    # Heads of 32, which flex attention needs at least 16 for.
    size = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    changes = {"attention_dropout": 0.0} | (size if family != "gpt2" else {})
    is_half, bound = kernel == FLASH, 2e-2 if kernel == FLASH else 1e-3
    with flash_stand_in():
        model = toy_model(family, kernel, **changes).cuda().to(dtype)
        eager = toy_model(family, "eager", **changes).cuda()
        for lam in (0.0, 1.0):
            logits, _, clean = mixed_step(model, lam, is_half)
            expected = clean if lam else clean[PARTNER]
            assert (logits - expected).abs().max() < bound * expected.abs().max()
        logits, found, _ = mixed_step(model, 0.3, is_half)
    expected, wanted, _ = mixed_step(eager, 0.3, False)
    assert (logits - expected).abs().max() < 2 * bound * expected.abs().max()
    largest = max(gradient.abs().max() for gradient in wanted.values())
    worst = max((found[name] - gradient).abs().max() / largest for name, gradient in wanted.items())
    assert worst < 3 * bound
