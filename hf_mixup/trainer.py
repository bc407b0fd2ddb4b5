"""`MixupTrainer`: transformers' Trainer with mixup, the one-line change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import find_batch_size
from datasets import ClassLabel, Dataset, Value
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_utils import HPSearchBackend
from transformers.utils import logging

from hf_mixup.anatomy import logits_of, model_config, with_loss
from hf_mixup.checkpoints import checkpoint_to_resume
from hf_mixup.collator import MixupCollator
from hf_mixup.config import MixupConfig
from hf_mixup.labels import check_groups
from hf_mixup.logs import MixupLogs
from hf_mixup.mixup import Mixup
from hf_mixup.mixup_state import CONFIG_NAME, load_state, save_state
from hf_mixup.model import MixupModel
from hf_mixup.resolve import resolve_config
from hf_mixup.targets import check_labels, example_losses, problem_type_of

logger = logging.get_logger(__name__)


class MixupTrainer(Trainer):
    """Trainer that mixes its training batches. Evaluation and prediction are Trainer's own.

    Args:
        *args, **kwargs: exactly Trainer's.
        mixup (`MixupConfig`, mapping, recipe name, path of a YAML file, or `None`, defaults to `"default"`): what to
            mix and how much; `None` turns mixup off.

    Raises:
        ValueError: for a config that cannot work, or a model that cannot be mixed with it.

    Labels may be class indices, class probabilities (with `problem_type="single_label_classification"`), multi-hot
    vectors or scores. A `compute_loss_func` is given the mixed targets, of shape `(batch, num_labels)`, in the place of
    the labels; `torch.nn.functional.cross_entropy` takes them as they are.

    Training logs also hold `mixup_lambda` (the mean), `mixup_site` and, for single-label classification,
    `mixup_accuracy`: the mean mass of the mixed target on the predicted class.
    """

    # False: a mean per batch, which Trainer divides by the number of accumulated batches. compute_loss says True where
    # it returns the batch's share of the mean over all examples of the step already.
    loss_is_scaled_for_ga = False

    def __init__(
        self, *args: Any, mixup: MixupConfig | Mapping[str, Any] | str | None = "default", **kwargs: Any
    ) -> None:
        config = resolve_config(mixup)
        super().__init__(*args, **kwargs)
        self.mixup: Mixup | None = None
        self._logs = MixupLogs()
        self._step_examples: int | None = None
        if isinstance(self.data_collator, MixupCollator):
            raise ValueError(
                "data_collator: a MixupCollator mixes by itself: give MixupTrainer the plain collator, or a plain "
                "Trainer data_collator=collator, callbacks=[collator] and compute_loss_func=collator.loss."
            )
        if config is None:
            return
        self._refuse_what_cannot_be_mixed(config)
        self.mixup = Mixup(self._module, config, self.args.seed, self.args.process_index)
        reach = self.args.world_size if config.partner == "all_ranks" else 1
        if self.args.train_batch_size * reach > 1 or config.partner == "previous_batch":
            self.mixup.check()
        else:
            logger.warning(
                "per_device_train_batch_size=1: a batch of one has no partners, so nothing will be mixed; there is "
                "partner='previous_batch' for that."
            )

    @property
    def _module(self) -> nn.Module:
        assert self.model is not None
        return self.model

    def _refuse_what_cannot_be_mixed(self, config: MixupConfig) -> None:
        if isinstance(self.model, MixupModel):
            raise ValueError("The model is a MixupModel, which mixes by itself: give MixupTrainer the plain model.")
        if self.args.n_gpu > 1:
            raise ValueError(
                f"{self.args.n_gpu} GPUs without a launcher: nn.DataParallel splits each batch after its partners are "
                "drawn. Start the script with `accelerate launch` or `torchrun`, or set CUDA_VISIBLE_DEVICES=0."
            )
        num_labels, problem_type = model_config(self._module).num_labels, model_config(self._module).problem_type
        is_single_label = num_labels > 1 and problem_type in (None, "single_label_classification")
        if self.args.label_smoothing_factor and not is_single_label:
            raise ValueError(
                f"label_smoothing_factor={self.args.label_smoothing_factor} needs single-label classification; "
                f"this model has num_labels={num_labels}, problem_type={problem_type!r}."
            )
        if config.class_weights is not None and self.compute_loss_func is not None:
            raise ValueError("class_weights: not used by a compute_loss_func of your own; weigh the classes there.")
        if config.group_column is not None and isinstance(self.train_dataset, Dataset):
            check_groups(self.train_dataset, config.group_column)
        if config.clean_weight and self.compute_loss_func is not None:
            raise ValueError("clean_weight: not used by a compute_loss_func of your own; leave one of the two out.")

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        column = None if self.mixup is None else self.mixup.config.group_column
        if column is not None:
            assert self._signature_columns is not None
            self._signature_columns = [*dict.fromkeys([*self._signature_columns, column])]

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As Trainer's, which the column of groups is not for."""
        if self.mixup is not None:
            inputs = {name: value for name, value in inputs.items() if name != self.mixup.config.group_column}
        return super().prediction_step(model, inputs, *args, **kwargs)

    # ---- Loss ----

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Trainer's own loss in evaluation and where mixup is off, else that of the mixed batch."""
        inputs = dict(inputs)
        if self.mixup is None or not model.training:
            return self._clean_loss(model, inputs, return_outputs, num_items_in_batch)
        mixup = self._mixup_of_current_model()
        groups = inputs.pop(mixup.config.group_column or "", None)
        labels = inputs.pop("labels", None)
        if labels is None:
            raise ValueError(f"labels: none in this training batch, which has only {', '.join(inputs)}.")
        progress = self.state.global_step / max(self.state.max_steps, 1)
        plan = mixup.draw(inputs, self.state.epoch or 0.0, progress=progress, labels=labels, groups=groups)
        with mixup.apply(plan, inputs):
            outputs = model(**inputs)
        logits = logits_of(outputs)
        mixed = mixup.targets(labels, plan, logits.device)
        if self.compute_loss_func is not None:
            self.loss_is_scaled_for_ga = True
            loss = self._users_loss(outputs, mixed, labels, num_items_in_batch)
        else:
            clean_logits = logits_of(model(**inputs)) if mixup.needs_clean_pass(plan) else None
            losses = mixup.target_losses(logits, mixed, labels, plan, self.args.label_smoothing_factor, clean_logits)
            loss = self._share_of_step(losses.mean(), labels)
        self._logs.add(mixup.settled(plan), logits.detach(), mixed, mixup.objective.problem_type(labels))
        return (loss, outputs) if return_outputs else loss

    def _clean_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool, items: Tensor | int | None
    ) -> Any:
        labels = inputs.get("labels")
        is_users = self.compute_loss_func is not None
        if labels is None or is_users or not self._are_probabilities(labels):
            # A mean over the batch is not to be scaled by the number of processes, which Trainer does with the items.
            is_normalised = is_users or (self.label_smoother is not None and items is not None)
            loss, outputs = super().compute_loss(model, inputs, True, items if is_normalised else None)
        else:
            # transformers' heads flatten their labels, so class probabilities never reach the model.
            outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
            logits, smoothing = logits_of(outputs), self.args.label_smoothing_factor
            problem_type = "single_label_classification"
            loss = example_losses(logits, labels.to(logits), problem_type, label_smoothing=smoothing).mean()
            outputs = with_loss(outputs, loss)
            is_normalised = False
        self.loss_is_scaled_for_ga = is_normalised
        if model.training and labels is not None and not is_normalised:
            loss = self._share_of_step(loss, labels)
        return (loss, outputs) if return_outputs else loss

    def _are_probabilities(self, labels: Tensor) -> bool:
        is_single_label = model_config(self._module).problem_type == "single_label_classification"
        return is_single_label and labels.dtype.is_floating_point

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's, counting the examples that one optimiser step averages over."""
        samples, items = super().get_batch_samples(*args, **kwargs)
        self._step_examples = sum(find_batch_size(sample) or 0 for sample in samples)
        return samples, items

    def _share_of_step(self, loss: Tensor, labels: Tensor) -> Tensor:
        """The part of a batch's mean loss in the mean over all examples of the optimiser step."""
        self.loss_is_scaled_for_ga = bool(self._step_examples)
        return loss * (labels.shape[0] / self._step_examples) if self._step_examples else loss

    def _users_loss(
        self, outputs: Any, mixed: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None
    ) -> Tensor:
        if mixed.shape[-1] == 1:
            mixed = mixed.reshape(labels.shape)
        try:
            assert self.compute_loss_func is not None
            loss = self.compute_loss_func(outputs, mixed, num_items_in_batch=num_items_in_batch)
        except torch.OutOfMemoryError:
            raise
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"compute_loss_func failed on the mixed targets, floats of shape {tuple(mixed.shape)}: {error}. "
                "Under mixup it is given class probabilities (multi-hot vectors, scores) in the place of the labels."
            ) from error
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        return loss

    def _mixup_of_current_model(self) -> Mixup:
        """The Mixup of the model being trained; `model_init` and sharding replace the model that was given."""
        assert self.mixup is not None
        if self.mixup.model is not self.model:
            state = self.mixup.state_dict()
            self.mixup = Mixup(self._module, self.mixup.config, self.args.seed, self.args.process_index)
            self.mixup.load_state_dict(state)
        return self.mixup

    # ---- Start, search ----

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As Trainer's. Every training starts the random stream of mixup anew, and a resumed one continues it.

        Raises:
            ValueError, FileNotFoundError: for a checkpoint that is not whole, or of another model.
        """
        is_sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        folder, rank = str(self.args.output_dir), self.args.process_index if self.args.save_on_each_node else None
        checkpoint = checkpoint_to_resume(resume_from_checkpoint, folder, self.model, is_sharded, rank)
        if self.mixup is not None:
            self.mixup.restart(self.args.seed, self.args.process_index)
            self._check_label_column(model_config(self.mixup.model))
        self._logs = MixupLogs()
        try:
            return super().train(checkpoint, *args, **kwargs)
        finally:
            self._step_examples = None

    def _check_label_column(self, config: Any) -> None:
        """Refuse class indices that the model does not have before the first step, wherever they are in the data."""
        data = self.train_dataset
        if not isinstance(data, Dataset) or config.num_labels == 1:
            return
        name = next((name for name in ("labels", "label") if name in data.column_names), None)
        feature = None if name is None else data.features[name]
        if isinstance(feature, (Value, ClassLabel)) and feature.dtype.startswith(("int", "uint")):
            labels = torch.as_tensor(data.with_format(None)[name][:])
            check_labels(labels, problem_type_of(config, labels), config.num_labels)
            if self.mixup is not None and self.mixup.config.label_rule == "remix":
                counts = torch.bincount(labels.reshape(-1), minlength=config.num_labels)
                self.mixup.config.class_counts = self.mixup.config.class_counts or counts.float().tolist()

    def _hp_search_setup(self, trial: Any) -> None:
        """Names in a search space that are fields of `MixupConfig` go there, the others to the training arguments."""
        if trial is None or self.mixup is None:
            super()._hp_search_setup(trial)
            return
        is_optuna = self.hp_search_backend == HPSearchBackend.OPTUNA
        space = self.hp_space
        params = dict(space(trial) if is_optuna else trial)
        own = {field.name for field in fields(MixupConfig)}
        chosen = {name: params.pop(name) for name in own & set(params)}
        config = MixupConfig.from_dict({**self.mixup.config.to_dict(), **chosen})
        try:
            self.hp_space = lambda _: params
            super()._hp_search_setup(trial if is_optuna else params)
        finally:
            self.hp_space, self._trial = space, trial
        self.mixup = Mixup(self._module, config, self.args.seed, self.args.process_index)

    # ---- Logs ----

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add what mixup did since the last log to the training logs."""
        if "loss" in logs and self.mixup is not None:
            logs.update(self._logs.drain())
        super().log(logs, *args, **kwargs)

    # ---- Saving and resuming ----

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.mixup is not None and self.args.should_save:
            self.mixup.config.save(Path(output_dir or self.args.output_dir or ".") / CONFIG_NAME)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self.mixup is not None:
            save_state(output_dir, self.mixup, self.args.process_index, self.args.world_size)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is not None and self.mixup is not None:
            load_state(checkpoint, self.mixup, self.args.process_index, self.args.world_size)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Trainer's model card, with the mixup config."""
        super().create_model_card(*args, **kwargs)
        path = Path(self.args.output_dir or ".") / "README.md"
        if self.mixup is None or not self.is_world_process_zero() or not path.is_file():
            return
        with path.open("a", encoding="utf-8") as card:
            card.write(f"\n### Mixup\n\nTrained with hf_mixup:\n\n```yaml\n{self.mixup.config.to_yaml()}```\n")
