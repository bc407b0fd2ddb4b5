"""What has other names, or is lacking, in some of the versions of transformers and PyTorch that the tests run on."""

import inspect
from dataclasses import fields

import pytest
from accelerate.utils import is_torch_version
from transformers import T5PreTrainedModel, Trainer, TrainingArguments

from hf_mixup.training.trainer_seams import ASKS_FOR_SCALE, RECOMPUTES

# Training arguments that are not in every version: from 5.23, from 5.15, and before 5.15.
SOME_HAVE = {"activation_checkpointing", "activation_checkpointing_kwargs"}
SOME_HAVE |= {"dataloader_in_order", "dataloader_multiprocessing_context", "logging_dir", "warmup_ratio"}
LACKING = SOME_HAVE - {field.name for field in fields(TrainingArguments)}
# T5 hands its mask on in its position bias, and has no other kernels; BioGPT reads at the number of tokens.
BEFORE_5_15 = not T5PreTrainedModel._supports_sdpa
T5_MASK = "additive bias" if BEFORE_5_15 else "boolean"
# Their masks are of another kind there, or they have a limit.
OTHER_ROWS = ("biogpt", "mra") if BEFORE_5_15 else ()
# transformers < 5.19: a plain Trainer does not ask how a loss of one's own is scaled.
NEEDS_SCALE = pytest.mark.skipif(not ASKS_FOR_SCALE, reason="Trainer of transformers < 5.19 scales the loss wrongly")
# transformers < 5.23 (5.17 was run): Trainer loads the optimizer of several CPU processes to "cpu:0", which PyTorch
# does not know.
LOADS_TO_CPU_0 = 'self.args.device if self.args.world_size > 1 else "cpu"' in inspect.getsource(
    Trainer._load_optimizer_and_scheduler
)
# torch < 2.11: the compiler guards on the numbers of hooks, which are new in each pass.
COMPILES_ANEW = is_torch_version("<", "2.11")
# torch < 2.13: the causal mask of a decoder is made in a compiled model only.
COMPILES_CAUSAL_MASK = is_torch_version("<", "2.13")

# torch < 2.11 (2.8 was run): FSDP2 adds up the gradients of the ranks on a CPU, where it averages them on GPUs.
FSDP2_ADDS = is_torch_version("<", "2.11")


def full_gradient(gradient, ranks):
    """The whole of a sharded gradient, averaged over the ranks."""
    return gradient.full_tensor() / (ranks if FSDP2_ADDS else 1)


def checkpointing(**kwargs):
    """The training arguments that turn gradient checkpointing on."""
    return {RECOMPUTES: True, f"{RECOMPUTES}_kwargs": kwargs}
