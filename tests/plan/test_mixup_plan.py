"""What a plan does with values of the examples, and models of two label sets."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import BertForSequenceClassification
from transformers.modeling_outputs import ModelOutput

from hf_mixup import Mixup, MixupPlan
from tests.plain_config import plain_config
from tests.toy_runs import same_weights
from tests.zoo import cached_toy_model, toy_batch, toy_model

PARTNER, LAM = torch.tensor([2, 0, 3, 1]), torch.tensor([1.0, 0.0, 0.3, 0.8])
PLAN = MixupPlan(PARTNER, LAM, "embeddings")
LABELS = torch.tensor([0, 2, 1, 0])
HOW_IT_WORKS = Path(__file__).parents[2] / "docs/how_it_works.md"


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 2, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_values_of_any_shape_are_mixed_with_those_of_the_partner(shape, dtype):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    mixed = PLAN.mix(values)
    assert mixed.dtype == dtype and mixed.shape == shape
    for i, (j, lam) in enumerate(zip(PARTNER.tolist(), LAM.tolist(), strict=True)):
        torch.testing.assert_close(mixed[i], lam * values[i] + (1 - lam) * values[j])


def test_the_label_has_a_lambda_of_its_own():
    values, own = torch.eye(4), torch.tensor([0.0, 1.0, 0.5, 0.25])
    plan = replace(PLAN, label_lam=own)
    assert torch.equal(plan.mix(values), replace(PLAN, lam=own).mix(values))


def test_a_batch_that_stays_clean_keeps_its_values():
    values = torch.randn(4, 3)
    assert replace(PLAN, active=False).mix(values) is values


@pytest.mark.parametrize("active", [True, False])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        (LABELS, r"values: torch.int64 of shape \(4,\); .*one_hot\(values, k\)\.float\(\)"),
        (F.one_hot(LABELS), r"values: torch.int64 of shape \(4, 3\); .*\.float\(\)"),
        (torch.ones(4, 2, dtype=torch.bool), "torch.bool"),
        (torch.ones(3, 2), r"shape \(3, 2\), for a plan of 4 examples"),
        (torch.tensor(1.0), r"shape \(\), for a plan of 4 examples"),
    ],
)
def test_what_cannot_be_mixed_is_refused(values, message, active):
    with pytest.raises(ValueError, match=message):
        replace(PLAN, active=active).mix(values)


def test_lambda_that_is_drawn_at_the_site_is_that_of_the_values():
    model, batch, one_hot = cached_toy_model("bert"), toy_batch(), F.one_hot(LABELS, 3).float()
    mixup = Mixup(model, plain_config(alpha=2.0, similarity=1.0))
    plan = mixup.draw(batch)
    with pytest.raises(ValueError, match="similarity: lambda is drawn where the plan is applied"):
        plan.mix(one_hot)
    with torch.no_grad(), mixup.apply(plan, batch):
        model(**batch)
    mixed = plan.mix(one_hot)
    assert torch.equal(mixed, mixup.targets(LABELS, plan)) and torch.equal(mixed, plan.resolved.mix(one_hot))
    assert not torch.equal(mixed, replace(plan, similarity=None).mix(one_hot))


def test_partners_from_outside_need_their_values():
    model, batch = cached_toy_model("bert"), toy_batch()
    mixup = Mixup(model, plain_config(partner="previous_batch", lam=0.25))
    for _ in range(2):
        plan = mixup.draw(batch, labels=LABELS)
        with torch.no_grad(), mixup.apply(plan, batch):
            model(**batch)
    values, theirs = torch.zeros(4, 2), torch.ones(4, 2)
    with pytest.raises(ValueError, match="outside: the partners are from outside of the batch"):
        plan.mix(values)
    assert torch.equal(plan.mix(values, theirs), torch.full((4, 2), 0.75))
    one_hot = F.one_hot(LABELS, 3).float()
    assert torch.equal(plan.mix(one_hot, plan.outside.targets), mixup.targets(LABELS, plan))


# ---- Two label sets ----


def test_the_loop_of_the_docs_trains_both_heads():
    [loop] = [
        code for code in re.findall(r"```python\n(.*?)```", HOW_IT_WORKS.read_text(), re.DOTALL) if "mix(" in code
    ]
    model = toy_model("bert", num_labels=5).train()
    before = toy_model("bert", num_labels=5)
    moods = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    names = {"model": model, "loader": [toy_batch() | {"topic": LABELS, "mood": moods}], "F": F}
    names |= {"Mixup": Mixup, "optimizer": torch.optim.SGD(model.parameters(), 0.1)}
    torch.manual_seed(0)
    exec(loop, names)
    plan, logits = names["plan"], names["logits"]
    expected = 0.0
    for i, (j, lam) in enumerate(zip(plan.partner.tolist(), plan.lam.tolist(), strict=True)):
        for label, share in ((i, lam), (j, 1 - lam)):
            expected += share * F.cross_entropy(logits[i, :3], LABELS[label]) / 4
            expected += share * F.binary_cross_entropy_with_logits(logits[i, 3:], moods[label]) / 4
    torch.testing.assert_close(names["loss"], expected)
    assert not same_weights(model, before)


class TwoHeads(BertForSequenceClassification):
    """A second head beside the first, both on the pooled state."""

    def __init__(self, config):
        super().__init__(config)
        self.mood = nn.Linear(config.hidden_size, 2)

    def forward(self, input_ids=None, attention_mask=None):
        pooled = self.bert(input_ids, attention_mask=attention_mask).pooler_output
        return ModelOutput(logits=self.classifier(pooled), mood=self.mood(pooled))


@pytest.mark.parametrize("config", [{"site": "embeddings"}, {"site": "hidden", "layers": [1]}])
def test_both_heads_read_the_mixture(config):
    torch.manual_seed(0)
    model, batch = TwoHeads(toy_model("bert").config).eval(), toy_batch()
    mixup = Mixup(model, plain_config(**config))
    plan = MixupPlan(PARTNER, torch.tensor([1.0, 0.0, 1.0, 0.0]), config["site"], 1 if "layers" in config else None)
    with torch.no_grad(), mixup.apply(plan, batch):
        mixed = model(**batch)
    with torch.no_grad():
        clean = model(**batch)
    for head in ("logits", "mood"):
        torch.testing.assert_close(mixed[head], plan.mix(clean[head]), rtol=1e-4, atol=1e-5)
        assert (mixed[head] - clean[head]).abs().max() > 1e-3
