"""The batch that a model is shown to find its sites (texts, images or sounds), and the state in which it is shown."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hf_mixup.forward.anatomy.host import image_shape, is_whole, own_parameters
from hf_mixup.forward.anatomy.kernels import half_precision
from hf_mixup.forward.anatomy.quirks import Quirk

# Prime sizes, so that a dimension is recognized by its size.
PROBE_BATCH, PROBE_LENGTH, SHORTEST = 11, 13, 8
# Pixels of the images for a model that takes any size; frames of the longest sound.
SIZE_OF_IMAGES, SOUND_FRAMES = 64, 19
SPECIAL_TOKENS = ("pad", "bos", "eos", "cls", "sep", "mask", "image", "video", "audio", "vision_start", "vision_end")


def texts(config: Any, quirk: Quirk, root: nn.Module) -> dict[str, Tensor]:
    """Texts padded right and left in turn, each ending in the end-of-text token if there is one."""
    config = config.get_text_config()
    special = [getattr(config, f"{name}_token_id", None) for name in SPECIAL_TOKENS]
    vocab = getattr(config, "vocab_size", 1000)
    ordinary = [token for token in range(min(vocab, 100)) if token not in special]
    pad, eos = getattr(config, "pad_token_id", None), getattr(config, "eos_token_id", None)
    chunk = getattr(config, "chunk_size_feed_forward", 0) or 1
    longest = -(-PROBE_LENGTH // chunk) * chunk if quirk.length is None else quirk.length(config)
    input_ids = torch.full((PROBE_BATCH, longest), pad if isinstance(pad, int) and pad >= 0 else 0)
    mask = torch.zeros_like(input_ids)
    for row in range(PROBE_BATCH):
        length = longest - row % (PROBE_LENGTH - SHORTEST + 1)
        start = longest - length if row % 2 and not quirk.pads_right else 0
        tokens = torch.tensor([ordinary[(3 * row + 7 * t) % len(ordinary)] for t in range(length)])
        if isinstance(eos, int) and eos != pad and 0 <= eos < vocab:
            # Not always at the end, so that a head that looks for it is told from one that reads the last token.
            tokens[-2 if row % 3 == 2 else -1] = eos
        input_ids[row, start : start + length] = tokens
        mask[row, start : start + length] = 1
    return {"input_ids": input_ids, "attention_mask": mask} | (quirk.extra_inputs(config) if quirk.extra_inputs else {})


def images(config: Any, quirk: Quirk, root: nn.Module) -> dict[str, Tensor]:
    """Noise of the size that the model takes."""
    channels, *of_timm = image_shape(root) or (3,)
    size = getattr(config, "image_size", None) or of_timm or SIZE_OF_IMAGES
    height, width = (size, size) if isinstance(size, int) else size
    return {"pixel_values": _noise(getattr(config, "num_channels", channels), height, width)}


def sounds(config: Any, quirk: Quirk, root: nn.Module) -> dict[str, Tensor]:
    """Spectrograms of one length, or waves of different lengths with a mask."""
    if hasattr(config, "max_length") and hasattr(config, "num_mel_bins"):
        return {"input_values": _noise(config.max_length, config.num_mel_bins)}
    samples = SOUND_FRAMES * getattr(config, "inputs_to_logits_ratio", 320)
    values, mask = _noise(samples), torch.ones(PROBE_BATCH, samples, dtype=torch.long)
    for row in range(PROBE_BATCH):
        mask[row, samples - samples // SOUND_FRAMES * (row % SHORTEST) :] = 0
    return {"input_values": values * mask, "attention_mask": mask}


def spectra(config: Any, quirk: Quirk, root: nn.Module) -> dict[str, Tensor]:
    """Spectrograms of the one length that the model takes."""
    return {"input_features": _noise(config.num_mel_bins, 2 * config.max_source_positions)}


def _noise(*shape: int) -> Tensor:
    return torch.randn(PROBE_BATCH, *shape, generator=torch.Generator().manual_seed(0))


@contextmanager
def undisturbed(root: nn.Module) -> Iterator[None]:
    """`root` in evaluation mode and with frozen parameters; each module's and parameter's own state restored after.

    Shards stay as they are: what is put together of frozen ones would stay frozen.
    """
    training = [module for module in root.modules() if module.training]
    trainable = [parameter for parameter in root.parameters() if parameter.requires_grad and is_whole(parameter)]
    root.eval()
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad(), half_precision(root):
            yield
    finally:
        for module in training:
            module.training = True
        for parameter in trainable:
            parameter.requires_grad_(True)


@contextmanager
def nonzero_parameters(root: nn.Module, backbone: nn.Module) -> Iterator[None]:
    """Other values in the place of a head that is all zeros, whose logits depend on nothing, as long as it runs.

    A sharded parameter is all there only while its module runs, so it is not looked at before. Quantized parameters,
    which may not know how to compare, stay as they are.
    """
    body = set(backbone.modules()) if backbone is not root else set()
    kept: dict[nn.Module, dict[str, nn.Parameter]] = {}

    def replace(module: nn.Module, args: tuple) -> None:
        own = module.named_parameters(recurse=False)
        kept[module] = {name: parameter for name, parameter in own if _is_zero_matrix(parameter)}
        for name, zero in kept[module].items():
            values = torch.linspace(-0.1, 0.1, zero.numel(), dtype=zero.dtype, device=zero.device)
            own_parameters(module)[name] = nn.Parameter(values.reshape(zero.shape), requires_grad=False)

    def put_back(module: nn.Module, args: tuple, output: Any) -> None:
        own_parameters(module).update(kept.pop(module, {}))

    with ExitStack() as hooks:
        for module in set(root.modules()) - body:
            hooks.enter_context(module.register_forward_pre_hook(replace))
            # Before the hook that takes a sharded parameter away again.
            hooks.enter_context(module.register_forward_hook(put_back, prepend=True, always_call=True))
        yield


def _is_zero_matrix(parameter: nn.Parameter) -> bool:
    is_plain = is_whole(parameter) and parameter.is_floating_point() and parameter.layout == torch.strided
    return is_plain and parameter.dim() > 1 and not parameter.any()
