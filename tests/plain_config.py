"""The config that most tests change: simple to compute by hand, and mixing at full strength from the first batch."""

from typing import Any

from hf_mixup import MixupConfig
from hf_mixup.config.mixup_config import PARTNERS, SITES

# The fields that are one of a few words.
CHOICES = {
    "site": SITES,
    "partner": PARTNERS,
    "mode": ("elem", "batch"),
    "ramp": ("linear", "cosine", "step"),
    "interpolation": ("line", "dimensions", "box", "span", "salient_span"),
    "label_rule": ("lambda", "remix", "larger", "own"),
}

PLAIN: dict[str, Any] = {
    "site": "embeddings",
    "layers": None,
    "alpha": 0.4,
    "dominant": False,
    "warmup_batches": 0,
}


def plain_config(**changes: Any) -> MixupConfig:
    """`PLAIN` with `changes`."""
    return MixupConfig(**{**PLAIN, **changes})
