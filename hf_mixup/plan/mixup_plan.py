"""The plan of one batch: who is mixed with whom, how much, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from hf_mixup.plan.outside_partners import OutsidePartners
from hf_mixup.plan.spans import swap_tokens


@dataclass
class PassRecord:
    """What is noted of a plan between the draw, the forward pass and the loss.

    Args:
        is_applied (`bool`): whether a forward pass was mixed by the plan.
        resolved (`MixupPlan`, *optional*): the plan as that pass left it, if it is another.
        targets (`torch.Tensor` of shape `(batch, num_labels)`, *optional*): not mixed, for a batch that is remembered.
        places (`torch.Tensor` of shape `(batch,)`, *optional*): where the margins of the batch are kept.
    """

    is_applied: bool = False
    resolved: MixupPlan | None = None
    targets: Tensor | None = None
    places: Tensor | None = None


@dataclass(frozen=True, eq=False)
class MixupPlan:
    """The numbers of one mixed batch; no model and no labels in it.

    ```python
    >>> plan = MixupPlan(partner=torch.tensor([1, 0]), lam=torch.tensor([0.75, 1.0]), site="embeddings")
    >>> plan.mix(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    tensor([[0.7500, 0.2500],
            [0.0000, 1.0000]])
    ```

    Args:
        partner (`torch.LongTensor` of shape `(batch,)`): index of each example's partner in the batch.
        lam (`torch.FloatTensor` of shape `(batch,)`): weight of the example itself; its partner weighs 1 - lam.
        site (`str`): where activations are mixed, see `MixupConfig.site`.
        layer (`int`, *optional*): the block after which to mix, for site `"hidden"`.
        active (`bool`, defaults to `True`): `False` for a batch that is trained clean: `apply` does nothing then.
        label_lam (`torch.FloatTensor` of shape `(batch,)`, *optional*): weight of the example's own label, if it is
            not `lam`.
        dimension_lam (`torch.FloatTensor` of shape `(batch, width)`, *optional*): a weight for each hidden dimension.
        source (`torch.LongTensor` of shape `(batch, length)`, *optional*): the position in the partner's text that each
            position takes its token from, or is mixed with, or -1 where a token stays.
        box (`torch.LongTensor` of shape `(batch, 4)`, *optional*): for boxes of images, the first row and the end of
            the rows, the first column and the end of the columns that are taken from the partner.
        similarity (`tuple[float, float]`, *optional*): lambda is drawn at the site, see `MixupConfig.similarity`.
        uniform (`torch.Tensor` of shape `(2, batch)`, *optional*): the random numbers that it is then made of.
        strength (`float`, defaults to 1.0): share of the partner's weight that such a lambda uses.
        noise (`tuple[float, float]`, *optional*): additive and multiplicative noise on what was mixed.
        outside (`OutsidePartners`, *optional*): partners from outside of the batch; `partner` numbers them
            after its rows.
        is_remembered (`bool`, defaults to `False`): whether later batches are to be mixed with this one.
        rows_per_example (`int`, defaults to 1): rows that belong to one example, such as a chosen and a rejected text.
            The batch is then of rows: first one of each example, then the other of each, and both share a partner.

    Raises:
        ValueError: if `partner` and `lam` are not of one shape `(batch,)`, or `similarity` lacks its random numbers.
    """

    partner: Tensor
    lam: Tensor
    site: str
    layer: int | None = None
    active: bool = True
    label_lam: Tensor | None = None
    dimension_lam: Tensor | None = None
    source: Tensor | None = None
    box: Tensor | None = None
    similarity: tuple[float, float] | None = None
    uniform: Tensor | None = None
    strength: float = 1.0
    noise: tuple[float, float] | None = None
    outside: OutsidePartners | None = None
    is_remembered: bool = False
    rows_per_example: int = 1
    record: PassRecord = field(default_factory=PassRecord, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.partner.dim() != 1 or self.partner.shape != self.lam.shape:
            raise ValueError(
                "A plan needs partner and lam of the same shape (batch,), "
                f"got {tuple(self.partner.shape)} and {tuple(self.lam.shape)}."
            )
        if self.similarity is not None and self.uniform is None:
            raise ValueError("A plan with similarity needs uniform, the random numbers that lambda is made of.")

    @property
    def of_examples(self) -> MixupPlan:
        """The plan with one row per example, which is what labels follow."""
        if self.rows_per_example == 1:
            return self
        size = self.lam.shape[0] // self.rows_per_example
        label_lam = None if self.label_lam is None else self.label_lam[:size]
        return replace(self, partner=self.partner[:size], lam=self.lam[:size], label_lam=label_lam, rows_per_example=1)

    def for_values(self, values: Tensor) -> MixupPlan:
        """The plan with as many rows as there are values: one per row of the batch, or per example.

        Raises:
            ValueError: for another number of values.
        """
        plan = next((plan for plan in (self, self.of_examples) if values.shape[:1] == plan.lam.shape), None)
        if plan is None:
            size = len(self.of_examples.lam)
            raise ValueError(f"values: {values.dtype} of shape {tuple(values.shape)}, for a plan of {size} examples.")
        return plan

    def to(self, device: torch.device) -> MixupPlan:
        """The same plan with its tensors on `device`, sent without waiting."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in values.items()
            if isinstance(value, Tensor) and value.device != device
        }
        return replace(self, **moved) if moved else self

    @property
    def resolved(self) -> MixupPlan:
        """The plan as its forward pass left it: on the device, with the lambda that was drawn at the site.

        Raises:
            ValueError: if lambda is drawn at the site and no forward pass has reached it.
        """
        if self.active and self.similarity is not None and not self.record.is_applied:
            raise ValueError("similarity: lambda is drawn where the plan is applied, so run the forward pass first.")
        return self.record.resolved or self

    def mix(self, values: Tensor, outside: Tensor | None = None) -> Tensor:
        """Values of the examples, mixed as their targets are: lam v_i + (1 - lam) v_j (Zhang et al. 2018, eq. 1).

        lam is the label's. For models of several label sets, `mixup.loss` being that of one.

        Args:
            values (`torch.Tensor` of shape `(batch, ...)`): floats: one-hot or multi-hot vectors, scores; of shape
                `(examples, ...)` if several rows of the batch belong to one example.
            outside (`torch.Tensor` of shape `(batch, ...)`, *optional*): those of the partners, if these are from
                outside of the batch.

        Returns:
            `torch.Tensor`: of the same shape, dtype and device; `values` themselves if the plan is not active.

        Raises:
            ValueError: for integers, another number of examples, or if the values of outside partners are missing; if
                lambda is drawn at the site and no forward pass has reached it.
        """
        if not values.is_floating_point():
            raise ValueError(
                f"values: {values.dtype} of shape {tuple(values.shape)}; classes are mixed as floats: "
                "torch.nn.functional.one_hot(values, k).float()."
            )
        self.for_values(values)
        if not self.active:
            return values
        if self.outside is not None and outside is None:
            raise ValueError("outside: the partners are from outside of the batch, so give their values as well.")
        plan = self.resolved.for_values(values).to(values.device)
        lam = plan.lam if plan.label_lam is None else plan.label_lam
        pool = values if outside is None else torch.cat([values, outside.to(values)])
        return torch.lerp(pool[plan.partner], values, lam.reshape(-1, *[1] * (values.dim() - 1)).to(values.dtype))

    def mix_tokens(self, values: Tensor) -> Tensor:
        """Values of tokens, such as targets, mixed as these are: taken from `source`, if there is one, else as `mix`.

        Args:
            values (`torch.Tensor` of shape `(batch, length, ...)`): floats.

        Returns:
            `torch.Tensor`: of the same shape.

        Raises:
            ValueError: as `mix`.
        """
        if not self.active or self.source is None:
            return self.mix(values)
        plan = self.to(values.device)
        assert plan.source is not None
        lam = plan.lam if plan.label_lam is None else plan.label_lam
        # What is exchanged before the model is whole.
        kept = None if self.site == "input" else lam.unsqueeze(1).expand_as(plan.source)
        return swap_tokens(values, plan.partner, plan.source, kept)
