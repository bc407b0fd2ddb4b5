"""Which examples are hard: the area under the margin, recorded as a model trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# Examples are told apart by their tokens; two of a few thousand seldom share one of these places.
PLACES = 2**20
PRIME = 2_654_435_761


class Margins:
    """The mean margin of each example over the times that it was seen (AUM, Pleiss et al. 2020).

    The margin is the logit of the label less the largest other one. It is kept on the device of the model, in a table
    with a place for each text, so that nothing waits for it and no column of the data has to number the examples.
    """

    def __init__(self) -> None:
        self.sums = torch.zeros(PLACES)
        self.counts = torch.zeros(PLACES)

    def of(self, places: Tensor) -> Tensor:
        """The area under the margin of each text so far, 0 for new ones: `(batch,)`, of its `places`."""
        return self.sums[places] / self.counts[places].clamp_min(1)

    def record(self, places: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Add the margins of a batch that was not mixed.

        Args:
            places (`torch.Tensor` of shape `(batch,)`): of the texts.
            logits, targets (`torch.Tensor` of shape `(batch, num_labels)`): detached logits, class probabilities.
        """
        label = targets.argmax(-1, keepdim=True)
        logits = logits.detach().float()
        others = logits.scatter(-1, label, -torch.inf).amax(-1)
        margin = logits.gather(-1, label).squeeze(-1) - others
        self.sums.index_add_(0, places, margin)
        self.counts.index_add_(0, places, torch.ones_like(margin))

    def places(self, inputs: Mapping[str, Any]) -> Tensor:
        """Where the margins of texts are kept: a number from the tokens of each, whatever its padding, `(batch,)`.

        Args:
            inputs (`dict`): `input_ids` and, if there is padding, `attention_mask`.
        """
        ids = inputs["input_ids"].long()
        mask = inputs.get("attention_mask")
        kept = torch.ones_like(ids) if mask is None else mask.long()
        order = kept.cumsum(1)
        mixed = ((ids + 1) * (order * PRIME % 1_000_003 + 7)) % 2_147_483_647
        if self.sums.device != ids.device:
            self.sums, self.counts = self.sums.to(ids.device), self.counts.to(ids.device)
        return (mixed * kept).sum(1) % PLACES

    def state_dict(self) -> dict[str, Any]:
        """The places that are in use, as plain numbers."""
        used = self.counts.nonzero().squeeze(1)
        return {"places": used.tolist(), "sums": self.sums[used].tolist(), "counts": self.counts[used].tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.__init__()  # type: ignore[misc]
        places = torch.tensor(state["places"], dtype=torch.long)
        self.sums[places] = torch.tensor(state["sums"])
        self.counts[places] = torch.tensor(state["counts"])
