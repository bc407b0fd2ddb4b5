"""`Mixup`: draw a plan, apply it to a forward pass, compute the loss that follows from it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from hf_mixup.config.checks import choice
from hf_mixup.config.mixup_config import OUTSIDE
from hf_mixup.config.recipes import MixupLike, config_to_mix
from hf_mixup.forward.anatomy import inputs
from hf_mixup.forward.anatomy.anatomy import Anatomy
from hf_mixup.forward.anatomy.blocks import site_width, text_states
from hf_mixup.forward.anatomy.host import is_fsdp_enabled, is_whole, labels_tokens, waits_for_accelerator
from hf_mixup.forward.anatomy.probe import MissingPadToken, trace
from hf_mixup.forward.anatomy.readout import EVERY_TOKEN
from hf_mixup.forward.endpoints import check_endpoints, check_site
from hf_mixup.forward.hooks import Hooks, let_compiled_models_mix
from hf_mixup.forward.saliency import saliency
from hf_mixup.forward.state import Mixing, begin
from hf_mixup.loss.task import REDUCTIONS, Term
from hf_mixup.loss.token_task import task_of
from hf_mixup.plan.examples import Examples
from hf_mixup.plan.mixup_plan import MixupPlan
from hf_mixup.plan.planner import Planner

# Models with a plan applied to them right now.
_IN_USE: WeakSet[nn.Module] = WeakSet()


class Mixup:
    """Mixup of one model, for training loops of one's own.

    ```python
    mixup = Mixup(model, MixupConfig(site="hidden", alpha=0.4), seed=0)
    labels = batch.pop("labels")
    plan = mixup.draw(batch)
    with mixup.apply(plan, batch):
        logits = model(**batch).logits
    loss = mixup.loss(logits, labels, plan)
    ```

    The model, its class, its config and its state dict stay as they are. `mixed` counts its mixed forward passes.

    Args:
        model (`nn.Module`): any module that returns logits, of texts or of each token, also wrapped (DDP, PEFT, ...).
        config (`MixupConfig`, mapping, recipe name or path, defaults to `"fixed"`): what is mixed.
        seed (`int`, defaults to 0): seed of the plans.
        rank (`int`, defaults to 0): index of this process; processes draw different plans.

    Raises:
        ValueError: for what is not a model, a config that does not fit the model, or a model whose sites cannot be
            found. A decoder without a pad token is refused only when a batch of several texts is to be mixed.
    """

    def __init__(self, model: nn.Module, config: MixupLike = "fixed", seed: int = 0, rank: int = 0) -> None:
        inputs.check_model(model)
        self.model, self.root = model, inputs.root_of(model)
        self.config = config_to_mix(config, labels_tokens(self.root))
        self._hooks: Hooks | None = None
        self.task = task_of(inputs.model_config(model), self.config, labels_tokens(self.root))
        self.planner = Planner(self.config, seed, rank, inputs.separators(model))
        self._layers: tuple[list[int | str] | None, list[int]] = [], []  # of the config and, as numbers, of the model
        self._checked_batch, self.mixed = False, 0
        let_compiled_models_mix()
        # A pad token may be set later, before the first batch of several texts.
        with suppress(MissingPadToken):
            self.check()

    def check(self) -> None:
        """As `prepare`, unless the parameters are not all here yet: sharded, on another device or on rank 0 only."""
        # All ranks have to look for the sites together, because a sharded forward pass needs all of them.
        if not (is_fsdp_enabled() or waits_for_accelerator(self.root)) and all(map(is_whole, self.model.parameters())):
            self.prepare()

    def prepare(self) -> Anatomy:
        """Find the sites of the model; done once, at construction if the parameters are there.

        Raises:
            ValueError: for a model whose sites cannot be found, a layer out of range, a missing pad token.
        """
        if self._hooks is None or not self._hooks.fit(self.model):
            anatomy = trace(self.model, tuple(self.config.blocks or ()))
            if anatomy.readout == EVERY_TOKEN and not labels_tokens(self.root):
                self.task = task_of(self.task.about, self.config, True)
            check_site(anatomy, self.config)
            self.config.resolve_layers(anatomy.depth)
            self._layers = [], []
            self._hooks = Hooks(anatomy)
            try:
                check_endpoints(anatomy, self.config, self._mixing)
            except Exception:
                self._hooks = None
                raise
            finally:
                self._checked_batch = False
        return self._hooks.anatomy

    def draw(
        self,
        batch: Mapping[str, Any] | Tensor,
        epoch: float | None = None,
        *,
        progress: float | None = None,
        labels: Tensor | None = None,
        groups: Tensor | None = None,
        rows_per_example: int = 1,
        one_lambda: bool = False,
    ) -> MixupPlan:
        """The plan of a batch: who is mixed with whom, how much and where.

        Args:
            batch (`Mapping` or `torch.Tensor`): what the model is given, for the number of examples and, for spans, the
                masks. The labels are counted if none of it is known, such as texts that are not tokenized yet.
            epoch (`float`, *optional*): needed if `off_epoch` is set, or `alpha` or `class_weights` go by it.
            progress (`float`, *optional*): share of the training that is done, needed with a `config.schedule`.
            labels (`torch.Tensor`, *optional*): needed if `needs_labels`.
            groups (`torch.Tensor` of shape `(batch,)`, *optional*): number of each example's group, for `"lisa"`.
            rows_per_example (`int`, defaults to 1): rows that share a partner and lambda, such as 2 for preferences:
                first the chosen text of each example, then the rejected ones. Labels have one row per example.
            one_lambda (`bool`, defaults to `False`): one lambda for the batch, whatever `config.mode` says.

        Returns:
            `MixupPlan`: on the host, but for what depends on the labels or the masks, which stays on their device. Not
            active for a batch of one, or one that stays clean. The first of `"previous_batch"` is, with lambda 1.

        Raises:
            ValueError: for something that is needed and not given, and rows that are not whole examples.
        """
        self.task.epoch = epoch
        batch = inputs.by_name(self.root, batch)
        size = inputs.examples_of(batch, labels, rows_per_example)
        layers, widths = self._layers_to_draw(size)
        let_compiled_models_mix(len(layers))
        targets = self.task.targets_to_draw(labels, size, self.needs_labels)
        saliency_of, states = partial(self._saliency, batch, labels), partial(text_states, self.root, batch)
        examples = Examples(size, layers, widths, epoch, progress, batch, targets, groups, saliency_of, states)
        return self.planner.draw(replace(examples, rows_per_example=rows_per_example, one_lambda=one_lambda))

    def _layers_to_draw(self, size: int) -> tuple[list[int], dict[int | None, int]]:
        """The layers that a batch may be mixed after, and the hidden dimensions there, if each has a lambda."""
        config, layers = self.config, []
        if config.site == "hidden" and (size > 1 or config.partner in OUTSIDE):
            depth = self.prepare().depth
            if self._layers[0] != config.layers:
                self._layers = config.layers and [*config.layers], config.resolve_layers(depth)
            layers = self._layers[1]
        if config.interpolation != "dimensions":
            return layers, {}
        anatomy, drawn = self.prepare(), list[int | None](layers) or [None]
        return layers, {layer: site_width(anatomy, config.site, layer) for layer in drawn}

    @property
    def needs_labels(self) -> bool:
        """Whether plans depend on the labels, so that `draw` has to be given them."""
        return "targets" in self.planner.needs

    def needs_clean_pass(self, plan: MixupPlan) -> bool:
        """Whether `loss` has to be given the logits of the same batch unmixed."""
        return plan.active and self.config.clean_weight > 0

    @contextmanager
    def apply(self, plan: MixupPlan, batch: Mapping[str, Any] | Tensor) -> Iterator[None]:
        """Mix the forward pass inside the block; the hooks are gone after it, also after an exception.

        Args:
            plan (`MixupPlan`): from `draw`, or made by hand.
            batch (`Mapping` or `torch.Tensor`): what the model is called with: `input_ids`, `attention_mask`, ...

        Raises:
            ValueError: if plan and batch do not fit.
            RuntimeError: if no forward pass reached the site, or two `apply` are nested.
        """
        if not plan.active:
            yield
            return
        self.prepare()
        with self._mixing(plan, batch := inputs.by_name(self.root, batch)) as mixing:
            yield
        self.mixed += 1
        plan.record.is_applied = True
        if mixing.outside is not None:
            self.planner.remember(plan, batch, mixing.outside.kept)
        elif mixing.plan is not plan:
            plan.record.resolved = mixing.plan

    @contextmanager
    def _mixing(self, plan: MixupPlan, batch: Mapping[str, Any]) -> Iterator[Mixing]:
        assert self._hooks is not None
        if self.root in _IN_USE:
            raise RuntimeError("apply is already under way on this model; MixupMixin applies plans by itself.")
        mixing = begin(self._hooks.anatomy, plan, batch)
        mixing.is_first = not self._checked_batch
        self._hooks.register(mixing)
        _IN_USE.add(self.root)
        try:
            yield mixing
        finally:
            _IN_USE.discard(self.root)
            self._hooks.release()
        self._checked_batch = self._checked_batch or mixing.reached and plan.site != "pooled"
        if not mixing.reached:
            raise RuntimeError(f"No forward pass reached site {plan.site!r} (layer {plan.layer}); nothing was mixed.")

    def loss(
        self,
        logits: Tensor,
        labels: Tensor,
        plan: MixupPlan | None = None,
        label_smoothing: float = 0.0,
        clean_logits: Tensor | None = None,
        *,
        reduction: str = "mean",
        targets: Tensor | None = None,
        clean_targets: Tensor | None = None,
    ) -> Tensor:
        """The mixed loss, by transformers' rules for the problem type; the model's config is only read.

        Args:
            logits (`torch.Tensor` of shape `(batch, num_labels)` or `(batch, length, num_labels)`): of the mixed pass.
            labels (`torch.Tensor`): as the user gave them: class indices `(batch,)`, class probabilities
                `(batch, num_labels)` under `problem_type="single_label_classification"`, multi-hot vectors or scores
                `(batch, num_labels)`, scores `(batch,)`, or classes of tokens `(batch, length)`, -100 without one.
            plan (`MixupPlan`, *optional*): `None` for a clean batch.
            label_smoothing (`float`, defaults to 0.0): as `TrainingArguments.label_smoothing_factor`.
            clean_logits (`torch.Tensor`, *optional*): as `logits`, not mixed; needed if `needs_clean_pass(plan)`.
            reduction (`str`, defaults to `"mean"`): `"mean"` or `"sum"` over the batch; `"none"` for one per example.
            targets (`torch.Tensor` of shape `(batch, num_labels)`, *optional*): what `targets(labels, plan)` returned.
            clean_targets (`torch.Tensor`, *optional*): those of `clean_logits`, if they are not those of the labels.

        Returns:
            `torch.Tensor`: in float32, a scalar or of shape `(batch,)`, which for tokens is a part each of the mean.

        Raises:
            ValueError: for labels that are missing or out of range (on an accelerator, checked in the first batch
                only), or another reduction.
        """
        _ = reduction in REDUCTIONS or choice(*REDUCTIONS)("reduction", reduction)
        if plan is not None and plan.active and not plan.record.is_applied:
            warnings.warn("This plan mixes the labels, but no forward pass was run under apply(plan).", stacklevel=2)
        if self.planner.auto_strength is not None:
            self.planner.auto_strength.learn(self._surplus(logits, labels))
        mixed = self.targets(labels, plan, logits.device) if targets is None else targets
        terms = [Term(1.0, logits, mixed)]
        if plan is not None and self.needs_clean_pass(plan):
            terms = self._with_clean_term(terms[0], labels, plan, clean_logits)
            terms[1] = replace(terms[1], targets=terms[1].targets if clean_targets is None else clean_targets)
        return REDUCTIONS[reduction](self.task.sum_of_terms(terms, self.task.problem_type(labels), label_smoothing))

    def _with_clean_term(self, mixed: Term, labels: Tensor, plan: MixupPlan, clean_logits: Tensor | None) -> list[Term]:
        weight = self.config.clean_weight
        if clean_logits is None:
            raise ValueError(f"clean_weight={weight}: loss needs clean_logits, those of the same batch unmixed.")
        clean = self.task.targets(labels, None, clean_logits.device)
        self.planner.record(plan, clean_logits.detach(), clean)
        return [replace(mixed, weight=1 - weight), Term(weight, clean_logits, clean)]

    def targets(self, labels: Tensor, plan: MixupPlan | None = None, device: torch.device | None = None) -> Tensor:
        """The mixed targets, float32, of the shape of the logits. Raises `ValueError` as `loss` does."""
        return self.task.targets(labels, plan, device)

    def observe(self, logits: Tensor, labels: Tensor) -> float:
        """Let `strength="auto"` follow the predictions of held-out examples, and return it, 0 to 1.

        Args:
            logits, labels (`torch.Tensor` or array): of all, as `loss` takes them, from the model in `eval()`.

        Raises:
            ValueError: for another strength, or labels that `loss` would not take.
        """
        return self.planner.observe(self._surplus(torch.as_tensor(logits), torch.as_tensor(labels)))

    def _surplus(self, logits: Tensor, labels: Tensor) -> Tensor:
        self.targets(labels)  # Refuses what does not fit.
        return self.task.surplus(logits.detach(), labels)

    def _saliency(self, batch: Mapping[str, Any], labels: Any) -> Tensor:
        targets, kind, losses = self.task.targets(labels), self.task.problem_type(labels), self.task.losses
        return saliency(self.prepare(), batch, lambda logits: losses(logits, targets.to(logits.device), kind))

    def restart(self, seed: int, rank: int) -> None:
        """Draw plans anew from `seed`, as for a new training."""
        self.planner.restart(seed, rank)
        self.mixed = 0

    def state_dict(self) -> dict[str, Any]:
        """The random stream and what is remembered, for checkpoints: numbers and strings, and tensors in a memory."""
        return self.planner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.planner.load_state_dict(state, next(self.model.parameters()).device)
