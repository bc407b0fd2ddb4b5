"""Partners from the batches of all processes: every example of the global batch may be mixed with every other."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from hf_mixup.plan.mixup_plan import MixupPlan
from hf_mixup.plan.outside_partners import OutsidePartners, rows_of, text_length


def number_of_ranks() -> int:
    """The number of processes of the default group; 1 if there is none."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sizes_of_all(batch: Mapping[str, Any], size: int) -> list[tuple[int, int]]:
    """The examples and the text length of every rank's batch. Waits for all of them.

    Raises:
        ValueError: on every rank, if they have other inputs.
    """
    inputs = _inputs(batch, size)
    kinds = ", ".join(f"{name} of {value.dim()} dimensions, {value.dtype}" for name, value in inputs.items())
    own = torch.tensor([size, text_length(batch) or 0, zlib.crc32(kinds.encode())]).to(_device(inputs))
    gathered = [torch.empty_like(own) for _ in range(number_of_ranks())]
    dist.all_gather(gathered, own)
    rows = torch.stack(gathered).tolist()
    if len({kind for _, _, kind in rows}) > 1:
        raise ValueError(f"partner='all_ranks': the ranks have other inputs; this one has {kinds}.")
    return [(count, length) for count, length, _ in rows]


def _inputs(batch: Mapping[str, Any], size: int) -> dict[str, Tensor]:
    rows = rows_of(batch, size)
    return {name: rows[name] for name in sorted(rows) if name != "labels"}


def _device(inputs: Mapping[str, Tensor]) -> torch.device:
    return next(iter(inputs.values())).device


def share_of_plan(
    plan: MixupPlan, batch: Mapping[str, Any], targets: Tensor, sizes: list[tuple[int, int]]
) -> MixupPlan:
    """This rank's part of a plan of the global batch, with its partners from outside of the batch.

    Takes one `all_gather` for each model input and one for the targets; in the forward pass one for the hidden states
    at the site (none at the embeddings, which are looked up here), and in the backward pass one for their gradients.

    Args:
        plan (`MixupPlan`): of the global batch, the same on every rank.
        batch (`Mapping`): the inputs of this rank.
        targets (`torch.Tensor` of shape `(batch, num_labels)`): of this rank.
        sizes (`list[tuple[int, int]]`): of every rank, from `sizes_of_all`.
    """
    counts, lengths = [count for count, _ in sizes], [length for _, length in sizes]
    rank = dist.get_rank()
    own = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
    chosen = plan.partner[own].tolist()
    where = [(source, row) for source, count in enumerate(counts) for row in range(count)]

    def of_partners(gathered: list[Tensor]) -> Tensor:
        return torch.stack([gathered[source][row] for source, row in (where[partner] for partner in chosen)])

    def states_at(index: int, states: Tensor, as_long: Callable[[Tensor], Tensor]) -> Tensor:
        # Not there in a PyTorch that was built without distributed training.
        from torch.distributed.nn.functional import all_gather

        return of_partners(list(all_gather(_fill_rows(states, max(counts)))))

    size = counts[rank]
    inputs = {name: _gather(value, counts, lengths) for name, value in _inputs(batch, size).items()}
    parts = [
        {name: rows[source][row : row + 1] for name, rows in inputs.items()}
        for source, row in (where[partner] for partner in chosen)
    ]
    outside = OutsidePartners(parts, of_partners(_gather(targets, counts, [0] * len(counts))), states_at, max(lengths))
    values = {name: getattr(plan, name) for name in ("lam", "label_lam", "dimension_lam", "box")}
    rows = {name: value[own] for name, value in values.items() if value is not None}
    return replace(plan, partner=torch.arange(size, 2 * size), outside=outside, **rows)


def _gather(values: Tensor, counts: list[int], lengths: list[int]) -> list[Tensor]:
    """The values of every rank, each as long as it is there."""
    runs_along = values.dim() > 1 and lengths[dist.get_rank()] == values.shape[1]
    padded = _fill_rows(values, max(counts))
    if runs_along:
        padded = functional.pad(padded, (0, 0) * (values.dim() - 2) + (0, max(lengths) - values.shape[1]))
    gathered = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(gathered, padded.contiguous())
    return [
        part[:count, :length] if runs_along else part[:count]
        for part, count, length in zip(gathered, counts, lengths, strict=True)
    ]


def _fill_rows(values: Tensor, count: int) -> Tensor:
    missing = count - values.shape[0]
    return functional.pad(values, (0, 0) * (values.dim() - 1) + (0, missing)) if missing else values.contiguous()
