"""Mixup for transformers: interpolate examples inside any sequence classifier while it is fine-tuned."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_mixup.config.mixup_config import MixupConfig
    from hf_mixup.evaluation.inspection import inspect_model
    from hf_mixup.evaluation.inspection_report import Inspection
    from hf_mixup.mixup import Mixup
    from hf_mixup.plan.mixup_plan import MixupPlan
    from hf_mixup.training.collator import MixupCollator
    from hf_mixup.training.model import MixupModel
    from hf_mixup.training.trainer import MixupTrainer

__all__ = [
    "Inspection",
    "Mixup",
    "MixupCollator",
    "MixupConfig",
    "MixupModel",
    "MixupPlan",
    "MixupTrainer",
    "inspect_model",
]
__version__ = "0.1.0"

# Loaded when first used: torch and transformers take seconds that `hf-mixup --help` does not have.
_MODULES = {
    "Inspection": "evaluation.inspection_report",
    "Mixup": "mixup",
    "MixupCollator": "training.collator",
    "MixupConfig": "config.mixup_config",
    "MixupModel": "training.model",
    "MixupPlan": "plan.mixup_plan",
    "MixupTrainer": "training.trainer",
    "inspect_model": "evaluation.inspection",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
