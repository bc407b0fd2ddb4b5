"""Flex attention on a CPU with gradients: as PyTorch runs it uncompiled, which it refuses only because it is slow."""

from contextlib import ExitStack, contextmanager
from unittest.mock import patch

from torch.nn.attention import flex_attention
from transformers import masking_utils
from transformers.integrations import flex_attention as of_transformers


def uncompiled(query, key, value, training=False, **options):
    return flex_attention.flex_attention(query, key, value, **options)


def make_mask(*args, _compile=False, **options):
    return flex_attention.create_block_mask(*args, **options)


@contextmanager
def flex_on_cpu():
    """Inside of the block, `attn_implementation="flex_attention"` runs on a CPU, also backward."""
    with ExitStack() as changed:
        changed.enter_context(patch.object(flex_attention, "_validate_device", lambda *args: None))
        # Else each call is compiled, which takes seconds.
        name = "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"
        changed.enter_context(patch.object(flex_attention, name, True, create=True))
        changed.enter_context(patch.object(of_transformers, "compile_friendly_flex_attention", uncompiled))
        changed.enter_context(patch.object(masking_utils, "create_block_mask", make_mask))
        yield
