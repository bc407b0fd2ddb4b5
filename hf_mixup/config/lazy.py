"""Packages whose public names are loaded when they are first used. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from typing import Any

from hf_mixup.config.extras import install_advice


def lazy_names(package: str, modules: Mapping[str, Collection[str]]) -> Callable[[str], Any]:
    """The `__getattr__` of a package.

    Args:
        package (`str`): its name.
        modules (`Mapping[str, Collection[str]]`): the public names that each module of `hf_mixup` holds.
    """
    module_of = {name: module for module, names in modules.items() for name in names}

    def load(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            return getattr(import_module(f"hf_mixup.{module_of[name]}"), name)
        except ModuleNotFoundError as error:
            advice = install_advice(error)
            if advice is None:
                raise
            raise ModuleNotFoundError(advice, name=error.name) from error

    return load
