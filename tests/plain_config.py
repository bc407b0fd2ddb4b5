"""The config that most tests change: simple to compute by hand, and mixing at full strength from the first batch."""

from typing import Any

from hf_mixup import MixupConfig

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
