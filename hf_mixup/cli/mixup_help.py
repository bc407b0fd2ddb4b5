"""The mixup part of the command's help, from `MixupConfig` and the recipes. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from textwrap import fill
from typing import Any

import yaml

from hf_mixup.config.mixup_config import MixupConfig
from hf_mixup.config.recipes import RECIPE_FILES, recipe_names
from hf_mixup.config.setting import help_by_group
from hf_mixup.config.unlabeled_config import UnlabeledConfig

WIDTH = 110
INDENT = " " * 20


def mixup_help() -> str:
    """The mixup fields in their groups, with meaning and default, and the recipes."""
    lines = ["mixup fields (--mixup.alpha 0.2, or in the YAML file mixup: {alpha: 0.2}):"]
    lines += _fields(MixupConfig())
    lines += ["", "fields of unlabeled, with unlabeled_file or unlabeled_split_name (--mixup.unlabeled.ratio 2):"]
    lines += _fields(UnlabeledConfig())
    lines += ["", "recipes (--mixup tmix, or in the YAML file mixup: tmix; --mixup none turns mixup off):"]
    for name in recipe_names():
        first, _, _ = (files(RECIPE_FILES) / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")
        lines.append(_entry(name, first.removeprefix("# ") if first.startswith("#") else ""))
    return "\n".join(lines)


def _fields(config: Any) -> Iterator[str]:
    """The fields of a config in their groups."""
    for group, members in help_by_group(config):
        yield from ("", f"{group}:")
        for name, text, default in members:
            written = yaml.safe_dump(default, default_flow_style=True).partition("\n")[0]
            yield _entry(name, f"{text} Default: {written}.")


def _entry(name: str, text: str) -> str:
    return fill(f"{f'  {name} ':<{len(INDENT)}}{text}", WIDTH, subsequent_indent=INDENT, break_on_hyphens=False)
