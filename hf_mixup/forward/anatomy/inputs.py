"""What a model is given and what it returns: its config, and the tensors in both."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Mapping, MutableMapping
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from hf_mixup.forward.anatomy.block_mask import BlockMask, as_bias
from hf_mixup.forward.anatomy.host import ATTENTION_KERNEL, Cache, is_wrapper, main_input
from hf_mixup.forward.anatomy.input_table import INPUTS as INPUTS

PROBED = tuple(name for name, given in INPUTS.items() if given.probe)
FLOAT_INPUTS = tuple(name for name, given in INPUTS.items() if given.is_float)
MASKS = tuple(dict.fromkeys(given.mask for given in INPUTS.values() if given.mask))
# Values that hold nothing of an example: plain Python, and what transformers hands from block to block. A cache is
# filled by the blocks themselves.
_FUNCTIONS = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, functools.partial, type, nn.Module)
_PLAIN = (type(None), bool, int, float, complex, str, bytes, Enum, torch.dtype, torch.device, PretrainedConfig, Cache)


# ---- The model and its config ----


def root_of(model: nn.Module) -> nn.Module:
    """The module that returns the logits: the outermost one that is not a wrapper such as DDP, torch.compile or PEFT.

    The module paths of a config's `blocks` start at it.
    """
    return next((module for module in model.modules() if not is_wrapper(module)), model)


def check_model(model: Any) -> None:
    """Raise `ValueError` for what is not a model: its name, its class, or anything else."""
    if isinstance(model, nn.Module):
        return
    hint = " Load it first: AutoModelForSequenceClassification.from_pretrained(...)." if isinstance(model, str) else ""
    kind = type(model).__name__
    raise ValueError(f"model={model!r:.80}: expected a model (torch.nn.Module), got an object of type {kind}.{hint}")


def model_config(model: nn.Module) -> Any:
    """The config that says what the logits are, `num_labels` and `problem_type`; only read.

    It is the model's own, or that of the first transformers model inside of it; the probe compares it with the logits.

    Raises:
        ValueError: for a model without one, whose labels nothing would say how to mix.
    """
    own = getattr(root_of(model), "config", None)
    if isinstance(own, PretrainedConfig):
        return own
    inner = _inner_model(model)
    if inner is None:
        raise ValueError(
            f"{type(model).__name__} has no config with num_labels; give it one: "
            "model.config = transformers.PretrainedConfig(num_labels=...)."
        )
    return inner.config


def body_config(model: nn.Module) -> Any:
    """The config that says what the model is given and how: that of the first transformers model inside, or its own.

    Raises:
        ValueError: for a model without one.
    """
    inner = _inner_model(model)
    return model_config(model) if inner is None else inner.config


def _inner_model(model: nn.Module) -> PreTrainedModel | None:
    return next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)


def text_config(model: nn.Module) -> Any:
    """The config that holds the token ids: that of the text part in multimodal models."""
    return body_config(model).get_text_config()


def changeable_state(model: nn.Module) -> tuple:
    """What a user may change in a model after its sites were found: the attention kernel and the pad token."""
    return getattr(body_config(model), ATTENTION_KERNEL), getattr(text_config(model), "pad_token_id", None)


def separators(model: nn.Module) -> set[int]:
    """The ids of tokens that begin, end or part texts, as far as the config of a model names them."""
    known = body_config(model).to_dict()
    named = [known.get(f"{name}_token_id") for name in ("bos", "eos", "sep", "cls")]
    return {token for ids in named for token in (ids if isinstance(ids, (list, tuple)) else [ids]) if token is not None}


# ---- What a model is given ----


def input_name(root: nn.Module) -> str:
    """The input that holds the examples: `"input_ids"`, or the float input of image and audio models.

    A model that says it neither by its arguments nor by `main_input_name` takes tokens if it looks any up, else pixels.
    """
    taken = inspect.signature(root.forward).parameters
    if "input_ids" in taken:
        return "input_ids"
    looks_up = any(isinstance(module, nn.Embedding) for module in root.modules())
    likeliest = "input_ids" if looks_up else "pixel_values"
    return main_input(root) or next((name for name in PROBED if name in taken), likeliest)


@functools.cache
def only_argument(forward: Callable[..., Any]) -> str | None:
    """What the `forward` of a class calls the dict of all inputs, or the one tensor, that it is given; else `None`."""
    _, *taken = (one for one in inspect.signature(forward).parameters.values() if one.name != "labels")
    if not taken or taken[0].kind is not taken[0].POSITIONAL_OR_KEYWORD or any(one.name in INPUTS for one in taken):
        return None
    return taken[0].name


def by_name(root: nn.Module, batch: Mapping[str, Any] | Tensor) -> Mapping[str, Any]:
    """The inputs of a batch by name, also if the batch is the one tensor, or names the only argument of the model.

    Raises:
        ValueError: for other inputs beside that argument.
    """
    alone = only_argument(type(root).forward)
    given = batch if isinstance(batch, Tensor) or alone is None else batch.get(alone, batch)
    if given is not batch and len(batch) > 1:
        others = ", ".join(name for name in batch if name != alone)
        raise ValueError(f"{others}: not known what it is beside {alone!r}; name inputs as transformers does.")
    if not isinstance(given, Tensor):
        return given
    if input_name(root) != "input_ids":
        return {input_name(root): given}
    # The model finds the padding by itself, as it did in the probe.
    return {"input_ids": given, "attention_mask": (given != pad_token(text_config(root))).long()}


def pad_token(config: Any) -> int:
    """What stands at padding positions."""
    token = getattr(config, "pad_token_id", None)
    return token if isinstance(token, int) and token >= 0 else 0


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
    """The arguments of a block with `function(path, tensor)` in the place of every tensor, and mask of flex attention.

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
    if isinstance(value, BlockMask):
        return function(path, as_bias(value))
    if isinstance(value, (tuple, list)):
        parts = [map_tensors(part, f"{path}.{index}", function, check) for index, part in enumerate(value)]
        return _like(value, parts)
    if isinstance(value, Mapping):
        mapped = {name: map_tensors(part, f"{path}.{name}", function, check) for name, part in value.items()}
        if type(value) is dict:
            return mapped
        return type(value)(**mapped) if isinstance(value, dict) else type(value)(mapped)  # type: ignore[call-arg]
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


def _logits_at(output: Mapping[str, Any] | tuple | list) -> Any:
    """The name or the place of the logits: of what is not named, the only matrix of a mapping, the first of a tuple.

    Raises:
        ValueError: for a mapping in which it is not known what the logits are.
    """
    if not isinstance(output, Mapping):
        return next((at for at, value in enumerate(output) if _is_matrix(value)), 0)
    # Some return what they were given as well.
    matrices = [name for name, value in output.items() if _is_matrix(value) and name not in INPUTS]
    if "logits" not in output and len(matrices) != 1:
        raise ValueError(
            f"The model returns {', '.join(output)}, and it is not known which are its logits; name them 'logits'."
        )
    return "logits" if "logits" in output else matrices[0]


def _is_matrix(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 2 and value.is_floating_point()


def logits_of(output: Any) -> Tensor:
    """The logits in what a classifier returns when it is given no labels. Raises `ValueError` if they are not found."""
    return output if isinstance(output, Tensor) else output[_logits_at(output)]


def with_logits(output: Any, logits: Tensor) -> Any:
    """`output` with its logits replaced."""
    if isinstance(output, Tensor):
        return logits
    at = _logits_at(output)
    if isinstance(output, MutableMapping):
        output[at] = logits
        return output
    return _like(output, [*output[:at], logits, *output[at + 1 :]])


def with_loss(output: Any, loss: Tensor) -> Any:
    """`output` with the loss in front, as a classifier returns it when it is given labels."""
    if not isinstance(output, dict):
        return (loss, output) if isinstance(output, Tensor) else (loss, *output)
    return type(output)(loss=loss, **{name: value for name, value in output.items() if name != "loss"})
