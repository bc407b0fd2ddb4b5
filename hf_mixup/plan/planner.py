"""Drawing the plan of a batch, from a random stream of its own."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_mixup.config.checks import allow_only
from hf_mixup.config.mixup_config import AUTO, OUTSIDE, SPANS, MixupConfig
from hf_mixup.plan.boxes import plan_boxes
from hf_mixup.plan.entities import other_tokens
from hf_mixup.plan.examples import Examples
from hf_mixup.plan.lambdas import draw_lambda, label_lambda, strength_at
from hf_mixup.plan.margins import Margins
from hf_mixup.plan.memory import Memory
from hf_mixup.plan.mixup_plan import MixupPlan
from hf_mixup.plan.partners import PARTNERS, choose_partner, one_cycle
from hf_mixup.plan.ranks import number_of_ranks, share_of_plan, sizes_of_all
from hf_mixup.plan.strength import AutoStrength
from hf_mixup.plan.token_plans import with_spans

# What words of a config need of the examples, besides what their partners do.
NEEDS = {
    ("label_rule", "remix"): ("targets",),
    ("interpolation", "box"): ("pixel_values",),
    ("interpolation", "span"): ("input_ids",),
    ("interpolation", "salient_span"): ("targets", "input_ids", "saliency"),
    ("interpolation", "entity_span"): ("targets", "input_ids"),
}
# What may be said if several rows belong to one example: rows that are mixed by the same numbers.
OF_ROWS = {
    "partner": tuple(name for name in PARTNERS if name not in (*OUTSIDE, "margin", "same_text")),
    "interpolation": ("line", "dimensions"),
    "similarity": (None,),
}
# What leaves one lambda for the batch, if one is asked for.
WITH_ONE_LAMBDA: dict[str, tuple[Any, ...]] = {
    "interpolation": ("line",),
    "label_rule": ("lambda", "larger", "own"),
    "similarity": (None,),
}
# Batches after which a strength that has nothing to follow says so.
UNOBSERVED = 100
NOT_OBSERVED = (
    "strength='auto': no held-out predictions were seen, so nothing is mixed. Call mixup.observe(logits, labels) after "
    "each evaluation, as MixupTrainer does, or give a strength from 0 to 1."
)


def needs_of(config: MixupConfig) -> set[str]:
    """What the plans of a config look at: fields of `Examples`, and names of model inputs."""
    needs = set(PARTNERS[config.partner].needs)
    for (name, word), fields in NEEDS.items():
        if getattr(config, name) == word:
            needs.update(fields)
    return needs


class Planner:
    """Draws the plans of one config, from a stream that belongs to (seed, rank) and to nothing else.

    Args:
        config (`MixupConfig`): what is drawn.
        seed (`int`, defaults to 0): seed of the run.
        rank (`int`, defaults to 0): index of this process; processes draw different plans.
        separators (`Collection[int]`): ids of tokens that stand between texts or end them; spans leave them alone.
    """

    def __init__(self, config: MixupConfig, seed: int = 0, rank: int = 0, separators: Collection[int] = ()) -> None:
        self.config, self.needs = config, needs_of(config)
        self.separators = torch.tensor(sorted(separators)) if separators else None
        self.restart(seed, rank)

    def restart(self, seed: int, rank: int) -> None:
        """Begin anew, as for a new training."""
        # Ranks that share a plan draw it from one stream.
        self.generator = np.random.default_rng([seed, 0 if self.config.partner == "all_ranks" else rank])
        self.drawn = 0
        self.margins = Margins() if "margins" in self.needs else None
        self.memory = Memory(self.config.memory) if self.config.partner == "previous_batch" else None
        self.auto_strength = AutoStrength() if self.config.strength == AUTO else None

    @property
    def strength(self) -> float:
        """The share of the partner's weight that the config allows now, less what schedule and warm-up leave of it."""
        return float(self.config.strength) if self.auto_strength is None else self.auto_strength.value

    def draw(self, examples: Examples) -> MixupPlan:
        """One plan.

        Args:
            examples (`Examples`): the batch. One example alone is left clean, unless its partners are earlier ones.

        Raises:
            ValueError: if something is needed and not given.
        """
        self._check(examples)
        places = None if self.margins is None else self.margins.places(examples.inputs)
        if self.margins is not None and places is not None:
            examples = replace(examples, margins=self.margins.of(places))
        if self.config.partner == "all_ranks" and number_of_ranks() > 1:
            plan = self._draw_for_all(examples)
        else:
            plan = self._draw(examples)
        plan.record.places = places
        if self.memory is not None and plan.active:
            plan = self.memory.with_partners(plan, self.generator)
            plan.record.targets = examples.targets
        return plan

    def _check(self, examples: Examples) -> None:
        config = self.config
        if isinstance(examples.epoch, Tensor):
            raise ValueError("epoch: expected a number; labels are given by name, draw(batch, labels=labels).")
        if examples.one_lambda:
            allow_only(config, WITH_ONE_LAMBDA, "not with one_lambda=True")
        if examples.rows_per_example > 1:
            allow_only(config, OF_ROWS, f"not with rows_per_example={examples.rows_per_example}")
        if examples.groups is not None and len(examples.groups) != examples.size:
            raise ValueError(f"groups: {len(examples.groups)} of them for a batch of {examples.size} examples.")
        if "groups" in self.needs and examples.groups is None:
            raise ValueError(
                f"groups: partner='lisa' needs each example's group, and the batch has no column "
                f"{config.group_column!r}. In a loop of your own give draw(batch, groups=...); for MixupModel in a "
                "Trainer set remove_unused_columns=False."
            )
        for name, what in (("input_ids", "the tokens of each text"), ("pixel_values", "images")):
            if name in self.needs and examples.inputs.get(name) is None:
                raise ValueError(
                    f"{name}: partner={config.partner!r} with interpolation={config.interpolation!r} needs "
                    f"{what}; this batch has only {', '.join(examples.inputs)}."
                )

    def _draw_for_all(self, examples: Examples) -> MixupPlan:
        """This rank's part of a plan of the global batch."""
        assert examples.targets is not None
        sizes = sizes_of_all(examples.inputs, examples.size)
        plan = self._draw(replace(examples, size=sum(count for count, _ in sizes), targets=None))
        if not plan.active:
            return replace(plan, partner=torch.arange(examples.size), lam=torch.ones(examples.size))
        return share_of_plan(plan, examples.inputs, examples.targets, sizes)

    def _draw(self, examples: Examples) -> MixupPlan:
        config, size = self.config, examples.size
        if config.off_epoch is not None and examples.epoch is None:
            raise ValueError(
                f"off_epoch={config.off_epoch} needs the progress of training: give draw(batch, epoch=...), or set "
                "mixup_epoch of a MixupModel."
            )
        strength = self.strength * strength_at(config, examples.progress, self.drawn)
        self.drawn += 1
        if self.drawn == UNOBSERVED and self.auto_strength is not None and not self.auto_strength.checks:
            warnings.warn(NOT_OBSERVED, stacklevel=4)
        if self._stays_clean(examples, strength):
            plan = MixupPlan(torch.arange(size), torch.ones(size), config.site, active=False)
            return _with_rows(plan, examples.rows_per_example)
        layer = int(self.generator.choice(examples.layers)) if examples.layers else None
        partner = self._partner(examples)
        drawn = draw_lambda(self.generator, size, config, examples.epoch, examples.one_lambda)
        lam = _weaken(torch.from_numpy(drawn), strength)
        # Layer -1 is what enters the first block.
        site, block = ("embeddings", None) if layer == -1 else (config.site, layer)
        plan = MixupPlan(partner, lam, site, block, strength=strength)
        if config.interpolation == "dimensions":
            plan = self._with_dimensions(plan, examples, examples.widths[layer])
        if config.similarity is not None:
            plan = self._with_similarity(plan, config.similarity)
        if config.add_noise or config.mult_noise:
            plan = self._with_noise(plan)
        if config.interpolation == "box":
            plan = self._with_boxes(plan, examples.inputs["pixel_values"])
        if config.interpolation in SPANS:
            plan = self._with_spans(plan, examples)
        if config.partner == "same_text" and examples.targets is not None:
            kinds = examples.targets
            uniform = torch.from_numpy(self.generator.random(kinds.shape, dtype=np.float32)).to(kinds.device)
            plan = replace(plan, source=other_tokens(kinds, uniform))
        if config.label_rule != "lambda":
            plan = replace(plan, label_lam=label_lambda(config, plan.lam, plan.partner, examples))
        return _with_rows(plan, examples.rows_per_example)

    def _stays_clean(self, examples: Examples, strength: float) -> bool:
        config, epoch = self.config, examples.epoch
        is_off = strength == 0 or (config.off_epoch is not None and epoch is not None and epoch >= config.off_epoch)
        fewest = 1 if config.partner in ("previous_batch", "same_text") else 2
        return is_off or examples.size < fewest or (config.prob < 1 and self.generator.random() >= config.prob)

    def _partner(self, examples: Examples) -> Tensor:
        config, size = self.config, examples.size
        if config.partner == "previous_batch":
            return torch.arange(size, 2 * size)
        if config.partner == "same_text":
            return torch.arange(size)
        if PARTNERS[config.partner].weights is None:
            order = self.generator.permutation(size)
            return torch.from_numpy(order if config.self_pairs else one_cycle(order))
        uniform = torch.from_numpy(self.generator.random(size))
        coin = self.generator.random() < config.same_label_prob
        return choose_partner(config, examples, uniform, bool(coin))

    def _with_dimensions(self, plan: MixupPlan, examples: Examples, width: int) -> MixupPlan:
        drawn = draw_lambda(self.generator, examples.size * width, self.config, examples.epoch)
        dimension_lam = _weaken(torch.from_numpy(drawn).reshape(-1, width), plan.strength)
        return replace(plan, dimension_lam=dimension_lam, lam=dimension_lam.mean(1))

    def _with_similarity(self, plan: MixupPlan, similarity: float) -> MixupPlan:
        # 1 - a number in [0, 1) has a logarithm.
        uniform = torch.from_numpy(1 - self.generator.random((2, len(plan.lam)), dtype=np.float32))
        return replace(plan, similarity=(similarity, self.config.similarity_width), uniform=uniform)

    def _with_noise(self, plan: MixupPlan) -> MixupPlan:
        add, mult = (plan.strength * float(scale) for scale in self.generator.beta(2, 5, size=2))
        return replace(plan, noise=(self.config.add_noise * add, self.config.mult_noise * mult))

    def _with_boxes(self, plan: MixupPlan, images: Tensor) -> MixupPlan:
        if images.dim() < 4:
            raise ValueError(
                f"pixel_values: shape {tuple(images.shape)}; interpolation='box' needs (batch, channels, height, "
                "width)."
            )
        uniform = torch.from_numpy(self.generator.random((2, len(plan.lam))))
        box, lam = plan_boxes(plan.lam, images.shape[-2], images.shape[-1], uniform)
        return replace(plan, box=box, lam=lam)

    def _with_spans(self, plan: MixupPlan, examples: Examples) -> MixupPlan:
        uniform = torch.from_numpy(self.generator.random((2, 2, len(plan.lam))))
        if self.separators is not None:
            self.separators = self.separators.to(examples.inputs["input_ids"].device)
        return with_spans(plan, examples, self.config.interpolation, uniform, self.separators)

    def remember(self, plan: MixupPlan, inputs: Any, states: list[Tensor]) -> None:
        """Keep a batch after its forward pass, as partners of later ones."""
        if self.memory is not None and plan.record.targets is not None:
            self.memory.add(plan, inputs, plan.record.targets, states)
            plan.record.targets = None

    def record(self, plan: MixupPlan, clean_logits: Tensor, targets: Tensor) -> None:
        """Note how the model did on the unmixed batch of a plan, if partners depend on it; once per plan."""
        if self.margins is not None and plan.record.places is not None:
            self.margins.record(plan.record.places, clean_logits, targets)
            plan.record.places = None

    def observe(self, surplus: Tensor) -> float:
        """Let the strength follow the surplus of held-out examples, and return it; see `AutoStrength.see`.

        Raises:
            ValueError: for a strength that is fixed.
        """
        if self.auto_strength is None:
            raise ValueError(
                f"strength={self.config.strength}: fixed; the recipe 'default' has 'auto', which follows predictions."
            )
        self.auto_strength.see(surplus)
        return self.strength

    def state_dict(self) -> dict[str, Any]:
        """The random stream, the margins and the memory: plain numbers and strings, and tensors in the memory."""
        kept = {"margins": self.margins, "memory": self.memory, "auto_strength": self.auto_strength}
        states = {name: value.state_dict() for name, value in kept.items() if value is not None}
        return {**self.generator.bit_generator.state, "drawn": self.drawn, **states}

    def load_state_dict(self, state: dict[str, Any], device: torch.device | None = None) -> None:
        """Continue from `state`, with what is remembered on `device`."""
        state = self.load_progress(state)
        margins, memory = state.pop("margins", None), state.pop("memory", None)
        self.generator.bit_generator.state = state
        if self.margins is not None and margins is not None:
            self.margins.load_state_dict(margins)
        if self.memory is not None and memory is not None:
            self.memory.load_state_dict(memory, device)

    def load_progress(self, state: dict[str, Any]) -> dict[str, Any]:
        """Continue the warm-up and the strength from `state`, and return the rest of it."""
        rest = dict(state)
        self.drawn, strength = rest.pop("drawn", 0), rest.pop("auto_strength", None)
        if self.auto_strength is not None and strength is not None:
            self.auto_strength.load_state_dict(strength)
        return rest


def _weaken(lam: Tensor, strength: float) -> Tensor:
    """Lambda with only a share of the partner's weight."""
    return lam if strength == 1 else 1 - strength * (1 - lam)


def _with_rows(plan: MixupPlan, rows: int) -> MixupPlan:
    """A plan of examples for `rows` rows of each: row r of an example is mixed with row r of its partner."""
    if rows == 1:
        return plan
    size = len(plan.lam)
    partner = torch.cat([plan.partner + number * size for number in range(rows)])
    tensors = {name: getattr(plan, name) for name in ("lam", "label_lam", "dimension_lam")}
    repeated: dict[str, Any] = {n: torch.cat([value] * rows) for n, value in tensors.items() if value is not None}
    return replace(plan, partner=partner, rows_per_example=rows, **repeated)
