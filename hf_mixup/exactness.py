"""The check that every model passes before it is mixed: at lambda = 0 and 1 the logits are the clean ones."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from hf_mixup.anatomy import Anatomy, logits_of
from hf_mixup.config import MixupConfig
from hf_mixup.plan import MixupPlan
from hf_mixup.probe_batch import probe_batch, undisturbed
from hf_mixup.readout import nonzero_parameters

# Share of the spread of the logits between texts that a difference may reach, and of their size for rounding.
SPREAD_TOLERANCE = 0.02
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-10}
HALF_ROUNDING = 2e-2


def check_endpoints(
    anatomy: Anatomy,
    config: MixupConfig,
    apply: Callable[[MixupPlan, dict[str, Tensor]], AbstractContextManager[None]],
) -> None:
    """Run the probe clean and at both endpoints, in the site of `config` (of several layers: first, middle, last).

    Args:
        anatomy (`Anatomy`): of the model.
        config (`MixupConfig`): the site and its layers.
        apply: as `Mixup.apply`.

    Raises:
        ValueError: where a mixture would not be exact in this model.
    """
    root = anatomy.root
    batch = probe_batch(root)
    if config.site == "input":
        batch.pop("attention_mask", None)
    size = batch[anatomy.input_name].shape[0]
    partner = torch.arange(size).roll(1)
    lam = (torch.arange(size) % 2).float()
    layers: list[int | None] = [None]
    if config.site == "hidden":
        drawn = config.resolve_layers(anatomy.depth)
        layers = list(dict.fromkeys([drawn[0], drawn[len(drawn) // 2], drawn[-1]]))
    with undisturbed(root), nonzero_parameters(root, anatomy.backbone), torch.no_grad():
        clean = logits_of(root(**batch)).float().cpu()
        # Partners that stay as they are, and partners that are replaced in their turn.
        for layer, ends in itertools.product(layers, (lam, 1 - lam, torch.zeros(size))):
            expected = torch.where(ends.bool().unsqueeze(1), clean, clean[partner])
            with apply(MixupPlan(partner, ends, config.site, layer), batch):
                mixed = logits_of(root(**batch)).float().cpu()
            error, dtype = (mixed - expected).abs().max(), next(root.parameters()).dtype
            rounding = ROUNDING.get(dtype, HALF_ROUNDING) * clean.abs().max()
            if not error <= SPREAD_TOLERANCE * (clean - clean[partner]).abs().max() + rounding:
                where = config.site if layer is None else f"{config.site} {layer}"
                named = " Are all blocks named in the config's field blocks?" if config.blocks else ""
                raise ValueError(
                    f"site={where!r}: in {type(root).__name__} the logits at lambda = 0 and 1 differ from the clean "
                    f"ones by {error:.2g} (of {clean.abs().max():.2g}), so a mixture would not be exact.{named}"
                )
