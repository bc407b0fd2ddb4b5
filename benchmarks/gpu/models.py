"""The models that are measured on a GPU, with random weights, and their batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import torch
from step_time import Options, make_batch
from transformers import AutoConfig, AutoModelForSequenceClassification

Row = dict[str, Any]
Batch = dict[str, torch.Tensor]
HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"
NO_GPU = "needs a GPU"
FLASH, FLEX = "flash_attention_2", "flex_attention"
HAS_FLASH = find_spec("flash_attn") is not None
# fp32 weights under bf16 autocast, as Trainer's bf16, and weights that are bf16 themselves.
AUTOCAST, PURE = "bf16", "pure bf16"
# Weights large enough that texts matter.
BERT = {"vocab_size": 30522, "initializer_range": 0.05}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert-base": ("bert", BERT),
    "bert-base, 4 layers": ("bert", BERT | {"num_hidden_layers": 4}),
    "modernbert-base": ("modernbert", {"initializer_range": 0.05}),
    "llama, 1 B": (
        "llama",
        {
            "vocab_size": 32000,
            "hidden_size": 2048,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "intermediate_size": 8192,
            "max_position_embeddings": 4096,
        },
    ),
}
TOY = {
    "vocab_size": 2000,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "num_labels": 2,
    "pad_token_id": 0,
}


@dataclass(frozen=True)
class Setting:
    """One model with one attention kernel in one precision, and the shape of its batches."""

    model: str = "bert-base"
    kernel: str = "sdpa"
    precision: str = "fp32"
    padded: bool = True
    batch_size: int = 32
    length: int = 128
    lora: bool = False
    recomputed: bool = False
    small: bool = False

    @property
    def columns(self) -> Row:
        """What tells the rows of this setting from others."""
        name = self.model + ", LoRA" * self.lora + ", checkpointing" * self.recomputed
        batch = f"{self.in_use.batch_size} x {self.in_use.length}"
        return {
            "model": name,
            "kernel": self.kernel,
            "precision": self.precision,
            "batch": batch,
            "padded": self.padded,
        }

    @property
    def in_use(self) -> Setting:
        """The setting itself, or that of a toy."""
        return replace(self, batch_size=min(self.batch_size, 4), length=16) if self.small else self

    def options(self, **changes: Any) -> Options:
        """What `step_time` is to do."""
        here = self.in_use
        padding = "mixed" if self.padded else "none"
        return Options(
            batch_size=here.batch_size,
            length=here.length,
            padding=padding,
            bf16=self.precision == AUTOCAST,
            warmup=2 if self.small else 5,
            **changes,
        )


def why_absent(setting: Setting, trains: bool = True) -> str | None:
    """Why a setting cannot be measured here; Trainer takes bf16 on a GPU alone."""
    if setting.kernel == FLASH and setting.precision == "fp32":
        return "flash attention takes half precision only"
    if not HAS_GPU and (setting.kernel == FLEX or trains and setting.precision == AUTOCAST):
        return NO_GPU
    return None


def build(setting: Setting) -> Any:
    """A classifier of two classes, on the device."""
    kind, shape = SHAPES[setting.model]
    if setting.kernel == FLEX:
        # transformers refuses flex attention with dropout.
        shape = shape | {"attention_probs_dropout_prob": 0.0}
    config = AutoConfig.for_model(kind, **{"num_labels": 2, "pad_token_id": 0} | shape | (TOY if setting.small else {}))
    torch.manual_seed(0)
    dtype = torch.bfloat16 if setting.precision == PURE else torch.float32
    with torch.device(DEVICE):
        model = AutoModelForSequenceClassification.from_config(config, attn_implementation=setting.kernel, dtype=dtype)
    model.to(DEVICE)
    if setting.lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=16, target_modules="all-linear"))
    if setting.recomputed:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def batches(setting: Setting, vocab: int) -> Callable[[], Batch]:
    """Makes a new batch of texts at each call; on the CPU, as a data loader does."""
    options = setting.options()
    return lambda: make_batch(vocab, options)


def inputs_on_device(batch: Batch) -> Batch:
    """What the model itself takes."""
    return {name: batch[name].to(DEVICE) for name in ("input_ids", "attention_mask")}
