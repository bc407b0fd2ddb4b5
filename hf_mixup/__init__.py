"""Mixup for transformers: interpolate examples inside any sequence classifier while it is fine-tuned."""

from hf_mixup.config import MixupConfig
from hf_mixup.mixup import Mixup
from hf_mixup.model import MixupModel
from hf_mixup.plan import MixupPlan
from hf_mixup.trainer import MixupTrainer

__all__ = ["Mixup", "MixupConfig", "MixupModel", "MixupPlan", "MixupTrainer"]
__version__ = "0.1.0"
