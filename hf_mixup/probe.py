"""How the sites of a model are found: by watching one tiny forward pass.

Class names and attribute paths differ from architecture to architecture; what every transformer does in a forward pass
does not. So the model is shown a small padded batch once, in evaluation mode, and what is called, with which masks and
at which positions the result is read, is written down.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_mixup.anatomy import (
    Anatomy,
    BlockCall,
    MaskKind,
    bind,
    first_tensor,
    logits_of,
    model_config,
    text_config,
    transformers_model,
    with_first_tensor,
)
from hf_mixup.readout import find_readout, nonzero_parameters

# Prime sizes, so that a dimension is recognised by its size.
PROBE_BATCH, PROBE_LENGTH, SHORTEST = 11, 13, 8
SUPPORTED_ATTENTION = ("eager", "sdpa")


def find_block_lists(backbone: nn.Module) -> list[nn.ModuleList]:
    """The outermost lists of blocks, in the order of the modules."""
    found: list[nn.ModuleList] = []
    inside: set[nn.Module] = set()
    for module in backbone.modules():
        if isinstance(module, nn.ModuleList) and module not in inside and len(module):
            found.append(module)
            inside.update(module.modules())
    return found


def trace(model: nn.Module) -> Anatomy:
    """Find the sites of `model` by one forward pass of 11 texts of up to 13 tokens; the model is left as it was.

    Raises:
        ValueError: where the model has no list of blocks, cannot run the probe, or reads its result in a way that
            mixup cannot follow.
    """
    root = transformers_model(model)
    refuse_unsupported(model, root)
    backbone = getattr(root, getattr(root, "base_model_prefix", "") or "", root)
    block_lists = find_block_lists(backbone)
    if not block_lists:
        raise ValueError(f"{type(root).__name__}: no list of blocks (nn.ModuleList) found, so no site to mix at.")
    batch = probe_batch(root, next(root.parameters()).device)
    record = _Record(backbone, block_lists, batch)
    with evaluation_mode(root), nonzero_parameters(root, backbone), record.watching():
        try:
            output = root(**batch)
        except Exception as error:
            raise ValueError(f"{type(root).__name__}: the probe that looks for mixup sites failed: {error}") from error
        logits = _checked_logits(root, output)
        outputs = [
            (backbone, record.backbone_output, 0),
            (record.calls[-1].module, record.block_output, record.batch_dim),
        ]
        readout, read_at = find_readout(logits, outputs, batch, text_config(root).eos_token_id)
    return record.anatomy(root, readout, read_at)


def _checked_logits(root: nn.Module, output: Any) -> Tensor:
    has_logits = not isinstance(output, dict) or "logits" in output
    logits, labels = logits_of(output) if has_logits else first_tensor(output), model_config(root).num_labels
    if not has_logits or tuple(logits.shape) != (PROBE_BATCH, labels):
        raise ValueError(
            f"{type(root).__name__} returns {tuple(logits.shape)} for {PROBE_BATCH} texts, not logits of shape "
            f"({PROBE_BATCH}, {labels}); mixup needs a sequence classifier."
        )
    return logits


def refuse_unsupported(model: nn.Module, root: nn.Module) -> None:
    """Raise `ValueError` for settings under which a mixture would not be exact."""
    config = model_config(root)
    adapter = getattr(model, "active_peft_config", None)
    if adapter is not None and adapter.is_prompt_learning:
        raise ValueError(
            f"peft_type={adapter.peft_type.value!r}: learned prompts lengthen the texts inside the model, where mixup "
            "does not see them; use an adapter such as LoRA."
        )
    attention = getattr(config, "_attn_implementation", None)
    if attention is not None and attention not in SUPPORTED_ATTENTION:
        raise ValueError(
            f"attn_implementation={attention!r}: mixup needs a kernel that takes an attention bias; "
            f"load the model with one of {', '.join(SUPPORTED_ATTENTION)}."
        )
    for name in ("layerdrop", "encoder_layerdrop", "decoder_layerdrop"):
        if getattr(config, name, 0):
            raise ValueError(f"{name}={getattr(config, name)}: a dropped block may hold the site; set it to 0.0.")


def probe_batch(root: nn.Module, device: torch.device) -> dict[str, Tensor]:
    """Texts of several lengths, padded right and left in turn, each ending in the end-of-text token if there is one."""
    config = text_config(root)
    special = {
        value
        for name in ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "mask_token_id")
        for value in [getattr(config, name, None)]
        if isinstance(value, int)
    }
    vocab = getattr(config, "vocab_size", 1000)
    ordinary = [token for token in range(min(vocab, 100)) if token not in special]
    pad = getattr(config, "pad_token_id", None)
    eos = getattr(config, "eos_token_id", None)
    input_ids = torch.full((PROBE_BATCH, PROBE_LENGTH), 0 if pad is None else pad)
    mask = torch.zeros_like(input_ids)
    for row in range(PROBE_BATCH):
        length = PROBE_LENGTH - row % (PROBE_LENGTH - SHORTEST + 1)
        start = PROBE_LENGTH - length if row % 2 else 0
        tokens = torch.tensor([ordinary[(3 * row + 7 * t) % len(ordinary)] for t in range(length)])
        if isinstance(eos, int) and eos != pad:
            # Not always at the end, so that a head that looks for it is told from one that reads the last token.
            tokens[-2 if row % 3 == 2 else -1] = eos
        input_ids[row, start : start + length] = tokens
        mask[row, start : start + length] = 1
    return {"input_ids": input_ids.to(device), "attention_mask": mask.to(device)}


@contextmanager
def evaluation_mode(root: nn.Module) -> Iterator[None]:
    """`root` in evaluation mode, each module's own mode restored after."""
    training = [module for module in root.modules() if module.training]
    root.eval()
    try:
        with torch.enable_grad():
            yield
    finally:
        for module in training:
            module.training = True


class _Record:
    """Watches a forward pass and keeps what `Anatomy` needs."""

    def __init__(self, backbone: nn.Module, block_lists: list[nn.ModuleList], batch: dict[str, Tensor]) -> None:
        self.backbone, self.batch = backbone, batch
        self.stack_of = {block: stack for stack, blocks in enumerate(block_lists) for block in blocks}
        self.inside = {module for block in self.stack_of for module in block.modules()}
        self.calls: list[BlockCall] = []
        self.lookups: list[tuple[nn.Module, int]] = []
        self.lookup_masks: list[tuple[nn.Module, str]] = []
        self.batch_dim = 0
        self.block_output = self.backbone_output = torch.empty(0)

    @contextmanager
    def watching(self) -> Iterator[None]:
        handles = [self.backbone.register_forward_hook(self.after_backbone)]
        for block in self.stack_of:
            handles.append(block.register_forward_pre_hook(self.before_block, with_kwargs=True))
            handles.append(block.register_forward_hook(self.after_block))
        widths = {m.embedding_dim for m in [_input_embeddings(self.backbone)] if m is not None}
        for module in self.backbone.modules():
            if module in self.inside:
                continue
            if isinstance(module, nn.Embedding):
                if module.embedding_dim in widths:
                    handles.append(_with_adapter(module, self.backbone).register_forward_hook(self.after_lookup))
            elif not set(self.stack_of) & set(module.modules()):
                handles.append(module.register_forward_pre_hook(self.before_other, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def before_block(self, block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        names = list(inspect.signature(block.forward).parameters)
        call = BlockCall(block, self.stack_of[block], names)
        hidden = first_tensor(next(iter(bind(names, args, kwargs).values())))
        self.batch_dim = list(hidden.shape).index(PROBE_BATCH)
        for name, value in bind(names, args, kwargs).items():
            if "mask" in name and isinstance(value, Tensor) and PROBE_BATCH in value.shape:
                call.masks[name] = self.mask_kind(value)
        self.calls.append(call)

    def mask_kind(self, mask: Tensor) -> MaskKind:
        batch_dim = list(mask.shape).index(PROBE_BATCH)
        if mask.dtype == torch.bool or (mask.is_floating_point() and mask.min() < -1):
            return MaskKind("bias", batch_dim)
        unpadded_text_may_be_read = bool(mask.select(batch_dim, 0).max() > 0)
        return MaskKind("keep_only" if unpadded_text_may_be_read else "subtract", batch_dim)

    def after_block(self, block: nn.Module, args: tuple, output: Any) -> Any:
        self.block_output = first_tensor(output).detach().requires_grad_()
        return with_first_tensor(output, self.block_output)

    def after_backbone(self, backbone: nn.Module, args: tuple, output: Any) -> Any:
        if self.backbone_output.numel() or first_tensor(output).dim() != 3:
            return None
        # A tensor of its own, so that a pooler inside the backbone does not count as reading its output.
        self.backbone_output = first_tensor(output).view_as(first_tensor(output))
        return with_first_tensor(output, self.backbone_output)

    def after_lookup(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        self.lookups.append((module, 1 if self.calls else 0))

    def before_other(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if self.calls or not any(isinstance(child, nn.Embedding) for child in module.modules()):
            return
        for name, value in bind(list(inspect.signature(module.forward).parameters), args, kwargs).items():
            if "mask" in name and isinstance(value, Tensor) and value.shape == self.batch["input_ids"].shape:
                self.lookup_masks.append((module, name))

    def anatomy(self, root: nn.Module, readout: str, read_at: nn.Module) -> Anatomy:
        """What was seen, with the stacks numbered in the order in which they ran."""
        order = list(dict.fromkeys(call.stack for call in self.calls))
        for call in self.calls:
            call.stack = order.index(call.stack)
        lookups = [(module, min(stack, len(order) - 1)) for module, stack in self.lookups]
        attention = model_config(root)._attn_implementation
        return Anatomy(
            root, self.backbone, self.calls, lookups, self.lookup_masks, self.batch_dim, readout, read_at, attention
        )


def _with_adapter(module: nn.Module, backbone: nn.Module) -> nn.Module:
    """The PEFT layer around an embedding, whose output is what the model goes on with; else the embedding itself."""
    parents = {child: parent for parent in backbone.modules() for child in parent.children()}
    while type(parents.get(module)).__module__.startswith("peft."):
        module = parents[module]
    return module


def _input_embeddings(backbone: nn.Module) -> nn.Embedding | None:
    embeddings = backbone.get_input_embeddings() if isinstance(backbone, PreTrainedModel) else None
    if isinstance(embeddings, nn.Embedding):
        return embeddings
    return next((module for module in backbone.modules() if isinstance(module, nn.Embedding)), None)
