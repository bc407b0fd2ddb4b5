"""The forward passes of one training step: mixed when they run, repeated from memory for a second set of labels."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hf_mixup.forward.anatomy.host import intercepted
from hf_mixup.forward.anatomy.inputs import map_tensors


class ForwardPasses:
    """What a model is called with and returns during one step.

    Args:
        model (`nn.Module`): as the loss calls it, also wrapped.
        run (`Callable`): runs one pass; it is given the model's own call, and the arguments of the call.
        labels (`Collection[str]`): the names of arguments that may differ when a pass is repeated.

    Attributes:
        outputs (`list`): what the passes of the step returned.
    """

    def __init__(
        self,
        model: nn.Module,
        run: Callable[[Callable[..., Any], tuple, dict[str, Any]], Any],
        labels: Collection[str] = (),
    ) -> None:
        self.model, self.run, self.labels = model, run, labels
        self.outputs: list[Any] = []
        self._given: list[dict[str, Tensor]] = []
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
        given = self._tensors(args, kwargs)
        # A pass of other inputs, such as a hint of the label, is another one.
        if self._next == len(self.outputs) or not _are_same(given, self._given[self._next]):
            self._is_running = True
            try:
                self.outputs[self._next :] = [self.run(call, args, kwargs)]
            finally:
                self._is_running = False
            self._given[self._next :] = [given]
        self._next += 1
        # A loss may write into what it is given, or take parts out.
        return map_tensors(self.outputs[self._next - 1], "", lambda path, value: value.clone())

    def _tensors(self, args: tuple, kwargs: dict[str, Any]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        given = {name: value for name, value in kwargs.items() if name not in self.labels}
        map_tensors({"": args, **given}, "", lambda path, value: found.setdefault(path, value))
        return found


def _are_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        value is other[name] or (value.shape == other[name].shape and torch.equal(value, other[name]))
        for name, value in one.items()
    )
