"""Where a model can be mixed, and how exact a mixture is there: the check of `hf-mixup inspect`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn

from hf_mixup.config.mixup_config import MixupConfig
from hf_mixup.evaluation.inspection_report import Inspection
from hf_mixup.evaluation.site_checks import Mask, SiteCheck
from hf_mixup.forward.anatomy.anatomy import Anatomy
from hf_mixup.forward.anatomy.calling import probe_batch
from hf_mixup.forward.anatomy.inputs import bind, body_config, check_model, map_tensors, root_of
from hf_mixup.forward.anatomy.masks import reads_padding
from hf_mixup.forward.anatomy.probe_batch import nonzero_parameters, undisturbed
from hf_mixup.forward.anatomy.readout import FIXED_READ
from hf_mixup.forward.endpoints import SPREAD_TOLERANCE, check_site, rounding_of, texts_read
from hf_mixup.mixup import Mixup
from hf_mixup.plan.mixup_plan import MixupPlan

# Where the mixed logits are compared with the clean ones of the nearer example: a copy of the probe for each.
LAMBDAS = (0.0, 1.0, 1e-3, 1 - 1e-3, 1e-6, 1 - 1e-6)
KINDS = {"bias": "additive bias", "mask": "zeros and ones"}
INEXACT = f"at lambda 0 or 1 the logits are off the clean ones by more than {SPREAD_TOLERANCE:.0%} of their spread."
JUMPS = "exact at lambda 0 and 1, but 1e-6 off them the logits are elsewhere: they jump, or are too steep to tell."


def inspect_model(model: nn.Module, blocks: Sequence[str] = ()) -> Inspection:
    """Find the sites of a model and measure, at each, how far a mixture is from exact; the model is left as it was.

    ```python
    print(inspect_model(model))
    ```

    Args:
        model (`nn.Module`): any module that returns logits, also wrapped.
        blocks (`Sequence[str]`): module paths of its blocks, as `MixupConfig.blocks`; found if empty.

    Returns:
        `Inspection`: also of a model that cannot be mixed; its `reason` says why.

    Raises:
        ValueError: for what is not a model.
    """
    check_model(model)
    root = root_of(model)
    config, parameters = None, list(root.parameters())
    with suppress(ValueError):
        config = body_config(root)
    inspection = Inspection(
        type(root).__name__,
        getattr(config, "model_type", None),
        sum(parameter.numel() for parameter in parameters),
        str(parameters[0].dtype).removeprefix("torch.") if parameters else "",
        getattr(config, "_attn_implementation", None),
    )
    try:
        mixup = Mixup(model, MixupConfig(site="pooled", blocks=list(blocks) or None))
        return _measured(inspection, mixup, mixup.prepare())
    except Exception as error:
        return replace(inspection, reason=_reason(error))


def _measured(inspection: Inspection, mixup: Mixup, anatomy: Anatomy) -> Inspection:
    """`inspection` with what there is to know of a model that can be mixed."""
    root = anatomy.root
    path_of = {module: path or type(module).__name__ for path, module in root.named_modules()}
    with undisturbed(root), torch.no_grad(), nonzero_parameters(root, anatomy.backbone):
        whole = {name: torch.cat([values] * len(LAMBDAS)) for name, values in probe_batch(root).items()}
        unmasked = {name: values for name, values in whole.items() if name != "attention_mask"}
        masks, clean = _masks(anatomy, path_of, whole), anatomy.float_logits(whole)
        sites = [
            _checked(place, mixup, whole, clean)
            if place.site != "input"
            else _checked(place, mixup, unmasked, anatomy.float_logits(unmasked))
            for place in _places(anatomy, path_of)
        ]
    return replace(
        inspection,
        depth=anatomy.depth,
        readout=anatomy.readout,
        read_at=path_of[anatomy.read_at],
        padding_is_text=anatomy.reads_padding if "attention_mask" in whole else None,
        masks=masks,
        sites=sites,
    )


def _places(anatomy: Anatomy, path_of: dict[nn.Module, str]) -> Iterator[SiteCheck]:
    """The sites that the model has, not measured yet."""
    modules = [call.module for call in anatomy.calls]
    stacks = sorted({call.stack for call in anatomy.calls})
    names: list[str | None] = [f"stack {stack}" for stack in stacks] if len(stacks) > 1 else [None]
    if len(stacks) == 2 and body_config(anatomy.root).is_encoder_decoder:
        names = ["encoder", "decoder"]
    if anatomy.input_name == "input_ids":
        yield SiteCheck("word_embeddings", list(dict.fromkeys(path_of[module] for module, _ in anatomy.lookups)))
    else:
        yield SiteCheck("input", [])
    yield SiteCheck("embeddings", [path_of[modules[anatomy.first_call(stack)]] for stack in stacks])
    for layer, call in enumerate(anatomy.calls):
        run, runs = modules[: layer + 1].count(call.module), modules.count(call.module)
        yield SiteCheck("hidden", [path_of[call.module]], layer, names[call.stack], run, runs)
    yield SiteCheck("pooled", [])


def _masks(anatomy: Anatomy, path_of: dict[nn.Module, str], batch: dict[str, Tensor]) -> list[Mask]:
    """The masks that the model is given in a clean forward pass."""
    blocks_of: dict[tuple[str, str], list[int]] = {}
    running = iter(range(anatomy.depth))

    def before_block(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        index = next(running, None)
        if index is None:
            return
        call = anatomy.calls[index]

        def note(path: str, value: Tensor) -> Tensor:
            argument = call.arguments.get(path)
            if argument is not None and argument.kind != "states":
                is_boolean = argument.kind == "bias" and value.dtype == torch.bool
                kind = "compared" if argument.compared else "boolean" if is_boolean else KINDS[argument.kind]
                blocks_of.setdefault((path, kind), []).append(index)
            return value

        for name, value in bind(call.names, args, kwargs).items():
            map_tensors(value, name, note)

    with ExitStack() as hooks:
        for block in {call.module for call in anatomy.calls}:
            hooks.enter_context(block.register_forward_pre_hook(before_block, with_kwargs=True))
        anatomy.run(batch)
    lookups = [Mask(name, KINDS["mask"], [], path_of[module]) for module, name in anatomy.lookup_masks]
    return lookups + [Mask(path, kind, numbers) for (path, kind), numbers in blocks_of.items()]


def _pairs(anatomy: Anatomy, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Partner and lambda of each row, and whether it is compared.

    Beside the ends, pairs in which the head reads padding are left out; the report says on which side to pad.
    """
    rows = torch.arange(len(batch[anatomy.input_name])).view(len(LAMBDAS), -1)
    # Neighbours are padded on opposite sides: the hardest case for the ends, but not one to be found in a batch.
    partner = torch.cat([rows[:2].roll(1, 1), rows[2:].roll(2, 1)]).flatten()
    lam = torch.tensor(LAMBDAS).repeat_interleave(rows.shape[1])
    fixed, mask = FIXED_READ.get(anatomy.readout), batch.get("attention_mask")
    if fixed is None or mask is None:
        return partner, lam, torch.ones_like(lam)
    is_end = (lam == 0) | (lam == 1)
    return partner, lam, is_end | ~reads_padding(mask.cpu(), partner, fixed)


def _checked(place: SiteCheck, mixup: Mixup, batch: dict[str, Tensor], clean: Tensor) -> SiteCheck:
    """`place` with the differences from the clean logits of `batch`, measured there."""
    anatomy = mixup.prepare()
    partner, lam, is_compared = _pairs(anatomy, batch)
    texts, size = texts_read(anatomy, batch, clean), clean.abs().max()
    spread = ((clean - clean[partner]) * texts * texts[partner])[lam == 0].abs().max()
    try:
        if not 0 < spread < torch.inf:
            raise ValueError("the clean logits are the same for every example, or not finite: nothing can be measured.")
        check_site(anatomy, MixupConfig(site=place.site))
        with mixup.apply(MixupPlan(partner, lam, place.site, place.layer), batch):
            mixed = anatomy.float_logits(batch)
        if not mixed.isfinite().all():
            raise ValueError("the logits of a mixture are not finite.")
    except Exception as error:
        return replace(place, reason=_reason(error))
    is_own = (lam > 0.5).reshape(-1, *[1] * (clean.dim() - 1))
    expected, read = torch.where(is_own, clean, clean[partner]), torch.where(is_own, texts, texts[partner])
    errors = ((mixed - expected) * read).abs().flatten(1).amax(1) * is_compared
    at_0, at_1, *beside = (errors.view(len(LAMBDAS), -1).amax(1) / spread).tolist()
    near, nearer = max(beside[:2]), max(beside[2:])
    tolerance = SPREAD_TOLERANCE + (rounding_of(anatomy.root) * size / spread).item()
    exact = max(at_0, at_1) <= tolerance
    # A thousand times closer to an end, the logits must at least be twice as close.
    continuous = exact and (nearer <= tolerance or nearer <= near / 2)
    reason = None if continuous else JUMPS if exact else INEXACT
    return replace(
        place, at_0=at_0, at_1=at_1, near=near, nearer=nearer, exact=exact, continuous=continuous, reason=reason
    )


def _reason(error: Exception) -> str:
    """What went wrong, in short; an error that is not made for the reader begins with its type."""
    name = "" if isinstance(error, (ValueError, RuntimeError, OSError)) else f"{type(error).__name__}: "
    return shorten(f"{name}{error}", 400, placeholder=" ...")
