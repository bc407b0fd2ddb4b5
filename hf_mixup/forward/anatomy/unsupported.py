"""What a model must not have: settings under which a mixture would not be exact."""

from __future__ import annotations

from torch import nn

from hf_mixup.forward.anatomy import host
from hf_mixup.forward.anatomy.inputs import body_config


def refuse_unsupported(model: nn.Module) -> None:
    """Raise `ValueError` for learned prompts, and an attention kernel that takes no bias."""
    prompt = host.learned_prompt(model)
    if prompt is not None:
        raise ValueError(
            f"peft_type={prompt!r}: learned prompts lengthen the texts inside the model, where mixup does not see "
            "them; use an adapter such as LoRA."
        )
    attention = getattr(body_config(model), host.ATTENTION_KERNEL)
    if attention is not None:
        refuse_kernel(attention)


def refuse_kernel(attention: str) -> None:
    """Raise `ValueError` for an attention kernel that takes no bias."""
    if attention not in host.KERNELS_WITH_BIAS:
        raise ValueError(
            f"attn_implementation={attention!r}: mixup needs a kernel that takes an attention bias; "
            f"load the model with one of {', '.join(host.KERNELS_WITH_BIAS)}."
        )


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
