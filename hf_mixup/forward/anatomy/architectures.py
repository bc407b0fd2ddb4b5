"""What cannot be seen from a model's structure: one row for each architecture that needs to be told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_mixup.config.checks import nearest
from hf_mixup.forward.anatomy.anatomy import Anatomy


@dataclass(frozen=True)
class Peculiarity:
    """What the probe is told of an architecture.

    Args:
        why (`str`): the reason, for the reader.
        blocks (`tuple[str, ...]`): module paths of the blocks, where the list of blocks is not what runs.
        entrance (`str`, *optional*): module path of what returns the embeddings, where hidden states and masks pass
            between the blocks outside of any module: there the blocks' outputs are mixed, and the model's own mask.
        length (*optional*): number of tokens of the probe, from the config.
        compares_masks (`bool`): the kernel asks where its bias is zero, and does not add it.
        pads_right (`bool`): a text padded on the left makes no sense to it.
        tokens_first (`bool`): its states are longer than the text, which they begin with.
        extra_inputs (*optional*): what 11 texts of 13 tokens may bring that enters the blocks, from the config.
    """

    why: str
    blocks: tuple[str, ...] = ()
    entrance: str | None = None
    length: Callable[[Any], int] | None = None
    compares_masks: bool = False
    pads_right: bool = False
    tokens_first: bool = False
    extra_inputs: Callable[[Any], dict[str, Tensor]] | None = None


def _above_full_attention(config: Any) -> int:
    # A shorter text would make the model change its attention for good.
    return 13 if config.attention_type == "original_full" else (6 + 2 * config.num_random_blocks) * config.block_size


def _over_several_chunks(config: Any) -> int:
    return 3 * max(config.local_attn_chunk_length, config.lsh_attn_chunk_length) + 1


def _entities(config: Any) -> dict[str, Tensor]:
    positions = torch.arange(11 * 3 * 2).view(11, 3, 2) % 8
    present = torch.arange(3) <= torch.arange(11).unsqueeze(1) % 3
    entities = (1 + torch.arange(33).view(11, 3) % (config.entity_vocab_size - 1)) * present
    return {"entity_ids": entities, "entity_position_ids": positions, "entity_attention_mask": present.long()}


def _segments(config: Any) -> dict[str, Tensor]:
    return {"token_type_ids": (torch.arange(13) >= torch.arange(11).unsqueeze(1)).long()}


def _pages(config: Any) -> dict[str, Tensor]:
    corners = torch.arange(11 * 13 * 2).view(11, 13, 2) % 500
    boxes = {"bbox": torch.cat([corners, corners + 9], -1)}
    if not config.visual_embed:
        return boxes
    pixels = torch.linspace(-1, 1, 11 * 3 * config.input_size**2).view(11, 3, config.input_size, config.input_size)
    return boxes | {"pixel_values": pixels}


PECULIARITIES: dict[str, Peculiarity] = {
    "big_bird": Peculiarity(
        "Short texts change its attention for good: set attention_type='original_full'.", length=_above_full_attention
    ),
    "bigbird_pegasus": Peculiarity(
        "Short texts change its attention for good: set attention_type='original_full'.", length=_above_full_attention
    ),
    "doge": Peculiarity("asks where its bias is zero", compares_masks=True),
    "flaubert": Peculiarity(
        "states pass outside of modules", ("transformer.layer_norm2",), "transformer.layer_norm_emb"
    ),
    "funnel": Peculiarity("segments enter the attention scores", extra_inputs=_segments),
    "layoutlmv3": Peculiarity("patches of the page follow the tokens", tokens_first=True, extra_inputs=_pages),
    "longformer": Peculiarity(
        "asks where its bias is zero; reads the first token", compares_masks=True, pads_right=True, tokens_first=True
    ),
    "luke": Peculiarity("entities run beside the tokens", extra_inputs=_entities),
    "mra": Peculiarity("asks where its bias is zero, in blocks of 32", compares_masks=True, length=lambda config: 64),
    "reformer": Peculiarity(
        "reversible layers run without autograd inside the encoder",
        blocks=("reformer.encoder",),
        length=_over_several_chunks,
        tokens_first=True,
    ),
    "squeezebert": Peculiarity("calls layer.forward(), which no hook sees", blocks=("transformer.encoder",)),
    "xlm": Peculiarity("states pass outside of modules", ("transformer.layer_norm2",), "transformer.layer_norm_emb"),
}


def peculiarity_of(root: nn.Module) -> Peculiarity:
    """The row of a model; one without anything in it for all others."""
    return PECULIARITIES.get(getattr(getattr(root, "config", None), "model_type", ""), Peculiarity(""))


def find_blocks(root: nn.Module, backbone: nn.Module, paths: tuple[str, ...] = ()) -> list[list[nn.Module]]:
    """The blocks of a model, a list for each stack, in the order of the modules.

    They stand in the outermost `nn.ModuleList`s, of the classes that transformers declares where it does; a module
    beside them of the same class is one too.

    Args:
        root (`nn.Module`): the model that the paths start at.
        backbone (`nn.Module`): where to look.
        paths (`tuple[str, ...]`): module paths of blocks, or of lists of them, where they are known.

    Raises:
        ValueError: for a path that is not there, and where no list is found.
    """
    if paths:
        return _blocks_at(root, paths)
    found: list[list[nn.Module]] = []
    inside: set[nn.Module] = set()
    for module in backbone.modules():
        blocks = _members(module) if isinstance(module, nn.ModuleList) and module not in inside else []
        if blocks:
            found.append(blocks)
            inside.update(module.modules())
    if not found:
        raise ValueError(
            f"{type(root).__name__}: no list of blocks (nn.ModuleList) found, so no site to mix at; "
            "name the module paths of its blocks in the config's field blocks."
        )
    declared = _declared_blocks(root)
    found = [blocks for blocks in found if isinstance(blocks[0], declared)] or found
    classes = {type(block) for blocks in found for block in blocks}
    found += [[module] for module in backbone.modules() if type(module) in classes and module not in inside]
    return found


def _declared_blocks(root: nn.Module) -> tuple[type[nn.Module], ...]:
    """The classes whose outputs transformers records as hidden states."""
    found: list[Any] = []
    for module in root.modules():
        recorded = (getattr(module, "_can_record_outputs", None) or {}).get("hidden_states", [])
        for recorder in recorded if isinstance(recorded, (list, tuple)) else [recorded]:
            found.append(getattr(recorder, "target_class", recorder))
    return tuple(declared for declared in found if isinstance(declared, type))


def _members(blocks: nn.ModuleList) -> list[nn.Module]:
    """The blocks of a list, also of a list of lists; lists of embeddings or norms hold none."""
    members = [list(m) if isinstance(m, nn.ModuleList) else [m] for m in blocks]
    return [member for group in members for member in group if any(True for _ in member.children())]


def _blocks_at(root: nn.Module, paths: tuple[str, ...]) -> list[list[nn.Module]]:
    modules = dict(root.named_modules())
    blocks: list[list[nn.Module]] = []
    alone: list[nn.Module] = []
    for path in paths:
        if path not in modules:
            raise ValueError(
                f"blocks: {path!r} is not a module of {type(root).__name__}.{nearest(path, list(modules))}"
            )
        if isinstance(modules[path], nn.ModuleList):
            blocks.append(list(modules[path]))
        else:
            alone.append(modules[path])
    return blocks + [alone] if alone else blocks


def with_adapter(module: nn.Module, backbone: nn.Module) -> nn.Module:
    """The PEFT layer around an embedding, whose output is what the model goes on with; else the embedding itself."""
    parents = {child: parent for parent in backbone.modules() for child in parent.children()}
    while type(parents.get(module)).__module__.startswith("peft."):
        module = parents[module]
    return module


def embedding_width(backbone: nn.Module) -> int | None:
    """The width of the token embeddings."""
    try:
        embeddings = backbone.get_input_embeddings() if isinstance(backbone, PreTrainedModel) else None
    except NotImplementedError:
        embeddings = None
    if not isinstance(embeddings, nn.Embedding):
        embeddings = next((module for module in backbone.modules() if isinstance(module, nn.Embedding)), None)
    return None if embeddings is None else embeddings.embedding_dim


def site_width(anatomy: Anatomy, site: str, layer: int | None) -> int:
    """The last dimension of what is mixed at a site; of the layers, `None` and -1 are before the first block."""
    if site == "word_embeddings":
        return embedding_width(anatomy.backbone) or 1
    return anatomy.calls[0].widths[0] if layer is None or layer < 0 else anatomy.calls[layer].widths[1]
