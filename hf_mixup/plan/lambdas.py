"""How much: lambda of each example, its schedule over a training, and a lambda of its own for the label."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_mixup.config.mixup_config import MixupConfig
from hf_mixup.plan.examples import Examples


def draw_lambda(
    generator: np.random.Generator,
    batch_size: int,
    config: MixupConfig,
    epoch: float | None = None,
    one_lambda: bool = False,
) -> np.ndarray:
    """Lambda of each example: float32 of shape (batch,), in [0, 1].

    Args:
        generator (`np.random.Generator`): where it is drawn from.
        batch_size (`int`): number of examples.
        config (`MixupConfig`): the distribution.
        epoch (`float`, *optional*): needed if `config.alpha` changes with it.
        one_lambda (`bool`, defaults to `False`): one for all examples, whatever `config.mode` says.
    """
    if config.lam is not None:
        lam = np.full(batch_size, config.lam)
    else:
        alpha = at_epoch("alpha", config.alpha, epoch)
        beta = alpha if config.beta is None else config.beta
        draws = generator.beta(alpha, beta, size=1 if one_lambda or config.mode == "batch" else batch_size)
        lam = np.broadcast_to(draws, (batch_size,))
    if config.dominant and config.lam is None:
        lam = np.maximum(lam, 1 - lam)
    return lam.astype(np.float32)


def at_epoch(name: str, value: Any, epoch: float | None) -> Any:
    """The value of the field `name` in `epoch`: of a mapping, the entry of the latest epoch that has begun.

    Raises:
        ValueError: for a mapping without an `epoch`.
    """
    if not isinstance(value, dict):
        return value
    if epoch is None:
        raise ValueError(
            f"{name}={value} needs the progress of training: give draw(batch, epoch=...), or set "
            "mixup_epoch of a MixupModel."
        )
    begun = [start for start in value if start <= epoch]
    return value[max(begun) if begun else min(value)]


def strength_at(config: MixupConfig, progress: float | None, drawn: int) -> float:
    """The share of the partner's weight that is used, 0 (clean) to 1: of the schedule and of the warm-up.

    Args:
        config (`MixupConfig`): `schedule`, `ramp` and `warmup_batches`.
        progress (`float`, *optional*): share of the training that is done.
        drawn (`int`): how many batches were drawn before.

    Raises:
        ValueError: if there is a schedule and no `progress`.
    """
    warm = min(1.0, (drawn + 1) / max(config.warmup_batches, 1))
    return warm * schedule_at(config, progress)


def schedule_at(config: MixupConfig, progress: float | None) -> float:
    """The share that the schedule uses at `progress`: `config.schedule`, interpolated; 1 without one.

    Raises:
        ValueError: if there is a schedule and no `progress`.
    """
    if config.schedule is None:
        return 1.0
    if progress is None:
        raise ValueError(
            f"schedule={config.schedule} needs the progress of training: give draw(batch, progress=...), or set "
            "mixup_progress of a MixupModel."
        )
    if not 0 <= progress <= 1:
        raise ValueError(f"progress={progress}: expected the share of the training that is done, step / steps.")
    times = sorted(config.schedule)
    index = sum(time <= progress for time in times) - 1
    if index < 0 or index == len(times) - 1:
        return config.schedule[times[max(index, 0)]]
    start, end = times[index], times[index + 1]
    share = (progress - start) / (end - start)
    share = {"linear": share, "cosine": (1 - math.cos(math.pi * share)) / 2, "step": 0.0}[config.ramp]
    return config.schedule[start] + share * (config.schedule[end] - config.schedule[start])


def label_lambda(config: MixupConfig, lam: Tensor, partner: Tensor, examples: Examples) -> Tensor:
    """The weight of the example's own label: `(batch,)`.

    `"own"`: 1. `"larger"`: 1 if lambda >= 1/2, else 0 (Wang et al. 2023). `"remix"`: of a frequent and a rare class,
    a pair that is mostly rare gets the rare label alone: 0 if n_i / n_j >= kappa and lambda < tau, 1 if
    n_i / n_j <= 1 / kappa and 1 - lambda < tau, else lambda (Chou et al. 2020).

    Args:
        config (`MixupConfig`): `label_rule`, `kappa` and `tau`.
        lam, partner (`torch.Tensor` of shape `(batch,)`): weight of the example itself, index of its partner.
        examples (`Examples`): for `"remix"`, the targets.
    """
    if config.label_rule == "own":
        return torch.ones_like(lam)
    if config.label_rule == "larger":
        return (lam >= 0.5).to(lam.dtype)
    assert examples.targets is not None and config.class_counts is not None
    # Under autocast a matrix product would round the counts.
    size = (examples.targets * numbers_on(examples.targets.device, tuple(config.class_counts))).sum(1)
    lam, partner = (tensor.to(size.device, non_blocking=True) for tensor in (lam, partner))
    ratio = size / size[partner]
    rare_partner = (ratio >= config.kappa) & (lam < config.tau)
    rare_own = (ratio <= 1 / config.kappa) & (1 - lam < config.tau)
    return torch.where(rare_partner, 0.0, torch.where(rare_own, 1.0, lam))


@lru_cache(maxsize=8)
def numbers_on(device: torch.device, numbers: tuple[float, ...]) -> Tensor:
    """Numbers of the classes, sent to a device once and not in each step."""
    # What is made in inference mode cannot be trained with later.
    with torch.inference_mode(False):
        return torch.tensor(numbers, dtype=torch.float32, device=device)
