"""Mixup for transformers: interpolate examples inside any sequence classifier while it is fine-tuned."""

from typing import TYPE_CHECKING

from hf_mixup.config.lazy import lazy_names

if TYPE_CHECKING:
    from hf_mixup.config.mixup_config import MixupConfig
    from hf_mixup.evaluation.inspection import inspect_model
    from hf_mixup.evaluation.inspection_report import Inspection
    from hf_mixup.mixup import Mixup
    from hf_mixup.plan.mixup_plan import MixupPlan
    from hf_mixup.training.collator import MixupCollator
    from hf_mixup.training.mixin import MixupMixin
    from hf_mixup.training.model import MixupModel
    from hf_mixup.training.trainer import MixupTrainer

__all__ = [
    "Inspection",
    "Mixup",
    "MixupCollator",
    "MixupConfig",
    "MixupMixin",
    "MixupModel",
    "MixupPlan",
    "MixupTrainer",
    "inspect_model",
]
__version__ = "0.1.0"

# torch and transformers take seconds that `hf-mixup --help` does not have.
__getattr__ = lazy_names(
    __name__,
    {
        "config.mixup_config": ["MixupConfig"],
        "evaluation.inspection": ["inspect_model"],
        "evaluation.inspection_report": ["Inspection"],
        "mixup": ["Mixup"],
        "plan.mixup_plan": ["MixupPlan"],
        "training.collator": ["MixupCollator"],
        "training.mixin": ["MixupMixin"],
        "training.model": ["MixupModel"],
        "training.trainer": ["MixupTrainer"],
    },
)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
