"""What is measured of every architecture; `python -m tests.architectures` writes the table of it in the docs."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
)

from hf_mixup import Mixup, MixupPlan
from hf_mixup.cli.inspect.toy import toy_model
from hf_mixup.evaluation.inspection_report import READOUTS
from hf_mixup.forward.anatomy.anatomy import Anatomy
from hf_mixup.forward.anatomy.quirks import QUIRKS
from tests.hosts import BEFORE_5_15
from tests.plain_config import plain_config
from tests.zoo import toy_batch

TYPES = list(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)
TOKEN_TYPES = list(MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES)
ROWS = sorted({*TYPES, *TOKEN_TYPES})
# What is classified: whole texts, or each of their tokens.
TEXTS, TOKENS = "texts", "tokens"
AUTO = {TEXTS: AutoModelForSequenceClassification, TOKENS: AutoModelForTokenClassification}
SITES = ("embeddings", "hidden", "pooled")
SIDES = ("right", "left")
PARTNER = torch.tensor([2, 0, 3, 1])
# Pairs whose partner is itself replaced tell a text mixed twice from one mixed once.
ENDS = torch.tensor([[0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
# Relative to the largest logit: at lambda = 0 and 1, and 1e-6 away from them.
AT_THE_END, NEAR_IT = 1e-4, 1e-2
LENGTHS = {"big_bird": (36, 30, 25, 33), "bigbird_pegasus": (36, 30, 25, 33), "mra": (64, 40, 17, 53)}
LENGTHS["reformer"] = (32, 20, 14, 26)
# Logits of these at weights of 0.2 change by more than 1 % when an embedding changes by 1e-6 of a token.
STD = dict.fromkeys(("gpt_neo", "gpt_oss", "mobilebert", "mt5", "nemotron", "t5", "umt5", "zamba2"), 0.1)
STD["esm"] = 0.05
NOT_BUILT = {"layoutlmv2": "not checked: needs the package detectron2, which has no release to install"}
# What does not hold, measured as the rest: the sides of the padding, the bound that is broken, the reason.
LIMITS = {
    "canine": (("left",), NEAR_IT, "padded left it is not continuous at `embeddings`: the first token is padding"),
    "longformer": (("left",), AT_THE_END, "padded left it is refused: its global attention would sit on the padding"),
    "reformer": (SIDES, NEAR_IT, "not continuous at `embeddings`: what is hashed together jumps with the mask"),
    "modernbert": (("left",), NEAR_IT, "padded left it is not continuous where the window sees padding only"),
}
TOKEN_LIMITS = {
    "canine": (
        SIDES,
        AT_THE_END,
        "characters pass by the blocks of the molecules, so not at `hidden` 1 to 3; not continuous at `embeddings` "
        "where the window sees padding only",
    ),
    "funnel": (SIDES, AT_THE_END, "the decoder adds states of the first block, so not at `hidden` 0 to 2"),
}
ALL_LIMITS = {TEXTS: LIMITS, TOKENS: TOKEN_LIMITS}
if BEFORE_5_15:
    LIMITS["biogpt"] = (("left",), AT_THE_END, "padded left transformers < 5.15 itself reads elsewhere")
NOTES = {
    "big_bird": 'sparse attention needs texts above its threshold, or `attention_type="original_full"`',
    "bigbird_pegasus": 'sparse attention needs texts above its threshold, or `attention_type="original_full"`',
    "flaubert": "the variants with `pre_norm` are refused at `hidden`",
    "nystromformer": "with fewer landmarks than tokens transformers 5.23 itself fails on padded texts",
    "funnel": "after a pooling layer padding enters with its share",
    "reformer": "`hidden` is after the whole encoder",
    "squeezebert": "`hidden` is after the whole encoder",
}
DOCS = Path(__file__).parent.parent / "docs/architectures.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


@dataclass
class Measured:
    """The anatomy of a toy model and, for each side and site, the largest differences of all its layers."""

    anatomy: Anatomy
    at_the_end: dict[tuple[str, str], float] = field(default_factory=dict)
    near_it: dict[tuple[str, str], float] = field(default_factory=dict)
    between: dict[tuple[str, str], float] = field(default_factory=dict)


def build(model_type: str, head: str = TEXTS, **changes) -> PreTrainedModel:
    # What transformers draws for vectors stays in part.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return toy_model(model_type, std=STD.get(model_type, 0.2), auto=AUTO[head], **changes)


def batch_of(model_type: str, side: str = "right") -> dict[str, torch.Tensor]:
    batch = toy_batch(LENGTHS.get(model_type, (16, 10, 7, 13)), side=side)
    if model_type == "bros":
        corners = torch.rand(*batch["input_ids"].shape, 2, generator=torch.Generator().manual_seed(1))
        batch["bbox"] = torch.cat([corners, corners + 0.1], -1)
    return batch


def logits_of(model, batch):
    with torch.no_grad():
        return model(**batch).logits.float()


def relative_difference(logits, expected, read):
    return (((logits - expected) * read).abs().max() / (expected * read).abs().max()).item()


def read_of(batch, logits) -> torch.Tensor:
    """1 for the logits that count: all of them, or, of a class per token, those that are not of padding."""
    return batch["attention_mask"].unsqueeze(-1).float() if logits.dim() == 3 else torch.ones(len(logits), 1)


def own_or_partner(end, values) -> torch.Tensor:
    return torch.where(end.bool().reshape(-1, *[1] * (values.dim() - 1)), values, values[PARTNER])


def layers_of(anatomy: Anatomy, site: str) -> list[int | None]:
    return list(range(anatomy.depth)) if site == "hidden" else [None]


def differences(mixup, batch, site, layer, clean) -> tuple[float, float, float]:
    """From what the clean logits say: at both ends, near them, and half way (to the nearer of the two texts).

    All of it in one forward pass, over as many copies of the batch as there are lambdas of it.
    """
    lam = torch.cat([ENDS, (ENDS - 1e-6).abs(), torch.full((1, 4), 0.5)])
    partner = (torch.arange(len(lam)).unsqueeze(1) * 4 + PARTNER).flatten()
    copies = {name: torch.cat([value] * len(lam)) for name, value in batch.items()}
    with mixup.apply(MixupPlan(partner, lam.flatten(), site, layer), copies):
        *mixed, half = logits_of(mixup.model, copies).split(4)
    read = read_of(batch, clean)
    expected, at = ([own_or_partner(end, values) for end in ENDS] for values in (clean, read))
    ends, near = ([*map(relative_difference, part, expected, at)] for part in (mixed[: len(ENDS)], mixed[len(ENDS) :]))
    half_way = [relative_difference(half, text, read * read[PARTNER]) for text in (clean, clean[PARTNER])]
    return max(ends), max(near), min(half_way)


def measured_at(mixup, batch, site, layer, clean) -> tuple[float, float, float]:
    try:
        return differences(mixup, batch, site, layer, clean)
    except ValueError:
        return torch.inf, torch.inf, torch.inf


@lru_cache(maxsize=1)
def mixup_of(model_type: str, head: str = TEXTS) -> Mixup:
    """Of a toy model, which tests that follow each other share."""
    return Mixup(build(model_type, head), plain_config(site="pooled"))


@cache
def measure(model_type: str, head: str = TEXTS) -> Measured:
    mixup = mixup_of(model_type, head)
    measured = Measured(mixup.prepare())
    mixup.model.eval()
    for side in SIDES:
        batch = batch_of(model_type, side)
        clean = logits_of(mixup.model, batch)
        for site in SITES:
            found = [measured_at(mixup, batch, site, layer, clean) for layer in layers_of(measured.anatomy, site)]
            measured.at_the_end[side, site] = max(ends for ends, _, _ in found)
            measured.near_it[side, site] = max(near for _, near, _ in found)
            measured.between[side, site] = min(half for _, _, half in found)
    return measured


def row(model_type: str) -> str:
    """What the docs say of an architecture."""
    if model_type in NOT_BUILT:
        return f"| `{model_type}` | | | | | | | | {NOT_BUILT[model_type]} |"
    measured = measure(model_type, TEXTS if model_type in TYPES else TOKENS)
    anatomy = measured.anatomy
    kinds = {argument.kind for call in anatomy.calls for argument in call.arguments.values()} - {"states"}
    masks = " and ".join(sorted({"bias": "bias", "mask": "zeros and ones"}[kind] for kind in kinds)) or "none"
    masks = "the model's own" if anatomy.embedding_module else masks
    exact = ["exact" if is_exact(measured, site) else "not exact" for site in SITES]
    exact = exact if model_type in TYPES else [""] * len(SITES)
    notes = [text[model_type] for text in (NOTES, reasons(TEXTS), reasons(TOKENS)) if model_type in text]
    notes += ["padding counts as text"] if anatomy.reads_padding else []
    cells = [f"`{model_type}`", str(anatomy.depth), masks, READOUTS[anatomy.readout], *exact]
    return "| " + " | ".join([*cells, tokens_cell(model_type), "; ".join(notes)]) + " |"


def reasons(head: str) -> dict[str, str]:
    return {name: ("tokens: " if head == TOKENS else "") + limit[2] for name, limit in ALL_LIMITS[head].items()}


def is_exact(measured: Measured, site: str) -> bool:
    return measured.at_the_end["right", site] < AT_THE_END


def tokens_cell(model_type: str) -> str:
    if model_type not in TOKEN_TYPES:
        return ""
    broken = [f"`{site}`" for site in SITES if not is_exact(measure(model_type, TOKENS), site)]
    return f"not at {', '.join(broken)}" if broken else "exact"


def table() -> str:
    head = ["architecture", "blocks", "masks", "read-out", *(f"`{site}`" for site in SITES), "tokens", "note"]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    return "\n".join([*(f"| {line} |" for line in lines), *(row(model_type) for model_type in ROWS)])


def summary() -> str:
    exact, of_tokens = (
        sum(all(is_exact(measure(t, head), site) for site in SITES) for t in types if t not in NOT_BUILT)
        for head, types in ((TEXTS, TYPES), (TOKENS, TOKEN_TYPES))
    )
    return (
        f"{exact} of {len(TYPES)} architectures are exact at `embeddings`, `hidden` and `pooled`, and {of_tokens} of "
        f"{len(TOKEN_TYPES)} with a class per token; {len(QUIRKS)} need a row in `hf_mixup/forward/anatomy/quirks.py`."
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    before, after = DOCS.read_text().split(BEGIN)[0], DOCS.read_text().split(END)[1]
    DOCS.write_text(f"{before}{BEGIN}\n{summary()}\n\n{table()}\n{END}{after}")
    print(summary())
