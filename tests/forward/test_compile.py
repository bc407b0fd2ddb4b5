"""A compiled model mixes what the plan says, without compiling anew for every plan nor breaking the graph."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

from hf_mixup import Mixup
from tests.forward.anatomy.test_architectures import own_model
from tests.hosts import COMPILES_ANEW, COMPILES_CAUSAL_MASK
from tests.plain_config import plain_config
from tests.zoo import DEPTH, toy_batch, toy_model

FAMILIES = ("bert", "roberta", "modernbert", "gpt2", "llama", "t5")
CASES = [(family, site) for family in FAMILIES for site in ("embeddings", "hidden")]
CASES += [
    ("bert", "word_embeddings"),
    ("bert", "pooled"),
    ("deberta-v2", "hidden"),
    ("albert", "hidden"),
]
# One site of the largest graph is enough for the test command, and RoBERTa's graphs are BERT's.
SLOW = [("t5", "hidden"), ("t5", "pooled"), ("roberta", "embeddings"), ("roberta", "hidden")]
CASES = [case for case in CASES if case not in SLOW] + [pytest.param(*case, marks=pytest.mark.slow) for case in SLOW]
compiled_once = pytest.mark.skipif(COMPILES_ANEW, reason="torch < 2.11 compiles anew whenever hooks are registered")


def graph_breaks(model, batch):
    torch._dynamo.reset()
    counters.clear()
    counter = CompileCounter()
    with torch.no_grad():
        torch.compile(model, backend=counter)(**batch)
    return sum(counters["graph_break"].values()), counter.frame_count


@compiled_once
@pytest.mark.parametrize(("family", "site"), CASES)
def test_new_plans_do_not_compile_anew_nor_break_the_graph(family, site):
    model, batch, counter = toy_model(family), toy_batch(), CompileCounter()
    clean_breaks, clean_frames = graph_breaks(model, batch)
    torch._dynamo.reset()
    counters.clear()
    mixup, compiled = Mixup(model, plain_config(site=site)), torch.compile(model, backend=counter)
    frames, layers = [], []
    for _ in range(25 if site == "hidden" else 6):
        plan = mixup.draw(batch)
        layers.append(plan.layer)
        with mixup.apply(plan, batch), torch.no_grad():
            expected = model(**batch).logits
        with mixup.apply(plan, batch), torch.no_grad():
            torch.testing.assert_close(compiled(**batch).logits, expected)
        frames.append(counter.frame_count)
    breaks = sum(counters["graph_break"].values())
    print(
        f"{family} {site}: clean {clean_breaks} breaks, {clean_frames} graphs; mixed {breaks} breaks, {frames} graphs"
    )
    depth = 2 * DEPTH if family == "t5" else DEPTH
    assert len(set(layers)) == (depth if site == "hidden" else 1)
    every_layer_seen = max(layers.index(layer) for layer in set(layers))
    assert len(set(frames[every_layer_seen:])) == 1
    # One graph for the mixture of each layer; pooled states are mixed behind the model's own graph.
    more = (site == "pooled") + (family == "t5" and COMPILES_CAUSAL_MASK)
    assert frames[-1] <= (clean_frames + more) * len(set(layers))
    assert breaks <= clean_breaks * len(set(layers))


def test_a_model_that_was_compiled_without_mixing_is_mixed():
    torch._dynamo.reset()
    model, batch = toy_model("bert"), toy_batch()
    mixup, compiled = Mixup(model, plain_config(site="hidden")), torch.compile(model, backend="eager")
    for is_mixed in (False, True, False, True):
        plan = mixup.draw(batch)
        with torch.no_grad():
            if is_mixed:
                with mixup.apply(plan, batch):
                    expected = model(**batch).logits
                with mixup.apply(plan, batch):
                    torch.testing.assert_close(compiled(**batch).logits, expected)
            else:
                torch.testing.assert_close(compiled(**batch).logits, model(**batch).logits)


@compiled_once
def test_a_deep_model_stays_compiled_for_a_mixture_behind_any_layer():
    torch._dynamo.reset()
    depth, counter = 9, CompileCounter()
    model, batch = toy_model("bert", num_hidden_layers=depth), toy_batch()
    mixup, compiled = Mixup(model, plain_config(site="hidden")), torch.compile(model, backend=counter)
    layers = set()
    while len(layers) < depth:
        plan = mixup.draw(batch)
        layers.add(plan.layer)
        with mixup.apply(plan, batch), torch.no_grad():
            compiled(**batch)
        assert counter.frame_count == len(layers)


@compiled_once
@pytest.mark.parametrize("case", ["previous_batch", "text"])
def test_hooks_that_hold_what_belongs_to_a_pass_do_not_compile_anew(case):
    """Partners from outside of the batch, and a head that reads by a rule of its own."""
    torch._dynamo.reset()
    counters.clear()
    counter, batch = CompileCounter(), toy_batch()
    if case == "text":
        model = own_model()
        mixup = Mixup(model, plain_config(site="hidden", layers=[0], blocks=["body.lower", "body.upper"]))
        assert mixup.prepare().readout == "text"
    else:
        model = toy_model("bert")
        mixup = Mixup(model, plain_config(site="hidden", layers=[1], partner="previous_batch", memory=8))
    compiled, frames = torch.compile(model, backend=counter), []
    for _ in range(6):
        plan = mixup.draw(batch, labels=torch.zeros(4, dtype=torch.long))
        with mixup.apply(plan, batch), torch.no_grad():
            compiled(**batch)
        frames.append(counters["stats"]["unique_graphs"])
    print(case, frames)
    # The first batch has no partners from before, and the second is the first that has.
    assert len(set(frames[1:])) == 1 and counter.frame_count == frames[-1]
