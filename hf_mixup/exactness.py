"""The checks that every model passes before it is mixed: it has the site; at lambda = 0 and 1 its logits are clean."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hf_mixup.anatomy import Anatomy, logits_of
from hf_mixup.architectures import site_width
from hf_mixup.config import MixupConfig
from hf_mixup.mixing import check_similarity
from hf_mixup.plan import MixupPlan
from hf_mixup.probe_batch import probe_batch, undisturbed
from hf_mixup.readout import nonzero_parameters

# Share of the spread of the logits between texts that a difference may reach, and of their size for rounding.
SPREAD_TOLERANCE = 0.02
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-10}
HALF_ROUNDING = 2e-2


def check_site(anatomy: Anatomy, config: MixupConfig) -> None:
    """Raises `ValueError` for a site that the model does not have."""
    name, site = type(anatomy.root).__name__, config.site
    if site == "word_embeddings" and (not anatomy.lookups or anatomy.entrance is not None):
        raise ValueError(f"site='word_embeddings': {name} has no token lookup to mix behind; mix at 'embeddings'.")
    if config.similarity is not None:
        check_similarity(anatomy)
    is_text, has_spans = anatomy.input_name == "input_ids", config.interpolation in ("span", "salient_span")
    if has_spans and not is_text:
        raise ValueError(f"interpolation={config.interpolation!r}: {name} takes no tokens; spans are for texts.")
    if config.interpolation == "dimensions" and not is_text:
        raise ValueError(f"interpolation='dimensions': {name} takes no tokens; it is known for texts only.")
    if site == "input" and is_text and not has_spans:
        raise ValueError(f"site='input': {name} takes tokens, which cannot be averaged; mix at 'embeddings', or spans.")


def check_endpoints(
    anatomy: Anatomy,
    config: MixupConfig,
    apply: Callable[[MixupPlan, dict[str, Tensor]], AbstractContextManager[Any]],
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
    if config.interpolation in ("span", "salient_span"):
        # Tokens are exchanged before the model sees them.
        return
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
            site, block = ("embeddings", None) if layer == -1 else (config.site, layer)
            plan = MixupPlan(partner, ends, site, block)
            if config.interpolation == "dimensions":
                plan = replace(plan, dimension_lam=ends.unsqueeze(1).expand(-1, site_width(anatomy, site, block)))
            with apply(plan, batch):
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
