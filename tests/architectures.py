"""What is measured of every architecture; `python -m tests.architectures` writes the table of it in the docs."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from hf_mixup import Mixup, MixupPlan
from hf_mixup.cli.inspect.toy import toy_model
from hf_mixup.evaluation.inspection_report import READOUTS
from hf_mixup.forward.anatomy.anatomy import Anatomy
from hf_mixup.forward.anatomy.quirks import QUIRKS
from tests.hosts import BEFORE_5_15
from tests.plain_config import plain_config
from tests.zoo import toy_batch

TYPES = list(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)
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
STD = dict.fromkeys(("gpt_neo", "mobilebert", "mt5", "nemotron", "t5", "umt5", "zamba2"), 0.1) | {"esm": 0.05}
NOT_BUILT = {"layoutlmv2": "not checked: needs the package detectron2, which has no release to install"}
# What does not hold, measured as the rest: the sides of the padding, the bound that is broken, the reason.
LIMITS = {
    "canine": (("left",), NEAR_IT, "padded left it is not continuous at `embeddings`: the first token is padding"),
    "longformer": (("left",), AT_THE_END, "padded left it is refused: its global attention would sit on the padding"),
    "reformer": (SIDES, NEAR_IT, "not continuous at `embeddings`: what is hashed together jumps with the mask"),
    "modernbert": (("left",), NEAR_IT, "padded left it is not continuous where the window sees padding only"),
}
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


def build(model_type: str, **changes) -> PreTrainedModel:
    return toy_model(model_type, std=STD.get(model_type, 0.2), **changes)


def batch_of(model_type: str, side: str = "right") -> dict[str, torch.Tensor]:
    return toy_batch(LENGTHS.get(model_type, (16, 10, 7, 13)), side=side)


def logits_of(model, batch):
    with torch.no_grad():
        return model(**batch).logits.float()


def relative_difference(logits, expected):
    return ((logits - expected).abs().max() / expected.abs().max()).item()


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
    expected = [torch.where(end.bool().unsqueeze(1), clean, clean[PARTNER]) for end in ENDS]
    ends, near = ([*map(relative_difference, part, expected)] for part in (mixed[: len(ENDS)], mixed[len(ENDS) :]))
    return max(ends), max(near), min(relative_difference(half, clean), relative_difference(half, clean[PARTNER]))


def measured_at(mixup, batch, site, layer, clean) -> tuple[float, float, float]:
    try:
        return differences(mixup, batch, site, layer, clean)
    except ValueError:
        return torch.inf, torch.inf, torch.inf


@lru_cache(maxsize=1)
def mixup_of(model_type: str) -> Mixup:
    """Of a toy model, which tests that follow each other share."""
    return Mixup(build(model_type), plain_config(site="pooled"))


@cache
def measure(model_type: str) -> Measured:
    mixup = mixup_of(model_type)
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
        return f"| `{model_type}` | | | | | | | {NOT_BUILT[model_type]} |"
    measured = measure(model_type)
    anatomy = measured.anatomy
    kinds = {argument.kind for call in anatomy.calls for argument in call.arguments.values()} - {"states"}
    masks = " and ".join(sorted({"bias": "bias", "mask": "zeros and ones"}[kind] for kind in kinds)) or "none"
    masks = "the model's own" if anatomy.embedding_module else masks
    exact = ["exact" if measured.at_the_end["right", site] < AT_THE_END else "not exact" for site in SITES]
    notes = [
        text[model_type] for text in (NOTES, {name: limit[2] for name, limit in LIMITS.items()}) if model_type in text
    ]
    notes += ["padding counts as text"] if anatomy.reads_padding else []
    cells = [f"`{model_type}`", str(anatomy.depth), masks, READOUTS[anatomy.readout], *exact, "; ".join(notes)]
    return "| " + " | ".join(cells) + " |"


def table() -> str:
    head = ["architecture", "blocks", "masks", "read-out", *(f"`{site}`" for site in SITES), "note"]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    return "\n".join([*(f"| {line} |" for line in lines), *(row(model_type) for model_type in TYPES)])


def summary() -> str:
    exact = [
        t for t in TYPES if t not in NOT_BUILT and all(measure(t).at_the_end["right", s] < AT_THE_END for s in SITES)
    ]
    return (
        f"{len(exact)} of {len(TYPES)} architectures are exact at `embeddings`, `hidden` and `pooled`; "
        f"{len(QUIRKS)} of them need a row in `hf_mixup/forward/anatomy/quirks.py`."
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    before, after = DOCS.read_text().split(BEGIN)[0], DOCS.read_text().split(END)[1]
    DOCS.write_text(f"{before}{BEGIN}\n{summary()}\n\n{table()}\n{END}{after}")
    print(summary())
