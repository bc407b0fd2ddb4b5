"""What a mixture is at lambda 0 and 1, and between them beside eager attention in float32."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from step_time import SITES, mixing_at
from torch.nn import functional

from benchmarks.gpu.models import AUTOCAST, DEVICE, PURE, Batch, Row, Setting, batches, build, inputs_on_device
from hf_mixup import Mixup, MixupPlan

# The largest error that counts as exact, relative to how much the logits of the texts differ; that of the clean logits
# against float32 if it is larger.
BOUNDS = {"fp32": 1e-4, AUTOCAST: 2e-2, PURE: 2e-2}
BETWEEN = (0.9, 0.6, 0.3, 0.1)
Errors = tuple[float, float]


def exactness(setting: Setting) -> list[Row]:
    """For each site, the largest error at the ends, and those of lambdas between them, also of the gradient."""
    model = build(setting).eval()
    torch.manual_seed(1)
    batch = inputs_on_device(batches(setting, model.config.vocab_size)())
    autocast = torch.autocast(DEVICE, torch.bfloat16, enabled=setting.precision == AUTOCAST)
    reference = build(replace(setting, kernel="eager", precision="fp32")).eval()
    reference.load_state_dict(model.state_dict())
    clean = errors_between(model, reference, batch, None, autocast)
    rows = []
    for site in SITES:
        with torch.no_grad():
            at_ends = error_at_ends(model, batch, site, autocast)
        found = errors_between(model, reference, batch, site, autocast)
        rows.append({"site": site, "value": at_ends} | judged(BOUNDS[setting.precision], at_ends, found, clean))
    return rows


def judged(least: float, at_ends: float, found: Errors, clean: Errors) -> Row:
    """The errors of the logits and of their gradient; what lies between the ends has the errors of two texts."""
    limits = [max(least, error) for error in clean]
    passed = at_ends <= limits[0] and all(error <= 2 * limit for error, limit in zip(found, limits, strict=True))
    names = ("between", "gradient_between", "clean", "gradient_clean")
    return {"bound": limits[0], "passed": passed} | dict(zip(names, (*found, *clean), strict=True))


def layer_of(model: Any, site: str) -> int | None:
    return model.config.num_hidden_layers // 2 if site == "hidden" else None


def mixing(model: Any, site: str) -> Mixup:
    layer = layer_of(model, site)
    return Mixup(model, mixing_at(site, None if layer is None else [layer]))


def mixed_logits(model: Any, mixup: Mixup, batch: Batch, site: str, lam: torch.Tensor) -> torch.Tensor:
    """The logits with the text before as the partner of each."""
    plan = MixupPlan(torch.arange(len(lam)).roll(1), lam, site, layer_of(model, site))
    with mixup.apply(plan, batch):
        return model(**batch).logits.float()


def error_at_ends(model: Any, batch: Batch, site: str, autocast: torch.autocast) -> float:
    """The largest difference from the logits that are expected, relative to how much those of the texts differ."""
    mixup = mixing(model, site)
    with autocast:
        clean = model(**batch).logits.float()
        other = clean.roll(1, 0)
        errors = [
            (mixed_logits(model, mixup, batch, site, torch.full((len(clean),), lam)) - expected).abs().max()
            for lam, expected in ((1.0, clean), (0.0, other))
        ]
    return float(max(errors) / (clean - other).abs().max())


def errors_between(model: Any, reference: Any, batch: Batch, site: str | None, autocast: torch.autocast) -> Errors:
    """How far logits and gradients, mixed or clean, are from those of eager attention in float32."""
    lam = torch.tensor(BETWEEN).repeat(len(batch["input_ids"]))[: len(batch["input_ids"])]

    def logits_of(model: Any) -> torch.Tensor:
        return model(**batch).logits if site is None else mixed_logits(model, mixing(model, site), batch, site, lam)

    with autocast:
        logits = logits_of(model)
    expected = logits_of(reference)
    scale = (expected - expected.roll(1, 0)).abs().max()
    error = float(((logits - expected).abs().max() / scale).detach())
    own, theirs = gradients(model, logits), gradients(reference, expected)
    apart = sum(float((own[name].float() - theirs[name]).norm() ** 2) for name in theirs)
    return error, (apart / sum(float(theirs[name].norm() ** 2) for name in theirs)) ** 0.5


def gradients(model: Any, logits: torch.Tensor) -> dict[str, torch.Tensor]:
    labels = torch.arange(len(logits), device=logits.device) % 2
    model.zero_grad()
    functional.cross_entropy(logits.float(), labels).backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return found
