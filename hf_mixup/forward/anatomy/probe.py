"""How the sites of a model are found: by watching one tiny forward pass.

Class names and attribute paths differ from architecture to architecture; what every transformer does in a forward pass
does not. So the model is shown a small padded batch once, in evaluation mode, and what is called, with which arguments
and at which positions the result is read, is written down.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hf_mixup.forward.anatomy import inputs
from hf_mixup.forward.anatomy.anatomy import Anatomy, Argument, BlockCall
from hf_mixup.forward.anatomy.blocks import embedding_width, find_blocks, with_adapter
from hf_mixup.forward.anatomy.calling import call_model, probe_batch, ways_to_call
from hf_mixup.forward.anatomy.host import MASKED_BIASES, backbone_of
from hf_mixup.forward.anatomy.masks import recognize_mask
from hf_mixup.forward.anatomy.probe_batch import PROBE_BATCH, nonzero_parameters, undisturbed
from hf_mixup.forward.anatomy.quirks import quirk_of
from hf_mixup.forward.anatomy.readout import NothingRead, checked_logits, find_readout, takes_padding_for_text
from hf_mixup.forward.anatomy.unsupported import refuse_unsupported


class MissingPadToken(ValueError):
    """A decoder that cannot tell where its texts end, as long as no pad token is set."""


def trace(model: nn.Module, blocks: tuple[str, ...] = ()) -> Anatomy:
    """Find the sites of `model` by two forward passes of 11 texts of up to 13 tokens; the model is left as it was.

    Args:
        model (`nn.Module`): a classifier of sequences or tokens, also wrapped.
        blocks (`tuple[str, ...]`): module paths of its blocks, or of lists of them; found if empty.

    Raises:
        ValueError: if the model cannot run the probe, or does not return as many logits as its config says.
    """
    root = inputs.root_of(model)
    refuse_unsupported(model)
    backbone = backbone_of(root)
    stacks = find_blocks(root, backbone, blocks)
    with undisturbed(root), nonzero_parameters(root, backbone):
        record, output = _watched(root, backbone, stacks)
        logits, batch = checked_logits(root, output, record.length), record.batch
        try:
            readout, read_at = _readout(record, logits)
        except _NothingInside as error:
            return record.anatomy("fixed", backbone, True, str(error))

        def run(batch: dict[str, Tensor]) -> Tensor:
            return inputs.logits_of(call_model(root, batch, record.way))

        padding_is_text = takes_padding_for_text(run, record.calls[0], logits, batch, readout)
    return record.anatomy(readout, read_at, padding_is_text)


def _watched(root: nn.Module, backbone: nn.Module, stacks: list[list[nn.Module]]) -> tuple[_Record, Any]:
    """What was seen of a forward pass of the probe, and what the model returned, the first way that it can be called.

    Raises:
        ValueError: if it cannot be called in any.
    """
    causes: dict[str, Exception] = {}
    for way in ways_to_call(root):
        record = _Record(root, backbone, stacks, way)
        try:
            with record.watching():
                return record, call_model(root, record.batch, way)
        except Exception as error:
            causes[way] = error
    said = [f"{type(error).__name__}: {error}" if str(error) else type(error).__name__ for error in causes.values()]
    if len(causes) > 1:
        said = [f"given a {way}: {cause.splitlines()[0]}" for way, cause in zip(causes, said, strict=True)]
    cause, first = "; ".join(said), next(iter(causes.values()))
    if record.input_name == "input_ids" and getattr(inputs.text_config(root), "pad_token_id", None) is None:
        raise MissingPadToken(
            "pad_token_id is not set: a decoder cannot be mixed at batch size > 1. "
            "Set model.config.pad_token_id = tokenizer.pad_token_id (eos_token_id if it has none). "
            f"The probe that looks for mixup sites failed: {cause}"
        ) from first
    raise ValueError(f"{type(root).__name__}: the probe that looks for mixup sites failed: {cause}") from first


class _NothingInside(Exception):
    """Nothing can be mixed between input and logits."""


def _readout(record: _Record, logits: Tensor) -> tuple[str, nn.Module]:
    """`Anatomy.readout` and `Anatomy.read_at`; blocks above are forgotten. Raises `_NothingInside`."""
    name, sites = type(record.root).__name__, "mix at 'pooled', or at 'input' if it takes images or sounds"
    if not record.stack_of:
        raise _NothingInside(
            f"{name}: no list of blocks (nn.ModuleList) found, so no site to mix at inside of it; {sites}, or name the "
            "module paths of its blocks in the config's field blocks."
        )
    if not record.calls:
        raise _NothingInside(f"{name}: none of its blocks ran, so there is no site to mix at inside of it; {sites}.")
    eos_token_id = getattr(inputs.text_config(record.root), "eos_token_id", None)
    try:
        readout, read_at, last = find_readout(logits, record.outputs(), record.batch, eos_token_id)
    except NothingRead as error:
        raise _NothingInside(f"{name}: {error}, so there is no site to mix at inside of it; {sites}.") from None
    if readout == "text" and record.backbone is record.root:
        raise _NothingInside(
            f"{name} reads at positions that follow no known rule (first, last, last token, end of "
            "text, mean). Put its embeddings and blocks into one submodule and name that, as transformers does: "
            f"base_model_prefix = 'body'; or {sites}."
        )
    del record.calls[last + 1 :]
    return readout, read_at


class _Record:
    """Watches a forward pass and keeps what `Anatomy` needs."""

    def __init__(self, root: nn.Module, backbone: nn.Module, blocks: list[list[nn.Module]], way: str) -> None:
        self.root, self.backbone, self.batch, self.way = root, backbone, probe_batch(root), way
        self.input_name = inputs.input_name(root)
        self.length = self.batch["input_ids"].shape[1] if self.input_name == "input_ids" else None
        self.stack_of = {block: stack for stack, members in enumerate(blocks) for block in members}
        self.inside = {module for block in self.stack_of for module in block.modules()}
        self.calls: list[BlockCall] = []
        self.states: list[Tensor] = []
        self.call_of_leaf: dict[Any, int] = {}
        self.lookups: list[tuple[nn.Module, int]] = []
        self.lookup_masks: list[tuple[nn.Module, str]] = []
        self.batch_dim = 0
        self.backbone_output = torch.empty(0)

    @contextmanager
    def watching(self) -> Iterator[None]:
        with ExitStack() as hooks:
            hooks.enter_context(self.backbone.register_forward_hook(self.after_backbone))
            for block in self.stack_of:
                # Before FSDP makes all that a block is given depend on one node of the graph.
                hooks.enter_context(block.register_forward_pre_hook(self.before_block, prepend=True, with_kwargs=True))
                hooks.enter_context(block.register_forward_hook(self.after_block))
            width = embedding_width(self.backbone)
            for module in self.backbone.modules():
                if module in self.inside:
                    continue
                if isinstance(module, nn.Embedding):
                    if module.embedding_dim == width:
                        lookup = with_adapter(module, self.backbone)
                        hooks.enter_context(lookup.register_forward_hook(self.after_lookup))
                elif not set(self.stack_of) & set(module.modules()):
                    hooks.enter_context(module.register_forward_pre_hook(self.before_other, with_kwargs=True))
            yield

    def before_block(self, block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        names = list(inspect.signature(block.forward).parameters)
        call = BlockCall(block, self.stack_of[block], names)
        given = inputs.bind(names, args, kwargs)
        entering = inputs.first_tensor(next(iter(given.values())))
        call.widths = (entering.shape[-1], entering.shape[-1])
        if not self.calls:
            self.batch_dim = list(entering.shape).index(PROBE_BATCH)

        def note(path: str, tensor: Tensor) -> Tensor:
            call.seen.add(path)
            if PROBE_BATCH in tensor.shape:
                call.batch_dims[path] = list(tensor.shape).index(PROBE_BATCH), 1
            elif tensor.dim() > 1 and tensor.shape[0] % PROBE_BATCH == 0:
                call.batch_dims[path] = 0, tensor.shape[0] // PROBE_BATCH
            elif tensor.dim() > 1 and tensor.shape[0] == 1:
                # The same for all in the probe, and perhaps not in every batch.
                call.batch_dims[path] = 0, 1
            argument = self.describe(tensor, path in MASKED_BIASES)
            if argument is not None:
                call.arguments[path] = argument
            elif PROBE_BATCH in tensor.shape and (tensor.dim() == 1 or not tensor.is_floating_point()):
                rows = tensor.movedim(list(tensor.shape).index(PROBE_BATCH), 0)
                if torch.equal(rows, rows[:1].expand_as(rows)):
                    call.alike[path] = list(tensor.shape).index(PROBE_BATCH)
            return tensor

        inputs.map_arguments(given, note)
        self.calls.append(call)

    def describe(self, value: Tensor, may_be_mask: bool = False) -> Argument | None:
        """What a tensor that differs from example to example is to a block; `None` for all others.

        What a block before it computed is a mask only if it `may_be_mask`.
        """
        merged = PROBE_BATCH not in value.shape and value.dim() > 1 and value.shape[0] % PROBE_BATCH == 0
        if merged:
            value = value.unflatten(0, (PROBE_BATCH, -1))
        elif PROBE_BATCH not in value.shape:
            return None
        batch_dim, origin = list(value.shape).index(PROBE_BATCH), self.origin(value)
        rows = value.detach().movedim(batch_dim, 0)
        if origin is None and torch.equal(rows, rows[:1].expand_as(rows)):
            return None
        if origin is None or may_be_mask:
            mask = recognize_mask(rows, batch_dim, merged, quirk_of(self.root).compares_masks)
            if mask is not None:
                return replace(mask, origin=origin)
        if not value.is_floating_point():
            return None
        length = value.shape[1 - batch_dim] if value.dim() == 3 and batch_dim < 2 else -1
        is_longer = quirk_of(self.root).tokens_first and self.length is not None and length > self.length
        by_position = length == self.length or is_longer
        return Argument("states", batch_dim, by_position, origin, merged=merged)

    def origin(self, value: Tensor) -> int | None:
        """The last block call that a tensor was computed from."""
        found: list[int | None] = []
        pending: list[Any] = [value.grad_fn]
        seen = {None}
        while pending:
            node = pending.pop()
            if node in seen:
                continue
            seen.add(node)
            found.append(self.call_of_leaf.get(getattr(node, "variable", None)))
            pending += [parent for parent, _ in node.next_functions]
        return max((call for call in found if call is not None), default=None)

    def after_block(self, block: nn.Module, args: tuple, output: Any) -> Any:
        """Cut the graph after the block, so that what is computed from its output is known by it."""
        index = len(self.calls) - 1
        self.calls[index].widths = (self.calls[index].widths[0], inputs.first_tensor(output).shape[-1])
        self.calls[index].output = self.describe(inputs.first_tensor(output)) or Argument("states", self.batch_dim)

        def cut(path: str, tensor: Tensor) -> Tensor:
            if not tensor.is_floating_point():
                return tensor
            leaf = tensor.detach().requires_grad_()
            self.call_of_leaf[leaf] = index
            if len(self.states) == index:
                self.states.append(leaf)
            # The next block may write into it, which a leaf does not allow.
            return leaf.clone()

        return inputs.map_tensors(output, "", cut)

    def after_backbone(self, backbone: nn.Module, args: tuple, output: Any) -> Any:
        if self.backbone_output.numel() or inputs.first_tensor(output).dim() != 3:
            return None
        # A tensor of its own, so that a pooler inside the backbone does not count as reading its output.
        self.backbone_output = inputs.first_tensor(output).view_as(inputs.first_tensor(output))
        return inputs.with_first_tensor(output, self.backbone_output)

    def outputs(self) -> list[tuple[nn.Module, Tensor, int, int]]:
        """Where the head may read, the likeliest first: module, states, batch dimension in them, last call below."""
        calls = list(zip(self.calls, self.states, strict=True))
        blocks = [(call.module, states, self.batch_dim, index) for index, (call, states) in enumerate(calls)]
        whole = [(self.backbone, self.backbone_output, 0, len(calls) - 1)] if self.backbone_output.numel() else []
        return whole + blocks[::-1]

    def after_lookup(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        self.lookups.append((module, 1 if self.calls else 0))

    def before_other(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if self.calls or not any(isinstance(child, nn.Embedding) for child in module.modules()):
            return
        for name, value in inputs.bind(list(inspect.signature(module.forward).parameters), args, kwargs).items():
            if "mask" in name and isinstance(value, Tensor) and value.shape == self.batch[self.input_name].shape:
                self.lookup_masks.append((module, name))

    def anatomy(self, readout: str, read_at: nn.Module, reads_padding: bool, inside: str | None = None) -> Anatomy:
        """What was seen, with the stacks numbered in the order in which they ran; none if `inside` says why."""
        embedding_module = quirk_of(self.root).embedding_module
        if inside is not None:
            self.calls.clear()
        order = list(dict.fromkeys(call.stack for call in self.calls))
        for call in self.calls:
            call.stack = order.index(call.stack)
        lookups = [(module, min(stack, len(order) - 1)) for module, stack in self.lookups]
        return Anatomy(
            self.root,
            self.input_name,
            self.way,
            self.backbone,
            self.calls,
            lookups,
            self.lookup_masks,
            self.batch_dim,
            readout,
            read_at,
            reads_padding,
            None if embedding_module is None else self.backbone.get_submodule(embedding_module),
            inputs.changeable_state(self.root),
            inside,
        )
