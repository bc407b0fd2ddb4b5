"""How a model is given a batch: each input by name, all of them in one dict, or the one tensor alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from transformers import BatchEncoding

from hf_mixup.forward.anatomy.input_table import INPUTS, ModelInput
from hf_mixup.forward.anatomy.inputs import (
    PROBED,
    body_config,
    input_name,
    map_tensors,
    only_argument,
)
from hf_mixup.forward.anatomy.quirks import quirk_of

# The arguments of a call, from the name of the input that holds the examples and the batch.
WAYS: dict[str, Callable[[str, Mapping[str, Any]], tuple[tuple, dict[str, Any]]]] = {
    "names": lambda name, batch: ((), dict(batch)),
    "dict": lambda name, batch: ((dict(batch),), {}),
    "BatchEncoding": lambda name, batch: ((BatchEncoding(dict(batch)),), {}),
    "tensor": lambda name, batch: ((batch[name],), {}),
}


def probe_batch(root: nn.Module) -> dict[str, Tensor]:
    """A batch of 11 examples, of different lengths if the model takes a padding mask.

    Raises:
        ValueError: for an input of a name that mixup does not know.
    """
    name = input_name(root)
    probe = INPUTS.get(name, ModelInput()).probe
    if probe is None:
        raise ValueError(f"{type(root).__name__}: main_input_name={name!r}; allowed: {', '.join(PROBED)}.")
    device, dtype = next(root.parameters()).device, next(root.parameters()).dtype
    batch = probe(body_config(root), quirk_of(root), root)
    return {name: value.to(device, dtype if value.is_floating_point() else None) for name, value in batch.items()}


def ways_to_call(root: nn.Module) -> tuple[str, ...]:
    """The ways in which a model may take a batch, by the arguments of its `forward`, the likeliest first."""
    if only_argument(type(root).forward) is None:
        return ("names",)
    dicts = ("dict", "BatchEncoding")
    return (*dicts, "tensor") if input_name(root) == "input_ids" else ("tensor", *dicts)


def call_model(root: nn.Module, batch: Mapping[str, Any], way: str) -> Any:
    """What a model returns for a batch."""
    args, kwargs = WAYS[way](input_name(root), batch)
    return root(*args, **kwargs)


def map_input(
    args: tuple, kwargs: dict[str, Any], name: str, alone: str | None, function: Callable[[Tensor], Tensor]
) -> tuple[tuple, dict[str, Any]]:
    """The arguments of a call with `function` of one input in its place.

    Args:
        args, kwargs: of the call.
        name (`str`): of the input, which is given by it, or first; also in a mapping that is given first.
        alone (`str`, *optional*): what the model calls its only argument.
        function (`Callable`): of the tensor.
    """

    def change(path: str, value: Tensor) -> Tensor:
        return function(value) if path in ("", f".{name}") else value

    keyword = name if name in kwargs else alone
    if keyword in kwargs:
        return args, kwargs | {keyword: map_tensors(kwargs[keyword], "", change)}
    return (map_tensors(args[0], "", change), *args[1:]), kwargs
