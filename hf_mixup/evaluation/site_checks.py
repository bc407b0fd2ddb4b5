"""What `inspect_model` finds of one mask and of one site."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mask:
    """A mask that the model is given.

    Args:
        argument (`str`): name of the argument.
        kind (`str`): `"additive bias"`, `"boolean"`, `"zeros and ones"`, or `"compared"`: a bias that the kernel asks
            whether it is zero.
        blocks (`list[int]`): the blocks that are given it.
        module (`str`, *optional*): the embedding module that multiplies by it, if it is no block.
    """

    argument: str
    kind: str
    blocks: list[int]
    module: str | None = None


@dataclass(frozen=True)
class SiteCheck:
    """One site of a model, as measured.

    The differences are the largest over eleven pairs of texts, as a share of the largest difference between the clean
    logits of a pair; `None` if nothing could be measured.

    Args:
        site (`str`): as `MixupConfig.site`.
        modules (`list[str]`): module paths of the lookups, of the first block of each stack, or of the block after
            which is mixed; empty for `"pooled"`, which is mixed after the last layer.
        layer (`int`, *optional*): the number of that block, as in `MixupConfig.layers`.
        stack (`str`, *optional*): its stack, if there are several: `"encoder"`, `"decoder"`, or `"stack 0"`.
        run (`int`, defaults to 1): which of its runs this is, for a block that runs several times.
        runs (`int`, defaults to 1): how often it runs.
        at_0, at_1 (`float`, *optional*): difference at lambda 0 from the partner's logits, at lambda 1 from the text's.
        near, nearer (`float`, *optional*): difference 1e-3 and 1e-6 away from either end, but for pairs in which a head
            that reads one position whatever is there finds padding.
        exact (`bool`): whether both ends are the clean logits, up to rounding and what training does not notice.
        continuous (`bool`): whether the mixture also comes close to them as lambda does.
        reason (`str`, *optional*): why the site is not available, not exact or not continuous.
    """

    site: str
    modules: list[str]
    layer: int | None = None
    stack: str | None = None
    run: int = 1
    runs: int = 1
    at_0: float | None = None
    at_1: float | None = None
    near: float | None = None
    nearer: float | None = None
    exact: bool = False
    continuous: bool = False
    reason: str | None = None
