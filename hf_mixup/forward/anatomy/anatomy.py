"""Where: what is known of a model's forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from hf_mixup.forward.anatomy.calling import call_model
from hf_mixup.forward.anatomy.inputs import logits_of


@dataclass(frozen=True)
class Argument:
    """What a block is given besides the hidden states that the block before it returned.

    Args:
        kind (`str`): `"bias"`: added to the attention scores, or boolean if the kernel takes both; `"mask"`: zeros
            and ones, of which the kernel makes what it likes (`SoftMask`); `"states"`: values that mix on a line.
        batch_dim (`int`): the dimension of the batch.
        by_position (`bool`): whether the other of the first two dimensions runs along the tokens of the text.
        origin (`int`, *optional*): the block call that it was computed from, `None` if it is there from the start.
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
        way (`str`): how the model takes a batch, one of `WAYS`.
        backbone (`nn.Module`): the part without the classification head.
        calls (`list[BlockCall]`): the blocks, in the order in which they run.
        lookups (`list[tuple[nn.Module, int]]`): token, position and segment embeddings, each with its stack.
        lookup_masks (`list[tuple[nn.Module, str]]`): embedding modules that multiply by a mask, and its argument.
        batch_dim (`int`): dimension of the batch in hidden states.
        readout (`str`): where the head reads: `"first"`, `"last"`, `"last_token"`, `"last_eos"`, `"mean"`, `"fixed"`
            (the same positions in every text), `"text"` (found in each text by a rule of its own) or `"tokens"` (each
            of them, for logits of its own).
        read_at (`nn.Module`): the module whose output the head reads.
        reads_padding (`bool`): whether the model takes padding for text, as FNet and convolutions do.
        embedding_module (`nn.Module`, *optional*): what returns the embeddings, if blocks are mixed at their outputs.
        state (`tuple`): what of the model's config the rest depends on.
        inside (`str`, *optional*): why nothing can be mixed between input and logits, if nothing can.

    Attributes:
        depth (`int`): number of blocks that run in a forward pass, encoder and decoder together.
        positions (`dict[nn.Module, list[int]]`): the calls of each block; several of one that runs several times.
        stack_ends (`tuple[int, ...]`): the last call of each stack.
    """

    root: nn.Module
    input_name: str
    way: str
    backbone: nn.Module
    calls: list[BlockCall]
    lookups: list[tuple[nn.Module, int]]
    lookup_masks: list[tuple[nn.Module, str]]
    batch_dim: int
    readout: str
    read_at: nn.Module
    reads_padding: bool
    embedding_module: nn.Module | None
    state: tuple
    inside: str | None = None

    def __post_init__(self) -> None:
        self.depth = len(self.calls)
        self.positions: dict[nn.Module, list[int]] = {}
        for index, call in enumerate(self.calls):
            self.positions.setdefault(call.module, []).append(index)
        pairs = zip(self.calls, self.calls[1:], strict=False)
        ends = [index for index, (call, after) in enumerate(pairs) if call.stack != after.stack]
        self.stack_ends = (*ends, self.depth - 1) if self.calls else ()

    def run(self, batch: Mapping[str, Any]) -> Tensor:
        """The logits that the model returns for a batch of inputs by name: `(batch, num_labels)`."""
        return logits_of(call_model(self.root, batch, self.way))

    def float_logits(self, batch: Mapping[str, Any]) -> Tensor:
        """As `run`, in float32 on the CPU."""
        return self.run(batch).float().cpu()

    def first_call(self, stack: int) -> int:
        """The position, in the order of the calls, of the first block of a stack."""
        return next(index for index, call in enumerate(self.calls) if call.stack == stack)
