"""Drawing the plan of a batch: what of the examples a config asks for is looked up, and given to the random stream."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from hf_mixup.config.mixup_config import MixupConfig
from hf_mixup.objective import Objective
from hf_mixup.plan.margins import Margins
from hf_mixup.plan.memory import Memory
from hf_mixup.plan.mixup_plan import MixupPlan, PlanStream
from hf_mixup.plan.partners import Examples
from hf_mixup.plan.ranks import number_of_ranks, share_of_plan, sizes_of_all
from hf_mixup.plan.spans import separated

BY_CLASS = ("same_class", "other_class", "balanced", "lisa", "margin")


class Drawing:
    """Where the plans of one config come from, and what is remembered from batch to batch.

    Args:
        config (`MixupConfig`): what is drawn.
        objective (`Objective`): makes targets of labels.
        seed (`int`): seed of the plans.
        rank (`int`): index of this process.
        separators (`Collection[int]`): ids of tokens that stand between texts or end them; spans leave them alone.

    Raises:
        ValueError: for a config that does not fit the problem type.
    """

    def __init__(
        self, config: MixupConfig, objective: Objective, seed: int, rank: int, separators: Collection[int] = ()
    ) -> None:
        self.config, self.objective = config, objective
        self.separators = None if not separators else torch.tensor(sorted(separators))
        about = objective.about
        self._check_problem_type(about.problem_type or ("regression" if about.num_labels == 1 else None))
        self.restart(seed, rank)

    def restart(self, seed: int, rank: int) -> None:
        """Begin anew, as for a new training."""
        # Ranks that share a plan draw it from one stream.
        self.stream = PlanStream(seed, 0 if self.config.partner == "all_ranks" else rank)
        self.memory = Memory(self.config.memory) if self.config.partner == "previous_batch" else None
        # Targets of plans whose forward pass is still to come.
        self._awaited: WeakKeyDictionary[MixupPlan, Tensor] = WeakKeyDictionary()
        self._counts: Tensor | None = None
        self.margins = Margins() if self.config.partner == "margin" else None
        self._last: tuple[MixupPlan, Mapping[str, Any]] | None = None
        # Plans that were drawn, and forward passes that were mixed.
        self.drawn = self.mixed = 0

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles, which await no forward pass."""
        return self.__dict__ | {"_awaited": {}, "_last": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _awaited=WeakKeyDictionary())

    @property
    def needs_labels(self) -> bool:
        """Whether plans depend on the labels."""
        by_label = self.config.partner != "random" or self.config.label_rule == "remix"
        return by_label or self.config.interpolation == "salient_span"

    def draw(
        self,
        batch: Mapping[str, Any],
        size: int,
        layers: list[int],
        width: Callable[[int | None], int] | None,
        labels: Tensor | None,
        groups: Tensor | None,
        saliency: Callable[[], Tensor],
        epoch: float | None,
        progress: float | None,
    ) -> MixupPlan:
        """The plan of a batch of `size` examples; see `Mixup.draw` and `PlanStream.draw`."""
        for name, values in (("labels", labels), ("groups", groups)):
            if values is not None and len(values) != size:
                raise ValueError(f"{name}: {len(values)} of them for a batch of {size} examples.")
        examples = self._examples(batch, labels, groups, saliency)
        if self.config.partner == "all_ranks":
            assert examples is not None and examples.targets is not None
            plan = self._draw_for_all(batch, size, layers, epoch, progress, examples.targets, width)
        else:
            plan = self.stream.draw(self.config, size, layers, epoch, progress, examples, width)
        self.drawn += 1
        if self.memory is not None and plan.active:
            assert examples is not None and examples.targets is not None
            plan = self.memory.invite(plan, self.stream.generator)
            self._awaited[plan] = examples.targets
        self._last = plan, batch
        return plan

    def _draw_for_all(
        self,
        batch: Mapping[str, Any],
        size: int,
        layers: list[int],
        epoch: float | None,
        progress: float | None,
        targets: Tensor,
        width: Callable[[int | None], int] | None,
    ) -> MixupPlan:
        config = replace(self.config, partner="random")
        if number_of_ranks() == 1:
            return self.stream.draw(config, size, layers, epoch, progress, None, width)
        sizes = sizes_of_all(batch, size)
        plan = self.stream.draw(config, sum(count for count, _ in sizes), layers, epoch, progress, None, width)
        if not plan.active:
            return replace(plan, partner=torch.arange(size), lam=torch.ones(size))
        return share_of_plan(plan, batch, targets, sizes)

    def remember(self, plan: MixupPlan, inputs: Mapping[str, Any], states: list[Tensor]) -> None:
        """Keep a batch after its forward pass, as partners of later ones."""
        targets = self._awaited.pop(plan, None)
        if self.memory is not None and targets is not None:
            self.memory.add(plan, inputs, targets, states)

    def record(self, plan: MixupPlan, clean_logits: Tensor, targets: Tensor) -> None:
        """Remember how the model did on the unmixed batch of a plan, where partners depend on it."""
        if self.margins is not None and self._last is not None and self._last[0] is plan:
            self.margins.record(self._last[1], clean_logits, targets)

    def _examples(
        self,
        batch: Mapping[str, Any],
        labels: Tensor | None,
        groups: Tensor | None,
        saliency: Callable[[], Tensor],
    ) -> Examples | None:
        config = self.config
        found: dict[str, Any] = {}
        if self.needs_labels:
            if labels is None:
                words = {name: getattr(config, name) for name in ("partner", "label_rule", "interpolation")}
                plain = {"partner": "random", "label_rule": "lambda", "interpolation": "line"}
                cause = ", ".join(f"{name}={word!r}" for name, word in words.items() if word != plain[name])
                raise ValueError(f"labels: with {cause} a plan depends on them: give draw(batch, labels=labels).")
            self._check_labels(labels)
            found["targets"] = self.objective.targets(labels)
        if config.partner == "lisa":
            if groups is None:
                raise ValueError(
                    f"groups: partner='lisa' needs each example's group, and the batch has no column "
                    f"{config.group_column!r}. In a loop of your own give draw(batch, groups=...); for MixupModel in a "
                    "Trainer set remove_unused_columns=False."
                )
            found["groups"] = groups.reshape(-1)
        if self.margins is not None:
            self._tokens(batch)
            found["margins"] = self.margins.of(batch)
        if config.label_rule == "remix":
            if self._counts is None:
                self._counts = torch.tensor(config.class_counts, dtype=torch.float32)
            found["counts"] = self._counts = self._counts.to(found["targets"].device)
        if config.interpolation in ("span", "salient_span"):
            ids = self._tokens(batch)
            mask = batch.get("attention_mask")
            found["mask"] = torch.ones_like(ids) if mask is None else mask
            found["segments"] = batch.get("token_type_ids")
            if self.separators is not None:
                self.separators = self.separators.to(ids.device)
                segments, found["special"] = separated(ids, found["mask"], self.separators)
                if found["segments"] is None:
                    found["segments"] = segments
        if config.interpolation == "salient_span":
            found["saliency"] = saliency
        return Examples(**found) if found else None

    def _tokens(self, batch: Mapping[str, Any]) -> Tensor:
        if batch.get("input_ids") is None:
            raise ValueError(
                f"input_ids: partner={self.config.partner!r} with interpolation={self.config.interpolation!r} needs "
                f"the tokens of each text; this batch has only {', '.join(batch)}."
            )
        return batch["input_ids"]

    def _check_labels(self, labels: Tensor) -> None:
        self._check_problem_type(self.objective.problem_type(labels))
        if self.config.label_rule == "remix" and self.config.class_counts is None:
            raise ValueError(
                "class_counts: label_rule='remix' needs the number of training examples of each of the "
                f"{self.objective.about.num_labels} classes, such as [900, 80, 20]."
            )

    def _check_problem_type(self, problem_type: str | None) -> None:
        config = self.config
        if config.partner in BY_CLASS and problem_type == "regression":
            raise ValueError(f"partner={config.partner!r} needs classes; for scores there is 'near_label'.")
        if config.label_rule == "remix" and problem_type not in (None, "single_label_classification"):
            raise ValueError(f"label_rule='remix' needs single_label_classification, not {problem_type}.")

    def state_dict(self) -> dict[str, Any]:
        """The random stream, the margins and the memory: plain numbers and strings, and tensors in the memory."""
        margins = {} if self.margins is None else {"margins": self.margins.state_dict()}
        memory = {} if self.memory is None else {"memory": self.memory.state_dict()}
        return self.stream.state_dict() | margins | memory

    def load_state_dict(self, state: dict[str, Any], device: torch.device | None = None) -> None:
        """Continue from `state`, with what is remembered on `device`."""
        state = dict(state)
        margins, memory = state.pop("margins", None), state.pop("memory", None)
        self.stream.load_state_dict(state)
        if self.margins is not None and margins is not None:
            self.margins.load_state_dict(margins)
        if self.memory is not None and memory is not None:
            self.memory.load_state_dict(memory, device)
