"""Layerdrop: blocks that a model leaves out at random in training, one of which may hold the site."""

from __future__ import annotations

from torch import nn

from hf_mixup.anatomy import model_config

CONFIG_FIELDS = ("layerdrop", "encoder_layerdrop", "decoder_layerdrop")


def refuse_layerdrop(model: nn.Module) -> None:
    """Raise `ValueError` for a model that drops blocks, by what its modules go by.

    Most modules copy the rate from the config when they are made, and never look at the config again. The config
    decides only if no module has a rate of its own.
    """
    rates = {
        ".".join(filter(None, ("model", path, "layerdrop"))): vars(module)["layerdrop"]
        for path, module in model.named_modules()
        if "layerdrop" in vars(module)
    }
    copied = {name: rate for name, rate in rates.items() if rate}
    if copied:
        found = ", ".join(f"{name}={rate}" for name, rate in copied.items())
        cure = " and ".join(f"{name} = 0.0" for name in copied)
        raise ValueError(
            f"{found}: a dropped block may hold the site; set {cure} (the config is only read when the model is made)."
        )
    config = model_config(model)
    for name in () if rates else CONFIG_FIELDS:
        rate = getattr(config, name, 0)
        if rate:
            raise ValueError(f"{name}={rate}: a dropped block may hold the site; set model.config.{name} = 0.0.")
