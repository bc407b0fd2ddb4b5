"""What cannot be seen from a model's structure: one row for each architecture that needs to be told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_mixup.forward.anatomy.host import UNDECLARED_BLOCKS


@dataclass(frozen=True)
class Quirk:
    """What the probe is told of an architecture.

    Args:
        why (`str`): the reason, for the reader.
        blocks (`tuple[str, ...]`): module paths of the blocks in the backbone, if the list of blocks is not what runs.
        embedding_module (`str`, *optional*): module path of what returns the embeddings there, if hidden states and
            masks pass between the blocks outside of any module: then the blocks' outputs are mixed, and the mask.
        length (*optional*): number of tokens of the probe, from the config.
        compares_masks (`bool`): the kernel asks where its bias is zero, and does not add it.
        pads_right (`bool`): a text padded on the left makes no sense to it.
        tokens_first (`bool`): its states are longer than the text, which they begin with.
        extra_inputs (*optional*): what 11 texts of 13 tokens may bring that enters the blocks, from the config.
    """

    why: str
    blocks: tuple[str, ...] = ()
    embedding_module: str | None = None
    length: Callable[[Any], int] | None = None
    compares_masks: bool = False
    pads_right: bool = False
    tokens_first: bool = False
    extra_inputs: Callable[[Any], dict[str, Tensor]] | None = None


def _above_full_attention(config: Any) -> int:
    # A shorter text would make the model change its attention for good.
    return 13 if config.attention_type == "original_full" else (6 + 2 * config.num_random_blocks) * config.block_size


def _entities(config: Any) -> dict[str, Tensor]:
    positions = torch.arange(11 * 3 * 2).view(11, 3, 2) % 8
    present = torch.arange(3) <= torch.arange(11).unsqueeze(1) % 3
    entities = (1 + torch.arange(33).view(11, 3) % (config.entity_vocab_size - 1)) * present
    return {"entity_ids": entities, "entity_position_ids": positions, "entity_attention_mask": present.long()}


def _segments(config: Any) -> dict[str, Tensor]:
    return {"token_type_ids": (torch.arange(13) >= torch.arange(11).unsqueeze(1)).long()}


def _boxes(config: Any) -> dict[str, Tensor]:
    # Squares, so that the distances between boxes differ from text to text too.
    corners = torch.arange(11 * 13 * 2).square().view(11, 13, 2) % 500
    return {"bbox": torch.cat([corners, corners + 9], -1)}


def _pages(config: Any) -> dict[str, Tensor]:
    boxes = _boxes(config)
    if not config.visual_embed:
        return boxes
    pixels = torch.linspace(-1, 1, 11 * 3 * config.input_size**2).view(11, 3, config.input_size, config.input_size)
    return boxes | {"pixel_values": pixels}


_SPARSE = Quirk(
    "Short texts change its attention for good: set attention_type='original_full'.", length=_above_full_attention
)
QUIRKS: dict[str, Quirk] = {
    "big_bird": _SPARSE,
    "bigbird_pegasus": _SPARSE,
    "bros": Quirk("boxes, which it cannot do without, enter the attention scores", extra_inputs=_boxes),
    "doge": Quirk("asks where its bias is zero", compares_masks=True),
    "flaubert": Quirk("states pass outside of modules", ("layer_norm2",), "layer_norm_emb"),
    "funnel": Quirk("segments enter the attention scores", extra_inputs=_segments),
    "layoutlmv3": Quirk("patches of the page follow the tokens", tokens_first=True, extra_inputs=_pages),
    "longformer": Quirk(
        "asks where its bias is zero; reads the first token", compares_masks=True, pads_right=True, tokens_first=True
    ),
    "luke": Quirk("entities run beside the tokens", extra_inputs=_entities),
    "mra": Quirk("asks where its bias is zero, in blocks of 32", compares_masks=True, length=lambda config: 64),
    "reformer": Quirk(
        "reversible layers run without autograd inside the encoder",
        blocks=("encoder",),
        length=lambda config: 3 * max(config.local_attn_chunk_length, config.lsh_attn_chunk_length) + 1,
        tokens_first=True,
    ),
    "squeezebert": Quirk("calls layer.forward(), which no hook sees", blocks=("encoder",)),
    "xlm": Quirk("states pass outside of modules", ("layer_norm2",), "layer_norm_emb"),
}

QUIRKS |= {
    name: Quirk("convolutions stand in a list before the blocks", blocks=("encoder.layers",))
    for name in UNDECLARED_BLOCKS
}


def quirk_of(root: nn.Module) -> Quirk:
    """The row of a model, or of the first transformers model inside; one without anything in it for all others."""
    named = (getattr(getattr(module, "config", None), "model_type", "") for module in root.modules())
    return QUIRKS.get(next(filter(None, named), ""), Quirk(""))
