"""How texts without labels are used: `UnlabeledConfig`, the field `unlabeled` of a mixup config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from hf_mixup.config import checks
from hf_mixup.config.checks import choice, nearest, number
from hf_mixup.config.setting import check_settings, document_fields, needs, setting, takes_none

SHARE, POSITIVE = number(high=1), number(open_low=True)
LABELS, UNIFORM, NONE = "labels", "uniform", "none"
GIVEN = "given"

# Each takes default, check, help and conditions of a field.
how_many = partial(setting, "how many rows and how much they count")
guess = partial(setting, "what is guessed")
learn = partial(setting, "what is learned")


def class_prior(name: str, value: Any) -> str | list[float]:
    """A word, or a share for each class."""
    if isinstance(value, str):
        return choice(LABELS, UNIFORM, NONE)(name, value)
    shares = checks.per_class(name, value)
    total = sum(shares)
    # What was normalised once stays as it is, so that a config that was saved is the same again.
    return shares if abs(total - 1) < 1e-9 else [share / total for share in shares]


@document_fields
@dataclass(kw_only=True)
class UnlabeledConfig:
    """How a training step uses texts without labels, of `MixupTrainer(unlabeled_dataset=...)`.

    The loss of a step is the mean over its labelled rows, plus weight times the mean over its unlabelled rows, each
    against the classes that are guessed for it and times a weight of its own.

    ```python
    config = UnlabeledConfig(ratio=2.0, class_prior=[0.9, 0.1])
    ```

    Raises:
        ValueError: for a value that cannot work; the message names the field, the value and what is allowed.
    """

    ratio: float = how_many(1.0, POSITIVE, "Unlabelled rows per labelled row of a batch.")
    weight: float = how_many(1.0, number(), "The weight of the unlabelled rows in the loss. 0: they are not read.")
    start: float | None = how_many(
        None,
        checks.optional(SHARE),
        "The share of the training that is over before unlabelled rows are used, so that who guesses has learned "
        "from the labels. null: half of it, or 0 if the guesses are given.",
    )
    ramp: float = how_many(
        0.1, SHARE, "The share of the training over which the weight then rises from 0, linearly (MixMatch)."
    )
    guesses: str = guess(
        "average",
        choice("average", "model", GIVEN),
        "Who guesses, in evaluation mode. average: the moving average of the weights (the mean teacher of Tarvainen "
        "and Valpola), which is evaluated and saved as well. model: the model as it is. given: somebody else, before "
        "the training, such as a language model; the labels of the rows are the probabilities of the classes.",
    )
    decay: float = guess(
        0.99,
        SHARE,
        "The largest decay of that average; `ema_decay` of the trainer goes before it.",
        needs("guesses", "average"),
    )
    class_prior: str | list[float] = guess(
        LABELS,
        class_prior,
        "The class shares that the guesses are aligned to: each guess is multiplied by prior / running mean of the "
        "guesses (ReMixMatch, Berthelot et al. 2020). labels: those of the labelled rows, with one row more for each "
        "class. uniform: all the same. none: no alignment. Or a list of shares.",
    )
    temperature: float = guess(
        0.5,
        number(),
        "A guess p becomes p^(1/temperature), normalised (MixMatch, Berthelot et al. 2019). 1: as it is. 0: the "
        "likeliest class alone.",
    )
    confidence: float | None = learn(
        2.0,
        checks.optional(POSITIVE),
        "A row weighs exp(-d^2 / (2 (s / confidence)^2)), d being how far its largest probability is below the running "
        "mean, s the running spread (SoftMatch, Chen et al. 2023, whose n_sigma this is). null: each row weighs 1.",
    )
    loss: str = learn(
        "cross_entropy",
        choice("cross_entropy", "squared_error"),
        "Of the unlabelled rows. squared_error: the mean over classes of the squared difference of probabilities.",
    )
    partners: str = learn(
        "all",
        choice("all", "apart"),
        "all: labelled and unlabelled rows are partners of each other. apart: labelled rows have labelled partners, "
        "unlabelled rows unlabelled ones.",
    )
    mask: float = learn(
        0.0, number(high=0.9), "The share of the tokens of an unlabelled row that the model sees as the mask token."
    )

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def begins(self) -> float:
        """The share of the training that is over before unlabelled rows are used."""
        if self.start is None:
            return 0.0 if self.guesses == GIVEN else 0.5
        return self.start


def unlabeled_config(name: str, value: Any) -> UnlabeledConfig | None:
    """A config, also from a mapping of its fields. Raises `ValueError` for an unknown field."""
    if value is None or isinstance(value, UnlabeledConfig):
        return value
    if not isinstance(value, Mapping):
        raise ValueError(f"{name}={value!r}: expected a mapping of fields, such as {{ratio: 2.0}}.")
    known = [field.name for field in fields(UnlabeledConfig)]
    for field in value:
        if field not in known:
            raise ValueError(
                f"{name}: unknown field {field!r}.{nearest(str(field), known)} Fields: {', '.join(known)}."
            )
    given = {key: item for key, item in value.items() if item is not None or takes_none(UnlabeledConfig, key)}
    try:
        return UnlabeledConfig(**given)
    except ValueError as error:
        raise ValueError(f"{name}.{error}") from error
