"""Toy models of the families that the tests cover, with random weights."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from tests.hosts import BEFORE_5_15

VOCAB, WIDTH, DEPTH = 60, 32, 3
COMMON = {"vocab_size": VOCAB, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "num_labels": 3}
ENCODER = {
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}
DECODER = ENCODER | {"num_key_value_heads": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": ENCODER,
    "roberta": ENCODER | {"type_vocab_size": 2},
    "distilbert": {"dim": WIDTH, "n_layers": DEPTH, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 40},
    "deberta-v2": ENCODER | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 2},
    "electra": ENCODER | {"embedding_size": 16},
    "albert": ENCODER | {"embedding_size": 16},
    "mpnet": ENCODER,
    "modernbert": ENCODER | {"global_attn_every_n_layers": 2, "local_attention": 8},
    "xlnet": {"d_model": WIDTH, "n_layer": DEPTH, "n_head": 4, "d_inner": 64},
    "gpt2": {"n_embd": WIDTH, "n_layer": DEPTH, "n_head": 4, "n_positions": 40},
    "llama": DECODER,
    "qwen2": DECODER,
    "t5": {"d_model": WIDTH, "d_kv": 8, "d_ff": 64, "num_layers": DEPTH, "num_heads": 4, "decoder_start_token_id": 1},
    "bart": {
        "d_model": WIDTH,
        "encoder_layers": DEPTH,
        "decoder_layers": DEPTH,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "max_position_embeddings": 40,
        "decoder_start_token_id": 2,
    },
}
# Models without attention kernels other than eager; T5 with transformers < 5.15.
NO_SDPA = ("deberta-v2", "mpnet", "xlnet", *(["t5"] if BEFORE_5_15 else []))
LENGTHS = (16, 10, 7, 13)


def toy_model(family: str, attention: str | None = None, **changes: Any) -> PreTrainedModel:
    """A fresh toy model in evaluation mode, its weights scaled up so that inputs matter."""
    config = AutoConfig.for_model(family, **COMMON, **FAMILIES[family])
    for name, value in changes.items():
        setattr(config, name, value)
    kwargs = {} if attention is None else {"attn_implementation": attention}
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config, **kwargs)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.1 if family == "t5" else 0.2, generator=generator)
            else:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


cached_toy_model = cache(toy_model)


def toy_batch(
    lengths: tuple[int, ...] = LENGTHS, side: str = "right", seed: int = 0, segments: bool = False
) -> dict[str, torch.Tensor]:
    """Texts of the given lengths, each ending in the end-of-text token, padded on one side."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    input_ids = torch.ones(len(lengths), longest, dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    types = torch.zeros_like(input_ids)
    for row, length in enumerate(lengths):
        start = longest - length if side == "left" else 0
        tokens = torch.randint(5, VOCAB, (length,), generator=generator)
        tokens[-1] = 2
        input_ids[row, start : start + length] = tokens
        mask[row, start : start + length] = 1
        types[row, start + length // 2 : start + length] = 1
    batch = {"input_ids": input_ids, "attention_mask": mask}
    return batch | {"token_type_ids": types} if segments else batch
