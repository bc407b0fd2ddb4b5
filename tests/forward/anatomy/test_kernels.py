"""Flash kernels take the mask of mixed padding exactly, and flex attention does."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import modeling_flash_attention_utils
from transformers.models.gptj import modeling_gptj

from benchmarks.flash_stand_in import KERNEL, flash_stand_in
from hf_mixup import Mixup, MixupPlan
from hf_mixup.cli.inspect.toy import toy_model as any_toy_model
from hf_mixup.forward.anatomy import host, kernels
from hf_mixup.forward.anatomy.soft_mask import soft_mask
from tests.architecture_kernels import summary
from tests.architectures import DOCS
from tests.flex_on_cpu import flex_on_cpu
from tests.plain_config import plain_config
from tests.zoo import DEPTH, toy_batch, toy_model

PARTNER = torch.tensor([1, 2, 3, 0])
ENCODERS, DECODERS = ("bert", "roberta", "modernbert"), ("llama", "qwen2", "mistral", "gpt2")


@pytest.fixture(scope="module", autouse=True)
def flash():
    with flash_stand_in():
        yield


def model_with(family, attention):
    if family == "mistral":
        return any_toy_model("mistral", attention, sliding_window=6)
    model = toy_model(family, attention)
    # transformers has no flash attention for GPT-2 in float32 without autocast.
    return model.double() if (family, attention) == ("gpt2", KERNEL) else model


def mixed(mixup, batch, lam, site, layer):
    with mixup.apply(MixupPlan(PARTNER, torch.full((4,), lam), site, layer), batch):
        return mixup.model(**batch).logits


def gradients(mixup, batch, site, layer):
    logits = mixed(mixup, batch, 0.3, site, layer)
    logits.square().sum().backward()
    found = {name: value.grad.float() for name, value in mixup.model.named_parameters() if value.grad is not None}
    mixup.model.zero_grad()
    return logits.float(), found


def assert_close(one, other, bound=1e-4):
    assert (one - other).abs().max() < bound * other.abs().max()


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", [*ENCODERS, "bart", *DECODERS])
def test_a_flash_kernel_mixes_as_the_eager_one(family, side):
    batch, sites = toy_batch(side=side), (("embeddings", None), ("hidden", 1))
    mixup = Mixup(model_with(family, KERNEL), plain_config(site="hidden", layers=[1]))
    with torch.no_grad():
        clean = mixup.model(**batch).logits
        for site, layer in sites:
            # Near an end there is little weight, so what it multiplies may not be large.
            for lam, expected, bound in ((1, clean, 1e-4), (0, clean[PARTNER], 1e-4), (1 - 1e-7, clean, 1e-2)):
                assert_close(mixed(mixup, batch, lam, site, layer), expected, bound)
    if side == "left" and family not in DECODERS:
        # Texts that are padded where the head or a decoder reads: there a flash kernel reads nothing, mixed or not.
        return
    eager = Mixup(model_with(family, "eager"), plain_config(site="hidden", layers=[1]))
    for site, layer in sites:
        (logits, found), (expected, wanted) = (gradients(each, batch, site, layer) for each in (mixup, eager))
        assert_close(logits, expected)
        assert found.keys() == wanted.keys()
        largest = max(gradient.abs().max() for gradient in wanted.values())
        for name, gradient in wanted.items():
            assert (found[name] - gradient).abs().max() < 1e-4 * largest, name


@pytest.mark.parametrize("scaling", [0.02, None])
def test_half_precision_keeps_the_bias(scaling):
    """The weight of a key that nothing else tells from the others, as bfloat16 sees it."""
    weight = torch.tensor([[1.0e-3, 1.3e-3, 1.7e-3, 0.9e-3, 1.1e-3]])
    states = torch.zeros(1, 2, 5, 24, dtype=torch.bfloat16)
    value = torch.eye(5, 24, dtype=torch.bfloat16).expand(1, 2, 5, 24)
    module = toy_model("bert", KERNEL).bert.encoder.layer[0].attention.self
    output, _ = kernels.flash_attention_with_weights(module, states, states, value, soft_mask(weight), 0.0, scaling)
    shares = weight[0] / weight.sum()
    torch.testing.assert_close(output[0, 0, 0, :5].float(), shares, atol=1e-5, rtol=4e-3)
    assert output.shape == (1, 5, 2, 24) and output.is_contiguous()


class Count(TorchFunctionMode):
    """Counts what is done to tensors of four dimensions."""

    def __init__(self):
        self.calls = Counter()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        parts = args[0] if args and isinstance(args[0], (list, tuple)) else args
        if parts and isinstance(parts[0], torch.Tensor) and parts[0].dim() == 4:
            self.calls[getattr(func, "__name__", "")] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("lengths", [(16, 10, 7, 13), (9, 9, 9, 9)])
def test_a_layer_grows_each_tensor_once_and_not_at_all_without_padding(lengths, monkeypatch):
    batch, calls, runs = toy_batch(lengths), {}, Counter()
    mixup = Mixup(toy_model("llama", KERNEL), plain_config(site="embeddings"))
    forward = host.flash_attention_forward

    def counted(*args, **kwargs):
        runs[lam] += 1
        return forward(*args, **kwargs)

    monkeypatch.setattr(host, "flash_attention_forward", counted)
    for lam in (None, 0.3):
        with Count() as count:
            mixup.model(**batch) if lam is None else mixed(mixup, batch, lam, "embeddings", None)
        calls[lam] = count.calls
    more = {name: calls[0.3][name] - calls[None][name] for name in ("cat", "pad")}
    assert more == ({"cat": 0, "pad": 0} if len(set(lengths)) == 1 else {"cat": DEPTH, "pad": 2 * DEPTH})
    assert runs == {None: DEPTH, 0.3: DEPTH}


def test_layers_that_share_a_mask_share_its_bias(monkeypatch):
    made, make = [], kernels._biases
    monkeypatch.setattr(kernels, "_biases", lambda *args: made.append(args) or make(*args))
    mixup, batch = Mixup(toy_model("llama", KERNEL), plain_config(site="embeddings")), toy_batch()
    made.clear()
    for passes in (1, 2):
        mixed(mixup, batch, 0.3, "embeddings", None)
        assert DEPTH > 1 and len(made) == passes


def test_the_table_of_kernels_is_changed_once_and_other_models_do_not_see_it():
    model, batch = toy_model("bert", KERNEL), toy_batch()
    host.ALL_ATTENTION_FUNCTIONS.register(KERNEL, host.flash_attention_forward)
    before = model(**batch).logits
    for _ in range(2):
        Mixup(toy_model("bert", KERNEL))
        assert host.ALL_ATTENTION_FUNCTIONS[KERNEL] is kernels.flash_attention_with_weights
    torch.testing.assert_close(model(**batch).logits, before, rtol=0, atol=0)
    Mixup(toy_model("bert", "sdpa"))
    assert host.ALL_ATTENTION_FUNCTIONS["sdpa"] is not kernels.flash_attention_with_weights


def test_the_table_is_changed_again_if_transformers_fills_it_anew():
    """As it does when a kernel of the hub is loaded for another model."""
    mixup, batch = Mixup(toy_model("bert", KERNEL), plain_config(site="embeddings")), toy_batch()
    with torch.no_grad():
        expected = mixed(mixup, batch, 0.3, "embeddings", None)
        host.ALL_ATTENTION_FUNCTIONS.register(KERNEL, host.flash_attention_forward)
        torch.testing.assert_close(mixed(mixup, batch, 0.3, "embeddings", None), expected, rtol=0, atol=0)


def test_a_checkpointed_model_has_the_same_gradients():
    batch, found = toy_batch(), []
    for is_checkpointed in (False, True):
        model = toy_model("bert", KERNEL, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
        if is_checkpointed:
            model.gradient_checkpointing_enable()
        found.append(gradients(Mixup(model, plain_config(site="embeddings")), batch, "embeddings", None)[1])
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)


def test_partners_from_outside_of_the_batch():
    model, texts = toy_model("bert", KERNEL), [toy_batch((9, 6)), toy_batch((12, 5))]
    mixup = Mixup(model, plain_config(site="hidden", layers=[1], partner="previous_batch", lam=0.0, memory=2))
    labels = torch.tensor([0, 1])
    for text in texts:
        plan = mixup.draw(text, labels=labels)
        with torch.no_grad(), mixup.apply(plan, text):
            logits = model(**text).logits
    with torch.no_grad():
        clean = model(**texts[0]).logits
    assert_close(logits, clean[plan.partner - 2])


def test_a_compiled_model_mixes():
    torch._dynamo.reset()
    model, batch = toy_model("bert", KERNEL, num_hidden_layers=2), toy_batch()
    mixup, compiled = Mixup(model, plain_config(site="embeddings")), torch.compile(model, backend="eager")
    plan = MixupPlan(PARTNER, torch.full((4,), 0.3), "embeddings")
    with torch.no_grad():
        expected = mixed(mixup, batch, 0.3, "embeddings", None)
        with mixup.apply(plan, batch):
            torch.testing.assert_close(compiled(**batch).logits, expected)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("gemma2", {}, r"softcap=50.0: .*attn_implementation='eager', or mix at 'pooled'"),
        ("bert", {"hidden_size": 256, "num_attention_heads": 1}, r"head size 256: a flash kernel takes at most 256"),
        ("gptj", {}, r"nonzero: not known .*attn_implementation='eager', else mix at 'pooled'"),
    ],
)
def test_what_a_flash_kernel_cannot_take_is_refused_where_it_would_mix(family, changes, message, monkeypatch):
    # GPT-J calls flash kernels by itself, and has imported how only where there is one.
    own, forward = "_flash_attention_forward", modeling_flash_attention_utils._flash_attention_forward
    monkeypatch.setattr(modeling_gptj, own, forward, raising=False)
    model = any_toy_model(family, KERNEL, **changes).double()
    with pytest.raises(ValueError, match=message):
        Mixup(model, plain_config(site="hidden"))
    Mixup(model, plain_config(site="pooled"))


def test_flex_attention_mixes_as_the_eager_kernel():
    with flex_on_cpu():
        for family in ("bert", "llama"):
            mixup = Mixup(toy_model(family, "flex_attention"), plain_config(site="embeddings"))
            eager = Mixup(toy_model(family, "eager"), plain_config(site="embeddings"))
            batch = toy_batch(side="left")
            with torch.no_grad():
                clean = mixup.model(**batch).logits
                for lam, expected in ((1.0, clean), (0.0, clean[PARTNER])):
                    assert_close(mixed(mixup, batch, lam, "hidden", 1), expected)
            (logits, found), (expected, wanted) = (gradients(each, batch, "hidden", 1) for each in (mixup, eager))
            assert_close(logits, expected)
            largest = max(gradient.abs().max() for gradient in wanted.values())
            for name, gradient in wanted.items():
                assert (found[name] - gradient).abs().max() < 1e-4 * largest, name


class HeadOverPadding(nn.Module):
    """A head of one's own that takes padding for text."""

    def __init__(self, body):
        super().__init__()
        self.body, self.head, self.config = body, nn.Linear(body.config.hidden_size, 3), body.config

    def forward(self, input_ids, attention_mask):
        return self.head(self.body(input_ids, attention_mask).last_hidden_state.mean(1))


def test_a_head_that_reads_padding_is_close_to_the_ends_beside_them():
    model, batch = HeadOverPadding(toy_model("bert", KERNEL).bert).eval(), toy_batch()
    mixup = Mixup(model, plain_config(site="hidden", layers=[1]))
    clean = model(**batch)
    for lam, expected in ((1 - 1e-6, clean), (1e-6, clean[PARTNER])):
        with mixup.apply(MixupPlan(PARTNER, torch.full((4,), lam), "hidden", 1), batch):
            assert_close(model(**batch), expected, 1e-3)


@pytest.mark.slow
def test_the_docs_say_what_every_architecture_does():
    assert summary() in DOCS.read_text(), "run: python -m tests.architecture_kernels"
