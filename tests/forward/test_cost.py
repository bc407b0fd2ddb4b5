"""What a mixed step adds to a clean one, counted and not timed; none of it grows with depth."""

import subprocess
import sys
from collections import Counter
from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForTokenClassification, masking_utils

from hf_mixup import Mixup, MixupPlan, MixupTrainer
from hf_mixup.cli.inspect.toy import toy_model as any_toy_model
from tests.plain_config import PLAIN, plain_config
from tests.toy_runs import arguments
from tests.zoo import DEPTH, LENGTHS, WIDTH, toy_batch, toy_model

LABELS, PARTNER, LAM = torch.tensor([0, 1, 2, 0]), torch.tensor([2, 0, 3, 1]), torch.tensor([0.3, 0.9, 0.5, 0.7])
ACTIVATIONS = (len(LENGTHS), max(LENGTHS), WIDTH)
# An encoder, one with sliding windows, and two decoders, of which the second adds positions.
FAMILIES = ("bert", "modernbert", "llama", "gpt2")
# BERT with a class per token.
TOKENS = "tokens"
SITES = ("word_embeddings", "embeddings", "hidden", "pooled")
# Operations that one mixed forward pass may add. Most work on numbers a row or a position, a thousandth of a layer.
MOST_OPERATIONS = {"word_embeddings": 30, "embeddings": 30, "hidden": 30, "pooled": 2}
# The logits of each token have a weight of their own.
MOST_OF_TOKENS = MOST_OPERATIONS | {"pooled": 7}
# Operations that write hidden states: gather and interpolate. BERT looks up tokens and segments; the head of a decoder
# reads a broadcast row, which its Linear copies.
MOST_COPIES = {"word_embeddings": 4, "embeddings": 3, "hidden": 3, "pooled": 0}


class Count(TorchDispatchMode):
    """Counts the operations that run, and those that write hidden states of the whole batch."""

    def __init__(self):
        super().__init__()
        self.calls, self.copies = Counter(), Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not func.is_view and name != "_unsafe_view":
            self.calls[name] += 1
            self.copies[name] += isinstance(output, torch.Tensor) and output.numel() == torch.Size(ACTIVATIONS).numel()
        return output


def plan_at(site, depth=DEPTH):
    return MixupPlan(PARTNER, LAM, site, depth - 2 if site == "hidden" else None)


def toy(family, **changes):
    if family == TOKENS:
        return any_toy_model("bert", auto=AutoModelForTokenClassification, **changes)
    return toy_model(family, **changes)


def labeled_batch(family):
    batch = toy_batch()
    of_tokens = (batch["input_ids"] % 3).where(batch["attention_mask"].bool(), -100)
    return batch | {"labels": of_tokens if family == TOKENS else LABELS}


def run(model, mixup, plan, batch):
    with nullcontext() if plan is None else mixup.apply(plan, batch):
        return model(**batch).logits


def count(model, mixup, plan, batch):
    with Count() as counted, torch.no_grad():
        run(model, mixup, plan, batch)
    return counted


def added(family, site, depth=DEPTH, **changes):
    """The operations of a mixed forward pass that a clean one does not have."""
    changes["n_layer" if family == "gpt2" else "num_hidden_layers"] = depth
    if family == "modernbert":
        changes["layer_types"] = ["full_attention", "sliding_attention"] * depth
    model, batch = toy(family, **changes), toy_batch()
    mixup, plan = Mixup(model, plain_config(site=site)), plan_at(site, depth)
    count(model, mixup, plan, batch)  # the check of the first batch
    clean, mixed = count(model, mixup, None, batch), count(model, mixup, plan, batch)
    return mixed.calls - clean.calls, mixed.copies - clean.copies


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", (*FAMILIES, TOKENS))
def test_a_forward_pass_gains_a_few_operations_whatever_its_depth(family, site, attention):
    calls, copies = added(family, site, attention=attention)
    print(f"{family} {site} {attention}: {calls.total()} operations, of which {copies.total()} write hidden states")
    assert calls.total() <= (MOST_OF_TOKENS if family == TOKENS else MOST_OPERATIONS)[site]
    assert copies.total() <= MOST_COPIES[site]
    assert (calls, copies) == added(family, site, depth=2 * DEPTH, attention=attention)


@pytest.mark.parametrize("site", SITES)
def test_a_training_step_gains_a_few_operations_whatever_its_depth(tmp_path, site):
    totals = []
    for depth in (DEPTH, 2 * DEPTH):
        counts = []
        for mixup in (None, PLAIN | {"site": site, "layers": [1]} if site == "hidden" else PLAIN | {"site": site}):
            model = toy_model("bert", attention="eager", num_hidden_layers=depth).train()
            batch = toy_batch() | {"labels": LABELS}
            trainer = MixupTrainer(model=model, args=arguments(tmp_path), mixup=mixup)
            trainer.compute_loss(model, batch).backward()
            with Count() as counted:
                trainer.compute_loss(model, batch).backward()
            counts.append(counted.calls.total())
        totals.append(counts[1] - counts[0])
    print(f"{site}: {totals[0]} operations forward and backward")
    assert totals[0] == totals[1] <= 65


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", ["bert", TOKENS])
def test_a_training_step_is_one_forward_pass(tmp_path, family, site):
    model, ran = toy(family).train(), []
    trainer = MixupTrainer(model=model, args=arguments(tmp_path), mixup=PLAIN | {"site": site})
    for layer in model.bert.encoder.layer:
        layer.register_forward_pre_hook(lambda module, args: ran.append(len(args[0])))
    trainer.compute_loss(model, labeled_batch(family))  # the first batch is looked at
    ran.clear()
    trainer.compute_loss(model, labeled_batch(family)).backward()
    assert ran == [len(LENGTHS)] * DEPTH and trainer._logs.mixed == 2


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", (*FAMILIES, TOKENS))
def test_a_training_step_waits_for_no_accelerator(monkeypatch, tmp_path, family, site):
    """On the meta device there are no values, so whatever would fetch one from an accelerator fails."""
    # Encoders of transformers fetch one, mixup or not: whether there is any padding.
    monkeypatch.setattr(masking_utils, "_ignore_bidirectional_mask_sdpa", lambda *args, **kwargs: False)
    model, batch = toy(family, attention="eager"), labeled_batch(family)
    trainer = MixupTrainer(model=model, args=arguments(tmp_path), mixup=PLAIN | {"site": site})
    model.train()
    trainer.compute_loss(model, batch)  # the first batch is looked at
    model.to("meta")
    on_meta = {name: value.to("meta") for name, value in batch.items()}
    loss = trainer.compute_loss(model, on_meta)
    loss.backward()
    assert loss.is_meta and model.get_input_embeddings().weight.grad.is_meta
    assert trainer._logs.mixed == 2
    with pytest.raises(RuntimeError, match="meta"):
        loss.item()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, which can say when it is waited for")
@pytest.mark.parametrize("site", SITES)
def test_a_training_step_waits_for_no_gpu(monkeypatch, site):
    monkeypatch.setattr(masking_utils, "_ignore_bidirectional_mask_sdpa", lambda *args, **kwargs: False)
    model, batch = toy_model("bert").cuda().train(), {name: value.cuda() for name, value in toy_batch().items()}
    mixup, labels = Mixup(model, plain_config(site=site)), LABELS.cuda()
    try:
        for mode in ("default", "error"):  # the first batch is looked at
            torch.cuda.set_sync_debug_mode(mode)
            plan = mixup.draw(batch)
            mixup.loss(run(model, mixup, plan, batch), labels, plan).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("site", ["word_embeddings", "embeddings", "hidden"])
@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("with_mask", [True, False])
def test_texts_of_one_length_are_mixed_without_any_mask(monkeypatch, family, site, with_mask):
    """So that kernels which take no mask, the fastest ones, still apply."""
    model, batch = toy_model(family, attention="sdpa"), toy_batch((9, 9, 9, 9))
    if not with_mask:
        del batch["attention_mask"]
    mixup, masks = Mixup(model, plain_config(site=site)), []
    attention = torch.nn.functional.scaled_dot_product_attention

    def record(*args, attn_mask=None, **kwargs):
        masks.append(attn_mask)
        return attention(*args, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", record)
    run(model, mixup, plan_at(site), batch)
    assert masks == [None] * DEPTH
    run(model, mixup, plan_at(site), toy_batch())
    assert len(masks) == 2 * DEPTH and None not in masks[DEPTH:]


@pytest.mark.parametrize("site", ["word_embeddings", "embeddings", "hidden"])
def test_blocks_are_given_the_dtype_of_a_clean_pass(site):
    model, batch = toy_model("bert", attention="sdpa").to(torch.bfloat16), toy_batch()
    mixup, seen = Mixup(model, plain_config(site=site)), []
    for call in mixup.prepare().calls:
        call.module.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    for plan in (None, plan_at(site)):
        run(model, mixup, plan, batch)
    assert set(seen) == {torch.bfloat16} and len(seen) == 2 * DEPTH


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", (*FAMILIES, TOKENS))
def test_no_hidden_states_are_kept_for_the_backward_pass(family, site):
    """Interpolation is linear: its gradient needs the weights, not what was interpolated."""
    model, batch = toy(family).train(), toy_batch()
    mixup = Mixup(model, plain_config(site=site))
    kept = []
    for plan in (None, plan_at(site)):
        saved = {}

        def keep(tensor, saved=saved):
            saved[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        torch.manual_seed(0)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            run(model, mixup, plan, batch).sum()
        kept.append(sum(tensor.untyped_storage().nbytes() for tensor in saved.values()))
    print(f"{family} {site}: {kept[1] - kept[0]} bytes more are kept")
    assert kept[1] - kept[0] <= torch.Size(ACTIVATIONS).numel() * 4 / 8


def test_importing_the_trainer_loads_no_other_package():
    lines = """
        import sys
        from transformers import AutoModelForSequenceClassification, Trainer
        before = set(sys.modules)
        from hf_mixup import MixupTrainer
        print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
    """
    code = "\n".join(line.strip() for line in lines.splitlines())
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["hf_mixup"]
