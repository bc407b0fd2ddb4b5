"""What is compared: a YAML file becomes a grid of runs."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from hf_mixup.cli.compare.runs import DERIVED, Cell
from hf_mixup.cli.train.run_fields import TOKENS, DataArguments
from hf_mixup.cli.train.training_options import refused_in_comparison
from hf_mixup.config import checks
from hf_mixup.config.checks import nearest
from hf_mixup.config.recipes import recipe_names

MEASURES = ("boundary", "perturbation")
# A field of a method beside those of a run: added to the seed of the training, and not to that of its rows.
RESEED = "reseed"
# Another: the weights of the tenth of the training that does best on the development split.
EARLY_STOPPING = "early_stopping"
# Another: how many times as many updates, for a method without unlabelled rows that is given as much time as one with.
STEPS_FACTOR = "steps_factor"
OF_METHODS = (RESEED, EARLY_STOPPING, STEPS_FACTOR)
# The baseline once more: what is marked for it is chance.
AGAIN = "again"
# Methods that are no recipe: fields of a run.
RIVALS: dict[str, dict[str, Any]] = {
    "none": {"mixup": "none"},
    "label_smoothing": {"mixup": "none", "label_smoothing_factor": 0.1},
    EARLY_STOPPING: {"mixup": "none", EARLY_STOPPING: True},
    AGAIN: {RESEED: 1000},
}
# The comparison decides these in every run.
DECIDED = ("seed", "data_seed", "output_dir", "max_train_samples", "resume_from_checkpoint", "baseline")
# Methods share their data and the number of their updates.
SHARED = (
    *(item.name for item in fields(DataArguments)),
    *("max_steps", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps"),
)
UNUSED = ("fit_temperature",)
SCALED_ANYWAY = "a comparison measures every method with a fitted temperature, too, and keeps no models; leave it out"
EXAMPLES = {"seeds": "[0, 1, 2]", "train_sizes": "[20, 200]", "label_noise": "[0, 0.2]", "measures": "[boundary]"}


@dataclass
class Comparison:
    """What `hf-mixup compare` runs.

    Args:
        output_dir (`str`): where everything is written.
        methods (`dict`): name to the fields of a run that make it, or to a list of such, of which each run picks one
            by its development split. The first is the baseline. `reseed`, a whole number, is added to the seed of the
            training alone. `early_stopping: true` takes the weights of the tenth of the training that does best on the
            development split by `select_by`; among the fields of every run it is that of every method. `steps_factor`,
            a number, multiplies the updates. In a YAML file also a list of names: recipes, `none`, `label_smoothing`,
            `early_stopping` (without mixup), `again` (the baseline, reseeded).
        seeds (`list[int]`, defaults to 0 to 4): the runs of one seed have the same training rows in every method.
        train_sizes (`list[int]`): training rows of each class, or training rows in all if texts have no single class.
        balanced (`bool`, defaults to `True`): `False` makes `train_sizes` training rows in all, of whatever class.
        label_noise (`list[float]`, defaults to [0]): shares of the training labels that are replaced by another one.
        unlabeled (`int`, *optional*): so many training rows, other than those of a run, are without labels in it, for
            methods whose mixup has `unlabeled`. Files or splits of such rows do the same.
        small_validation (`bool`, defaults to `False`): `True` leaves each run as many rows of the development split as
            it has training rows, drawn as these are.
        select_by (`str`, *optional*): metric of the development split that picks a variant; defaults to the loss.
        measures (`list[str]`, defaults to both): what else is measured: `"boundary"`, `"perturbation"`; of tokens
            nothing, which is the default of a YAML file for them.
        measured_samples (`int`, defaults to 128): test texts for these.
        outliers (`str`, *optional*): a file or dataset of texts of another kind, to be told apart.
        workers (`int`, *optional*): runs at a time; defaults to the number of GPUs, else of cores, 8 at most.
        run (`dict`): the fields of every run: model, data, training, as for `hf-mixup train`.

    Raises:
        ValueError: for a field that cannot work; the message names it, the value and what is allowed.
    """

    output_dir: str
    methods: dict[str, list[dict[str, Any]]]
    train_sizes: list[int]
    balanced: bool = True
    seeds: list[int] = field(default_factory=lambda: list(range(5)))
    label_noise: list[float] = field(default_factory=lambda: [0.0])
    unlabeled: int | None = None
    small_validation: bool = False
    select_by: str | None = None
    measures: list[str] = field(default_factory=lambda: list(MEASURES))
    measured_samples: int = 128
    outliers: str | None = None
    workers: int | None = None
    run: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.methods, self.run = _methods(self.methods), dict(self.run)
        for variant in itertools.chain(*self.methods.values()) if EARLY_STOPPING in self.run else ():
            variant.setdefault(EARLY_STOPPING, self.run[EARLY_STOPPING])
        self.run.pop(EARLY_STOPPING, None)
        self.output_dir = os.path.expanduser(str(self.output_dir))
        self.outliers = None if self.outliers is None else os.path.expanduser(str(self.outliers))
        for name, low in (("seeds", 0), ("train_sizes", 1)):
            numbers = [checks.count(low)(name, value) for value in _list(name, getattr(self, name))]
            if len(set(numbers)) < len(numbers):
                raise ValueError(f"{name}={numbers!r}: expected each number once.")
            setattr(self, name, numbers)
        shares = [checks.number(high=0.9)("label_noise", share) for share in _list("label_noise", self.label_noise)]
        if len({f"{share:g}" for share in shares}) < len(shares):
            raise ValueError(f"label_noise={shares!r}: expected each share once.")
        self.label_noise = shares
        for measure in _list("measures", self.measures, may_be_empty=True):
            checks.choice(*MEASURES)("measures", measure)
            if self.run.get("task") == TOKENS:
                raise ValueError(f"measures={self.measures!r}: {measure} is of whole texts, not with task: {TOKENS}.")
        for name in ("balanced", "small_validation"):
            checks.boolean(name, getattr(self, name))
        checks.count(2)("measured_samples", self.measured_samples)
        for name in ("workers", "unlabeled"):
            checks.optional(checks.count(1))(name, getattr(self, name))
        self._check_fields()

    def _check_fields(self) -> None:
        """Raise `ValueError` for a field of all runs or of a method that is not theirs to say."""
        _refuse(self.run, (*DECIDED, "mixup"), "the comparison sets it; see methods, seeds, train_sizes")
        _refuse(self.run, UNUSED, SCALED_ANYWAY)
        refused_in_comparison(self.run)
        for name, variants in self.methods.items():
            for variant in variants:
                where = f" (in the method {name!r})"
                _refuse(variant, DECIDED, f"the comparison sets it{where}")
                _refuse(variant, UNUSED, SCALED_ANYWAY + where)
                refused_in_comparison(variant, where)
                _refuse(variant, SHARED, f"methods share it: put it beside methods{where}")
                checks.count(0)(RESEED, variant.get(RESEED, 0))
                checks.boolean(EARLY_STOPPING, variant.get(EARLY_STOPPING, False))
                checks.number(open_low=True)(STEPS_FACTOR, variant.get(STEPS_FACTOR, 1))

    @property
    def baseline(self) -> str:
        """The method that the others are compared with."""
        return next(iter(self.methods))

    def cells(self) -> list[Cell]:
        """Every run, those of one seed next to each other, so that an early stop leaves whole comparisons."""
        grid = itertools.product(self.seeds, self.train_sizes, self.label_noise, self.methods)
        return [Cell(method, size, noise, seed) for seed, size, noise, method in grid]

    def share(self, part: int, parts: int) -> list[Cell]:
        """The runs of one part, numbered from 1: those of each method are dealt in turn, as methods differ in cost."""
        cells, methods = self.cells(), list(self.methods)
        if parts > len(cells):
            raise ValueError(f"part='{part}/{parts}': there are {len(cells)} runs, so at most as many parts.")
        own = set(sorted(cells, key=lambda cell: methods.index(cell.method))[part - 1 :: parts])
        return [cell for cell in cells if cell in own]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Comparison:
        """From the fields of a comparison and, beside them, those of its runs."""
        own = {item.name for item in fields(cls)} - {"run"}
        for name in ("output_dir", "methods", "train_sizes"):
            if values.get(name) is None:
                raise ValueError(f"{name} is missing; a comparison needs output_dir, methods and train_sizes.")
        usual: dict[str, Any] = {"measures": []} if values.get("task") == TOKENS else {}
        return cls(
            **usual | {name: value for name, value in values.items() if name in own},
            run={name: value for name, value in values.items() if name not in own},
        )


def of_the_run(variant: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a method that `hf-mixup train` knows, too."""
    return {name: value for name, value in variant.items() if name not in OF_METHODS}


def _methods(given: Any) -> dict[str, list[dict[str, Any]]]:
    if isinstance(given, (list, tuple)):
        twice = [name for name in given if given.count(name) > 1]
        if twice:
            raise ValueError(f"methods: {twice[0]!r} is there twice.")
        given = dict.fromkeys("none" if name is None else str(name) for name in given)
    if not isinstance(given, Mapping) or len(given) < 2:
        raise ValueError(f"methods={given!r}: expected two or more, such as [none, label_smoothing, tmix].")
    made: dict[str, list[dict[str, Any]]] = {}
    for name, made_of in given.items():
        baseline = next(iter(made.values()), None)
        made[str(name)] = _variants(str(name), baseline if name == AGAIN and made_of is None else made_of)
    return made


def _variants(name: str, made_of: Any) -> list[dict[str, Any]]:
    if not name.replace("_", "").replace("-", "").isalnum() or name == DERIVED:
        raise ValueError(f"methods: {name!r} is not a name for a folder: letters, digits, - and _, not {DERIVED!r}.")
    variants = made_of if isinstance(made_of, list) and made_of else [made_of]
    filled = []
    for variant in variants:
        if not isinstance(variant, (Mapping, type(None))):
            raise ValueError(f"methods: {name}={variant!r}: expected a mapping of the fields of a run, or nothing.")
        own = dict(variant or {})
        if name in RIVALS:
            own = RIVALS[name] | own
        elif name in recipe_names():
            own = {"mixup": name} | own
        elif not any(field.partition(".")[0] == "mixup" for field in own):
            known = (*recipe_names(), *RIVALS)
            raise ValueError(
                f"methods={name!r}: expected one of {', '.join(known)}.{nearest(name, known)} A method with a name of "
                "its own says what it is: mixup: none, a recipe, or a mapping of fields."
            )
        filled.append(own)
    return filled


def _list(name: str, values: Any, may_be_empty: bool = False) -> list[Any]:
    if not isinstance(values, (list, tuple)) or not (values or may_be_empty):
        raise ValueError(f"{name}={values!r}: expected a list, such as {EXAMPLES.get(name, '[a, b]')}.")
    return list(values)


def _refuse(given: Mapping[str, Any], names: Sequence[str], why: str) -> None:
    for name, value in given.items():
        if name.replace("-", "_") in names:
            raise ValueError(f"{name}={value!r}: {why}.")
