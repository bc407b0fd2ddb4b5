"""The checks that every model passes before it is mixed: it has the site; at lambda = 0 and 1 its logits are clean."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hf_mixup.config.mixup_config import OUTSIDE, SPANS, MixupConfig
from hf_mixup.forward.anatomy.anatomy import Anatomy
from hf_mixup.forward.anatomy.blocks import site_width
from hf_mixup.forward.anatomy.calling import probe_batch
from hf_mixup.forward.anatomy.inputs import MASKS
from hf_mixup.forward.anatomy.probe_batch import nonzero_parameters, undisturbed
from hf_mixup.forward.anatomy.quirks import quirk_of
from hf_mixup.forward.anatomy.readout import EVERY_TOKEN
from hf_mixup.forward.anatomy.unsupported import refuse_layerdrop
from hf_mixup.forward.outside import padding_of, stack_inputs
from hf_mixup.forward.state import check_similarity
from hf_mixup.plan.mixup_plan import MixupPlan
from hf_mixup.plan.outside_partners import OutsidePartners

# Share of the spread of the logits between texts that a difference may reach, and of their size for rounding.
SPREAD_TOLERANCE = 0.02
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-10}
HALF_ROUNDING = 2e-2
# Positions by which the partners from outside are longer.
LONGER = 3
# What an error offers in the place of a site that is not exact, if it is.
OTHER_SITES = ("embeddings", "hidden", "pooled")
# As `Mixup.apply`.
Apply = Callable[[MixupPlan, dict[str, Tensor]], AbstractContextManager[Any]]


class NotExact(ValueError):
    """The logits at lambda = 0 or 1 are not the clean ones."""


def check_site(anatomy: Anatomy, config: MixupConfig) -> None:
    """Raises `ValueError` for a site that the model does not have."""
    name, site = type(anatomy.root).__name__, config.site
    if anatomy.inside is not None and (site not in ("input", "pooled") or config.partner in OUTSIDE):
        raise ValueError(anatomy.inside)
    if _runs_every_block(anatomy, config):
        refuse_layerdrop(anatomy.root)
    of_tokens = {"partner": "same_text", "interpolation": "entity_span"}
    for field, word in of_tokens.items():
        if getattr(config, field) == word and anatomy.readout != EVERY_TOKEN:
            raise ValueError(f"{field}={word!r}: {name} gives one answer per text; it is for labels per token.")
    if site == "word_embeddings" and (not anatomy.lookups or anatomy.embedding_module is not None):
        raise ValueError(f"site='word_embeddings': {name} has no token lookup to mix after; mix at 'embeddings'.")
    if config.similarity is not None:
        check_similarity(anatomy)
    if config.partner in OUTSIDE:
        check_outside(anatomy, config.partner)
    is_text, has_spans = anatomy.input_name == "input_ids", config.interpolation in SPANS
    if config.interpolation == "box" and anatomy.input_name != "pixel_values":
        raise ValueError(f"interpolation='box': {name} takes no pixel_values; boxes are for images.")
    if has_spans and not is_text:
        raise ValueError(f"interpolation={config.interpolation!r}: {name} takes no tokens; spans are for texts.")
    if config.interpolation == "dimensions" and not is_text:
        raise ValueError(f"interpolation='dimensions': {name} takes no tokens; it is known for texts only.")
    if site == "input" and is_text and not has_spans:
        raise ValueError(f"site='input': {name} takes tokens, which cannot be averaged; mix at 'embeddings', or spans.")


def _runs_every_block(anatomy: Anatomy, config: MixupConfig) -> bool:
    """Whether a mixture needs every block, because a hook of one acts for others: mixes, adds rows, or is read at."""
    if config.partner in OUTSIDE or config.interpolation == "salient_span":
        return True
    reads_block = config.site == "word_embeddings" and anatomy.read_at in anatomy.positions
    return reads_block or config.site in ("embeddings", "hidden")


def check_outside(anatomy: Anatomy, partner: str) -> None:
    """Raises `ValueError` for a model that cannot be mixed with partners from outside of the batch."""
    name = type(anatomy.root).__name__
    if anatomy.reads_padding and anatomy.input_name == "input_ids":
        raise ValueError(f"partner={partner!r}: {name} takes padding for text, so texts cannot be made as long.")
    takes_rows = anatomy.input_name in inspect.signature(anatomy.root.forward).parameters
    if anatomy.embedding_module is not None or quirk_of(anatomy.root).tokens_first or not takes_rows:
        raise ValueError(f"partner={partner!r}: not known how in {name}; use partners of the batch.")


def check_endpoints(anatomy: Anatomy, config: MixupConfig, apply: Apply) -> None:
    """Run the probe clean and at both endpoints, in the site of `config` (of several layers: first, middle, last).

    Args:
        anatomy (`Anatomy`): of the model.
        config (`MixupConfig`): the site and its layers.
        apply: as `Mixup.apply`.

    Raises:
        ValueError: for a site at which a mixture would not be exact in this model; it names those at which it is.
    """
    if config.partner in OUTSIDE:
        check_outside_partners(anatomy, config, apply)
    if config.interpolation in ("box", *SPANS):
        # Pixels and tokens are exchanged before the model sees them.
        return
    try:
        _compare_endpoints(anatomy, config, apply)
    except NotExact as error:
        exact = [repr(site) for site in OTHER_SITES if site != config.site and _is_exact(anatomy, config, site, apply)]
        hint = f" Mix at {' or '.join(exact)}, exact in this model." if exact else ""
        raise NotExact(f"{error}{hint}") from None


def _is_exact(anatomy: Anatomy, config: MixupConfig, site: str, apply: Apply) -> bool:
    try:
        other = replace(config, site=site, layers=None)
        check_site(anatomy, other)
        _compare_endpoints(anatomy, other, apply)
    except (RuntimeError, ValueError):
        return False
    return True


def _compare_endpoints(anatomy: Anatomy, config: MixupConfig, apply: Apply) -> None:
    root = anatomy.root
    batch = probe_batch(root)
    if config.site == "input":
        batch = {name: value for name, value in batch.items() if name not in MASKS}
    size = batch[anatomy.input_name].shape[0]
    partner = torch.arange(size).roll(1)
    lam = (torch.arange(size) % 2).float()
    with undisturbed(root), nonzero_parameters(root, anatomy.backbone), torch.no_grad():
        clean = anatomy.float_logits(batch)
        texts = texts_read(anatomy, batch, clean)
        # Partners that stay as they are, and partners that are replaced in their turn.
        for layer, ends in itertools.product(_layers(anatomy, config), (lam, 1 - lam, torch.zeros(size))):
            plan = _plan(anatomy, config, layer, partner, ends)
            with apply(plan, batch):
                mixed = anatomy.float_logits(batch)
            is_own = ends.bool().reshape(-1, *[1] * (clean.dim() - 1))
            expected, read = torch.where(is_own, clean, clean[partner]), torch.where(is_own, texts, texts[partner])
            spread = ((clean - clean[partner]) * texts * texts[partner]).abs().max()
            _compare(mixed * read, expected * read, spread, plan, anatomy, config)


def texts_read(anatomy: Anatomy, batch: dict[str, Tensor], logits: Tensor) -> Tensor:
    """1 for logits that somebody looks at, 0 for those of padding tokens, of a shape that goes with the logits."""
    mask = batch.get("attention_mask")
    if anatomy.readout != EVERY_TOKEN or mask is None:
        return torch.ones(len(logits), *[1] * (logits.dim() - 1))
    return mask.float().unsqueeze(-1).cpu()


def check_outside_partners(anatomy: Anatomy, config: MixupConfig, apply: Apply) -> None:
    """As `check_endpoints`, for partners from outside of the batch: longer texts, run before."""
    root = anatomy.root
    own, other = _shorter_and_longer(anatomy)
    size = own[anatomy.input_name].shape[0]
    lam = (torch.arange(size) % 2).float()
    with undisturbed(root), nonzero_parameters(root, anatomy.backbone), torch.no_grad(), _naming(config.partner):
        clean, theirs = anatomy.float_logits(own), anatomy.float_logits(other)
        for layer, ends in itertools.product(_layers(anatomy, config), (lam, 1 - lam)):
            alone = replace(_plan(anatomy, config, layer, torch.arange(size), torch.ones(size)), is_remembered=True)
            with apply(alone, other) as mixing:
                anatomy.run(other)
            outside = OutsidePartners([other], torch.zeros(size, 1), partial(_stored, mixing.outside.kept))
            partner = torch.arange(size, 2 * size)
            plan = replace(_plan(anatomy, config, layer, partner, ends), outside=outside)
            with apply(plan, own):
                mixed = anatomy.float_logits(own)
            expected = torch.where(ends.bool().unsqueeze(1), clean, theirs)
            _compare(mixed, expected, (clean - theirs).abs().max(), plan, anatomy, config)


def _shorter_and_longer(anatomy: Anatomy) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Two parts of the probe of as many texts, padded where the head does not read; the second is padded further."""
    batch, padding = probe_batch(anatomy.root), padding_of(anatomy)
    count = batch[anatomy.input_name].shape[0]
    rows = torch.arange(1 if padding.is_left and anatomy.input_name == "input_ids" else 0, count, 2)
    half = len(rows) // 2
    own, other = (
        {name: value[part.to(value.device)] if value.shape[0] == count else value for name, value in batch.items()}
        for part in (rows[:half], rows[half : 2 * half])
    )
    if quirk_of(anatomy.root).length is None and anatomy.input_name == "input_ids":
        other = stack_inputs([other], padding, other["input_ids"].shape[1] + LONGER)
    return own, other


@contextmanager
def _naming(partner: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"partner={partner!r}: {error}") from error


def _stored(kept: list[Tensor], index: int, own: Tensor, as_long: Callable[[Tensor], Tensor]) -> Tensor:
    return as_long(kept[index])


def _layers(anatomy: Anatomy, config: MixupConfig) -> list[int | None]:
    """The first, the middle and the last that may be drawn."""
    if config.site != "hidden":
        return [None]
    drawn = config.resolve_layers(anatomy.depth)
    return list(dict.fromkeys([drawn[0], drawn[len(drawn) // 2], drawn[-1]]))


def _plan(anatomy: Anatomy, config: MixupConfig, layer: int | None, partner: Tensor, lam: Tensor) -> MixupPlan:
    site, block = ("embeddings", None) if layer == -1 else (config.site, layer)
    plan = MixupPlan(partner, lam, site, block)
    if config.interpolation == "dimensions":
        plan = replace(plan, dimension_lam=lam.unsqueeze(1).expand(-1, site_width(anatomy, site, block)))
    return plan


def rounding_of(root: nn.Module) -> float:
    """The share of the logits that rounding reaches, in the precision in which a model runs now."""
    first = next(root.parameters())
    return HALF_ROUNDING if torch.is_autocast_enabled(first.device.type) else ROUNDING.get(first.dtype, HALF_ROUNDING)


def _compare(
    mixed: Tensor, expected: Tensor, spread: Tensor, plan: MixupPlan, anatomy: Anatomy, config: MixupConfig
) -> None:
    error, size = (mixed - expected).abs().max(), expected.abs().max()
    rounding = rounding_of(anatomy.root) * size
    if error <= SPREAD_TOLERANCE * spread + rounding:
        return
    where = plan.site if plan.layer is None else f"{plan.site} {plan.layer}"
    named = " Are all blocks named in the config's field blocks?" if config.blocks else ""
    raise NotExact(
        f"site={where!r}: in {type(anatomy.root).__name__} the logits at lambda = 0 and 1 differ from the clean "
        f"ones by {error:.2g} (of {size:.2g}), so a mixture would not be exact.{named}"
    )
