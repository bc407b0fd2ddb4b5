"""The state in which a model is probed: evaluated, frozen, and with a head that reads something."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hf_mixup.forward.anatomy.host import is_whole, own_parameters


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


@contextmanager
def nonzero_parameters(root: nn.Module, backbone: nn.Module) -> Iterator[None]:
    """Other values in the place of a head that is all zeros, whose logits depend on nothing, as long as it runs.

    A sharded parameter is all there only while its module runs, so it is not looked at before. Quantised parameters,
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

    handles = []
    for module in set(root.modules()) - body:
        handles.append(module.register_forward_pre_hook(replace))
        # Before the hook that takes a sharded parameter away again.
        handles.append(module.register_forward_hook(put_back, prepend=True, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_zero_matrix(parameter: nn.Parameter) -> bool:
    is_plain = is_whole(parameter) and parameter.is_floating_point() and parameter.layout == torch.strided
    return is_plain and parameter.dim() > 1 and not parameter.any()
