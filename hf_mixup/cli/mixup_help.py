"""The mixup part of the command's help, from `MixupConfig` and the recipes. Imports no torch."""

from __future__ import annotations

import re
from dataclasses import fields
from importlib.resources import files
from inspect import getdoc
from textwrap import fill

from hf_mixup.config.mixup_config import CHOICES, MixupConfig
from hf_mixup.config.recipes import RECIPE_FILES, recipe_names

WIDTH = 110
INDENT = " " * 16


def mixup_help() -> str:
    """The mixup fields, with default and meaning, and the recipes."""
    meanings = _meanings()
    lines = ["mixup fields (--mixup.alpha 0.2, or in the YAML file mixup: {alpha: 0.2}):"]
    for field in fields(MixupConfig):
        choices = f" One of {', '.join(CHOICES[field.name])}." if field.name in CHOICES else ""
        lines.append(_entry(field.name, f"{meanings.get(field.name, '')}{choices} Default: {_yaml(field.default)}."))
    lines += ["", "recipes (--mixup tmix, or in the YAML file mixup: tmix; --mixup none turns mixup off):"]
    for name in recipe_names():
        first, _, _ = (files(RECIPE_FILES) / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")
        lines.append(_entry(name, first.removeprefix("# ") if first.startswith("#") else ""))
    return "\n".join(lines)


def _meanings() -> dict[str, str]:
    """The first sentence about each field in the docstring of `MixupConfig`."""
    entries = re.findall(r"^    (\w+) \(.*?\): (.*?)(?=^    \w|\n\n|\Z)", getdoc(MixupConfig) or "", re.M | re.S)
    texts = {name: " ".join(text.replace("`", "").split()) for name, text in entries}
    return {name: re.split(r"(?<=\.)\s+(?=[A-Z\"])", text)[0] for name, text in texts.items()}


def _entry(name: str, text: str) -> str:
    return fill(f"{f'  {name} ':<{len(INDENT)}}{text}", WIDTH, subsequent_indent=INDENT, break_on_hyphens=False)


def _yaml(value: object) -> str:
    return "null" if value is None else str(value).lower()
