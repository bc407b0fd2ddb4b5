"""Who and how much: the plan of one batch, drawn from a random stream of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_mixup.config.mixup_config import OUTSIDE, MixupConfig
from hf_mixup.plan.lambdas import draw_lambda, label_lambda, strength_at
from hf_mixup.plan.outside_partners import OutsidePartners
from hf_mixup.plan.partners import Examples, choose_partner
from hf_mixup.plan.spans import plan_spans


@dataclass(frozen=True, eq=False)
class MixupPlan:
    """The numbers of one mixed batch; no model and no labels in it.

    Args:
        partner (`torch.LongTensor` of shape `(batch,)`): index of each example's partner in the batch.
        lam (`torch.FloatTensor` of shape `(batch,)`): weight of the example itself; its partner weighs 1 - lam.
        site (`str`): where activations are mixed, see `MixupConfig.site`.
        layer (`int`, *optional*): the block after which to mix, for site `"hidden"`.
        active (`bool`, defaults to `True`): `False` for a batch that is trained clean: `apply` does nothing then.
        label_lam (`torch.FloatTensor` of shape `(batch,)`, *optional*): weight of the example's own label, where it is
            not `lam`.
        dimension_lam (`torch.FloatTensor` of shape `(batch, width)`, *optional*): a weight for each hidden dimension.
        source (`torch.LongTensor` of shape `(batch, length)`, *optional*): for spans of tokens, the position in the
            partner's text that each position takes its token from, or -1.
        similarity (`tuple[float, float]`, *optional*): lambda is drawn at the site, see `MixupConfig.similarity`.
        uniform (`torch.Tensor` of shape `(2, batch)`, *optional*): the random numbers that it is then made of.
        strength (`float`, defaults to 1.0): share of the partner's weight that such a lambda uses.
        noise (`tuple[float, float]`, *optional*): additive and multiplicative noise on what was mixed.
        outside (`OutsidePartners`, *optional*): partners from outside of the batch; `partner` numbers them
            after its rows.
        is_remembered (`bool`, defaults to `False`): whether later batches are to be mixed with this one.
    """

    partner: Tensor
    lam: Tensor
    site: str
    layer: int | None = None
    active: bool = True
    label_lam: Tensor | None = None
    dimension_lam: Tensor | None = None
    source: Tensor | None = None
    similarity: tuple[float, float] | None = None
    uniform: Tensor | None = None
    strength: float = 1.0
    noise: tuple[float, float] | None = None
    outside: OutsidePartners | None = None
    is_remembered: bool = False

    def __post_init__(self) -> None:
        if self.partner.dim() != 1 or self.partner.shape != self.lam.shape:
            raise ValueError(
                "A plan needs partner and lam of the same shape (batch,), "
                f"got {tuple(self.partner.shape)} and {tuple(self.lam.shape)}."
            )
        if self.similarity is not None and self.uniform is None:
            raise ValueError("A plan with similarity needs uniform, the random numbers that lambda is made of.")

    def to(self, device: torch.device) -> MixupPlan:
        """The same plan with its tensors on `device`, sent without waiting."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in values.items()
            if isinstance(value, Tensor) and value.device != device
        }
        return replace(self, **moved) if moved else self


class PlanStream:
    """Draws plans from a stream that belongs to (seed, rank) and to nothing else.

    Args:
        seed (`int`, defaults to 0): seed of the run.
        rank (`int`, defaults to 0): process index; ranks draw different plans.
    """

    def __init__(self, seed: int = 0, rank: int = 0) -> None:
        self.generator = np.random.default_rng([seed, rank])
        self.drawn = 0

    def draw(
        self,
        config: MixupConfig,
        batch_size: int,
        layers: list[int],
        epoch: float | None = None,
        progress: float | None = None,
        examples: Examples | None = None,
        width: Callable[[int | None], int] | None = None,
    ) -> MixupPlan:
        """One plan.

        Args:
            config (`MixupConfig`): the distribution to draw from.
            batch_size (`int`): number of examples. A batch of one is left clean.
            layers (`list[int]`): the layers to draw one from; empty where the site has none.
            epoch (`float`, *optional*): needed where `config.off_epoch` is set or `config.alpha` changes.
            progress (`float`, *optional*): share of the training that is done, needed where there is a schedule.
            examples (`Examples`, *optional*): needed where partners or the label's lambda depend on the labels.
            width (`Callable`, *optional*): number of hidden dimensions behind a layer, for a lambda each.

        Raises:
            ValueError: where something of that is needed and not given.
        """
        if config.off_epoch is not None and epoch is None:
            raise ValueError(
                f"off_epoch={config.off_epoch} needs the progress of training: give draw(batch, epoch=...)."
            )
        strength = strength_at(config, progress, self.drawn)
        self.drawn += 1
        is_off = strength == 0 or (config.off_epoch is not None and epoch is not None and epoch >= config.off_epoch)
        fewest = 1 if config.partner == "previous_batch" else 2
        if is_off or batch_size < fewest or (config.prob < 1 and self.generator.random() >= config.prob):
            identity = torch.arange(batch_size)
            return MixupPlan(identity, torch.ones(batch_size), config.site, active=False)
        layer = int(self.generator.choice(layers)) if layers else None
        partner = self._partner(config, batch_size, examples)
        lam = _weaken(torch.from_numpy(draw_lambda(self.generator, batch_size, config, epoch)), strength)
        plan = MixupPlan(partner, lam, config.site, layer, strength=strength)
        if layer == -1:
            plan = replace(plan, site="embeddings", layer=None)
        if config.interpolation == "dimensions":
            assert width is not None
            plan = self._with_dimensions(plan, config, epoch, width(layer))
        if config.similarity is not None:
            # 1 - a number in [0, 1) has a logarithm.
            uniform = torch.from_numpy(1 - self.generator.random((2, batch_size), dtype=np.float32))
            plan = replace(plan, similarity=(config.similarity, config.similarity_width), uniform=uniform)
        if config.add_noise or config.mult_noise:
            add, mult = (strength * float(scale) for scale in self.generator.beta(2, 5, size=2))
            plan = replace(plan, noise=(config.add_noise * add, config.mult_noise * mult))
        if config.interpolation in ("span", "salient_span"):
            plan = self._with_spans(plan, examples)
        if config.label_rule != "lambda":
            plan = replace(plan, label_lam=label_lambda(config, plan.lam, plan.partner, examples))
        return plan

    def _partner(self, config: MixupConfig, batch_size: int, examples: Examples | None) -> Tensor:
        if config.partner == "random":
            return torch.from_numpy(draw_partner(self.generator, batch_size, config.self_pairs))
        if config.partner in OUTSIDE:
            return torch.arange(batch_size, 2 * batch_size)
        assert examples is not None
        uniform = torch.from_numpy(self.generator.random(batch_size))
        coin = self.generator.random() < config.same_label_prob
        return choose_partner(config, examples, uniform, bool(coin))

    def _with_dimensions(self, plan: MixupPlan, config: MixupConfig, epoch: float | None, width: int) -> MixupPlan:
        drawn = draw_lambda(self.generator, plan.lam.shape[0] * width, replace(config, mode="elem"), epoch)
        dimension_lam = _weaken(torch.from_numpy(drawn).reshape(-1, width), plan.strength)
        return replace(plan, dimension_lam=dimension_lam, lam=dimension_lam.mean(1))

    def _with_spans(self, plan: MixupPlan, examples: Examples | None) -> MixupPlan:
        assert examples is not None and examples.mask is not None
        uniform = torch.from_numpy(self.generator.random((2, 2, plan.lam.shape[0])))
        device = examples.mask.device
        saliency = None if examples.saliency is None else examples.saliency()
        source, lam = plan_spans(
            plan.lam.to(device, non_blocking=True),
            plan.partner.to(device, non_blocking=True),
            examples.mask,
            examples.segments,
            uniform.to(device, torch.float32, non_blocking=True),
            saliency,
            examples.special,
        )
        return replace(plan, source=source, lam=lam, partner=plan.partner.to(device, non_blocking=True))

    def state_dict(self) -> dict[str, Any]:
        """The state of the stream and how many plans were drawn from it, as plain numbers and strings."""
        return {**self.generator.bit_generator.state, "drawn": self.drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`, as returned by `state_dict`."""
        self.drawn = state.get("drawn", 0)
        self.generator.bit_generator.state = {name: value for name, value in state.items() if name != "drawn"}


def _weaken(lam: Tensor, strength: float) -> Tensor:
    """Lambda with only a share of the partner's weight."""
    return lam if strength == 1 else 1 - strength * (1 - lam)


def draw_partner(generator: np.random.Generator, batch_size: int, self_pairs: bool = True) -> np.ndarray:
    """A random partner for each of `batch_size` examples, each example being partner once: int64 of shape (batch,).

    Without `self_pairs` nobody is their own partner: the batch is shuffled into one cycle (Sattolo 1986).
    """
    order = generator.permutation(batch_size)
    if self_pairs:
        return order
    partner = np.empty_like(order)
    partner[order] = np.roll(order, 1)
    return partner
