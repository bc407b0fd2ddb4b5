"""What a model must not have: settings under which a mixture would not be exact."""

from __future__ import annotations

import torch
from torch import nn

from hf_mixup.forward.anatomy import host
from hf_mixup.forward.anatomy.inputs import body_config
from hf_mixup.forward.anatomy.kernels import is_flash


def refuse_unsupported(model: nn.Module) -> None:
    """Raise `ValueError` for learned prompts, and an attention kernel that mixup does not know."""
    prompt = host.learned_prompt(model)
    if prompt is not None:
        raise ValueError(
            f"peft_type={prompt!r}: learned prompts lengthen the texts inside the model, where mixup does not see "
            "them; use an adapter such as LoRA."
        )
    for attention in host.kernels_of(model):
        refuse_kernel(attention)


def refuse_kernel(attention: str) -> None:
    """Raise `ValueError` for an attention kernel of which it is not known what it makes of a mask.

    transformers itself refuses a name that it does not know, and one of its hub it knows once the model is loaded.
    """
    is_known = attention in host.KERNELS_WITH_BIAS or is_flash(attention)
    if attention in host.ALL_ATTENTION_FUNCTIONS and not is_known:
        raise ValueError(
            f"attn_implementation={attention!r}: mixup does not know what this kernel makes of its mask; "
            f"load the model with one of {', '.join(host.KERNELS_WITH_BIAS)}, or a flash kernel."
        )


def refuse_without_accelerator(attention: str | None) -> None:
    """Raise `ValueError` for flex attention where there is no accelerator: PyTorch has no backward pass on a CPU."""
    if attention == "flex_attention" and not torch.accelerator.is_available():
        raise ValueError(f"attn_implementation={attention!r}: needs a GPU, and there is none here; name eager or sdpa.")


def refuse_layerdrop(model: nn.Module) -> None:
    """Raise `ValueError` for a model that drops blocks, by what its modules and its config say.

    Most modules copy the rate from the config when they are made, and never look at the config again. So the fields
    that are copied decide only if no module has a rate of its own.
    """
    rates = {
        ".".join(filter(None, ("model", path, host.LAYERDROP))): vars(module)[host.LAYERDROP]
        for path, module in model.named_modules()
        if host.LAYERDROP in vars(module)
    }
    config = body_config(model)
    in_config = (host.LAYERDROP,) if rates else (host.LAYERDROP, *host.COPIED_LAYERDROP)
    dropping = {f"model.config.{name}": getattr(config, name, 0) for name in in_config} | rates
    dropping = {name: rate for name, rate in dropping.items() if rate}
    if dropping:
        found = ", ".join(f"{name}={rate}" for name, rate in dropping.items())
        cure = " and ".join(f"{name} = 0.0" for name in dropping)
        why = " (the config is only read when modules are made)" if any(rates.values()) else ""
        raise ValueError(f"{found}: a dropped block may hold the site; set {cure}{why}, or mix at 'pooled'.")
