"""What the draw of a plan may look at in a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Examples:
    """The examples of a batch and the place in the training. A config looks only at what it needs.

    Args:
        size (`int`): number of examples.
        layers (`Sequence[int]`): the layers to draw one from; empty if the site has none.
        widths (`Mapping[int | None, int]`): hidden dimensions after each of the layers, for a lambda each.
        epoch (`float`, *optional*): needed for `off_epoch`, and for an `alpha` that changes.
        progress (`float`, *optional*): share of the training that is done, needed for a `schedule`.
        inputs (`Mapping`): model inputs: tokens, masks and segments for spans, margins and partners of all ranks.
        targets (`torch.Tensor` of shape `(batch, num_labels)`, *optional*): class probabilities, multi-hot labels or
            scores.
        groups (`torch.Tensor` of shape `(batch,)` or `(batch, 1)`, *optional*): the domain of each example.
        saliency (`Callable`, *optional*): gives that of each token, `(batch, length)`; it takes another pass.
        states (`Callable`, *optional*): gives one vector per text, `(batch, width)`, without a pass.
        margins (`torch.Tensor` of shape `(batch,)`, *optional*): area under the margin so far; the planner knows it.
        rows_per_example (`int`, defaults to 1): rows of the inputs that belong to one example. The first `size` rows
            are the first of each example.
        one_lambda (`bool`, defaults to `False`): whether all examples share a lambda, whatever `config.mode` says.
    """

    size: int
    layers: Sequence[int] = ()
    widths: Mapping[int | None, int] = field(default_factory=dict)
    epoch: float | None = None
    progress: float | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)
    targets: Tensor | None = None
    groups: Tensor | None = None
    saliency: Callable[[], Tensor] | None = None
    states: Callable[[], Tensor] | None = None
    margins: Tensor | None = None
    rows_per_example: int = 1
    one_lambda: bool = False
