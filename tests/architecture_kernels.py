"""What every architecture does under each kind of kernel; run as a module, it writes that into the docs."""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from importlib import import_module
from textwrap import fill

import torch
from transformers import modeling_flash_attention_utils

from benchmarks.flash_stand_in import KERNEL, flash_stand_in
from hf_mixup import Mixup
from tests.architectures import (
    ALL_LIMITS,
    AT_THE_END,
    DOCS,
    NEAR_IT,
    NOT_BUILT,
    SIDES,
    SITES,
    TEXTS,
    TOKEN_TYPES,
    TOKENS,
    TYPES,
    batch_of,
    build,
    layers_of,
    logits_of,
    measured_at,
)
from tests.flex_on_cpu import flex_on_cpu
from tests.plain_config import plain_config

HEADS = {TEXTS: TYPES, TOKENS: TOKEN_TYPES}
KERNELS = {"eager": ("eager", nullcontext), "flash": (KERNEL, flash_stand_in), "flex": ("flex_attention", flex_on_cpu)}
# Flash kernels that a model takes instead.
OTHER_KERNEL = {(name, "flash"): "flash_attention_4" for name in ("gpt_oss", "openai_privacy_filter")}
# Models that call a flash kernel by themselves, and import how only if there is one.
CALL_IT_THEMSELVES = ("falcon", "gpt_neo", "gptj")
# transformers has no flash attention for these in float32 without autocast.
IN_DOUBLE = ("gpt2", "gpt-sw3", "gpt_neo", "gptj")
EXACT, JUMPS = "exact and continuous", "exact, but padded {side} not continuous"
LIMITED, UNSUPPORTED = "limited as in the table above", "not supported by transformers"
REFUSED = {
    "softcap=": "refused: it caps its scores",
    "nonzero: ": "refused: it calls the kernel by itself",
    "differ from the clean": "refused: transformers itself leaves the mask out",
}
FAILS = {
    "batch_idx|out of bounds": "transformers 5.23 itself fails on several texts",
    "cannot be run on CPU": "not checked: needs a GPU",
}
WIDTH, BEGIN, END = 100, "<!-- kernels: begin -->", "<!-- kernels: end -->"


@cache
def outcome(model_type: str, kind: str, head: str = TEXTS) -> str:
    """What a model does under a kind of kernel, in words."""
    name, can_run = KERNELS[kind]
    with can_run():
        try:
            model = build(model_type, head, attention=OTHER_KERNEL.get((model_type, kind), name))
        except ValueError as error:
            assert "does not support" in str(error)
            return UNSUPPORTED
        if kind == "flash" and model_type in CALL_IT_THEMSELVES:
            module = import_module(f"transformers.models.{model_type}.modeling_{model_type}")
            vars(module).setdefault("_flash_attention_forward", modeling_flash_attention_utils._flash_attention_forward)
        model = model.double() if kind == "flash" and model_type in IN_DOUBLE else model
        try:
            logits_of(model, batch_of(model_type))
        except (IndexError, ValueError) as error:
            return reason(error, FAILS)
        try:
            mixup = Mixup(model, plain_config(site="embeddings"))
        except ValueError as error:
            return reason(error, REFUSED)
        return measured(mixup, model_type, head)


def reason(error: Exception, reasons: dict[str, str]) -> str:
    return next(text for parts, text in reasons.items() if any(part in str(error) for part in parts.split("|")))


def measured(mixup: Mixup, model_type: str, head: str) -> str:
    """As the default kernels are measured: at both ends, near them, at every site, padded on either side."""
    jumps = []
    for side in SIDES:
        batch = batch_of(model_type, side)
        clean = logits_of(mixup.model, batch)
        found = [
            measured_at(mixup, batch, site, layer, clean)
            for site in SITES
            for layer in layers_of(mixup.prepare(), site)
        ]
        ends, near, between = zip(*found, strict=True)
        if max(ends) >= AT_THE_END:
            sides, bound, _ = ALL_LIMITS[head].get(model_type, ((), None, None))
            assert side in sides and bound == AT_THE_END, (model_type, side)
            return LIMITED
        assert min(between) > 1e-3, (model_type, side)
        jumps += [side] if max(near) >= NEAR_IT else []
    return JUMPS.format(side=" and ".join(jumps)) if jumps else EXACT


def summary() -> str:
    """What the docs say: of each outcome, how many architectures and which."""
    return "\n".join(line for head in HEADS for kind in KERNELS for line in lines_of(head, kind))


def lines_of(head: str, kind: str) -> list[str]:
    """An item for each outcome of a kind of kernel; the exact ones are the others."""
    groups: dict[str, list[str]] = {}
    for model_type in HEADS[head]:
        if model_type not in NOT_BUILT:
            groups.setdefault(outcome(model_type, kind, head), []).append(f"`{model_type}`")
    items = []
    for text in sorted(groups, key=lambda text: (text == EXACT, text)):
        named = "the others" if text == EXACT else ", ".join(groups[text])
        item = f"- **{head}, {kind}, {text}** ({len(groups[text])}): {named}"
        items.append(fill(item, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False))
    return items


if __name__ == "__main__":
    torch.set_num_threads(1)
    before, after = DOCS.read_text().split(BEGIN)[0], DOCS.read_text().split(END)[1]
    DOCS.write_text(f"{before}{BEGIN}\n{summary()}\n{END}{after}")
