"""One table of the inputs of models: which hold the examples, which mix on a line, which make no sense in a mixture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hf_mixup.forward.anatomy.probe_batch import images, sounds, spectra, texts
from hf_mixup.forward.anatomy.quirks import Quirk


@dataclass(frozen=True)
class ModelInput:
    """What is known of an input of models.

    Args:
        probe (*optional*): makes 11 examples from config, quirk and model, if the input can hold the examples.
        is_float (`bool`): whether it mixes on a line at site `"input"`.
        mask (`str`, *optional*): the input that says which of it is padding.
        refused (`str`, *optional*): what to do instead, if it makes no sense in a batch that is mixed.
    """

    probe: Callable[[Any, Quirk, nn.Module], dict[str, Tensor]] | None = None
    is_float: bool = False
    mask: str | None = None
    refused: str | None = None


_DECODER = ModelInput(refused="so that the decoder reads the text that the encoder reads")
INPUTS = {
    "input_ids": ModelInput(texts, mask="attention_mask"),
    "pixel_values": ModelInput(images, is_float=True, mask="pixel_mask"),
    "pixel_values_videos": ModelInput(is_float=True),
    "input_values": ModelInput(sounds, is_float=True, mask="attention_mask"),
    "input_features": ModelInput(spectra, is_float=True, mask="attention_mask"),
    "inputs_embeds": ModelInput(is_float=True, mask="attention_mask"),
    "decoder_input_ids": _DECODER,
    "decoder_inputs_embeds": _DECODER,
    "decoder_attention_mask": _DECODER,
    "past_key_values": ModelInput(refused="because what it holds cannot be mixed"),
}
