"""What the user says: `MixupConfig`, every field of which is declared in one place."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from hf_mixup.config import checks
from hf_mixup.config.checks import by_epoch, choice, count, number, optional, per_class, points
from hf_mixup.config.files import read_mapping
from hf_mixup.config.setting import check_settings, document_fields, needs, not_with, setting, takes_none
from hf_mixup.config.unlabeled_config import UnlabeledConfig, unlabeled_config

# Partners that are not in the batch.
OUTSIDE = ("previous_batch", "all_ranks")
AUTO = "auto"  # the strength that follows held-out predictions
BY_LABEL = ("same_class", "other_class", "near_label", "balanced", "lisa", "margin")
PARTNERS = ("random", *BY_LABEL, "near_length", "near_text", "same_text", *OUTSIDE)
# Tokens are exchanged, in spans.
SPANS = ("span", "salient_span", "entity_span")
# What is mixed there has a row for each token or patch.
STATES = ("word_embeddings", "embeddings", "hidden")
SITES = ("input", *STATES, "pooled")
SHARE, POSITIVE = number(high=1), number(open_low=True)

# Each takes default, check, help and conditions of a field.
who = partial(setting, "who is mixed with whom")
how_much = partial(setting, "how much")
where = partial(setting, "where in the network")
how = partial(setting, "how two become one")
what = partial(setting, "what label follows")
besides = partial(setting, "what texts without labels add")

AT_STATES, WITH_LISA, WITH_REMIX = needs("site", *STATES), needs("partner", "lisa"), needs("label_rule", "remix")
LAMBDA_IS_DRAWN = not_with("similarity", why="which draws lambda in its place")
AT_SITE = "which draws lambda where the pair is mixed"


@document_fields
@dataclass(kw_only=True)
class MixupConfig:
    """How one training step mixes its batch. `MixupConfig()` is the recipe `"fixed"`; what is given changes it.

    Its fields answer five questions: who is mixed with whom, how much, where in the network, how two become one, and
    what label follows.

    ```python
    config = MixupConfig(site="hidden", layers=[2, 3, 4], alpha=0.4)
    ```

    Raises:
        ValueError: for a value that cannot work; the message names the field, the value and what is allowed.
    """

    partner: str = who(
        "random",
        choice(*PARTNERS),
        "random: a permutation of the batch. same_class, other_class. near_label: the nearer the label, the likelier "
        "(C-Mixup, Yao et al. 2022). balanced: every class as likely. lisa: same label and other group, or same group "
        "and other label (Yao et al. 2022). margin: easy with hard (Park and Caragea 2022). An example that nobody "
        "fits is not mixed. previous_batch: the last examples of this process, by their stored hidden states, also at "
        "batch size 1. near_length: the nearer the number of tokens, the likelier. near_text: a text near by "
        "the mean of token embeddings, or any (LADA, Chen et al. 2020). same_text: of each token, another of its "
        "text (labels per token). all_ranks: a permutation of the global batch, whose states are gathered at the site.",
        needs("clean_weight", only=("margin",), why="margins are recorded in the unmixed pass"),
        needs("site", "pooled", only=("same_text",)),
    )
    self_pairs: bool = who(True, checks.boolean, "An example may be its own partner.", needs("partner", "random"))
    memory: int = who(16, count(1), "How many examples are kept for each layer.", needs("partner", "previous_batch"))
    bandwidth: float = who(
        1.0,
        POSITIVE,
        "Width of the Gaussian kernel, in units of the label, or in tokens.",
        needs("partner", "near_label", "near_length"),
    )
    neighbors: int = who(5, count(1), "How many texts are near.", needs("partner", "near_text"))
    near_prob: float = who(0.5, SHARE, "Share of texts whose partner is a near one.", needs("partner", "near_text"))
    same_label_prob: float = who(0.5, SHARE, "Share of batches that mix one label across groups.", WITH_LISA)
    group: str = who("group", checks.text, "The column with the number of each example's group.", WITH_LISA)
    alpha: float | dict[float, float] = how_much(
        2.0,
        by_epoch(POSITIVE, POSITIVE, "{0: 0.1, 2: 0.4}"),
        "lambda ~ Beta(alpha, beta). Small: most pairs stay near one of the two. Or from which epoch on which alpha: "
        "{0: 0.1, 2: 0.4}.",
        LAMBDA_IS_DRAWN,
    )
    beta: float | None = how_much(
        None, optional(POSITIVE), "The second parameter, null for alpha; lambda is folded if dominant.", LAMBDA_IS_DRAWN
    )
    lam: float | None = how_much(
        None, optional(SHARE), "A fixed lambda; alpha, beta and dominant are not used then.", LAMBDA_IS_DRAWN
    )
    dominant: bool = how_much(
        True,
        checks.boolean,
        "lambda becomes max(lambda, 1 - lambda), so each example outweighs its partner (MixMatch, Berthelot et al. "
        "2019; TMix). Not used with similarity.",
    )
    similarity: float | None = how_much(
        None,
        optional(POSITIVE),
        "In place of alpha, lambda ~ Beta(tau, tau) with tau = similarity exp(-(d / mean d - 1) / (2 w^2)), d being "
        "the squared distance of a pair where it is mixed: close pairs are mixed evenly, distant ones hardly (Bouniot "
        "et al. 2023).",
        AT_STATES,
        not_with("partner", *OUTSIDE),
    )
    similarity_width: float = how_much(0.5, POSITIVE, "w in that formula.", needs("similarity"))
    mode: str = how_much(
        "elem",
        choice("elem", "batch"),
        "elem: one lambda per example. batch: one per batch.",
        LAMBDA_IS_DRAWN,
        not_with("interpolation", "dimensions", why="which draws lambdas for each example"),
    )
    prob: float = how_much(1.0, SHARE, "Probability that a batch is mixed.")
    strength: float | str = how_much(
        1.0,
        checks.share_or(AUTO),
        "The share of the partner's weight that is used. auto: from 0 upwards, as much as held-out predictions are "
        "surer than right (after CAMixup, Wen et al. 2021).",
    )
    check_rows: int | None = how_much(
        None,
        optional(count(0)),
        "For each of nine checks besides your own evaluations: rows of the evaluation set or, if there is none, held "
        "out of the training rows, at most a tenth. null: as many as take 2 % of the training. 0: no such checks.",
        needs("strength", AUTO, why="as in mixup={'recipe': 'default', 'check_rows': 200}"),
    )
    off_epoch: float | None = how_much(None, optional(number()), "The epoch from which batches are no longer mixed.")
    schedule: dict[float, float] | None = how_much(
        None,
        optional(points(SHARE, SHARE)),
        "Strength over the training: which share of the partner's weight is used, at which share of all steps; at "
        "step k of n that is (k - 1) / n. {0: 0, 0.1: 1} warms up, {0.499: 0, 0.5: 1} is on in the second half only.",
    )
    ramp: str = how_much(
        "linear",
        choice("linear", "cosine", "step"),
        "How the strength changes between the points of the schedule: linear, cosine or step.",
        needs("schedule"),
    )
    warmup_batches: int = how_much(
        100,
        count(0),
        "Batch k of the first n uses k / n of the partner's weight, times the share of the schedule. Counted as they "
        "are drawn, each part of an accumulated batch by itself, so the length of the training need not be known.",
    )
    site: str = where(
        "hidden",
        choice(*SITES),
        "Where activations are mixed. input: the float input of an image or audio model (mixup, Zhang et al. 2018). "
        "word_embeddings: the token lookup, with the position and segment lookups that go with it. embeddings: what "
        "enters the first block. hidden: after one of the blocks (manifold mixup, Verma et al. 2019; TMix, Chen et "
        "al. 2020). pooled: what enters the last linear layer (sentence mixup, Guo et al. 2019).",
    )
    layers: list[int | str] | None = where(
        ("7/12", "9/12", "12/12"),
        optional(checks.layer_list),
        "The blocks after which to mix, null for every block; of several, one is drawn per batch. "
        "Counted from 0, negative from the end. 7/12 means after the 7th of 12 blocks, scaled to the depth of the "
        "model; 0/12 is what enters the first block. Decoder blocks follow encoder blocks.",
        needs("site", "hidden"),
    )
    blocks: list[str] | None = where(
        None,
        optional(checks.module_paths),
        "Module paths of the model's blocks in the order in which they run, or of its lists of blocks, such as "
        "[encoder.layers], for a model in which they are not found.",
    )
    interpolation: str = how(
        "line",
        choice("line", "dimensions", "box", *SPANS),
        "line: lambda of the example, 1 - lambda of its partner. dimensions: a lambda for each hidden dimension (Guo "
        "2020), the label follows their mean. box: at site input of images, a random box of 1 - lambda of the pixels "
        "gives way to that of the partner, the label follows the share that stays (CutMix, Yun et al. 2019). span: of "
        "a text, a random span of tokens gives way to one of the partner. salient_span: the least salient span to the "
        "partner's most salient one (SSMix, Yoon et al. 2021), which takes another pass. "
        "entity_span: an entity, with its labels, to one of the partner that is as long (labels per token); strength "
        "is the probability of that.",
        needs("site", *STATES, only=("dimensions",)),
        needs("site", "input", only=("box", *SPANS)),
        not_with("similarity", only=("dimensions",), why=AT_SITE),
        not_with("partner", *OUTSIDE, only=SPANS),
    )
    add_noise: float = how(
        0.0,
        number(),
        "Noise on what was mixed (noisy feature mixup, Lim et al. 2022): z (1 + mult_noise b U) + add_noise rms(z) "
        "b' N, with U uniform in [-1, 1], N normal, b and b' ~ Beta(2, 5).",
        AT_STATES,
    )
    mult_noise: float = how(0.0, number(), "See add_noise.", AT_STATES)
    label_rule: str = what(
        "lambda",
        choice("lambda", "remix", "larger", "own"),
        "lambda: mixed like the examples. remix: in favor of rare classes (Chou et al. 2020). larger: of the example "
        "that weighs more (Wang et al. 2023). own: the example's own.",
        not_with("similarity", only=("remix", "larger"), why=AT_SITE),
        not_with("partner", *OUTSIDE, only=("remix",)),
    )
    kappa: float = what(3.0, number(low=1), "Ratio of class sizes from which it applies.", WITH_REMIX)
    tau: float = what(0.5, SHARE, "The lambda below which it applies.", WITH_REMIX)
    class_counts: list[float] | None = what(
        None, optional(per_class), "Examples of each class; MixupTrainer counts them.", WITH_REMIX
    )
    clean_weight: float = what(
        0.0,
        SHARE,
        "Share of the loss that comes from the same batch unmixed, which takes another pass; 0.5 adds the clean loss "
        "to the mixed one in equal parts (RegMixup, Pinto et al. 2022).",
    )
    class_weights: list[float] | dict[float, list[float] | None] | None = what(
        None,
        optional(by_epoch(per_class, optional(per_class), "{0: null, 10: [1, 1, 4]}")),
        "Factor of each class in the cross-entropy (single-label only). The loss is the mean over examples, not over "
        "weights, so that it accumulates exactly. Or from which epoch on which factors, null for none (deferred "
        "re-weighting, Cao et al. 2019): {0: null, 10: [1, 1, 4]}.",
    )

    unlabeled: UnlabeledConfig | None = besides(
        None, unlabeled_config, "Fields of `UnlabeledConfig`, with `MixupTrainer(unlabeled_dataset=...)` only."
    )

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def group_column(self) -> str | None:
        """The column with each example's group, if partners depend on it."""
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
        """A config of these fields; `None` is the default of a field that takes no `None`.

        Raises:
            ValueError: for an unknown field, with the nearest known one.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"A mixup config is a mapping of field names to values, got {type(values).__name__}.")
        checks.known_fields(values, [field.name for field in fields(cls)])
        return cls(**{name: value for name, value in values.items() if value is not None or takes_none(cls, name)})

    def to_yaml(self) -> str:
        """The config as YAML text, which `from_file` reads back."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    def to_json(self) -> str:
        """The config as JSON text, which `from_file` reads back."""
        return json.dumps(self.to_dict(), indent=2)

    def save(self, path: str | Path) -> None:
        """Write the config to `path`, as JSON if the name ends in .json, else as YAML."""
        Path(path).write_text(self.to_json() if str(path).endswith(".json") else self.to_yaml(), encoding="utf-8")

    @classmethod
    def from_file(cls, path: str | Path) -> MixupConfig:
        """Read a YAML or JSON file. Raises `FileNotFoundError`, or `ValueError` if it is not a config."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"No mixup config file at {str(path)!r}.")
        values = read_mapping(path, "mixup fields")
        try:
            return cls.from_dict(values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
