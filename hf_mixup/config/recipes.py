"""What `mixup=` means: a config, a mapping, the name of a recipe, a file, or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeAlias

from hf_mixup.config.checks import allow_only, nearest
from hf_mixup.config.mixup_config import AUTO, MixupConfig

# Where the YAML files of configs/recipes are installed.
RECIPE_FILES = "hf_mixup.config.recipe_files"
# Spelled out so that editors complete it.
RecipeName: TypeAlias = Literal[
    "aum_guided",
    "balanced",
    "c_mixup",
    "cutmix",
    "default",
    "embed_mix",
    "few_labels",
    "fixed",
    "ict",
    "input_mixup",
    "inter_lada",
    "intra_class",
    "intra_lada",
    "lisa",
    "manifold",
    "mean_teacher",
    "mixtext",
    "mixup_io",
    "mixup_transformer",
    "noisy_feature",
    "nonlinear_mixup",
    "reg_mixup",
    "remix",
    "sent_mixup",
    "seq_mix",
    "softmatch",
    "span_mix",
    "ssmix",
    "tmix",
    "warped",
    "word_mixup",
]
# What says how to mix; any other string is the path of a file.
MixupLike: TypeAlias = MixupConfig | Mapping[str, Any] | RecipeName | str | Path
# What is no recipe, but part of one.
NAMED = {"auto": " strength: auto is what the recipe 'default' has."}


def recipe_names() -> list[str]:
    """The names that `mixup="..."` accepts."""
    entries = files(RECIPE_FILES).iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml"))


def beside_unlabeled(spec: Any) -> Any:
    """What `mixup=` means if there are texts without labels: the default is another one then."""
    return "few_labels" if spec is True or (isinstance(spec, str) and spec == "default") else spec


def config_to_mix(spec: MixupLike, labels_tokens: bool) -> MixupConfig:
    """The config of a `Mixup`. If the model labels tokens, the default has random partners, as texts have no class.

    Raises:
        ValueError: if mixup is off, or for texts without labels.
    """
    config = resolve_config(spec)
    if config is None:
        raise ValueError(f"config={spec!r}: Mixup needs a config; leave mixup out if it is off.")
    allow_only(config, {"unlabeled": (None,)}, "needs MixupTrainer(unlabeled_dataset=...)")
    is_default = config.strength == AUTO and config.partner == "other_class"
    return replace(config, partner="random") if labels_tokens and is_default else config


def changed_config(config: MixupConfig, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config with `changes`; those of `unlabeled` one by one."""
    values, own = {**config.to_dict(), **changes}, changes.get("unlabeled")
    if config.unlabeled is not None and isinstance(own, Mapping):
        values["unlabeled"] = {**asdict(config.unlabeled), **own}
    return values


def resolve_config(spec: MixupLike | bool | None) -> MixupConfig | None:
    """The config that `mixup=` means.

    Args:
        spec: a `MixupConfig`; a mapping of fields on top of `MixupConfig()`, or of its `recipe`; the name of a recipe;
            the path of a YAML or JSON file; `True` for the default; `None`, `False` or `"none"` for no mixup.

    Returns:
        `MixupConfig | None`: `None` if mixup is off.

    Raises:
        ValueError: for an unknown recipe or field, with the nearest spelling.
        FileNotFoundError: for a path that is not there.
    """
    if spec is None or spec is False or (isinstance(spec, str) and spec.lower() == "none"):
        return None
    if isinstance(spec, MixupConfig):
        return replace(spec)
    if spec is True:
        spec = "default"
    if isinstance(spec, Mapping):
        changed = {name: value for name, value in spec.items() if name != "recipe"}
        recipe = resolve_config(spec.get("recipe", "fixed"))
        if recipe is None:
            raise ValueError(f"recipe={spec['recipe']!r}: mixup is off; name a recipe whose fields are changed.")
        return MixupConfig.from_dict(changed_config(recipe, changed))
    if not isinstance(spec, (str, Path)):
        raise ValueError(f"mixup={spec!r}: expected a MixupConfig, a dict, a recipe name, a YAML path or None.")
    if isinstance(spec, Path) or spec.endswith((".yaml", ".yml", ".json")):
        return MixupConfig.from_file(Path(spec).expanduser())
    names = recipe_names()
    if spec not in names:
        raise ValueError(
            f"mixup={spec!r}: no such recipe.{NAMED.get(spec) or nearest(spec, names)} Recipes: {', '.join(names)}; "
            "or give the path of a .yaml file, or none."
        )
    return MixupConfig.from_file(str(files(RECIPE_FILES) / f"{spec}.yaml"))
