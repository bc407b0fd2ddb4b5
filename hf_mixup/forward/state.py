"""The state of the forward pass that a plan is applied to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hf_mixup.forward import interpolation
from hf_mixup.forward.anatomy.anatomy import Anatomy, Argument
from hf_mixup.forward.anatomy.inputs import FLOAT_INPUTS, INPUTS, MASKS, text_config
from hf_mixup.forward.anatomy.masks import mix_rows, position_weights, reads_padding, spread
from hf_mixup.forward.anatomy.readout import EVERY_TOKEN, FIXED_READ
from hf_mixup.forward.outside import OutsideRows, with_outside_rows
from hf_mixup.plan.mixup_plan import MixupPlan

# Heads that find the position in the tokens of each text.
FOUND_IN_TEXT = ("last_token", "last_eos")


@dataclass
class Mixing:
    """The plan of the forward pass under way, and what its hooks share.

    Args:
        plan (`MixupPlan`): on the device of the batch; with rows for partners from outside, if it has any.
        weigh (`Callable`): gives the weight of the example itself at each position, `(batch, length)`, per stack.
        mask (`torch.Tensor` of shape `(batch, length)`, *optional*): the batch's attention mask.
        reads_padding (`torch.Tensor` of shape `(batch,)`, *optional*): pairs that the head reads at a padding position.
        read_position (`torch.Tensor` of shape `(batch,)`, *optional*): where the head reads each text.
        start (`int`): number of block calls below the site; the first block that sees the mixture.
        reached (`bool`): whether the forward pass has reached its site.
        seen (`dict`): how many calls of a block that runs several times there were, for each group of hooks.
        outside (`OutsideRows`, *optional*): the rows of partners from outside of the batch.
        is_first (`bool`): whether the values of the batch are looked at, which means waiting for an accelerator.
        mixed_arguments (`list`): what several blocks share, unmixed and mixed.
    """

    plan: MixupPlan
    weigh: Callable[[MixupPlan], list[Tensor]]
    mask: Tensor | None
    reads_padding: Tensor | None
    read_position: Tensor | None
    start: int
    reached: bool = False
    seen: dict[tuple[str, nn.Module], int] = field(default_factory=dict)
    outside: OutsideRows | None = None
    is_first: bool = False
    mixed_arguments: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.weights = self.weigh(self.plan)

    def has_reached(self) -> bool:
        """Whether the forward pass has reached its site."""
        return self.reached

    def position(self, group: str, module: nn.Module, positions: list[int]) -> int:
        """Which of its calls this is, for a module that runs several times (ALBERT's shared layers)."""
        if len(positions) == 1:
            return positions[0]
        seen = self.seen.get((group, module), 0)
        self.seen[group, module] = seen + 1
        return positions[seen % len(positions)]

    def once(self, value: Tensor, mix: Callable[[Tensor], Tensor]) -> Tensor:
        """Mix an argument that several blocks share only once."""
        for known, mixed in self.mixed_arguments:
            if known is value:
                return mixed
        mixed = mix(value)
        self.mixed_arguments.append((value, mixed))
        return mixed

    def weights_of_queries(self, stack: int, mask: Tensor) -> Tensor | None:
        """The weight of the example itself at each query that a mask of a stack is for; `None` if none is padding."""
        if self.reads_padding is None and stack == 0:
            return None
        weights = self._weights_of(mask, mask.shape[1], Argument("mask", 0), stack)
        return weights if weights.dim() == 2 else weights.unsqueeze(1) if weights.dim() == 1 else weights.mean(-1)

    def mix(self, values: Tensor, argument: Argument, stack: int) -> Tensor:
        """Mix hidden states or embeddings of a stack; position by position if they belong to the tokens."""
        self.reached = True
        if self.outside is None or argument.origin is None:
            return self._mix(values, argument, stack)
        # Blocks run for the batch alone; what was there before them is there for the partners too.
        mixed = self._mix(self.outside.with_states(values, argument), argument, stack)
        return mixed.narrow(argument.batch_dim, 0, self.outside.size)

    def _mix(self, values: Tensor, argument: Argument, stack: int) -> Tensor:
        if self.plan.similarity is not None:
            self._resolve(values, argument.batch_dim)
        length = values.shape[1 - argument.batch_dim] if argument.by_position else 0
        weights = self._weights_of(values, length, argument, stack)
        mixed = mix_rows(values, self.plan.partner, weights, argument.batch_dim)
        if self.plan.noise is None:
            return mixed
        kept = None
        if self.mask is not None and length == self.mask.shape[1]:
            kept = self.mask.bool() | self.mask[self.plan.partner].bool()
        return interpolation.add_noise(mixed, *self.plan.noise, kept, argument.batch_dim)

    def _weights_of(self, values: Tensor, length: int, argument: Argument, stack: int) -> Tensor:
        """The weights of states of this length and width."""
        weights, each = self.weights[min(stack, len(self.weights) - 1)], self.plan.dimension_lam
        other_width = weights.dim() == 3 and values.shape[-1] != weights.shape[-1]
        if other_width and argument.by_position:
            raise ValueError(
                f"interpolation='dimensions': states of {values.shape[-1]} dimensions are mixed here besides those of "
                f"{weights.shape[-1]}, and it is not known which belong together. Mix this model on a line."
            )
        if length > weights.shape[1]:
            last = self.plan.lam if weights.dim() == 2 else each
            assert last is not None
            return torch.cat([weights, spread(last, length - weights.shape[1])], 1)
        if length < weights.shape[1]:
            return self.plan.lam if each is None or other_width else spread(each, 1)
        return weights

    def _resolve(self, values: Tensor, batch_dim: int) -> None:
        """Draw the lambda that depends on what is mixed."""
        plan = self.plan
        assert plan.similarity is not None and plan.uniform is not None
        drawn = interpolation.similar_lambda(values, plan.partner, self.mask, plan.similarity, plan.uniform, batch_dim)
        self.plan = replace(plan, lam=1 - plan.strength * (1 - drawn), similarity=None, uniform=None)
        self.weights = self.weigh(self.plan)


def begin(anatomy: Anatomy, plan: MixupPlan, batch: Mapping[str, Any]) -> Mixing:
    """The state of a forward pass that applies `plan` to `batch`.

    Raises:
        ValueError: if plan and batch do not fit, or the attention mask is not 2-D.
    """
    ids, name = batch.get("input_ids"), anatomy.input_name
    tokens = batch.get("inputs_embeds") if name == "input_ids" and ids is None else batch.get(name)
    if tokens is None:
        raise ValueError(
            f"The batch has no {name}{' or inputs_embeds' if ids is None else ''}, only {', '.join(batch)}."
        )
    if tokens.shape[0] != plan.lam.shape[0]:
        raise ValueError(f"The plan is for a batch of {plan.lam.shape[0]}, this batch has {tokens.shape[0]} examples.")
    plan = plan.to(tokens.device)
    if plan.outside is None and not plan.is_remembered:
        return _begin(anatomy, plan, batch)
    outside = OutsideRows(anatomy, batch, tokens.shape[0], plan.outside)
    mixing = _begin(anatomy, plan if plan.outside is None else with_outside_rows(plan), outside.inputs(batch))
    mixing.outside = outside
    return mixing


def _begin(anatomy: Anatomy, plan: MixupPlan, batch: Mapping[str, Any]) -> Mixing:
    ids, name = batch.get("input_ids"), anatomy.input_name
    if name != "input_ids":
        return _begin_without_tokens(anatomy, plan, batch)
    tokens = batch["inputs_embeds"] if ids is None else ids
    if ids is None and (plan.site == "word_embeddings" or anatomy.readout in FOUND_IN_TEXT):
        raise ValueError(f"inputs_embeds: site {plan.site!r} of this model needs input_ids.")
    mask = batch.get("attention_mask")
    if mask is not None and mask.dim() != 2:
        raise ValueError(f"attention_mask: shape {tuple(mask.shape)}; mixup needs (batch, length).")
    _check_other_inputs(plan, batch)
    if plan.similarity is not None:
        check_similarity(anatomy)
    start, length = _first_mixed_call(anatomy, plan), tokens.shape[1]
    text = None if anatomy.reads_padding else mask
    if plan.site in ("input", "pooled"):
        # Mixed is what is read, which tokens without a text have no part in.
        is_by_token = anatomy.readout == EVERY_TOKEN and plan.site == "pooled"
        weights = [position_weights(plan.lam, plan.partner, text, length, None) if is_by_token else plan.lam]
        return Mixing(plan, lambda plan: weights, None, None, None, start)
    fixed = FIXED_READ.get(anatomy.readout)
    padded = None if mask is None or fixed is None else reads_padding(mask, plan.partner, fixed)
    if mask is not None and anatomy.reads_padding:
        # Such as a mean over all positions.
        padded = torch.ones_like(plan.partner, dtype=torch.bool)
    position = read_position = _read_position(anatomy, ids)
    stacks = [(text, fixed)]
    if anatomy.calls[-1].stack > 0:
        # A decoder without a mask of its own reads every position up to the one that the head reads.
        positions = torch.arange(length, device=tokens.device)
        if read_position is None and mask is not None:
            # After the text moved by one, as decoders are given it.
            read_position = interpolation.last_position(mask != 0) + 1
        stacks.append((None if read_position is None else positions <= read_position.unsqueeze(1), None))

    def weigh(plan: MixupPlan) -> list[Tensor]:
        lam = plan.lam if plan.dimension_lam is None else plan.dimension_lam
        return [position_weights(lam, plan.partner, read, length, at) for read, at in stacks]

    return Mixing(plan, weigh, mask, padded, position, start)


def _check_other_inputs(plan: MixupPlan, batch: Mapping[str, Any]) -> None:
    """Raise `ValueError` for inputs besides the text that would not be mixed as it is."""
    if plan.site == "word_embeddings":
        for name in FLOAT_INPUTS:
            if name != "inputs_embeds" and batch.get(name) is not None:
                raise ValueError(f"{name}: enters the text after the token lookup; mix at 'embeddings'.")
    if plan.source is not None and plan.site == "input" and batch.get("bbox") is not None:
        raise ValueError("bbox: the boxes of tokens would stay where these are exchanged; mix at 'embeddings'.")
    for name, given in INPUTS.items():
        if given.refused is not None and batch.get(name) is not None:
            raise ValueError(f"{name}: leave it out, {given.refused}.")


def check_similarity(anatomy: Anatomy) -> None:
    """Raise `ValueError` for a model in which lambda cannot depend on what is mixed."""
    if anatomy.embedding_module is not None:
        name = type(anatomy.root).__name__
        raise ValueError(f"similarity: {name} needs its mask mixed before the distance of a pair is known.")


def _begin_without_tokens(anatomy: Anatomy, plan: MixupPlan, batch: Mapping[str, Any]) -> Mixing:
    for name in MASKS:
        if plan.site == "input" and batch.get(name) is not None:
            raise ValueError(
                f"{name}: site='input' mixes inputs of one length; leave the mask out if they are padded with zeros, "
                "or mix at 'embeddings' or 'hidden'."
            )
    weights = plan.lam if plan.site == "pooled" else plan.lam.unsqueeze(1)
    return Mixing(plan, lambda plan: [weights], None, None, None, _first_mixed_call(anatomy, plan))


def _read_position(anatomy: Anatomy, ids: Tensor | None) -> Tensor | None:
    """Where the head reads each text, for heads that find the position in the text."""
    if ids is None or anatomy.readout not in FOUND_IN_TEXT:
        return None
    config = text_config(anatomy.root)
    # Encoder-decoders read the last end-of-text token, decoders the last one that is not padding.
    is_eos = anatomy.readout == "last_eos"
    return interpolation.last_position(ids == config.eos_token_id if is_eos else ids != config.pad_token_id)


def _first_mixed_call(anatomy: Anatomy, plan: MixupPlan) -> int:
    if plan.site in ("input", "word_embeddings", "embeddings"):
        return 0
    if plan.site == "hidden" and plan.layer is not None and 0 <= plan.layer < anatomy.depth:
        return plan.layer + 1
    if plan.site != "pooled":
        raise ValueError(
            f"This plan's site={plan.site!r} and layer={plan.layer} are not in a model of {anatomy.depth} blocks."
        )
    return anatomy.depth


class HookGroup(ABC):
    """The hooks that belong to one site or one read-out: made once per model, registered for one forward pass.

    A compiled model guards on its hooks, and on what it reaches from the objects that they are methods of. An object or
    a function that is new in each pass can fail these guards, and the model is then compiled anew in each pass. So
    neither is made when hooks are registered: what changes from pass to pass is `mixing`.

    Args:
        anatomy (`Anatomy`): of the model.
    """

    def __init__(self, anatomy: Anatomy) -> None:
        self.anatomy = anatomy
        self.current: Mixing | None = None

    @property
    def mixing(self) -> Mixing:
        """The forward pass under way."""
        assert self.current is not None
        return self.current

    @abstractmethod
    def register(self, mixing: Mixing) -> Iterator[RemovableHandle]:
        """Register the hooks that a forward pass needs, one by one."""
