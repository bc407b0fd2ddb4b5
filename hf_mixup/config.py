"""What the user says: `MixupConfig`, and the recipes that name one."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from numbers import Integral
from pathlib import Path
from typing import Any

import yaml

from hf_mixup.checks import fraction, is_integer, nearest, number, one_of

SITES = ("input", "word_embeddings", "embeddings", "hidden", "pooled")
MODES = ("elem", "batch")


@dataclass
class MixupConfig:
    """How one training step mixes its batch.

    Args:
        site (`str`, defaults to `"embeddings"`): where in the network activations are interpolated.
            `"input"`: the float input of an image or audio model (mixup, Zhang et al. 2018);
            `"word_embeddings"`: the token lookup, with the position and segment lookups that go with it;
            `"embeddings"`: what enters the first block; `"hidden"`: after one of the blocks (manifold mixup,
            Verma et al. 2019; TMix, Chen et al. 2020); `"pooled"`: what enters the last linear layer
            (sentence mixup, Guo et al. 2019).
        layers (`list[int | str]`, *optional*): for site `"hidden"`, the blocks after which to mix; several: one is
            drawn each batch. Counted from 0, negative from the end. A string such as `"7/12"` means after the 7th of
            12 blocks, scaled to the depth of the model. Defaults to every block. Decoder blocks follow encoder blocks.
            A single layer, or text such as `"2,3"`, will do.
        alpha (`float`, defaults to 0.4): lambda ~ Beta(alpha, beta). Small: most pairs stay near one of the two.
        beta (`float`, *optional*): second parameter of the Beta distribution, defaults to `alpha`.
        lam (`float`, *optional*): a fixed lambda in [0, 1] in place of the Beta distribution, whose alpha is not used.
        dominant (`bool`, defaults to `False`): lambda becomes max(lambda, 1 - lambda), so each example outweighs its
            partner (MixMatch, Berthelot et al. 2019; TMix).
        mode (`str`, defaults to `"elem"`): `"elem"` draws one lambda per example, `"batch"` one per batch.
        self_pairs (`bool`, defaults to `True`): whether the random permutation may pair an example with itself.
        prob (`float`, defaults to 1.0): probability of mixing a batch.
        off_epoch (`float`, *optional*): the epoch from which batches are no longer mixed.
        blocks (`list[str]`, *optional*): module paths of the model's blocks in the order in which they run, or of its
            lists of blocks, such as `["encoder.layers"]`, for a model in which they are not found by themselves.
        class_weights (`list[float]`, *optional*): factor of each class in the cross-entropy (single-label only). The
            loss is the mean over examples, not over weights, so that it accumulates exactly.

    Raises:
        ValueError: for a value that cannot work; the message names the field, the value and what is allowed.
    """

    site: str = "embeddings"
    layers: list[int | str] | None = None
    alpha: float = 0.4
    beta: float | None = None
    lam: float | None = None
    dominant: bool = False
    mode: str = "elem"
    self_pairs: bool = True
    prob: float = 1.0
    off_epoch: float | None = None
    blocks: list[str] | None = None
    class_weights: list[float] | None = None

    def __post_init__(self) -> None:
        one_of("site", self.site, SITES)
        one_of("mode", self.mode, MODES)
        self.alpha = number("alpha", self.alpha, low=0, open_low=True)
        self.prob = number("prob", self.prob, low=0, high=1)
        if self.beta is not None:
            self.beta = number("beta", self.beta, low=0, open_low=True)
        if self.lam is not None:
            self.lam = number("lam", self.lam, low=0, high=1)
        if self.off_epoch is not None:
            self.off_epoch = number("off_epoch", self.off_epoch, low=0)
        for name in ("dominant", "self_pairs"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r}: expected true or false.")
        if self.layers is not None:
            self.layers = self._checked_layers(self.layers)
        if self.blocks is not None:
            self.blocks = self._checked_blocks(self.blocks)
        if self.class_weights is not None:
            if isinstance(self.class_weights, (str, Mapping)) or not isinstance(self.class_weights, Iterable):
                raise ValueError(f"class_weights={self.class_weights!r}: expected a list of numbers, one per class.")
            self.class_weights = [number("class_weights", weight, low=0) for weight in self.class_weights]
            if not any(self.class_weights):
                raise ValueError(f"class_weights={self.class_weights!r}: at least one must be > 0.")

    def _checked_layers(self, layers: Any) -> list[int | str]:
        if self.site != "hidden":
            raise ValueError(f"layers={layers!r} needs site='hidden', got site={self.site!r}.")
        if isinstance(layers, str):
            layers = [int(part) if is_integer(part) else part.strip() for part in layers.split(",")]
        items = [layers] if isinstance(layers, Integral) else list(layers) if isinstance(layers, Iterable) else []
        if not items:
            raise ValueError(f"layers={layers!r}: expected a list of layer numbers such as [2, 3, -1] or ['7/12'].")
        for layer in items:
            if isinstance(layer, str):
                fraction(layer)
            elif isinstance(layer, bool) or not isinstance(layer, Integral):
                raise ValueError(f"layers={items!r}: {layer!r} is neither an integer nor a fraction such as '7/12'.")
        return [layer if isinstance(layer, str) else int(layer) for layer in items]

    def _checked_blocks(self, blocks: Any) -> list[str]:
        paths = [part.strip() for part in blocks.split(",")] if isinstance(blocks, str) else blocks
        is_list = isinstance(paths, Iterable) and not isinstance(paths, Mapping)
        if not is_list or not all(isinstance(path, str) and path for path in paths) or not list(paths):
            raise ValueError(f"blocks={blocks!r}: expected module paths such as ['encoder.layers'].")
        return list(paths)

    def resolve_layers(self, depth: int) -> list[int]:
        """The layers as numbers in [0, `depth`), for a model of `depth` blocks.

        Raises:
            ValueError: for a layer out of range.
        """
        if self.layers is None:
            return list(range(depth))
        resolved = set()
        for layer in self.layers:
            if isinstance(layer, str):
                resolved.add(max(math.floor(fraction(layer) * depth + Fraction(1, 2)), 1) - 1)
            elif -depth <= layer < depth:
                resolved.add(layer % depth)
            else:
                raise ValueError(
                    f"layers={self.layers}: layer {layer} is out of range, the model has {depth} blocks "
                    f"(allowed: 0 to {depth - 1}, or -1 to -{depth} from the end)."
                )
        return sorted(resolved)

    def to_dict(self) -> dict[str, Any]:
        """Every field, as plain Python values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MixupConfig:
        """Raises `ValueError` for an unknown field, with the nearest known one."""
        if not isinstance(values, Mapping):
            raise ValueError(f"A mixup config is a mapping of field names to values, got {type(values).__name__}.")
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                inside = " Put its fields at the top of the file." if name == "mixup" else ""
                raise ValueError(
                    f"Unknown mixup field {name!r}.{nearest(str(name), known)}{inside} Fields: {', '.join(known)}."
                )
        return cls(**values)

    def to_yaml(self) -> str:
        """The config as YAML text, which `from_file` reads back."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    def to_json(self) -> str:
        """The config as JSON text, which `from_file` reads back."""
        return json.dumps(self.to_dict(), indent=2)

    def save(self, path: str | Path) -> None:
        """Write the config to `path`, as JSON where the name ends in .json, else as YAML."""
        text = self.to_json() if str(path).endswith(".json") else self.to_yaml()
        Path(path).write_text(text, encoding="utf-8")

    @classmethod
    def from_file(cls, path: str | Path) -> MixupConfig:
        """Read a YAML or JSON file. Raises `FileNotFoundError`, or `ValueError` where it is not a config."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"No mixup config file at {str(path)!r}.")
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ValueError(f"{path}: not valid YAML: {error}") from error
        if not isinstance(values, Mapping):
            raise ValueError(f"{path}: expected a mapping of mixup fields, got {type(values).__name__}.")
        try:
            return cls.from_dict(values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
