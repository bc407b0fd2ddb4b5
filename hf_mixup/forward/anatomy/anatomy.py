"""Where: what is known of a model's forward pass, and how its outputs and arguments are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

# Block arguments, by the names that transformers gives them, that are the same for every example of the probe and may
# differ in a batch (positions and segments of the user's own).
LINEAR_ARGUMENTS = ("position_embeddings", "seg_mat")


@dataclass(frozen=True)
class Argument:
    """What a block is given besides the hidden states that the block before it returned.

    Args:
        kind (`str`): `"bias"`: added to the attention scores, or boolean where the kernel takes both; `"mask"`: zeros
            and ones, of which the kernel makes what it likes (`SoftMask`); `"states"`: values that mix on a line.
        batch_dim (`int`): the dimension of the batch.
        by_position (`bool`): whether the other of the first two dimensions runs along the tokens of the text.
        origin (`int`, *optional*): the block call that it was computed from, `None` where it is there from the start.
        keeps (`bool`): of masks: true where something may be read, not where it may not.
        merged (`bool`): the first dimension is batch times heads.
        compared (`bool`): of biases: the kernel asks where it is zero, and does not add it.
    """

    kind: str
    batch_dim: int
    by_position: bool = False
    origin: int | None = None
    keeps: bool = True
    merged: bool = False
    compared: bool = False


@dataclass
class BlockCall:
    """One call of a block in a forward pass.

    Args:
        module (`nn.Module`): the block.
        stack (`int`): 0 for the encoder or the only stack.
        names (`list[str]`): its argument names.
        arguments (`dict[str, Argument]`): those that differ from example to example, by name; parts of a tuple as
            `"name.0"`.
        seen (`set[str]`): every tensor that it was given in the probe.
        alike (`dict[str, int]`): flags and numbers that were the same for every example, with the dimension of
            the batch.
        batch_dims (`dict[str, tuple[int, int]]`): of every tensor with rows for the examples, the dimension of the
            batch in it and how many rows each example has.
        output (`Argument`): the hidden states that it returns.
        widths (`tuple[int, int]`): the last dimension of the hidden states that it is given, and of what it returns.
    """

    module: nn.Module
    stack: int
    names: list[str]
    arguments: dict[str, Argument] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    alike: dict[str, int] = field(default_factory=dict)
    batch_dims: dict[str, tuple[int, int]] = field(default_factory=dict)
    output: Argument = Argument("states", 0)
    widths: tuple[int, int] = (1, 1)


@dataclass
class Anatomy:
    """What one forward pass of a model looks like.

    Args:
        root (`nn.Module`): the model whose output holds the logits.
        input_name (`str`): the input that holds the examples.
        backbone (`nn.Module`): the part without the classification head.
        calls (`list[BlockCall]`): the blocks, in the order in which they run.
        lookups (`list[tuple[nn.Module, int]]`): token, position and segment embeddings, each with its stack.
        lookup_masks (`list[tuple[nn.Module, str]]`): embedding modules that multiply by a mask, and its argument.
        batch_dim (`int`): dimension of the batch in hidden states.
        readout (`str`): where the head reads: `"first"`, `"last"`, `"last_token"`, `"last_eos"`, `"mean"`, `"fixed"`
            (the same positions in every text) or `"text"` (found in each text by a rule of its own).
        read_at (`nn.Module`): the module whose output the head reads.
        reads_padding (`bool`): whether the model takes padding for text, as FNet and convolutions do.
        entrance (`nn.Module`, *optional*): what returns the embeddings, where blocks are mixed at their outputs.
        state (`tuple`): what of the model's config the rest depends on.
    """

    root: nn.Module
    input_name: str
    backbone: nn.Module
    calls: list[BlockCall]
    lookups: list[tuple[nn.Module, int]]
    lookup_masks: list[tuple[nn.Module, str]]
    batch_dim: int
    readout: str
    read_at: nn.Module
    reads_padding: bool
    entrance: nn.Module | None
    state: tuple

    @property
    def depth(self) -> int:
        """Number of blocks that run in a forward pass, encoder and decoder together."""
        return len(self.calls)

    def first_call(self, stack: int) -> int:
        """The position, in the order of the calls, of the first block of a stack."""
        return next(index for index, call in enumerate(self.calls) if call.stack == stack)


def transformers_model(model: nn.Module) -> nn.Module:
    """The transformers model inside wrappers such as DDP, torch.compile or PEFT; the model itself where none is."""
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


def changeable_state(model: nn.Module) -> tuple:
    """What a user may change in a model after its sites were found: the attention kernel and the pad token."""
    return model_config(model)._attn_implementation, getattr(text_config(model), "pad_token_id", None)


def text_config(model: nn.Module) -> Any:
    """The config that holds the token ids: that of the text part in multimodal models."""
    return model_config(model).get_text_config()


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


def _like(output: Any, parts: list[Any]) -> Any:
    """A tuple, named tuple or list of the type of `output`."""
    return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)


def logits_of(output: Any) -> Tensor:
    """The logits in what a classifier returns when it is given no labels."""
    return output["logits"] if isinstance(output, dict) else first_tensor(output)


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


def map_tensors(value: Any, path: str, function: Callable[[str, Tensor], Any]) -> Any:
    """`value` with `function(path, tensor)` in the place of every tensor, also inside tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return function(path, value)
    if isinstance(value, (tuple, list)):
        return _like(value, [map_tensors(part, f"{path}.{index}", function) for index, part in enumerate(value)])
    if isinstance(value, dict):
        return type(value)(**{name: map_tensors(part, f"{path}.{name}", function) for name, part in value.items()})
    return value


def bind(names: list[str], args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name."""
    return {**dict(zip(names, args, strict=False)), **kwargs}


def separators(config: Any) -> set[int]:
    """The ids of tokens that begin, end or part texts, as far as the config of a model names them."""
    names = ("bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id")
    found: set[int] = set()
    for name in names:
        value = config.to_dict().get(name)
        found |= set(value) if isinstance(value, (list, tuple)) else set() if value is None else {value}
    return found
