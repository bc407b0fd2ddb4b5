"""What a model is given and what it returns: its config, one table of its inputs, and the tensors in both."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from hf_mixup.forward.anatomy.host import ATTENTION_KERNEL, Cache, main_input
from hf_mixup.forward.anatomy.probe_batch import images, sounds, spectra, texts
from hf_mixup.forward.anatomy.quirks import Quirk, quirk_of


@dataclass(frozen=True)
class ModelInput:
    """What is known of an input of models.

    Args:
        probe (*optional*): makes 11 examples from the config and the quirk, if the input can hold the examples.
        is_float (`bool`): whether it mixes on a line at site `"input"`.
        mask (`str`, *optional*): the input that says which of it is padding.
        refused (`str`, *optional*): what to do instead, if it makes no sense in a batch that is mixed.
    """

    probe: Callable[[Any, Quirk], dict[str, Tensor]] | None = None
    is_float: bool = False
    mask: str | None = None
    refused: str | None = None


_DECODER = ModelInput(refused="so that the decoder reads the text that the encoder reads")
INPUTS = {
    "input_ids": ModelInput(texts, mask="attention_mask"),
    "pixel_values": ModelInput(images, is_float=True, mask="pixel_mask"),
    "pixel_values_videos": ModelInput(is_float=True),
    "input_values": ModelInput(sounds, is_float=True, mask="attention_mask"),
    "input_features": ModelInput(spectra, is_float=True, mask="attention_mask"),
    "inputs_embeds": ModelInput(is_float=True, mask="attention_mask"),
    "decoder_input_ids": _DECODER,
    "decoder_inputs_embeds": _DECODER,
    "decoder_attention_mask": _DECODER,
    "past_key_values": ModelInput(refused="because what it holds cannot be mixed"),
}
PROBED = tuple(name for name, given in INPUTS.items() if given.probe)
FLOAT_INPUTS = tuple(name for name, given in INPUTS.items() if given.is_float)
MASKS = tuple(dict.fromkeys(given.mask for given in INPUTS.values() if given.mask))
# Values that hold nothing of an example: plain Python, and what transformers hands from block to block. A cache is
# filled by the blocks themselves.
_FUNCTIONS = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, functools.partial, type, nn.Module)
_PLAIN = (type(None), bool, int, float, complex, str, bytes, Enum, torch.dtype, torch.device, PretrainedConfig, Cache)


# ---- The model and its config ----


def transformers_model(model: nn.Module) -> nn.Module:
    """The transformers model inside wrappers such as DDP, torch.compile or PEFT; the model itself if there is none."""
    return next((module for module in model.modules() if isinstance(module, PreTrainedModel)), model)


def check_model(model: Any) -> None:
    """Raise `ValueError` for what is not a model: its name, its class, or anything else."""
    if isinstance(model, nn.Module):
        return
    hint = " Load it first: AutoModelForSequenceClassification.from_pretrained(...)." if isinstance(model, str) else ""
    kind = type(model).__name__
    raise ValueError(f"model={model!r:.80}: expected a model (torch.nn.Module), got an object of type {kind}.{hint}")


def model_config(model: nn.Module) -> Any:
    """The config of the transformers model inside `model`.

    Raises:
        ValueError: for a model without one, whose labels nothing would say how to mix.
    """
    config = getattr(transformers_model(model), "config", None)
    if not isinstance(config, PretrainedConfig):
        raise ValueError(
            f"{type(model).__name__} has no config with num_labels; give it one: "
            "model.config = transformers.PretrainedConfig(num_labels=...)."
        )
    return config


def text_config(model: nn.Module) -> Any:
    """The config that holds the token ids: that of the text part in multimodal models."""
    return model_config(model).get_text_config()


def changeable_state(model: nn.Module) -> tuple:
    """What a user may change in a model after its sites were found: the attention kernel and the pad token."""
    return getattr(model_config(model), ATTENTION_KERNEL), getattr(text_config(model), "pad_token_id", None)


def separators(config: Any) -> set[int]:
    """The ids of tokens that begin, end or part texts, as far as the config of a model names them."""
    known = config.to_dict()
    named = [known.get(f"{name}_token_id") for name in ("bos", "eos", "sep", "cls")]
    return {token for ids in named for token in (ids if isinstance(ids, (list, tuple)) else [ids]) if token is not None}


# ---- What a model is given ----


def input_name(root: nn.Module) -> str:
    """The input that holds the examples: `"input_ids"`, or the float input of image and audio models."""
    return "input_ids" if "input_ids" in inspect.signature(root.forward).parameters else main_input(root)


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
    batch = probe(model_config(root), quirk_of(root))
    return {name: value.to(device, dtype if value.is_floating_point() else None) for name, value in batch.items()}


def batch_size(batch: Mapping[str, Any]) -> int:
    """The number of examples of a batch.

    Raises:
        ValueError: for a batch that has no input of a name that mixup knows.
    """
    for name in (*PROBED, "inputs_embeds"):
        if batch.get(name) is not None:
            return batch[name].shape[0]
    raise ValueError(f"The batch has none of {', '.join(PROBED)} or inputs_embeds, only {', '.join(batch)}.")


def examples_of(batch: Mapping[str, Any], labels: Tensor | None, rows_per_example: int) -> int:
    """The number of examples of a batch, counted in its labels if it has no input of a name that mixup knows.

    Raises:
        ValueError: for a batch without either, or whose rows are not whole examples.
    """
    if labels is not None and all(batch.get(name) is None for name in (*PROBED, "inputs_embeds")):
        return len(labels)
    rows = batch_size(batch)
    if rows_per_example < 1 or rows % rows_per_example:
        raise ValueError(f"rows_per_example={rows_per_example}: a batch of {rows} rows does not hold whole examples.")
    return rows // rows_per_example


def bind(names: list[str], args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name."""
    # torch < 2.11: the compiler knows zip without strict only.
    return {**dict(zip(names, args)), **kwargs}  # noqa: B905


def unbind(
    names: list[str], arguments: dict[str, Any], args: tuple, kwargs: dict[str, Any]
) -> tuple[tuple, dict[str, Any]]:
    """`arguments`, positional and by name as they were in `args` and `kwargs`; the inverse of `bind`."""
    return tuple(arguments[name] for name in names[: len(args)]), {name: arguments[name] for name in kwargs}


def map_arguments(arguments: dict[str, Any], function: Callable[[str, Tensor], Any]) -> dict[str, Any]:
    """The arguments of a block with `function(path, tensor)` in the place of every tensor.

    Raises:
        ValueError: for a value of which it is not known whether it holds something of an example.
    """
    return {name: map_tensors(value, name, function, _refuse_unknown) for name, value in arguments.items()}


def _refuse_unknown(path: str, value: Any) -> None:
    if not isinstance(value, (*_PLAIN, *_FUNCTIONS)):
        raise ValueError(
            f"{path}: a block is given an object of type {type(value).__name__}, and it is not known what it holds of "
            "each example. Give blocks tensors, or tuples, lists and dicts of them."
        )


def map_tensors(
    value: Any, path: str, function: Callable[[str, Tensor], Any], check: Callable[[str, Any], None] | None = None
) -> Any:
    """`value` with `function(path, tensor)` in the place of every tensor, also inside tuples, lists and dicts.

    Args:
        value: of any type.
        path (`str`): where it stands; parts of it are `"path.0"`, `"path.name"`.
        function (`Callable`): of the path and the tensor.
        check (`Callable`, *optional*): is called with everything else, which stays as it is.
    """
    if isinstance(value, Tensor):
        return function(path, value)
    if isinstance(value, (tuple, list)):
        parts = [map_tensors(part, f"{path}.{index}", function, check) for index, part in enumerate(value)]
        return _like(value, parts)
    if isinstance(value, dict):
        mapped = {name: map_tensors(part, f"{path}.{name}", function, check) for name, part in value.items()}
        return mapped if type(value) is dict else type(value)(**mapped)
    if check is not None:
        check(path, value)
    return value


def _like(output: Any, parts: list[Any]) -> Any:
    """A tuple, named tuple or list of the type of `output`."""
    return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)


# ---- What a model or a block returns ----


def first_tensor(output: Any) -> Tensor:
    """The hidden states in what a block or a backbone returns."""
    if isinstance(output, Tensor):
        return output
    return next(iter(output.values())) if isinstance(output, dict) else output[0]


def with_first_tensor(output: Any, tensor: Tensor) -> Any:
    """`output` with its hidden states replaced."""
    if isinstance(output, Tensor):
        return tensor
    if isinstance(output, dict):
        output[next(iter(output))] = tensor
        return output
    return _like(output, [tensor, *output[1:]])


def logits_of(output: Any) -> Tensor:
    """The logits in what a classifier returns when it is given no labels."""
    return output["logits"] if isinstance(output, dict) else first_tensor(output)


def float_logits(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The logits of a batch in float32, on the CPU."""
    return logits_of(model(**batch)).float().cpu()


def with_logits(output: Any, logits: Tensor) -> Any:
    """`output` with its logits replaced."""
    if isinstance(output, dict):
        output["logits"] = logits
        return output
    return with_first_tensor(output, logits)


def with_loss(output: Any, loss: Tensor) -> Any:
    """`output` with the loss in front, as a classifier returns it when it is given labels."""
    if not isinstance(output, dict):
        return (loss, *output)
    return type(output)(loss=loss, **{name: value for name, value in output.items() if name != "loss"})
