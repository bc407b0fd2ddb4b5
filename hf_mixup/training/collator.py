"""`MixupCollator`: mixup where batches are made, in the workers of a data loader; no model is needed."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info
from transformers import PretrainedConfig

from hf_mixup.config.checks import choice, count
from hf_mixup.config.mixup_config import AUTO, OUTSIDE, PARTNERS, MixupConfig
from hf_mixup.config.recipes import MixupLike, resolve_config
from hf_mixup.forward.anatomy.inputs import FLOAT_INPUTS, MASKS, logits_of
from hf_mixup.forward.sites import mix_input
from hf_mixup.loss.task import PROBLEM_TYPES, Task
from hf_mixup.plan.examples import Examples
from hf_mixup.plan.mixup_plan import MixupPlan
from hf_mixup.plan.planner import Planner
from hf_mixup.training.collator_callback import NOT_MIXED, CollatorCallback


class MixupCollator(CollatorCallback):
    """A collator that mixes the batches of another one.

    At site `"input"` the examples themselves are mixed: float inputs on a line, images also by boxes, texts by spans.
    `labels` become the mixed targets, floats of shape `(batch, num_labels)`, so the loss has to take those:
    `collator.loss`.

    ```python
    collator = MixupCollator(DataCollatorWithPadding(tokenizer), "span_mix", num_labels=3)
    # With a plain Trainer, all three: as its callback the collator mixes the training batches and no others.
    mixing = {"data_collator": collator, "callbacks": [collator], "compute_loss_func": collator.loss}
    trainer = Trainer(model, args, train_dataset=train_dataset, **mixing)
    # In a loop of your own: every batch of this loader is mixed, so evaluate with another one.
    loader = DataLoader(train_dataset, batch_size=32, collate_fn=collator, num_workers=2)
    ```

    At the other sites only a model can mix. The batch then carries the plan as `mixup_partner` and `mixup_lam`, each of
    shape `(batch,)`, for a loop that runs the model under `Mixup.apply(MixupPlan(partner, lam, site), batch)`; for site
    `"hidden"` the loop says which `layer` as well. A Trainer cannot do that and is refused: use `MixupTrainer`.

    A Trainer that lacks the callback is refused before its first step, and so is one that lacks the loss if the model's
    own is not that of the mixed labels. For this every Trainer has one more default callback, `ForgottenCallback`, from
    the first MixupCollator on.

    Plans depend on `seed` and, in workers, on the seed that PyTorch gives each worker at the start of each epoch, which
    follows `torch.manual_seed` or the generator of the DataLoader. A training that is resumed draws other plans than
    one that was not interrupted.

    Args:
        collate_fn (`Callable`): makes a batch, a mapping with `labels`, of a list of examples.
        config (`MixupConfig`, mapping, recipe name or path): what is mixed and how much. What needs a model to draw a
            plan is refused: `layers`, noise, similarity, margins, saliency, a lambda for each dimension, clean terms;
            and so is a warm-up, which it cannot count. A mapping has neither by default; a `MixupConfig` needs
            `warmup_batches=0`, and at site `"hidden"` `layers=None`.
        num_labels (`int`): number of classes or scores.
        problem_type (`str`, *optional*): as in a model's config. Defaults to `"regression"` for one label, and to
            `"single_label_classification"` with class indices for several; float labels need it said.
        seed (`int`, defaults to 0): seed of the plans.
        rank (`int`, *optional*): index of this process; processes draw different plans. Defaults to what the launcher
            says (`RANK`), or 0.
        separators (`Collection[int]`): for spans, ids of the tokens that stand between texts, such as
            `[tokenizer.sep_token_id]`; needed for pairs of texts if the tokenizer gives no `token_type_ids`.

    Raises:
        ValueError: for a config that needs a model, an unknown problem type, missing class counts; for a batch without
            labels, with anything that cannot be mixed, or with padded float inputs; for a Trainer that cannot work.
    """

    def __init__(
        self,
        collate_fn: Callable[[list[Any]], Mapping[str, Any]],
        config: MixupLike,
        num_labels: int,
        problem_type: str | None = None,
        seed: int = 0,
        rank: int | None = None,
        separators: Collection[int] = (),
    ) -> None:
        resolved = resolve_config(_on_its_default(config) if isinstance(config, Mapping) else config)
        if resolved is None:
            raise ValueError(f"config={config!r}: leave the MixupCollator out if mixup is off.")
        _refuse_what_needs_a_model(resolved)
        num_labels = count(1)("num_labels", num_labels)
        if problem_type is not None:
            choice(*PROBLEM_TYPES)("problem_type", problem_type)
        if resolved.label_rule == "remix" and len(resolved.class_counts or ()) != num_labels:
            raise ValueError(
                f"class_counts={resolved.class_counts}: label_rule='remix' needs the number of training examples of "
                f"each of the {num_labels} classes."
            )
        self.collate_fn, self.seed, self.separators = collate_fn, seed, separators
        by_number = "regression" if num_labels == 1 else "single_label_classification"
        about = PretrainedConfig()
        about.num_labels, about.problem_type = num_labels, problem_type or by_number  # type: ignore[assignment]
        super().__init__(resolved, Task(about, resolved), int(os.environ.get("RANK", 0)) if rank is None else rank)
        self._is_single_label_by_default = problem_type is None and num_labels > 1
        # Epoch and share of the training, in memory that the workers see as well.
        self._progress = torch.full((2,), math.nan, dtype=torch.float64).share_memory_()
        self._planner: tuple[int | None, Planner] | None = None

    def __call__(self, features: list[Any]) -> dict[str, Any]:
        """The mixed batch of a list of examples; for a Trainer's evaluation or prediction, the batch as it is."""
        batch = dict(self.collate_fn(features))
        groups = batch.pop(self.config.group_column or "", None)
        if self.has_trainer and not self.is_training_batch:
            return batch
        self.has_made_batch.fill_(True)
        labels = batch.pop("labels", None)
        self._check(batch, labels)
        plan = self._draw(batch, labels, groups)
        if self.config.site == "input":
            batch = _mix_inputs(batch, plan)
        else:
            batch |= {"mixup_partner": plan.partner, "mixup_lam": plan.lam}
        return batch | {"labels": self.task.targets(labels, plan)}

    def loss(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """The loss against mixed targets, also as the `compute_loss_func` of a plain Trainer.

        Args:
            outputs (`ModelOutput`, `tuple` or `torch.Tensor`): of the model, with logits of shape
                `(batch, num_labels)`.
            labels (`torch.Tensor`): the mixed targets, of shape `(batch, num_labels)`; of batches that are not mixed,
                the labels themselves.
            num_items_in_batch (`int`, *optional*): Trainer's count of label entries in the accumulated batches. With
                it the result is this batch's part of the mean over all their examples.

        Returns:
            `torch.Tensor`: a scalar in float32, without `num_items_in_batch` the mean over the batch. A Trainer's
            `label_smoothing_factor` is honoured.

        Raises:
            ValueError: if an evaluation batch was mixed, a training batch was not, or a Trainer has no way to mix.
        """
        is_mixed = labels is not None and labels.dim() == 2 and labels.is_floating_point()
        if is_mixed and not self.has_trainer and not torch.is_grad_enabled():
            raise ValueError(
                "This batch is evaluated, but was mixed: give the Trainer callbacks=[collator] as well; in a loop of "
                "your own evaluate with batches of the plain collator."
            )
        if self.config.site != "input" and num_items_in_batch is not None:
            raise ValueError(self._only_inputs())
        if self.has_trainer and torch.is_grad_enabled() and not is_mixed:
            raise ValueError(NOT_MIXED)
        logits = logits_of(outputs)
        targets, epoch = self.task.targets(labels, None, logits.device), self._progress[0].item()
        self.task.epoch = None if math.isnan(epoch) else epoch
        losses = self.task.losses(logits, targets, self.task.problem_type(labels), self.label_smoothing)
        if num_items_in_batch is None:
            return losses.mean()
        return losses.sum() * (labels.numel() / labels.shape[0]) / num_items_in_batch

    def set_progress(self, epoch: float | None = None, progress: float | None = None) -> None:
        """Say how far training is; a Trainer with `callbacks=[collator]` does it by itself.

        Workers see it too, for the batches that they begin from then on: what they have made ahead stays as it is.

        Args:
            epoch (`float`, *optional*): needed if the config has an `off_epoch` or an `alpha` for each epoch.
            progress (`float`, *optional*): share of all steps that is done, 0 to 1; needed if it has a `schedule`.
        """
        self._progress[0], self._progress[1] = (math.nan if value is None else value for value in (epoch, progress))

    def _check(self, batch: Mapping[str, Any], labels: Any) -> None:
        if labels is None:
            raise ValueError(f"labels: none in this batch, which has only {', '.join(batch)}.")
        if self._is_single_label_by_default and isinstance(labels, Tensor) and labels.is_floating_point():
            raise ValueError(
                f"labels: floats of shape {tuple(labels.shape)}; say problem_type='single_label_classification' for "
                "class probabilities, 'multi_label_classification' for several labels or 'regression' for scores."
            )
        if self.config.site == "input":
            _check_inputs(batch, self.config.interpolation)

    def _draw(self, batch: Mapping[str, Any], labels: Tensor, groups: Tensor | None) -> MixupPlan:
        worker = get_worker_info()
        source = None if worker is None else worker.seed
        if self._planner is None or self._planner[0] != source:
            # PyTorch seeds neighbouring workers with neighbouring numbers.
            words = np.random.SeedSequence([self.seed, source or 0]).generate_state(2, np.uint32)
            seed = self.seed if source is None else int(words[0]) << 32 | int(words[1])
            self._planner = source, Planner(self.config, seed, self.rank, self.separators)
        epoch, progress = (None if math.isnan(value) else value for value in self._progress.tolist())
        for name, is_used, known in (
            ("off_epoch", self.config.off_epoch is not None, epoch),
            ("alpha", isinstance(self.config.alpha, dict), epoch),
            ("class_weights", isinstance(self.config.class_weights, dict), epoch),
            ("schedule", self.config.schedule is not None, progress),
        ):
            if is_used and known is None:
                raise ValueError(
                    f"{name}={getattr(self.config, name)}: needs the progress of training: give the Trainer "
                    "callbacks=[collator], or call collator.set_progress in a loop of your own."
                )
        planner, size = self._planner[1], len(labels)
        targets = self.task.targets_to_draw(labels, size, "targets" in planner.needs)
        return planner.draw(Examples(size, (), {}, epoch, progress, batch, targets, groups))

    # ---- As a callback ----

    def _restart(self, state: Any) -> None:
        self._planner = None
        self._note(state)

    def _note(self, state: Any) -> None:
        self.set_progress(state.epoch or 0.0, state.global_step / max(state.max_steps, 1))


def _on_its_default(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields on top of a default without warm-up, which it cannot count, and without layers of its own."""
    return {"warmup_batches": 0} | ({} if "recipe" in fields else {"layers": None}) | dict(fields)


def _refuse_what_needs_a_model(config: MixupConfig) -> None:
    needs = {
        "interpolation": (config.interpolation, ("line", "box", "span")),
        "partner": (
            config.partner,
            tuple(name for name in PARTNERS if name not in ("margin", "near_text", "same_text", *OUTSIDE)),
        ),
        "similarity": (config.similarity, (None,)),
        "clean_weight": (config.clean_weight, (0.0,)),
        "add_noise": (config.add_noise, (0.0,)),
        "mult_noise": (config.mult_noise, (0.0,)),
        "layers": (config.layers if config.site == "hidden" else None, (None,)),
        "strength": (config.strength == AUTO and AUTO, (False,)),
        "unlabeled": (config.unlabeled, (None,)),
    }
    for name, (value, allowed) in needs.items():
        if value not in allowed:
            other = "MixupTrainer" if name == "unlabeled" else "MixupTrainer or Mixup"
            raise ValueError(f"{name}={value!r}: needs a model, which a collator has not; use {other}.")
    if config.warmup_batches:
        raise ValueError(
            f"warmup_batches={config.warmup_batches}: a collator cannot count them, since each worker sees a part of "
            "the batches and begins anew every epoch; set it to 0 (it is 100 by default), or use schedule, such as "
            "{0: 0, 0.1: 1}."
        )


def _check_inputs(batch: Mapping[str, Any], interpolation: str) -> None:
    """Refuse a batch of which not everything that the model reads can be mixed, whether or not its plan mixes."""
    names = _float_inputs(batch)
    if interpolation == "span":
        if batch.get("input_ids") is None:
            raise ValueError(f"interpolation='span': the batch has no input_ids, only {', '.join(batch)}.")
        if names:
            raise ValueError(f"{names[0]}: interpolation='span' mixes tokens alone; use MixupTrainer at 'embeddings'.")
        return
    if interpolation == "box" and names != ["pixel_values"]:
        raise ValueError(f"interpolation='box': expected pixel_values alone, got {', '.join(names or batch)}.")
    if not names or batch.get("input_ids") is not None:
        raise ValueError(
            f"site='input': expected one of {', '.join(FLOAT_INPUTS)} and no input_ids, got {', '.join(batch)}. Tokens "
            "cannot be averaged: exchange spans of them with interpolation='span'."
        )
    for name in names:
        if not isinstance(batch[name], Tensor):
            raise ValueError(f"{name}: expected a tensor, got {type(batch[name]).__name__}.")
        if not batch[name].is_floating_point():
            raise ValueError(f"{name}: {batch[name].dtype} cannot be averaged; make it a float, as processors do.")
    for name in MASKS:
        mask = batch.get(name)
        if mask is not None and not bool(mask.all()):
            raise ValueError(f"{name}: padded inputs are mixed exactly only inside the model; use MixupTrainer.")


def _float_inputs(batch: Mapping[str, Any]) -> list[str]:
    return [name for name in FLOAT_INPUTS if batch.get(name) is not None]


def _mix_inputs(batch: dict[str, Any], plan: MixupPlan) -> dict[str, Any]:
    if not plan.active:
        return batch
    names = _float_inputs(batch) if plan.source is None else ["input_ids"]
    plan = plan.to(batch[names[0]].device)
    return batch | {name: mix_input(batch[name], plan) for name in names}
