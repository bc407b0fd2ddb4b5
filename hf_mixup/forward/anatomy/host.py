"""Every private fact of transformers, PyTorch and PEFT that `forward` relies on; each is checked in `test_host.py`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any

import torch
from accelerate.utils import compare_versions, is_torch_version
from torch import Tensor, nn
from torch.compiler import is_compiling
from transformers import Cache as Cache
from transformers import PreTrainedModel
from transformers.integrations import is_fsdp_enabled as is_fsdp_enabled
from transformers.integrations.flash_attention import flash_attention_forward as flash_attention_forward
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as ALL_ATTENTION_FUNCTIONS

# ---- transformers ----

# The field of a config that names the attention kernel, and the kernels that take an attention bias. `eager` is the
# model's own, the others are in `ALL_ATTENTION_FUNCTIONS`, every flash kernel as `flash_attention_forward`.
ATTENTION_KERNEL = "_attn_implementation"
KERNELS_WITH_BIAS = ("eager", "sdpa", "flex_attention")
# Block arguments that are the same for every example of the probe and may differ in a batch (positions and segments
# of the user's own); they mix on a line.
LINEAR_ARGUMENTS = ("position_embeddings", "seg_mat")
# Who reports, with these words, what a checkpoint lacks of a model or has besides.
LOADING_LOGGER, LOAD_REPORT = logging.getLogger(PreTrainedModel.__module__), "LOAD REPORT"
# Rates of layerdrop: the attribute of modules, the config's field that is read in each step, and those that are copied
# when modules are made.
LAYERDROP, COPIED_LAYERDROP = "layerdrop", ("encoder_layerdrop", "decoder_layerdrop")


def kernels_of(root: nn.Module) -> set[str]:
    """The attention kernels that the configs of the transformers models in a model name."""
    inside = [module.config for module in root.modules() if isinstance(module, PreTrainedModel)]
    return {name for name in (getattr(config, ATTENTION_KERNEL, None) for config in inside) if name is not None}


def waits_for_accelerator(root: nn.Module) -> bool:
    """Whether a model has yet to be moved to where its attention kernel runs: flash and flex need an accelerator."""
    is_on_cpu = next((parameter.device.type == "cpu" for parameter in root.parameters()), False)
    return is_on_cpu and torch.accelerator.is_available() and not kernels_of(root) <= {"eager", "sdpa"}


def backbone_of(root: nn.Module) -> nn.Module:
    """The part of a model without its head: what it names, or the one transformers model in it; else all of it."""
    named = _named_part(root)
    outermost: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for module in root.modules():
        if isinstance(module, PreTrainedModel) and module not in inside:
            outermost.append(module)
            inside.update(module.modules())
    return _named_part(outermost[0]) if named is root and len(outermost) == 1 else named


def _named_part(model: nn.Module) -> nn.Module:
    return getattr(model, getattr(model, "base_model_prefix", "") or "", model)


def main_input(root: nn.Module) -> str | None:
    """The name of the input that holds the examples, if a model or a transformers model in it says so."""
    named = [root, *(module for module in root.modules() if isinstance(module, PreTrainedModel))]
    return next((name for name in (getattr(module, "main_input_name", None) for module in named) if name), None)


def recorded_blocks(root: nn.Module) -> tuple[type[nn.Module], ...]:
    """The classes whose outputs transformers records as hidden states."""
    found: list[Any] = []
    for module in root.modules():
        recorded = (getattr(module, "_can_record_outputs", None) or {}).get("hidden_states", [])
        for recorder in recorded if isinstance(recorded, (list, tuple)) else [recorded]:
            found.append(getattr(recorder, "target_class", recorder))
    return tuple(declared for declared in found if isinstance(declared, type))


# transformers < 5.17: models that do not declare their blocks (`recorded_blocks`), and hold other lists of modules.
UNDECLARED_BLOCKS = ("hubert", "wav2vec2") if compare_versions("transformers", "<", "5.17") else ()
# transformers < 5.15: T5 adds the mask to the position bias that a block returns and the next ones are given.
MASKED_BIASES = ("position_bias", "encoder_decoder_position_bias")
# transformers < 5.23: a checkpoint takes in the hooks of a block, and they run again when it is recomputed.
CHECKPOINTS_HOOKS = "__call__" in vars(GradientCheckpointingLayer)


class HooksOutside:
    """transformers < 5.23: one block of which only `forward` is checkpointed, as from 5.23 on, until `remove()`.

    Args:
        block (`nn.Module`): with gradient checkpointing turned on.
    """

    def __init__(self, block: nn.Module) -> None:
        checkpoint: Any = block._gradient_checkpointing_func
        forward = block.forward

        @wraps(forward)
        def checkpointed(*args: Any, **kwargs: Any) -> Any:
            return checkpoint(partial(forward, **kwargs), *args)

        changed = {"forward": checkpointed, "_gradient_checkpointing_func": lambda call, *args: call(*args)}
        self.block, self.before = block, {name: vars(block).get(name) for name in changed}
        vars(block).update(changed)

    def remove(self) -> None:
        """Leave the block as it was."""
        for name, value in self.before.items():
            del vars(self.block)[name]
            if value is not None:
                vars(self.block)[name] = value


def let_experts_run_on_cpu(model: PreTrainedModel) -> None:
    """torch < 2.9: by default transformers runs mixtures of experts with a kernel that is for GPUs alone."""
    if is_torch_version("<", "2.9") and model._can_set_experts_implementation():
        model.set_experts_implementation("eager")


def appears_when_compiling(path: str, stack: int) -> bool:
    """torch < 2.13: whether a block argument is the causal mask of a decoder, left out when the model is not compiled.

    It is the same for every example.
    """
    return path == "attention_mask" and stack > 0 and is_compiling()


def hooks_outside(root: nn.Module) -> Iterator[HooksOutside]:
    """transformers < 5.23: take the hooks of blocks out of their checkpoints, one by one."""
    for module in root.modules():
        is_block = isinstance(module, GradientCheckpointingLayer)
        if is_block and module.training and module.gradient_checkpointing:
            yield HooksOutside(module)


# ---- PEFT ----


def learned_prompt(model: nn.Module) -> str | None:
    """The method of an adapter that lengthens the texts inside of the model; `None` for all others."""
    adapters = [getattr(module, "active_peft_config", None) for module in model.modules() if is_adapter(module)]
    return next((adapter.peft_type.value for adapter in adapters if adapter and adapter.is_prompt_learning), None)


def is_adapter(module: nn.Module | None) -> bool:
    """Whether a module is one that PEFT put around a model, or around a layer of it."""
    return type(module).__module__.startswith("peft.")


# ---- timm ----


def image_shape(root: nn.Module) -> tuple[int, int, int] | None:
    """Channels, height and width of the images for a model of timm; `None` for all others."""
    own = [vars(module) for module in root.modules()]
    channels, *size = next((held["pretrained_cfg"]["input_size"] for held in own if "pretrained_cfg" in held), (0,))
    # The size that a model was made for, which its weights need not have been trained for.
    height, width = next((held["img_size"] for held in own if isinstance(held.get("img_size"), tuple)), size) or (0, 0)
    return (channels, height, width) if channels else None


# ---- PyTorch ----


# Modules around a model that call it, and return what it returns.
WRAPPERS = {"DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "OptimizedModule", "DeepSpeedEngine"}


def is_wrapper(module: nn.Module) -> bool:
    """Whether a module has no forward pass of its own: a wrapper, an adapter around a model, a container."""
    kinds = {kind.__name__ for kind in type(module).__mro__}
    return bool(kinds & WRAPPERS) or is_adapter(module) or type(module).forward is nn.Module.forward


# The compiler, which is there only once something was compiled, and the fields of its config that say whether it looks
# for hooks, and how many graphs of one function it keeps (by default eight) before it runs the function uncompiled.
COMPILER = "torch._dynamo"
SKIPS_HOOKS, GRAPHS_KEPT, DEFAULT_GRAPHS_KEPT = "skip_nnmodule_hook_guards", "recompile_limit", 8


def labels_tokens(root: nn.Module) -> bool:
    """Whether a model is one of transformers' token classifiers, by the name of its class."""
    return type(root).__name__.endswith("ForTokenClassification")


def is_reentrant_checkpoint(error: RuntimeError) -> bool:
    """Whether an error says that a reentrant checkpoint was asked for the gradient of something inside of it."""
    return "use_reentrant" in str(error)


@contextmanager
def intercepted(module: nn.Module, call: Callable[[Callable[..., Any], tuple, dict[str, Any]], Any]) -> Iterator[None]:
    """Inside of the block a call of the module runs `call`, given the module's own way and the arguments.

    The module's hooks belong to its own way. PyTorch looks for an attribute of this name, which `Module.compile` sets.
    """
    name = "_compiled_call_impl"
    before = vars(module).get(name)
    own = before or module._call_impl
    vars(module)[name] = lambda *args, **kwargs: call(own, args, kwargs)
    try:
        yield
    finally:
        del vars(module)[name]
        if before is not None:
            vars(module)[name] = before


def own_parameters(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """The parameters of a module itself, to be exchanged without registering them again."""
    return module._parameters


def own_modules(module: nn.Module) -> dict[str, nn.Module | None]:
    """The children of a module, as it has them now."""
    return module._modules


def is_whole(parameter: Tensor) -> bool:
    """Whether all of a parameter is here: not one shard of many, and not on the meta device."""
    return type(parameter.data) is Tensor and not parameter.is_meta and parameter.numel() > 0
