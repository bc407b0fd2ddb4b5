"""Layerdrop: blocks that a model leaves out at random in training, one of which may hold the site."""

from __future__ import annotations

from torch import nn

from hf_mixup.forward.anatomy.anatomy import model_config

# Read from the config in each step, and copied from it when modules are made.
READ, COPIED = ("layerdrop",), ("encoder_layerdrop", "decoder_layerdrop")


def refuse_layerdrop(model: nn.Module) -> None:
    """Raise `ValueError` for a model that drops blocks, by what its modules and its config say.

    Most modules copy the rate from the config when they are made, and never look at the config again. So the fields
    that are copied decide only if no module has a rate of its own.
    """
    rates = {
        ".".join(filter(None, ("model", path, "layerdrop"))): vars(module)["layerdrop"]
        for path, module in model.named_modules()
        if "layerdrop" in vars(module)
    }
    config = model_config(model)
    in_config = READ if rates else (*READ, *COPIED)
    dropping = {f"model.config.{name}": getattr(config, name, 0) for name in in_config} | rates
    dropping = {name: rate for name, rate in dropping.items() if rate}
    if dropping:
        found = ", ".join(f"{name}={rate}" for name, rate in dropping.items())
        cure = " and ".join(f"{name} = 0.0" for name in dropping)
        why = " (the config is only read when modules are made)" if any(rates.values()) else ""
        raise ValueError(f"{found}: a dropped block may hold the site; set {cure}{why}.")
