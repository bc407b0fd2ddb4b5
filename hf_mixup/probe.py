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
    with _evaluation_mode(root), record.watching():
        try:
            output = root(**batch)
        except Exception as error:
            raise ValueError(f"{type(root).__name__}: the probe that looks for mixup sites failed: {error}") from error
        logits = _checked_logits(root, output)
        readout, read_at = find_readout(record, logits, batch)
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
    if getattr(config, "conv_kernel_size", 0) and getattr(config, "model_type", "") == "deberta-v2":
        raise ValueError(f"conv_kernel_size={config.conv_kernel_size}: DeBERTa-v2's convolution is not supported.")


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
            tokens[-1] = eos
        input_ids[row, start : start + length] = tokens
        mask[row, start : start + length] = 1
    return {"input_ids": input_ids.to(device), "attention_mask": mask.to(device)}


@contextmanager
def _evaluation_mode(root: nn.Module) -> Iterator[None]:
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
                    handles.append(module.register_forward_hook(self.after_lookup))
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
        if mask.dtype == torch.bool:
            return MaskKind("keep", batch_dim)
        if mask.is_floating_point() and mask.min() < -1:
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
        if PROBE_BATCH in output.shape[:2]:
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
        return Anatomy(root, self.backbone, self.calls, lookups, self.lookup_masks, self.batch_dim, readout, read_at)


def _input_embeddings(backbone: nn.Module) -> nn.Embedding | None:
    embeddings = backbone.get_input_embeddings() if isinstance(backbone, PreTrainedModel) else None
    if isinstance(embeddings, nn.Embedding):
        return embeddings
    return next((module for module in backbone.modules() if isinstance(module, nn.Embedding)), None)


def find_readout(record: _Record, logits: Tensor, batch: dict[str, Tensor]) -> tuple[str, nn.Module]:
    """Where the head reads the hidden states: the positions on which the logits' gradient is not zero."""
    objective = (logits.float() * torch.arange(1, logits.shape[-1] + 1, device=logits.device)).sum()
    sources = [
        (record.backbone, record.backbone_output, 0),
        (record.calls[-1].module, record.block_output, record.batch_dim),
    ]
    sources = [source for source in sources if source[1].requires_grad]
    gradients = torch.autograd.grad(objective, [output for _, output, _ in sources], allow_unused=True)
    for (module, _, batch_dim), gradient in zip(sources, gradients, strict=True):
        if gradient is not None and gradient.dim() == 3 and gradient.abs().max() > 0:
            by_position = gradient.transpose(0, batch_dim)
            return _name_readout(by_position, batch["attention_mask"].bool(), module), module
    raise ValueError("The logits do not depend on the output of the last block, so there is nothing to mix.")


def _name_readout(gradient: Tensor, mask: Tensor, module: nn.Module) -> str:
    read = gradient.abs().amax(-1) > 0
    positions = torch.arange(PROBE_LENGTH, device=mask.device)
    last_token = (positions * mask).argmax(-1, keepdim=True)
    patterns = {
        "first": (positions == 0).expand_as(mask),
        "last": (positions == PROBE_LENGTH - 1).expand_as(mask),
        "last_token": positions == last_token,
        "mean": mask,
        "all": torch.ones_like(mask),
    }
    name = next((name for name, pattern in patterns.items() if torch.equal(read, pattern)), None)
    if name == "mean":
        counts = mask.sum(1).view(-1, 1, 1)
        even = (gradient.sum(1, keepdim=True) / counts) * mask.unsqueeze(-1)
        name = "mean" if torch.allclose(gradient, even, rtol=1e-2, atol=1e-6) else None
    if name is None:
        raise ValueError(
            f"The head reads the output of {type(module).__name__} at positions that follow no known rule "
            "(first, last, last token, mean); mixup cannot interpolate what it reads."
        )
    return name
