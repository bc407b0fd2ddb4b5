"""Partners of the batch before, at the ends of lambda: of one text at a time, as a large decoder is trained."""

from __future__ import annotations

import torch

from benchmarks.gpu.exactness import BOUNDS
from benchmarks.gpu.models import DEVICE, Row, Setting, batches, build, inputs_on_device
from hf_mixup import Mixup
from hf_mixup.config.mixup_config import MixupConfig

LAYER = 8
SITES = ("embeddings", "hidden")


def remembering(site: str, small: bool, **changes: object) -> MixupConfig:
    """One lambda per example, and partners from the batches before."""
    layers = [1 if small else LAYER] if site == "hidden" else None
    plain = {"alpha": 0.4, "dominant": False, "warmup_batches": 0, "memory": 4}
    return MixupConfig(site=site, layers=layers, partner="previous_batch", **(plain | changes))  # type: ignore[arg-type]


def exactness_before(setting: Setting) -> list[Row]:
    """The largest error against the clean logits of the text, and of the one before, in training mode."""
    model = build(setting).train()
    torch.manual_seed(1)
    new_batch = batches(setting, model.config.vocab_size)
    texts = [inputs_on_device(new_batch()) for _ in range(3)]
    with torch.no_grad():
        clean = [model(**text).logits.float() for text in texts]
    scale = max((one - other).abs().max() for one, other in zip(clean, clean[1:], strict=False))
    rows = []
    for site in SITES:
        errors = []
        for lam, expected in ((1.0, clean[1:]), (0.0, clean[:-1])):
            # With several texts in a batch, any of those before may be a partner.
            config = remembering(site, setting.small, lam=lam, memory=setting.in_use.batch_size)
            errors += mixed_errors(model, Mixup(model, config), texts, expected, any_row=lam == 0)
        error, bound = float(max(errors) / scale), BOUNDS[setting.precision]
        rows.append({"site": f"{site}, batch before", "value": error, "bound": bound, "passed": error <= bound})
    return rows


def mixed_errors(
    model: torch.nn.Module,
    mixup: Mixup,
    texts: list[dict[str, torch.Tensor]],
    expected: list[torch.Tensor],
    any_row: bool,
) -> list[torch.Tensor]:
    """For each text but the first, how far its logits are from those expected; also takes the gradients."""
    errors, labels = [], torch.zeros(len(texts[0]["input_ids"]), dtype=torch.long, device=DEVICE)
    for number, text in enumerate(texts):
        plan = mixup.draw(text, labels=labels)
        with mixup.apply(plan, text):
            logits = model(**text).logits
        mixup.loss(logits, labels, plan).backward()
        if number:
            # Rows against rows: the nearest, if the partner may be any of them.
            apart = (logits.detach().float().unsqueeze(1) - expected[number - 1].unsqueeze(0)).abs().amax(-1)
            errors.append((apart.amin(1) if any_row else apart.diagonal()).max())
    model.zero_grad()
    return errors
