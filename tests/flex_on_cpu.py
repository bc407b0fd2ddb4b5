"""Flex attention on a CPU with gradients: as PyTorch runs it uncompiled, which it refuses only because it is slow."""

import functools
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
    flex_attention_warned = functools.partial(patch.object, flex_attention)
    with ExitStack() as changed:
        changed.enter_context(flex_attention_warned("_validate_device", lambda *args: None))
        changed.enter_context(patch.object(of_transformers, "compile_friendly_flex_attention", uncompiled))
        changed.enter_context(patch.object(masking_utils, "create_block_mask", make_mask))
        yield
