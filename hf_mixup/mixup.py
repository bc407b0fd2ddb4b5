"""`Mixup`: draw a plan, apply it to a forward pass, compute the loss that follows from it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from hf_mixup import targets
from hf_mixup.anatomy import Anatomy, changeable_state, model_config
from hf_mixup.config import MixupConfig
from hf_mixup.exactness import check_endpoints
from hf_mixup.mixing import begin
from hf_mixup.plan import MixupPlan, PlanStream
from hf_mixup.probe import MissingPadToken, trace
from hf_mixup.probe_batch import PROBES
from hf_mixup.resolve import resolve_config
from hf_mixup.sites import Hooks, let_compiled_models_mix

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

    The model, its class, its config and its state dict stay as they are.

    Args:
        model (`nn.Module`): a sequence classifier of transformers, also wrapped (DDP, torch.compile, PEFT).
        config (`MixupConfig`, mapping, recipe name or path, *optional*): defaults to the recipe `"default"`.
        seed (`int`, defaults to 0): seed of the plans.
        rank (`int`, defaults to 0): index of this process; processes draw different plans.

    Raises:
        ValueError: for a config that does not fit the model, or a model whose sites cannot be found. A decoder without
            a pad token is refused only when a batch of several texts is to be mixed.
    """

    def __init__(
        self,
        model: nn.Module,
        config: MixupConfig | Mapping[str, Any] | str | None = None,
        seed: int = 0,
        rank: int = 0,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ValueError(f"model={model!r}: expected a model (torch.nn.Module), not its name.")
        resolved = resolve_config("default" if config is None else config)
        if resolved is None:
            raise ValueError(f"config={config!r}: Mixup needs a config; leave mixup out where it is off.")
        self.model = model
        self.config = resolved
        self.stream = PlanStream(seed, rank)
        self._hooks: Hooks | None = None
        self._class_weights: Tensor | None = None
        self._checked_labels = self._checked_batch = False
        self._applied: MixupPlan | None = None
        self._check_class_weights()
        let_compiled_models_mix()
        # A pad token may be set later, before the first batch of several texts.
        with suppress(MissingPadToken):
            self.check()

    def _check_class_weights(self) -> None:
        weights, config = self.config.class_weights, model_config(self.model)
        if weights is None:
            return
        if len(weights) != config.num_labels or config.num_labels == 1:
            raise ValueError(f"class_weights: {len(weights)} weights for num_labels={config.num_labels}.")
        if config.problem_type not in (None, "single_label_classification"):
            raise ValueError(f"class_weights need single_label_classification, not {config.problem_type}.")
        self._class_weights = torch.tensor(weights, dtype=torch.float32)

    def check(self) -> None:
        """As `prepare`, unless the parameters are not all here yet (sharded, or on the meta device)."""
        if _is_materialised(self.model):
            self.prepare()

    def prepare(self) -> Anatomy:
        """Find the sites of the model; done once, at construction where the parameters are there.

        Raises:
            ValueError: for a model whose sites cannot be found, a layer out of range, a missing pad token.
        """
        if self._hooks is None or self._hooks.anatomy.state != changeable_state(self.model):
            anatomy = trace(self.model, tuple(self.config.blocks or ()))
            self.config.resolve_layers(anatomy.depth)
            check_site(anatomy, self.config.site)
            self._hooks = Hooks(anatomy)
            try:
                check_endpoints(anatomy, self.config, self._mixing)
            except Exception:
                self._hooks = None
                raise
            finally:
                self._checked_batch = False
        return self._hooks.anatomy

    def draw(self, batch: Mapping[str, Any], epoch: float | None = None) -> MixupPlan:
        """The plan of a batch: who is mixed with whom, how much and where.

        Args:
            batch (`Mapping`): model inputs; only the number of examples is read.
            epoch (`float`, *optional*): progress of training, needed where `config.off_epoch` is set.

        Returns:
            `MixupPlan`: on the host. Not active for a batch of one, or one that `prob` or `off_epoch` leaves clean.
        """
        size = _batch_size(batch)
        layers: list[int] = []
        if self.config.site == "hidden" and size > 1:
            layers = self.config.resolve_layers(self.prepare().depth)
        let_compiled_models_mix(len(layers))
        return self.stream.draw(self.config, size, layers, epoch)

    @contextmanager
    def apply(self, plan: MixupPlan, batch: Mapping[str, Any]) -> Iterator[None]:
        """Mix the forward pass inside the block; the hooks are gone after it, also after an exception.

        Args:
            plan (`MixupPlan`): from `draw`, or made by hand.
            batch (`Mapping`): the inputs that the model is called with: `input_ids`, `attention_mask`, ...

        Raises:
            ValueError: where plan and batch do not fit.
            RuntimeError: where no forward pass reached the site, or two `apply` are nested.
        """
        if not plan.active:
            yield
            return
        self.prepare()
        with self._mixing(plan, batch):
            yield
        self._applied = plan

    @contextmanager
    def _mixing(self, plan: MixupPlan, batch: Mapping[str, Any]) -> Iterator[None]:
        assert self._hooks is not None
        root = self._hooks.anatomy.root
        if root in _IN_USE:
            raise RuntimeError("apply is already under way on this model; one plan applies to one forward pass.")
        mixing = begin(self._hooks.anatomy, plan, batch)
        mixing.is_first = not self._checked_batch
        handles = self._hooks.register(mixing)
        _IN_USE.add(root)
        try:
            yield
        finally:
            _IN_USE.discard(root)
            for handle in handles:
                handle.remove()
            self._hooks.release()
        self._checked_batch = self._checked_batch or mixing.reached and plan.site != "pooled"
        if not mixing.reached:
            raise RuntimeError(f"No forward pass reached site {plan.site!r} (layer {plan.layer}); nothing was mixed.")

    def loss(
        self, logits: Tensor, labels: Tensor, plan: MixupPlan | None = None, label_smoothing: float = 0.0
    ) -> Tensor:
        """The mixed loss, by transformers' rules for the problem type; the model's config is only read.

        Args:
            logits (`torch.Tensor` of shape `(batch, num_labels)`): from the mixed forward pass.
            labels (`torch.Tensor`): as the user gave them: class indices `(batch,)`, class probabilities
                `(batch, num_labels)` under `problem_type="single_label_classification"`, multi-hot vectors
                `(batch, num_labels)`, or scores `(batch,)` or `(batch, num_labels)`.
            plan (`MixupPlan`, *optional*): `None` for a clean batch.
            label_smoothing (`float`, defaults to 0.0): as `TrainingArguments.label_smoothing_factor`.

        Returns:
            `torch.Tensor`: the mean over the batch, in float32.

        Raises:
            ValueError: for labels that are missing or outside the model's range (on an accelerator, checked in the
                first batch only).
        """
        return self.example_losses(logits, labels, plan, label_smoothing).mean()

    def example_losses(
        self, logits: Tensor, labels: Tensor, plan: MixupPlan | None = None, label_smoothing: float = 0.0
    ) -> Tensor:
        """As `loss`, one value an example: `(batch,)`."""
        if plan is not None and plan.active and plan is not self._applied:
            warnings.warn("This plan mixes the labels, but no forward pass was run under apply(plan).", stacklevel=3)
        mixed = self.targets(labels, plan, logits.device)
        return self.target_losses(logits, mixed, self.problem_type(labels), label_smoothing)

    def target_losses(self, logits: Tensor, mixed: Tensor, problem_type: str, label_smoothing: float = 0.0) -> Tensor:
        """As `example_losses`, for targets that are mixed already: those of `targets`."""
        if label_smoothing and problem_type != "single_label_classification":
            raise ValueError(
                f"label_smoothing={label_smoothing} needs single_label_classification, not {problem_type}."
            )
        if self._class_weights is not None and self._class_weights.device != logits.device:
            self._class_weights = self._class_weights.to(logits.device)
        return targets.example_losses(logits, mixed, problem_type, self._class_weights, label_smoothing)

    def targets(self, labels: Tensor, plan: MixupPlan | None = None, device: torch.device | None = None) -> Tensor:
        """The mixed targets: `(batch, num_labels)`, float32. Raises `ValueError` as `loss` does."""
        num_labels, problem_type = model_config(self.model).num_labels, self.problem_type(labels)
        if plan is not None and labels.shape[:1] != plan.lam.shape:
            raise ValueError(f"labels: shape {tuple(labels.shape)} for a plan of {plan.lam.shape[0]} examples.")
        # On an accelerator reading the values means waiting for it, so it is done once.
        if labels.device.type == "cpu" or not self._checked_labels:
            targets.check_labels(labels, problem_type, num_labels)
            self._checked_labels = True
        labels = labels.to(device) if device is not None else labels
        clean = targets.to_targets(labels, problem_type, num_labels)
        return clean if plan is None else targets.mix_targets(clean, plan)

    def problem_type(self, labels: Tensor | None) -> str:
        """The problem type of the model, from its config or by transformers' rules from the labels."""
        if labels is None:
            raise ValueError("labels: none in this training batch; mixup needs the labels to mix.")
        if not isinstance(labels, Tensor):
            raise ValueError(f"labels: expected a tensor, got {type(labels).__name__}.")
        return targets.problem_type_of(model_config(self.model), labels)

    def state_dict(self) -> dict[str, Any]:
        """The state of the random stream, as plain numbers and strings; for checkpoints."""
        return self.stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the random stream from `state`."""
        self.stream.load_state_dict(state)


def check_site(anatomy: Anatomy, site: str) -> None:
    """Raises `ValueError` for a site that the model does not have."""
    name = type(anatomy.root).__name__
    if site == "word_embeddings" and (not anatomy.lookups or anatomy.entrance is not None):
        raise ValueError(f"site='word_embeddings': {name} has no token lookup to mix behind; mix at 'embeddings'.")
    if site == "input" and anatomy.input_name == "input_ids":
        raise ValueError(f"site='input': {name} takes tokens, which cannot be averaged; mix at 'embeddings'.")


def _batch_size(batch: Mapping[str, Any]) -> int:
    for name in (*PROBES, "inputs_embeds"):
        if batch.get(name) is not None:
            return batch[name].shape[0]
    raise ValueError(f"The batch has none of {', '.join(PROBES)} or inputs_embeds, only {', '.join(batch)}.")


def _is_materialised(model: nn.Module) -> bool:
    """Whether every parameter is a whole tensor here, and not on the meta device or one shard of many."""
    return all(type(p.data) is Tensor and not p.is_meta and p.numel() for p in model.parameters())
