"""A plan that exchanges tokens: by spans of any text, or by entities of texts with labels per token."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from hf_mixup.plan.entities import INSIDE_UNLABELED, plan_entities
from hf_mixup.plan.examples import Examples
from hf_mixup.plan.mixup_plan import MixupPlan
from hf_mixup.plan.spans import ends_of_text, plan_spans, text_parts


def with_spans(
    plan: MixupPlan, examples: Examples, interpolation: str, uniform: Tensor, separators: Tensor | None
) -> MixupPlan:
    """The plan with the tokens that it takes from partners, and the lambda that follows.

    Args:
        plan (`MixupPlan`): partners and lambda. Of entities lambda only says whether any is exchanged, if it is
            below 1, and a strength is the probability of that.
        examples (`Examples`): tokens and masks; for entities, what each token is, for salient spans the saliency.
        interpolation (`str`): `"span"`, `"salient_span"` or `"entity_span"`.
        uniform (`torch.Tensor` of shape `(2, 2, batch)`): random numbers in [0, 1).
        separators (`torch.Tensor` of shape `(n,)`, *optional*): ids of tokens that begin, end or part texts.
    """
    device = examples.inputs["input_ids"].device
    mask, segments, special = text_parts(examples.inputs, separators)
    partner = plan.partner.to(device, non_blocking=True)
    uniform = uniform.to(device, torch.float32, non_blocking=True)
    if interpolation == "entity_span":
        assert examples.targets is not None
        kinds, fixed = examples.targets.to(device), mask == 0
        # What ends a text may be no token of its last entity.
        fixed = fixed | (ends_of_text(mask) & (kinds == INSIDE_UNLABELED) if special is None else special)
        wanted = (plan.lam.to(device) < 1) & (uniform[1, 0] < plan.strength)
        source, lam = plan_entities(kinds, partner, fixed, wanted, uniform[0, 0])
    else:
        saliency = examples.saliency() if interpolation == "salient_span" and examples.saliency is not None else None
        lam = plan.lam.to(device, non_blocking=True)
        source, lam = plan_spans(lam, partner, mask, segments, uniform, saliency, special)
    return replace(plan, source=source, lam=lam, partner=partner)
