"""Where: what is known of a model's forward pass, and how its outputs and arguments are read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

# Block arguments, by the names that transformers gives them, that belong to an example and follow it into the mixture.
LINEAR_ARGUMENTS = ("position_embeddings", "seg_mat")
ENCODER_STATES = "encoder_hidden_states"


@dataclass(frozen=True)
class MaskKind:
    """How a block takes an attention mask.

    Args:
        convention (`str`): `"bias"`: added to the scores, or boolean where the kernel takes both; `"keep_only"`: true
            where something may be read, nothing else understood; `"subtract"`: 1 where nothing may be read.
        batch_dim (`int`): the dimension of the batch.
    """

    convention: str
    batch_dim: int


@dataclass
class BlockCall:
    """One call of a block in a forward pass: the module, its stack (0: encoder or only stack), its argument names."""

    module: nn.Module
    stack: int
    names: list[str]
    masks: dict[str, MaskKind] = field(default_factory=dict)


@dataclass
class Anatomy:
    """What one forward pass of a model looks like.

    Args:
        root (`nn.Module`): the model whose output holds the logits.
        backbone (`nn.Module`): the part without the classification head.
        calls (`list[BlockCall]`): the blocks, in the order in which they run.
        lookups (`list[tuple[nn.Module, int]]`): token, position and segment embeddings, each with its stack.
        lookup_masks (`list[tuple[nn.Module, str]]`): embedding modules that multiply by a mask, and its argument.
        batch_dim (`int`): dimension of the batch in hidden states.
        readout (`str`): where the head reads: `"first"`, `"last"`, `"last_token"`, `"last_eos"`, `"mean"` or `"all"`.
        read_at (`nn.Module`): the module whose output the head reads.
        attention (`str`): the attention kernel, as transformers names it.
    """

    root: nn.Module
    backbone: nn.Module
    calls: list[BlockCall]
    lookups: list[tuple[nn.Module, int]]
    lookup_masks: list[tuple[nn.Module, str]]
    batch_dim: int
    readout: str
    read_at: nn.Module
    attention: str

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


def model_config(model: nn.Module) -> Any:
    """The config of the transformers model inside `model`.

    Raises:
        ValueError: for a model without one, whose labels nothing would say how to mix.
    """
    config = getattr(transformers_model(model), "config", None)
    if config is None or not hasattr(config, "num_labels"):
        raise ValueError(f"{type(model).__name__} has no config with num_labels; mixup needs a sequence classifier.")
    return config


def text_config(model: nn.Module) -> Any:
    """The config that holds the token ids: that of the text part in multimodal models."""
    config = model_config(model)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def first_tensor(output: Any) -> Tensor:
    """The hidden states in what a block or a backbone returns."""
    if isinstance(output, Tensor):
        return output
    return output[0]


def with_first_tensor(output: Any, tensor: Tensor) -> Any:
    """`output` with its hidden states replaced."""
    if isinstance(output, Tensor):
        return tensor
    if isinstance(output, (tuple, list)):
        return type(output)([tensor, *output[1:]])
    output[next(iter(output))] = tensor
    return output


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


def bind(names: list[str], args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name."""
    return {**dict(zip(names, args, strict=False)), **kwargs}
