"""Who and how much: the plan of one batch, drawn from a random stream of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hf_mixup.config import MixupConfig


@dataclass(frozen=True)
class MixupPlan:
    """The numbers of one mixed batch; no model and no labels in it.

    Args:
        partner (`torch.LongTensor` of shape `(batch,)`): index of each example's partner in the batch.
        lam (`torch.FloatTensor` of shape `(batch,)`): weight of the example itself; its partner weighs 1 - lam.
        site (`str`): where activations are mixed, see `MixupConfig.site`.
        layer (`int`, *optional*): the block after which to mix, for site `"hidden"`.
        active (`bool`, defaults to `True`): `False` for a batch that is trained clean: `apply` does nothing then.
    """

    partner: torch.Tensor
    lam: torch.Tensor
    site: str
    layer: int | None = None
    active: bool = True

    def __post_init__(self) -> None:
        if self.partner.dim() != 1 or self.partner.shape != self.lam.shape:
            raise ValueError(
                "A plan needs partner and lam of the same shape (batch,), "
                f"got {tuple(self.partner.shape)} and {tuple(self.lam.shape)}."
            )

    def to(self, device: torch.device) -> MixupPlan:
        """The same plan with its tensors on `device`, sent without waiting."""
        if self.partner.device == device:
            return self
        partner, lam = (t.to(device, non_blocking=True) for t in (self.partner, self.lam))
        return MixupPlan(partner, lam, self.site, self.layer, self.active)


class PlanStream:
    """Draws plans from a stream that belongs to (seed, rank) and to nothing else.

    Args:
        seed (`int`, defaults to 0): seed of the run.
        rank (`int`, defaults to 0): process index; ranks draw different plans.
    """

    def __init__(self, seed: int = 0, rank: int = 0) -> None:
        self.generator = np.random.default_rng([seed, rank])

    def draw(self, config: MixupConfig, batch_size: int, layers: list[int], epoch: float | None = None) -> MixupPlan:
        """One plan.

        Args:
            config (`MixupConfig`): the distribution to draw from.
            batch_size (`int`): number of examples. A batch of one is left clean.
            layers (`list[int]`): the layers to draw one from; empty where the site has none.
            epoch (`float`, *optional*): progress, needed where `config.off_epoch` is set.

        Raises:
            ValueError: where `config.off_epoch` is set and `epoch` is not given.
        """
        if config.off_epoch is not None and epoch is None:
            raise ValueError(
                f"off_epoch={config.off_epoch} needs the progress of training: give draw(batch, epoch=...)."
            )
        is_off = config.off_epoch is not None and epoch is not None and epoch >= config.off_epoch
        if is_off or batch_size < 2 or (config.prob < 1 and self.generator.random() >= config.prob):
            identity = torch.arange(batch_size)
            return MixupPlan(identity, torch.ones(batch_size), config.site, active=False)
        layer = int(self.generator.choice(layers)) if layers else None
        partner = draw_partner(self.generator, batch_size, config.self_pairs)
        lam = draw_lambda(self.generator, batch_size, config)
        return MixupPlan(torch.from_numpy(partner), torch.from_numpy(lam), config.site, layer)

    def state_dict(self) -> dict[str, Any]:
        """The state of the stream, as plain numbers and strings."""
        return dict(self.generator.bit_generator.state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`, as returned by `state_dict`."""
        self.generator.bit_generator.state = state


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


def draw_lambda(generator: np.random.Generator, batch_size: int, config: MixupConfig) -> np.ndarray:
    """Lambda of each example: float32 of shape (batch,), in [0, 1]."""
    if config.lam is not None:
        lam = np.full(batch_size, config.lam)
    else:
        beta = config.alpha if config.beta is None else config.beta
        draws = generator.beta(config.alpha, beta, size=batch_size if config.mode == "elem" else 1)
        lam = np.broadcast_to(draws, (batch_size,))
    if config.dominant:
        lam = np.maximum(lam, 1 - lam)
    return lam.astype(np.float32)
