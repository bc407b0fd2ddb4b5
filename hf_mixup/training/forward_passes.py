"""The forward passes of one training step: mixed when they run, repeated from memory for a second set of labels."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from hf_mixup.forward.anatomy.host import intercepted


class ForwardPasses:
    """What a model is called with and returns during one step.

    Args:
        model (`nn.Module`): as the loss calls it, also wrapped.
        run (`Callable`): runs one pass; it is given the model's own call, and the arguments of the call.

    Attributes:
        outputs (`list`): what the passes of the step returned.
    """

    def __init__(self, model: nn.Module, run: Callable[[Callable[..., Any], tuple, dict[str, Any]], Any]) -> None:
        self.model, self.run = model, run
        self.outputs: list[Any] = []
        self._next, self._is_running = 0, False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside of the block calls of the model come here, in the order in which they did before if they did."""
        self._next = 0
        with intercepted(self.model, self._call):
            yield

    def _call(self, call: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        if self._is_running:
            return call(*args, **kwargs)
        if self._next == len(self.outputs):
            self._is_running = True
            try:
                self.outputs.append(self.run(call, args, kwargs))
            finally:
                self._is_running = False
        self._next += 1
        # A loss may take parts out of what it was given.
        return copy.copy(self.outputs[self._next - 1])
