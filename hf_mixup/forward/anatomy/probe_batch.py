"""The small batch that a model is shown to find its sites, and the state in which it is shown."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hf_mixup.forward.anatomy.anatomy import model_config, text_config
from hf_mixup.forward.anatomy.architectures import peculiarity_of

# Prime sizes, so that a dimension is recognised by its size.
PROBE_BATCH, PROBE_LENGTH, SHORTEST = 11, 13, 8
# Pixels of the images for a model that takes any size; frames of the longest sound.
SIZE_OF_IMAGES, SOUND_FRAMES = 64, 19
SPECIAL_TOKENS = ("pad", "bos", "eos", "cls", "sep", "mask", "image", "video", "audio", "vision_start", "vision_end")


def input_name(root: nn.Module) -> str:
    """The input that holds the examples: `"input_ids"`, or the float input of image and audio models."""
    if "input_ids" in inspect.signature(root.forward).parameters:
        return "input_ids"
    return getattr(root, "main_input_name", "input_ids")


def probe_batch(root: nn.Module) -> dict[str, Tensor]:
    """A batch of 11 examples, of different lengths where the model takes a padding mask.

    Raises:
        ValueError: for an input of a name that mixup does not know.
    """
    name = input_name(root)
    if name not in PROBES:
        raise ValueError(f"{type(root).__name__}: main_input_name={name!r}; allowed: {', '.join(PROBES)}.")
    device, dtype = next(root.parameters()).device, next(root.parameters()).dtype
    batch = PROBES[name](root)
    return {name: value.to(device, dtype if value.is_floating_point() else None) for name, value in batch.items()}


def _texts(root: nn.Module) -> dict[str, Tensor]:
    """Texts padded right and left in turn, each ending in the end-of-text token if there is one."""
    config = text_config(root)
    special = [getattr(config, f"{name}_token_id", None) for name in SPECIAL_TOKENS]
    vocab = getattr(config, "vocab_size", 1000)
    ordinary = [token for token in range(min(vocab, 100)) if token not in special]
    pad, eos = getattr(config, "pad_token_id", None), getattr(config, "eos_token_id", None)
    longest = probe_length(root)
    input_ids = torch.full((PROBE_BATCH, longest), pad if isinstance(pad, int) and pad >= 0 else 0)
    mask = torch.zeros_like(input_ids)
    for row in range(PROBE_BATCH):
        length = longest - row % (PROBE_LENGTH - SHORTEST + 1)
        start = longest - length if row % 2 and not peculiarity_of(root).pads_right else 0
        tokens = torch.tensor([ordinary[(3 * row + 7 * t) % len(ordinary)] for t in range(length)])
        if isinstance(eos, int) and eos != pad and 0 <= eos < vocab:
            # Not always at the end, so that a head that looks for it is told from one that reads the last token.
            tokens[-2 if row % 3 == 2 else -1] = eos
        input_ids[row, start : start + length] = tokens
        mask[row, start : start + length] = 1
    extra_inputs = peculiarity_of(root).extra_inputs
    return {"input_ids": input_ids, "attention_mask": mask} | (extra_inputs(config) if extra_inputs else {})


def _images(root: nn.Module) -> dict[str, Tensor]:
    config = model_config(root)
    size = getattr(config, "image_size", None) or SIZE_OF_IMAGES
    height, width = (size, size) if isinstance(size, int) else size
    return {"pixel_values": _noise(getattr(config, "num_channels", 3), height, width)}


def _sounds(root: nn.Module) -> dict[str, Tensor]:
    config = model_config(root)
    if hasattr(config, "max_length") and hasattr(config, "num_mel_bins"):
        return {"input_values": _noise(config.max_length, config.num_mel_bins)}
    samples = SOUND_FRAMES * getattr(config, "inputs_to_logits_ratio", 320)
    values, mask = _noise(samples), torch.ones(PROBE_BATCH, samples, dtype=torch.long)
    for row in range(PROBE_BATCH):
        mask[row, samples - samples // SOUND_FRAMES * (row % SHORTEST) :] = 0
    return {"input_values": values * mask, "attention_mask": mask}


def _spectra(root: nn.Module) -> dict[str, Tensor]:
    config = model_config(root)
    return {"input_features": _noise(config.num_mel_bins, 2 * config.max_source_positions)}


def _noise(*shape: int) -> Tensor:
    return torch.randn(PROBE_BATCH, *shape, generator=torch.Generator().manual_seed(0))


PROBES: dict[str, Callable[[nn.Module], dict[str, Tensor]]] = {
    "input_ids": _texts,
    "pixel_values": _images,
    "input_values": _sounds,
    "input_features": _spectra,
}


def probe_length(root: nn.Module) -> int:
    """The number of tokens of the longest text in the probe."""
    length = peculiarity_of(root).length
    if length is not None:
        return length(text_config(root))
    chunk = getattr(text_config(root), "chunk_size_feed_forward", 0) or 1
    return -(-PROBE_LENGTH // chunk) * chunk


def is_whole(parameter: Tensor) -> bool:
    """Whether all of a parameter is here: not one shard of many, and not on the meta device."""
    return type(parameter.data) is Tensor and not parameter.is_meta and parameter.numel() > 0


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
        with torch.enable_grad():
            yield
    finally:
        for module in training:
            module.training = True
        for parameter in trainable:
            parameter.requires_grad_(True)
