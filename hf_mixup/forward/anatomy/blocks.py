"""The blocks of a model, and the width of what is mixed before and after them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from hf_mixup.config.checks import nearest
from hf_mixup.forward.anatomy.anatomy import Anatomy
from hf_mixup.forward.anatomy.host import is_adapter, is_whole, recorded_blocks
from hf_mixup.forward.anatomy.quirks import quirk_of


def find_blocks(root: nn.Module, backbone: nn.Module, paths: tuple[str, ...] = ()) -> list[list[nn.Module]]:
    """The blocks of a model, a list for each stack, in the order of the modules.

    They stand in the outermost `nn.ModuleList`s, of the classes that transformers declares if it does; a module of the
    same class beside them is one too. Without any, they are the members of `nn.Sequential`s of one class.

    Args:
        root (`nn.Module`): the model that the paths start at.
        backbone (`nn.Module`): where to look.
        paths (`tuple[str, ...]`): module paths of blocks, or of lists of them, if they are known.

    Returns:
        `list[list[nn.Module]]`: empty if no list is found.

    Raises:
        ValueError: for a path that is not there.
    """
    if paths:
        return _blocks_at(root, paths)
    if quirk_of(root).blocks:
        return _blocks_at(backbone, quirk_of(root).blocks)
    inside: set[nn.Module] = set()
    found = _outermost(backbone, _in_list, inside) or _outermost(backbone, _in_sequential, inside)
    declared = recorded_blocks(root)
    found = [blocks for blocks in found if isinstance(blocks[0], declared)] or found
    classes = {type(block) for blocks in found for block in blocks} - {nn.Sequential}
    found += [[module] for module in backbone.modules() if type(module) in classes and module not in inside]
    return found


def _outermost(
    backbone: nn.Module, members: Callable[[nn.Module], list[nn.Module]], inside: set[nn.Module]
) -> list[list[nn.Module]]:
    """The blocks of the outermost modules that have any; all modules in these are added to `inside`."""
    found: list[list[nn.Module]] = []
    for module in backbone.modules():
        blocks = [] if module in inside else members(module)
        if blocks:
            found.append(blocks)
            inside.update(module.modules())
    return found


def _in_list(module: nn.Module) -> list[nn.Module]:
    """The blocks of a list, also of a list of lists; lists of embeddings or norms hold none."""
    if not isinstance(module, nn.ModuleList):
        return []
    members = [list(m) if isinstance(m, nn.ModuleList) else [m] for m in module]
    return [member for group in members for member in group if any(True for _ in member.children())]


def _in_sequential(module: nn.Module) -> list[nn.Module]:
    """The blocks of a sequence, if all of it are blocks of one class."""
    members = list(module) if isinstance(module, nn.Sequential) else []
    is_of_blocks = len({type(member) for member in members}) == 1 and any(True for _ in members[0].children())
    return members if is_of_blocks else []


def _blocks_at(root: nn.Module, paths: tuple[str, ...]) -> list[list[nn.Module]]:
    modules = dict(root.named_modules())
    blocks: list[list[nn.Module]] = []
    alone: list[nn.Module] = []
    for path in paths:
        if path not in modules:
            raise ValueError(
                f"blocks: {path!r} is not a module of {type(root).__name__}.{nearest(path, list(modules))}"
            )
        if isinstance(modules[path], nn.ModuleList) or _in_sequential(modules[path]):
            blocks.append(list(modules[path]))
        else:
            alone.append(modules[path])
    return blocks + [alone] if alone else blocks


def with_adapter(module: nn.Module, backbone: nn.Module) -> nn.Module:
    """The PEFT layer around an embedding, whose output the model uses; else the embedding itself."""
    parents = {child: parent for parent in backbone.modules() for child in parent.children()}
    while is_adapter(parents.get(module)):
        module = parents[module]
    return module


def embedding_width(backbone: nn.Module) -> int | None:
    """The width of the token embeddings."""
    embeddings = _named_embeddings(backbone) if isinstance(backbone, PreTrainedModel) else None
    if embeddings is None:
        embeddings = next((module for module in backbone.modules() if isinstance(module, nn.Embedding)), None)
    return None if embeddings is None else embeddings.embedding_dim


def _named_embeddings(model: PreTrainedModel) -> nn.Embedding | None:
    """The lookup that a model says is that of its tokens."""
    try:
        embeddings = model.get_input_embeddings()
    except NotImplementedError:
        return None
    return embeddings if isinstance(embeddings, nn.Embedding) else None


def site_width(anatomy: Anatomy, site: str, layer: int | None) -> int:
    """The last dimension of what is mixed at a site; of the layers, `None` and -1 are before the first block."""
    if site == "word_embeddings":
        return embedding_width(anatomy.backbone) or 1
    return anatomy.calls[0].widths[0] if layer is None or layer < 0 else anatomy.calls[layer].widths[1]


def text_states(root: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """The mean token embedding of each text, by a lookup without a pass or gradients: `(batch, width)`.

    Raises:
        ValueError: for a model whose token embeddings are not all here.
    """
    inner = next((module for module in root.modules() if isinstance(module, PreTrainedModel)), None)
    embeddings = None if inner is None else _named_embeddings(inner)
    if embeddings is None or not is_whole(embeddings.weight):
        raise ValueError(
            f"partner='near_text': the token embeddings of {type(root).__name__} are not named, or not all here."
        )
    ids, mask = batch["input_ids"], batch.get("attention_mask")
    with torch.no_grad():
        share = torch.ones_like(ids) if mask is None else mask
        share = (share / share.sum(1, keepdim=True)).unsqueeze(-1)
        return (functional.embedding(ids, embeddings.weight).float() * share).sum(1)
