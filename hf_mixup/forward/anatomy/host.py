"""Every private fact of transformers, PyTorch and PEFT that `forward` relies on; each is checked in `test_host.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import Cache as Cache
from transformers.integrations import is_fsdp_enabled as is_fsdp_enabled

# ---- transformers ----

# The field of a config that names the attention kernel, and the kernels that take an attention bias.
ATTENTION_KERNEL = "_attn_implementation"
KERNELS_WITH_BIAS = ("eager", "sdpa")
# Block arguments that are the same for every example of the probe and may differ in a batch (positions and segments
# of the user's own); they mix on a line.
LINEAR_ARGUMENTS = ("position_embeddings", "seg_mat")
# Rates of layerdrop: the attribute of modules, the config's field that is read in each step, and those that are copied
# when modules are made.
LAYERDROP, COPIED_LAYERDROP = "layerdrop", ("encoder_layerdrop", "decoder_layerdrop")


def backbone_of(root: nn.Module) -> nn.Module:
    """The part of a model without its head; the model itself if it names none."""
    return getattr(root, getattr(root, "base_model_prefix", "") or "", root)


def main_input(root: nn.Module) -> str:
    """The name of the input that holds the examples."""
    return getattr(root, "main_input_name", "input_ids")


def recorded_blocks(root: nn.Module) -> tuple[type[nn.Module], ...]:
    """The classes whose outputs transformers records as hidden states."""
    found: list[Any] = []
    for module in root.modules():
        recorded = (getattr(module, "_can_record_outputs", None) or {}).get("hidden_states", [])
        for recorder in recorded if isinstance(recorded, (list, tuple)) else [recorded]:
            found.append(getattr(recorder, "target_class", recorder))
    return tuple(declared for declared in found if isinstance(declared, type))


# ---- PEFT ----


def learned_prompt(model: nn.Module) -> str | None:
    """The method of an adapter that lengthens the texts inside of the model; `None` for all others."""
    adapter = getattr(model, "active_peft_config", None)
    return adapter.peft_type.value if adapter is not None and adapter.is_prompt_learning else None


def is_adapter(module: nn.Module | None) -> bool:
    """Whether a module is a layer that PEFT put around one of the model."""
    return type(module).__module__.startswith("peft.")


# ---- PyTorch ----


# The compiler, which is there only once something was compiled, and the fields of its config that say whether it looks
# for hooks, and how many graphs of one function it keeps (by default eight) before it runs the function uncompiled.
COMPILER = "torch._dynamo"
SKIPS_HOOKS, GRAPHS_KEPT, DEFAULT_GRAPHS_KEPT = "skip_nnmodule_hook_guards", "recompile_limit", 8


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


def is_whole(parameter: Tensor) -> bool:
    """Whether all of a parameter is here: not one shard of many, and not on the meta device."""
    return type(parameter.data) is Tensor and not parameter.is_meta and parameter.numel() > 0
