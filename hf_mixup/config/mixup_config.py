"""What the user says: `MixupConfig`, and the recipes that name one."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from fractions import Fraction
from pathlib import Path
from typing import Any

import yaml

from hf_mixup.config import checks
from hf_mixup.config.checks import Check, nearest
from hf_mixup.config.files import read_mapping

SITES = ("input", "word_embeddings", "embeddings", "hidden", "pooled")
# Partners that are not in the batch.
OUTSIDE = ("previous_batch", "all_ranks")
PARTNERS = ("random", "same_class", "other_class", "near_label", "balanced", "lisa", "margin", *OUTSIDE)
INTERPOLATIONS = ("line", "dimensions", "span", "salient_span")
LABEL_RULES = ("lambda", "remix", "larger", "own")
CHOICES = {
    "site": SITES,
    "partner": PARTNERS,
    "mode": ("elem", "batch"),
    "ramp": ("linear", "cosine", "step"),
    "interpolation": INTERPOLATIONS,
    "label_rule": LABEL_RULES,
}
LAYERS: list[int | str] = ["7/12", "9/12", "12/12"]
SHARE = checks.number(high=1)
POSITIVE = checks.number(open_low=True)
CHECKS: dict[str, Check] = {name: checks.choice(*words) for name, words in CHOICES.items()} | {
    "layers": checks.layer_list,
    "blocks": checks.module_paths,
    "self_pairs": checks.boolean,
    "memory": checks.count(1),
    "bandwidth": POSITIVE,
    "same_label_prob": SHARE,
    "group": checks.text,
    "alpha": checks.either(POSITIVE, checks.points(checks.number(), POSITIVE)),
    "beta": POSITIVE,
    "lam": SHARE,
    "dominant": checks.boolean,
    "similarity": POSITIVE,
    "similarity_width": POSITIVE,
    "prob": SHARE,
    "off_epoch": checks.number(),
    "schedule": checks.points(SHARE, SHARE),
    "warmup_batches": checks.count(0),
    "add_noise": checks.number(),
    "mult_noise": checks.number(),
    "kappa": checks.number(low=1),
    "tau": SHARE,
    "clean_weight": SHARE,
    "class_weights": checks.per_class,
    "class_counts": checks.per_class,
}
# Fields that only mean something where another has one of these values.
NEEDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "layers": ("site", ("hidden",)),
    "memory": ("partner", ("previous_batch",)),
    "bandwidth": ("partner", ("near_label",)),
    "same_label_prob": ("partner", ("lisa",)),
    "group": ("partner", ("lisa",)),
    "kappa": ("label_rule", ("remix",)),
    "tau": ("label_rule", ("remix",)),
    "class_counts": ("label_rule", ("remix",)),
    "similarity": ("site", ("word_embeddings", "embeddings", "hidden")),
    "add_noise": ("site", ("word_embeddings", "embeddings", "hidden")),
    "mult_noise": ("site", ("word_embeddings", "embeddings", "hidden")),
}
# Fields that say how lambda is drawn, which similarity does by itself.
OF_LAMBDA = ("alpha", "beta", "lam", "mode")
INTERPOLATION_SITES = {
    "dimensions": ("word_embeddings", "embeddings", "hidden"),
    "span": ("input",),
    "salient_span": ("input",),
}


@dataclass
class MixupConfig:
    """How one training step mixes its batch. Without an argument it is the recipe `"default"`.

    Args:
        site (`str`, defaults to `"hidden"`): where in the network activations are interpolated.
            `"input"`: the float input of an image or audio model (mixup, Zhang et al. 2018);
            `"word_embeddings"`: the token lookup, with the position and segment lookups that go with it;
            `"embeddings"`: what enters the first block; `"hidden"`: after one of the blocks (manifold mixup,
            Verma et al. 2019; TMix, Chen et al. 2020); `"pooled"`: what enters the last linear layer
            (sentence mixup, Guo et al. 2019).
        layers (`list[int | str]`, defaults to `["7/12", "9/12", "12/12"]`): for site `"hidden"`, the blocks after which
            to mix; several: one is drawn each batch. Counted from 0, negative from the end. A string such as `"7/12"`
            means after the 7th of 12 blocks, scaled to the depth of the model; `"0/12"` is what enters the first block.
            `None`: every block. Decoder blocks follow encoder blocks. A single layer, or text such as `"2,3"`, will do.
        blocks (`list[str]`, *optional*): module paths of the model's blocks in the order in which they run, or of its
            lists of blocks, such as `["encoder.layers"]`, for a model in which they are not found by themselves.
        partner (`str`, defaults to `"random"`): who is mixed with whom. `"random"`: a permutation of the batch;
            `"same_class"`, `"other_class"`; `"near_label"`: the nearer the label, the likelier (C-Mixup, Yao et al.
            2022); `"balanced"`: every class as likely; `"lisa"`: same label and other group, or same group and other
            label (Yao et al. 2022); `"margin"`: easy with hard (Park and Caragea 2022). Nobody who fits: not mixed.
            `"previous_batch"`: the last examples of this process, by their stored hidden states, also at batch size 1;
            `"all_ranks"`: a permutation of the global batch, whose states are gathered at the site.
        self_pairs (`bool`, defaults to `True`): whether the random permutation may pair an example with itself.
        memory (`int`, defaults to 16): for `"previous_batch"`, how many examples are kept for each layer.
        bandwidth (`float`, defaults to 1.0): for `"near_label"`, width of the Gaussian kernel, in units of the label.
        same_label_prob (`float`, defaults to 0.5): for `"lisa"`, share of batches that mix one label across groups.
        group (`str`, defaults to `"group"`): for `"lisa"`, the column with the number of each example's group.
        alpha (`float` or `dict`, defaults to 2.0): lambda ~ Beta(alpha, beta). Small: most pairs stay near one of the
            two. Or from which epoch on which alpha: `{0: 0.1, 2: 0.4}`.
        beta (`float`, *optional*): second parameter of the Beta distribution, defaults to `alpha`.
        lam (`float`, *optional*): a fixed lambda in [0, 1] in place of the Beta distribution, whose alpha is not used.
        dominant (`bool`, defaults to `True`): lambda becomes max(lambda, 1 - lambda), so each example outweighs its
            partner (MixMatch, Berthelot et al. 2019; TMix).
        similarity (`float`, *optional*): in place of alpha, lambda ~ Beta(tau, tau) with tau = similarity
            exp(-(d / mean d - 1) / (2 w^2)), d being the squared distance of a pair where it is mixed: close pairs are
            mixed evenly, distant ones hardly (Bouniot et al. 2023).
        similarity_width (`float`, defaults to 0.5): w in that formula.
        mode (`str`, defaults to `"elem"`): `"elem"` draws one lambda per example, `"batch"` one per batch.
        prob (`float`, defaults to 1.0): probability of mixing a batch.
        off_epoch (`float`, *optional*): the epoch from which batches are no longer mixed.
        schedule (`dict`, *optional*): strength over the training: which share of the partner's weight is used, at which
            share of all steps: at step k of n that is (k - 1) / n. `{0: 0, 0.1: 1}` warms up,
            `{0.499: 0, 0.5: 1}` is on in the second half only.
        warmup_batches (`int`, defaults to 100): over so many batches the share of the partner's weight that is used
            grows from next to nothing to all: batch k of n uses k / n, times the `schedule`'s share. Counted as they
            are drawn, each part of an accumulated batch for itself, so it needs not be told how far the training is.
        ramp (`str`, defaults to `"linear"`): how the schedule goes from point to point: `"linear"`, `"cosine"`,
            `"step"`.
        interpolation (`str`, defaults to `"line"`): how two become one. `"line"`; `"dimensions"`: a lambda of its own
            for each hidden dimension (Guo 2020), the label follows their mean; `"span"`: at site `"input"` of a text,
            a random span of 1 - lambda of the tokens gives way to one of the partner; `"salient_span"`: the least
            salient one to the partner's most salient one (SSMix, Yoon et al. 2021), which takes another pass.
        add_noise (`float`, defaults to 0.0): noise on what was mixed (noisy feature mixup, Lim et al. 2022):
            z (1 + mult_noise b U) + add_noise rms(z) b' N, with U uniform in [-1, 1], N normal, b and b' ~ Beta(2, 5).
        mult_noise (`float`, defaults to 0.0): see `add_noise`.
        label_rule (`str`, defaults to `"lambda"`): what label follows. `"lambda"`: mixed like the examples; `"remix"`:
            in favour of rare classes (Chou et al. 2020); `"larger"`: of the one that weighs more (Wang et al. 2023);
            `"own"`: the example's own.
        kappa (`float`, defaults to 3.0): for `"remix"`, ratio of class sizes from which it applies.
        tau (`float`, defaults to 0.5): for `"remix"`, the lambda below which it applies.
        class_counts (`list[float]`, *optional*): for `"remix"`, examples of each class; MixupTrainer counts them.
        clean_weight (`float`, defaults to 0.0): share of the loss that comes from the same batch unmixed, which takes
            another pass; 0.5 adds the clean loss to the mixed one in equal parts (RegMixup, Pinto et al. 2022).
        class_weights (`list[float]`, *optional*): factor of each class in the cross-entropy (single-label only). The
            loss is the mean over examples, not over weights, so that it accumulates exactly.

    Raises:
        ValueError: for a value that cannot work; the message names the field, the value and what is allowed.
    """

    site: str = "hidden"
    layers: list[int | str] | None = field(default_factory=LAYERS.copy)
    blocks: list[str] | None = None
    partner: str = "random"
    self_pairs: bool = True
    memory: int = 16
    bandwidth: float = 1.0
    same_label_prob: float = 0.5
    group: str = "group"
    alpha: float | dict[float, float] = 2.0
    beta: float | None = None
    lam: float | None = None
    dominant: bool = True
    similarity: float | None = None
    similarity_width: float = 0.5
    mode: str = "elem"
    prob: float = 1.0
    off_epoch: float | None = None
    schedule: dict[float, float] | None = None
    warmup_batches: int = 100
    ramp: str = "linear"
    interpolation: str = "line"
    add_noise: float = 0.0
    mult_noise: float = 0.0
    label_rule: str = "lambda"
    kappa: float = 3.0
    tau: float = 0.5
    class_counts: list[float] | None = None
    clean_weight: float = 0.0
    class_weights: list[float] | None = None

    def __post_init__(self) -> None:
        for name in DEFAULTS:
            value = getattr(self, name)
            if value is not None or name not in OPTIONAL:
                setattr(self, name, CHECKS[name](name, value))
        for name, (other, wanted) in NEEDS.items():
            self._check_need(name, getattr(self, name), other, wanted)
        if self.interpolation in INTERPOLATION_SITES:
            self._check_need("interpolation", self.interpolation, "site", INTERPOLATION_SITES[self.interpolation])
        if self.similarity_width != DEFAULTS["similarity_width"] and self.similarity is None:
            raise ValueError(f"similarity_width={self.similarity_width} needs similarity.")
        for name, word in (("interpolation", "dimensions"), ("label_rule", "larger"), ("label_rule", "remix")):
            if self.similarity is not None and getattr(self, name) == word:
                raise ValueError(f"{name}={word!r}: not with similarity, which draws lambda where the pair is mixed.")
        for name in OF_LAMBDA:
            if self.similarity is not None and getattr(self, name) != DEFAULTS[name]:
                raise ValueError(
                    f"{name}={getattr(self, name)!r}: not with similarity, which draws lambda in its place."
                )
        for name, words in (("interpolation", ("span", "salient_span")), ("label_rule", ("remix",))):
            if self.partner in OUTSIDE and getattr(self, name) in words:
                raise ValueError(f"{name}={getattr(self, name)!r}: not with partner={self.partner!r}.")
        if self.partner in OUTSIDE and self.similarity is not None:
            raise ValueError(f"similarity={self.similarity}: not with partner={self.partner!r}.")
        if self.ramp != "linear" and self.schedule is None:
            raise ValueError(f"ramp={self.ramp!r} needs a schedule.")
        if not self.self_pairs and self.partner != "random":
            raise ValueError("self_pairs=False needs partner='random'; other partners are never the example itself.")
        if self.interpolation == "dimensions" and self.mode == "batch":
            raise ValueError("mode='batch': not with interpolation='dimensions', which draws lambdas for each example.")
        if self.partner == "margin" and not self.clean_weight:
            raise ValueError("partner='margin' needs clean_weight > 0: margins are recorded in the unmixed pass.")

    def _check_need(self, name: str, value: Any, other: str, wanted: tuple[str, ...]) -> None:
        if value is not None and value != DEFAULTS[name] and getattr(self, other) not in wanted:
            words = " or ".join(repr(word) for word in wanted)
            raise ValueError(f"{name}={value!r} needs {other}={words}, got {other}={getattr(self, other)!r}.")

    @property
    def group_column(self) -> str | None:
        """The column that holds each example's group, where partners depend on it."""
        return self.group if self.partner == "lisa" else None

    def resolve_layers(self, depth: int) -> list[int]:
        """The layers as numbers in [-1, `depth`), -1 being before the first block, for a model of `depth` blocks.

        Raises:
            ValueError: for a layer out of range.
        """
        if self.layers is None:
            return list(range(depth))
        resolved = set()
        for layer in self.layers:
            if isinstance(layer, str):
                part = checks.fraction(layer)
                resolved.add(max(math.floor(part * depth + Fraction(1, 2)), min(1, part.numerator)) - 1)
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
        known = list(DEFAULTS)
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
        values = read_mapping(path, "mixup fields")
        try:
            return cls.from_dict(values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


DEFAULTS: dict[str, Any] = {
    known.name: known.default if known.default_factory is MISSING else known.default_factory()
    for known in fields(MixupConfig)
}
# Fields that may be None.
OPTIONAL = {"layers", *(name for name, default in DEFAULTS.items() if default is None)}
