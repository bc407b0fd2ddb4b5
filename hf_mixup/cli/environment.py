"""What `hf-mixup env` prints: the versions that a bug report needs, and nothing of whose machine it is."""

from __future__ import annotations

import platform
from collections import Counter
from importlib.metadata import PackageNotFoundError, version

import torch
from transformers.utils import is_flash_attn_2_available, is_torch_flex_attn_available

PACKAGES = ("hf_mixup", "torch", "transformers", "datasets", "accelerate", "tokenizers", "safetensors", "numpy")
# Named if they are installed.
OTHERS = ("peft", "trl", "deepspeed", "sentence-transformers", "lightning", "timm", "torchao", "optuna", "evaluate")
# Those that PyTorch does not always have, and a flash kernel.
OTHER_KERNELS = {"flex_attention": is_torch_flex_attn_available, "flash_attention_2": is_flash_attn_2_available}


def environment() -> str:
    """The versions of Python and of packages, the platform, the accelerators and the attention kernels, one a line."""
    versions = {name: _version(name) for name in (*PACKAGES, *OTHERS)}
    kernels = ["eager", "sdpa", *(name for name, is_available in OTHER_KERNELS.items() if is_available())]
    facts = {
        **{name: found or "not installed" for name, found in versions.items() if found or name in PACKAGES},
        "Python": platform.python_version(),
        "platform": platform.platform(),
        "torch is built for": _built_for(),
        "accelerator": _accelerator(),
        "attention kernels": ", ".join(kernels),
    }
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _built_for() -> str:
    kits = {"CUDA": torch.version.cuda, "ROCm": torch.version.hip, "XPU": torch.version.xpu}
    return ", ".join(f"{kit} {number}" for kit, number in kits.items() if number) or "CPU"


def _accelerator() -> str:
    found = torch.accelerator.current_accelerator(check_available=True)
    if found is None:
        return "none"
    devices = range(torch.accelerator.device_count())
    # Others, such as mps, have no names.
    name_of = getattr(torch.get_device_module(found), "get_device_name", lambda device: found.type)
    names = Counter(name_of(device) for device in devices)
    return f"{found.type}, " + ", ".join(f"{count} x {name}" for name, count in names.items())
