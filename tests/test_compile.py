"""A compiled model mixes what the plan says, without compiling anew for every plan."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from hf_mixup import Mixup, MixupConfig
from tests.zoo import DEPTH, toy_batch, toy_model


@pytest.mark.parametrize("site", ["word_embeddings", "embeddings", "hidden", "pooled"])
@pytest.mark.parametrize("family", ["bert", "deberta-v2", "albert", "llama"])
def test_new_plans_do_not_compile_anew_nor_break_the_graph(family, site):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model, batch, counter = toy_model(family), toy_batch(), CompileCounter()
    mixup, compiled = Mixup(model, MixupConfig(site=site)), torch.compile(model, backend=counter)
    frames, layers = [], set()
    for _ in range(10):
        plan = mixup.draw(batch)
        layers.add(plan.layer)
        with mixup.apply(plan, batch), torch.no_grad():
            expected = model(**batch).logits
        with mixup.apply(plan, batch), torch.no_grad():
            torch.testing.assert_close(compiled(**batch).logits, expected)
        frames.append(counter.frame_count)
    graphs_of_a_plan = 2 if site == "pooled" else 1
    assert len(layers) == (DEPTH if site == "hidden" else 1)
    assert frames[-1] <= graphs_of_a_plan * len(layers)
    assert not torch._dynamo.utils.counters["graph_break"]
