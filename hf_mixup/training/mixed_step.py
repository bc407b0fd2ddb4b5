"""One training step of a trainer that keeps its own loss: a plan, its labels, and the passes that it mixes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_mixup.config.checks import allow_only
from hf_mixup.config.mixup_config import OUTSIDE, PARTNERS, MixupConfig
from hf_mixup.forward.anatomy.host import is_whole
from hf_mixup.forward.anatomy.inputs import bind, logits_of, model_config, with_loss
from hf_mixup.loss.task import IGNORED, Task
from hf_mixup.mixup import Mixup
from hf_mixup.plan.mixup_plan import MixupPlan
from hf_mixup.plan.planner import WITH_ONE_LAMBDA
from hf_mixup.training.trainer_seams import run_again

# What a batch may call its labels, besides the label names of the training arguments; and those that are for the loss
# alone, of which models that take any argument make nothing.
FOR_LOSS = ("scores", "score", "margin")
LABEL_NAMES = ("labels", "label", *FOR_LOSS)
# What goes with a loss that mixup does not know: one whose labels are mixed before the forward pass, once.
KEPT_LOSS: dict[str, tuple[Any, ...]] = {
    "similarity": (None,),
    "clean_weight": (0.0,),
    "partner": tuple(name for name in PARTNERS if name not in (*OUTSIDE, "same_text")),
}
# How far a loss of half precision may be from that of full precision.
TOLERANCE = 0.05


def labels_in(inputs: Mapping[str, Any], names: Sequence[str]) -> dict[str, Tensor]:
    """The labels of a batch, by name: those of `names` and of `LABEL_NAMES` that it holds."""
    found = {name: inputs.get(name) for name in dict.fromkeys((*names, *LABEL_NAMES))}
    return {name: value for name, value in found.items() if isinstance(value, Tensor) and value.dim()}


def check_kept_loss(config: MixupConfig, takes_hard_labels: bool) -> None:
    """Raise `ValueError` for what cannot be mixed around a loss of the trainer's own."""
    allow_only(config, KEPT_LOSS, "not with a loss of the trainer's own")
    if takes_hard_labels:
        why = "not with a loss of class indices, which needs one lambda for the batch (soft_targets=True lifts that)"
        allow_only(config, WITH_ONE_LAMBDA, why)


def check_kind(labels: Mapping[str, Tensor], num_labels: int) -> None:
    """Raise `ValueError` for class indices that are floats, whose mixture would be another class."""
    for name in ("labels", "label"):
        value = labels.get(name)
        if value is not None and is_float(value) and value.dim() == 1 and num_labels > 1:
            raise ValueError(f"{name}: {value.dtype} of one dimension; class indices are integers, use {name}.long().")


def label_sets(labels: Mapping[str, Tensor], plan: MixupPlan, soft: Callable[[Tensor], Tensor] | None) -> list[dict]:
    """The labels to evaluate a loss on: one mixed set of what is mixed as numbers, or that of the examples and that of
    their partners.

    Args:
        labels (`Mapping[str, torch.Tensor]`): with a row for each example, or for each row of the plan.
        plan (`MixupPlan`): of the batch.
        soft (`Callable`, *optional*): makes targets of class indices, for a loss that takes them.
    """
    given = {name: soft(value) if soft and not is_float(value) else value for name, value in labels.items()}
    if not plan.active:
        return [given]
    mixed = {
        name: plan.mix_tokens(value) if value.dim() == 3 else plan.mix(value)
        for name, value in given.items()
        if is_float(value)
    }
    hard = {name: value for name, value in given.items() if not is_float(value)}
    if not hard:
        return [mixed]
    partners = {name: value[plan.for_values(value).to(value.device).partner] for name, value in hard.items()}
    return [mixed | hard, mixed | partners]


def is_float(labels: Tensor) -> bool:
    """Whether labels are numbers that can be mixed: scores, probabilities, multi-hot vectors of floats."""
    return labels.dtype.is_floating_point


def mean_of_label_sets(losses: Sequence[Any], plan: MixupPlan) -> Any:
    """lam f(y) + (1 - lam) f(y of the partners), lam being one for the batch (Zhang et al. 2018, sec. 2).

    Args:
        losses (`Sequence`): what `compute_loss` returned for each set of labels: a loss, or a tuple of it and more.
        plan (`MixupPlan`): with one lambda.
    """
    first = losses[0]
    if len(losses) == 1:
        return first
    values = [found[0] if isinstance(found, tuple) else found for found in losses]
    lam = (plan.lam if plan.label_lam is None else plan.label_lam)[0]
    loss = torch.lerp(values[1], values[0], lam.to(values[0].device, values[0].dtype, non_blocking=True))
    return (loss, *first[1:]) if isinstance(first, tuple) else loss


@dataclass
class MixedPass:
    """How a pass of a step is run.

    Args:
        mixup (`Mixup`): of the model.
        root (`nn.Module`): the model without wrappers.
        model (`nn.Module`): as the loss calls it.
        plan (`MixupPlan`): of the step.
        labels (`Mapping[str, torch.Tensor]`): as the user gave them.
        given (`Mapping[str, torch.Tensor]`): those that the loss is given.
        model_loss (`ModelLoss`): how the model reduces a loss of its own.
    """

    mixup: Mixup
    root: nn.Module
    model: nn.Module
    plan: MixupPlan
    labels: Mapping[str, Tensor]
    given: Mapping[str, Tensor]
    model_loss: ModelLoss

    def run(self, call: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        """The outputs of a mixed pass. A model that is given labels returns the loss of the mixed labels."""
        names = list(inspect.signature(self.root.forward).parameters)
        inputs = bind(names, args, kwargs)
        for name in set(FOR_LOSS) - set(names):
            # The model would hand it on to its blocks.
            inputs.pop(name, None)
        taken = [name for name in self.labels if inputs.get(name) is not None]
        for name in taken[:1]:
            others = {other: value for other, value in inputs.items() if other != name}
            self.model_loss.learn(self.root, self.mixup.task, others, self.labels[name], name)
        if not self.plan.active:
            return call(*args, **kwargs)
        if taken:
            return self._with_loss(call, inputs, taken[0])
        # Of no use without labels, and handed on to the blocks.
        inputs.pop("num_items_in_batch", None)
        with self.mixup.apply(self.plan, inputs):
            outputs = call(*args, **{name: value for name, value in kwargs.items() if name in inputs})
        if loss_in(outputs) is not None:
            raise ValueError(
                f"{type(self.root).__name__} computed a loss, and it is not known of which labels, so they are not "
                f"mixed. Give it labels by the name that the batch has ({', '.join(self.labels) or 'none'}), or none."
            )
        return outputs

    def _with_loss(self, call: Callable[..., Any], inputs: dict[str, Any], name: str) -> Any:
        labels, given = self.labels[name], inputs.pop(name)
        if given is not self.given[name] and not torch.equal(given, self.given[name]):
            raise ValueError(
                f"{name}: compute_loss gives the model other values than those of the batch, and it is not known how "
                "they mix. Compute the loss outside of the model, or give it the values of the batch."
            )
        items = inputs.pop("num_items_in_batch", None)
        with self.mixup.apply(self.plan, inputs):
            outputs = call(**inputs)
        needs_clean = self.mixup.needs_clean_pass(self.plan)
        clean_logits = logits_of(run_again(self.model, call, inputs)) if needs_clean else None
        logits = logits_of(outputs)
        losses = self.mixup.loss(logits, labels, self.plan, clean_logits=clean_logits, reduction="none")
        return with_loss(outputs, self.model_loss.reduce(losses, labels, items))


class ModelLoss:
    """How a model reduces the loss of a batch of its own, learned from the first batch that it is given labels of."""

    def __init__(self) -> None:
        self.is_share: bool | None = None

    def reduce(self, losses: Tensor, labels: Tensor, items: Tensor | int | None) -> Tensor:
        """The loss of a batch as the model would reduce it: a mean, or its share of the items of a step."""
        return share_of_items(losses, labels, items) if self.is_share else losses.mean()

    def learn(self, root: nn.Module, task: Task, inputs: dict[str, Any], labels: Tensor, name: str = "labels") -> None:
        """Look at the loss of a pass that is not mixed; once.

        Raises:
            ValueError: if it is not the loss that mixed labels would get, which would silently be another.
        """
        if self.is_share is not None or bool((labels == IGNORED).all()):
            return
        inputs, items = inputs | {name: labels}, inputs.get("num_items_in_batch")
        targets, problem_type = task.targets(labels), task.problem_type(labels)
        if is_float(labels) and problem_type == "single_label_classification":
            # Class probabilities, which heads of transformers do not take.
            self.is_share = False
            return
        # Twice as many, so that a share is told from a mean.
        own, logits = _models_loss(root, inputs if items is None else inputs | {"num_items_in_batch": 2 * items})
        self.is_share = False
        if own is None:
            return
        known = logits.detach().requires_grad_(True)
        losses = task.losses(known, targets.to(logits.device), problem_type)
        if _leaves(own) - _leaves(logits):
            raise ValueError(
                f"The loss that {type(root).__name__} computes by itself has parameters that its logits do not depend "
                "on, as the transitions of a CRF, so it is not known for mixed labels, which would not train them. Use "
                "a head without such parameters, or mixup=None."
            )
        if items is not None and _is_same(own, logits, share_of_items(losses, labels, 2 * items), known):
            self.is_share = True
        elif not _is_same(own, logits, losses.mean(), known):
            raise ValueError(
                f"The loss that {type(root).__name__} computes by itself, {own.item():.4g} for the first batch, is not "
                f"the {problem_type} loss of its logits, {losses.mean().item():.4g}, or not for all logits, so it is "
                "not known for mixed labels. Set problem_type in its config, give the loss as compute_loss_func, or "
                "compute it in a compute_loss of your own."
            )


def _models_loss(root: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor | None, Tensor]:
    """The loss, if there is one, and the logits of a pass in evaluation mode; the model and its config stay."""
    training, config = [module for module in root.modules() if module.training], model_config(root)
    problem_type = config.problem_type
    root.eval()
    try:
        # Shards would wait for a backward pass through all of them.
        with torch.set_grad_enabled(all(map(is_whole, root.parameters()))):
            outputs = root(**inputs)
    finally:
        config.problem_type = problem_type
        for module in training:
            module.training = True
    return loss_in(outputs), logits_of(outputs)


def loss_in(outputs: Any) -> Tensor | None:
    """The loss in what a model returns, if there is one."""
    if isinstance(outputs, Mapping):
        return outputs.get("loss")
    parts = outputs if isinstance(outputs, (tuple, list)) else []
    return next((part for part in parts if isinstance(part, Tensor) and part.dim() == 0), None)


def _leaves(value: Tensor) -> set[Any]:
    """The nodes of the parameters that a value was computed from."""
    found, left = set(), [value.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in found:
            found.add(node)
            left += [before for before, _ in node.next_functions]
    return {node for node in found if not node.next_functions}


def _is_same(own: Tensor, logits: Tensor, expected: Tensor, known: Tensor) -> bool:
    """Whether two losses are the same, and their gradients, which differ also where all logits are alike."""
    if not torch.isclose(own.detach().float(), expected.detach().float(), rtol=TOLERANCE, atol=1e-4):
        return False
    if not own.requires_grad or not logits.requires_grad:
        return True
    (found,) = torch.autograd.grad(own, logits, retain_graph=True, allow_unused=True)
    (gradient,) = torch.autograd.grad(expected, known, retain_graph=True)
    bound = TOLERANCE * gradient.abs().max().item()
    return found is None or torch.allclose(found.float(), gradient.float(), rtol=TOLERANCE, atol=bound)


def share_of_items(losses: Tensor, labels: Tensor, items: Tensor | int | None) -> Tensor:
    """The mean of a batch, or its share of an accumulated batch of which Trainer counted the label entries."""
    return losses.mean() if items is None else losses.sum() * ((labels != IGNORED).sum() / labels.shape[0]) / items
