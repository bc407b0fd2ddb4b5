"""Any architecture of transformers at toy size, with random weights: for `hf-mixup inspect TYPE` and the tests."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from hf_mixup.forward.anatomy.host import let_experts_run_on_cpu

WIDTH, DEPTH, HEADS, VOCAB = 32, 3, 4, 60


def _fields(value: int, names: str) -> dict[str, int]:
    return dict.fromkeys(names.split(), value)


# Config fields, as transformers names them, that make a model large, and their toy values.
SIZES: dict[str, int] = {
    **_fields(
        WIDTH, "hidden_size d_model dim n_embd emb_dim embedding_size d_latents entity_emb_size true_hidden_size"
    ),
    **_fields(WIDTH, "input_embedding_size output_embedding_size pooler_hidden_size word_embed_proj_dim"),
    **_fields(WIDTH, "prediction_head_size pronunciation_embed_dim shape_embed_dim out_hidden_size"),
    **_fields(WIDTH, "intra_bottleneck_size image_size input_size num_latents"),
    **_fields(DEPTH, "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_decoder_layers"),
    **_fields(DEPTH, "depth num_self_attends_per_block"),
    **_fields(HEADS, "num_attention_heads n_head n_heads encoder_attention_heads decoder_attention_heads num_heads"),
    **_fields(HEADS, "num_self_attention_heads num_cross_attention_heads num_key_value_heads num_kv_heads"),
    **_fields(HEADS, "linear_num_key_heads linear_num_value_heads index_n_heads n_mamba_heads"),
    **_fields(64, "intermediate_size encoder_ffn_dim decoder_ffn_dim d_ff d_inner dff hidden_dim ffn_hidden_size"),
    **_fields(64, "ffn_dim feed_forward_size moe_intermediate_size shared_expert_intermediate_size"),
    **_fields(8, "head_dim d_kv d_head attention_head_size v_head_dim qk_nope_head_dim qk_rope_head_dim kv_channels"),
    **_fields(8, "linear_key_head_dim linear_value_head_dim coordinate_size shape_size mamba_d_state"),
    **_fields(16, "qk_head_dim kv_lora_rank q_lora_rank gated_norm_rank index_head_dim patch_size num_hash_buckets"),
    **_fields(VOCAB, "vocab_size entity_vocab_size pronunciation_vocab_size shape_vocab_size"),
    **_fields(64, "max_position_embeddings n_positions max_seq_len"),
    **_fields(4, "num_experts num_local_experts n_routed_experts"),
    **_fields(2, "num_experts_per_tok moe_topk"),
    **_fields(1, "n_group topk_group n_shared_experts"),
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
}
_HYBRID = ["linear_attention", "full_attention", "linear_attention"]
_MAMBA = ["linear_attention", "hybrid", "linear_attention"]
_GROUPS = dict.fromkeys(("q_groups", "k_groups", "v_groups", "intermediate_groups", "output_groups"), 2)
_AXIAL = {"axial_pos_shape": [4, 8], "axial_pos_embds_dim": [16, 16], "max_position_embeddings": 32}
_CHUNKS = {"local_attn_chunk_length": 8, "lsh_attn_chunk_length": 8, "num_buckets": 2, "hash_seed": 0}
# Settings of one architecture that follow from the sizes, or that put something of every kind into three blocks.
SETTINGS: dict[str, dict[str, Any]] = {
    "big_bird": {"block_size": 4, "num_random_blocks": 1},
    "bigbird_pegasus": {"block_size": 4, "num_random_blocks": 1},
    "bros": {"hidden_size": 64},
    "canine": {"local_transformer_stride": 8, "downsampling_rate": 2},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "funnel": {"block_sizes": [1, 1, 1], "block_repeats": [1, 1, 1]},
    "gpt_neo": {"attention_types": [[["global", "local", "global"], 1]], "window_size": 8},
    "gptj": {"rotary_dim": 4},
    "jamba": {"attn_layer_period": 3, "attn_layer_offset": 1},
    "layoutlmv3": {"coordinate_size": 4},
    "lilt": {"hidden_size": 48},
    "longformer": {"attention_window": 8},
    "markuplm": {"max_depth": 4},
    "mistral4": {"qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "qk_head_dim": 8},
    "mobilebert": {"num_feedforward_networks": 2},
    "modernbert": {"global_attn_every_n_layers": 2, "local_attention": 8},
    "qwen3_5": {"text_config": {"layer_types": _HYBRID}},
    "qwen3_5_text": {"layer_types": _HYBRID},
    "qwen3_next": {"layer_types": _HYBRID},
    "reformer": {"attn_layers": ["local", "lsh", "local"], **_AXIAL, **_CHUNKS},
    "roc_bert": {"eos_token_id": 2},
    "squeezebert": _GROUPS,
    "t5": {"decoder_start_token_id": 1},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": [*_MAMBA, "hybrid"], "num_hidden_layers": 4, "use_mamba_kernels": False},
    "zamba2": {"layers_block_type": _MAMBA, "chunk_size": 8},
}


def toy_config(model_type: str, num_labels: int = 3, **changes: Any) -> PretrainedConfig:
    """The config of an architecture, shrunk: width 32, 3 blocks, 60 tokens.

    Args:
        model_type (`str`): a key of the mapping of an auto class of transformers.
        num_labels (`int`, defaults to 3): number of labels.
        changes: config fields to set besides; a mapping for the fields of a part.

    Raises:
        ValueError: for a type that transformers does not know, or a config that it does not take.
    """
    sizes = _merged(_sizes(AutoConfig.for_model(model_type)), SETTINGS.get(model_type, {}))
    return AutoConfig.for_model(model_type, num_labels=num_labels, **_merged(sizes, changes))


def toy_model(
    model_type: str,
    attention: str | None = None,
    std: float = 0.2,
    auto: Any = AutoModelForSequenceClassification,
    **changes: Any,
) -> PreTrainedModel:
    """A classifier of an architecture at toy size, in evaluation mode, its weights random from a fixed seed.

    Args:
        model_type (`str`): as in `toy_config`.
        attention (`str`, *optional*): attention kernel; the model's default if left out.
        std (`float`, defaults to 0.2): standard deviation of the weights: large, so that inputs matter.
        auto (defaults to `AutoModelForSequenceClassification`): the auto class of transformers that builds it.
        changes: config fields, as in `toy_config`.
    """
    kernel = {} if attention is None else {"attn_implementation": attention}
    model = auto.from_config(toy_config(model_type, **changes), **kernel)
    let_experts_run_on_cpu(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * std if parameter.dim() > 1 else parameter + noise * 0.1)
    return model.eval()


def _sizes(config: PretrainedConfig) -> dict[str, Any]:
    sizes: dict[str, Any] = {}
    for name, value in vars(config).items():
        if isinstance(value, PretrainedConfig):
            sizes[name] = _sizes(value)
        elif name in SIZES and not isinstance(value, (list, tuple)):
            sizes[name] = SIZES[name]
    return sizes


def _merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    merged = copy.deepcopy(first)
    for name, value in second.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merged(merged[name], value) if both else value
    return merged
