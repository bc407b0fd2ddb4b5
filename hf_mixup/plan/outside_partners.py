"""Partners from outside of the batch: what is known of them before the forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

# Gives the partners' hidden states: the how-manieth it is in this forward pass, those of the batch (batch first), and a
# function that makes stored ones as long.
StatesAt = Callable[[int, Tensor, Callable[[Tensor], Tensor]], Tensor]


@dataclass(frozen=True, eq=False)
class OutsidePartners:
    """The partners of a batch that are not in it; example i is mixed with row i.

    Args:
        parts (`Sequence[Mapping]`): what the model would be given for them, in one part or several, row after row.
        targets (`torch.Tensor` of shape `(batch, num_labels)`): class probabilities, multi-hot labels or scores.
        states_at (`Callable`): their hidden states after a block.
        length (`int`, defaults to 0): the length that texts have to have at least.
    """

    parts: Sequence[Mapping[str, Tensor]]
    targets: Tensor
    states_at: StatesAt
    length: int = 0


def text_length(inputs: Mapping[str, Any]) -> int | None:
    """The number of positions of a batch of texts; `None` for images and sounds."""
    tokens = inputs.get("input_ids") if inputs.get("input_ids") is not None else inputs.get("inputs_embeds")
    return None if tokens is None else tokens.shape[1]


def rows_of(inputs: Mapping[str, Any], size: int) -> dict[str, Tensor]:
    """The tensors of a batch of `size` examples, with a row for each; one row for all is repeated."""
    rows = {}
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.dim() and value.shape[0] in (1, size):
            rows[name] = value.expand(size, *value.shape[1:])
    return rows
