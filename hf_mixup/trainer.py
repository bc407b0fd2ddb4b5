"""`MixupTrainer`: transformers' Trainer with mixup, the one-line change."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_utils import HPSearchBackend
from transformers.utils import logging

from hf_mixup import targets
from hf_mixup.anatomy import logits_of, transformers_model
from hf_mixup.config import MixupConfig, resolve_config
from hf_mixup.mixup import Mixup
from hf_mixup.model import MixupModel
from hf_mixup.plan import MixupPlan, PlanStream

logger = logging.get_logger(__name__)

CONFIG_NAME = "mixup_config.yaml"


class MixupTrainer(Trainer):
    """Trainer that mixes its training batches. Evaluation and prediction are Trainer's own.

    Args:
        *args, **kwargs: exactly Trainer's.
        mixup (`MixupConfig`, mapping, recipe name, path of a YAML file, or `None`, defaults to `"default"`): what to mix
            and how much; `None` turns mixup off.

    Raises:
        ValueError: for a config that cannot work, or a model that cannot be mixed with it.

    Labels may be class indices, class probabilities (with `problem_type="single_label_classification"`), multi-hot
    vectors or scores. A `compute_loss_func` is given the mixed targets, of shape `(batch, num_labels)`, in the place of
    the labels; `torch.nn.functional.cross_entropy` takes them as they are.

    Training logs also hold `mixup_lambda` (the mean), `mixup_site` and, for single-label classification,
    `mixup_accuracy`: the mean mass of the mixed target on the predicted class.
    """

    # The loss is a mean per batch, which Trainer then has to divide by the number of accumulated batches.
    loss_is_scaled_for_ga = False

    def __init__(
        self, *args: Any, mixup: MixupConfig | Mapping[str, Any] | str | None = "default", **kwargs: Any
    ) -> None:
        config = resolve_config(mixup)
        super().__init__(*args, **kwargs)
        if config is not None and isinstance(self.model, MixupModel):
            raise ValueError("The model is a MixupModel, which mixes by itself: give MixupTrainer the plain model.")
        self.mixup: Mixup | None = None
        self._logs = _MixupLogs()
        if config is None:
            return
        if self.args.n_gpu > 1:
            raise ValueError(
                f"{self.args.n_gpu} GPUs without a launcher: nn.DataParallel splits each batch after its partners are "
                "drawn. Start the script with `accelerate launch` or `torchrun`, or set CUDA_VISIBLE_DEVICES=0."
            )
        self.mixup = Mixup(self.model, config, self.args.seed, self.args.process_index)
        self._check_loss_options()
        if self.args.train_batch_size > 1:
            self.mixup.check()

    def _check_loss_options(self) -> None:
        assert self.mixup is not None
        model_config = transformers_model(self.model).config
        problem_type = model_config.problem_type
        is_single_label = model_config.num_labels > 1 and problem_type in (None, "single_label_classification")
        if self.args.label_smoothing_factor and not is_single_label:
            raise ValueError(
                f"label_smoothing_factor={self.args.label_smoothing_factor} needs single-label classification; "
                f"this model has num_labels={model_config.num_labels}, problem_type={problem_type!r}."
            )
        if self.mixup.config.class_weights is not None and self.compute_loss_func is not None:
            raise ValueError("class_weights: not used by a compute_loss_func of your own; weigh the classes there.")

    # ---- Loss ----

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Trainer's own loss in evaluation and where mixup is off, else that of the mixed batch."""
        if self.mixup is None or not model.training:
            return self._plain_loss(model, inputs, return_outputs, num_items_in_batch)
        mixup = self._mixup_of_current_model()
        inputs = dict(inputs)
        labels = inputs.pop("labels", None)
        mixup.problem_type(labels)
        drawn = mixup.draw(inputs, self.state.epoch or 0.0)
        plan = drawn.to(labels.device)
        with mixup.apply(plan, inputs):
            outputs = model(**inputs)
        logits = logits_of(outputs)
        mixed = mixup.targets(labels, plan, logits.device)
        self.loss_is_scaled_for_ga = self.compute_loss_func is not None
        if self.compute_loss_func is not None:
            loss = self._users_loss(outputs, mixed, labels, num_items_in_batch)
        else:
            loss = mixup.loss(logits, labels, plan, self.args.label_smoothing_factor)
        self._logs.add(drawn, logits.detach(), mixed, mixup.problem_type(labels))
        return (loss, outputs) if return_outputs else loss

    def _plain_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool, num_items_in_batch: Tensor | int | None
    ) -> Any:
        is_normalised = self.compute_loss_func is not None or (
            self.label_smoother is not None and num_items_in_batch is not None
        )
        self.loss_is_scaled_for_ga = is_normalised
        labels = inputs.get("labels")
        is_distribution = (
            labels is not None
            and labels.dtype.is_floating_point
            and transformers_model(self.model).config.problem_type == "single_label_classification"
        )
        if not is_distribution or is_normalised:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        # transformers' heads flatten their labels, so class probabilities never reach the model.
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        logits = logits_of(outputs)
        loss = targets.example_losses(logits, labels.to(logits), "single_label_classification").mean()
        if isinstance(outputs, dict):
            outputs["loss"] = loss
        else:
            outputs = (loss, *outputs)
        return (loss, outputs) if return_outputs else loss

    def _users_loss(
        self, outputs: Any, mixed: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None
    ) -> Tensor:
        if mixed.shape[-1] == 1:
            mixed = mixed.reshape(labels.shape)
        try:
            loss = self.compute_loss_func(outputs, mixed, num_items_in_batch=num_items_in_batch)
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
            self.mixup = Mixup(self.model, self.mixup.config, self.args.seed, self.args.process_index)
            self.mixup.load_state_dict(state)
        return self.mixup

    # ---- Start, search ----

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As Trainer's. Every training starts the random stream of mixup anew, and a resumed one continues it."""
        if self.mixup is not None:
            self.mixup.stream = PlanStream(self.args.seed, self.args.process_index)
        self._logs = _MixupLogs()
        return super().train(*args, **kwargs)

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
        self.mixup = Mixup(self.model, config, self.args.seed, self.args.process_index)
        try:
            self.hp_space = lambda _: params
            super()._hp_search_setup(trial if is_optuna else params)
        finally:
            self.hp_space, self._trial = space, trial

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
            self.mixup.config.save(Path(output_dir or self.args.output_dir) / CONFIG_NAME)

    def _state_file(self, folder: str) -> Path:
        return Path(folder) / f"mixup_state_{self.args.process_index}.json"

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self.mixup is not None:
            self._state_file(output_dir).write_text(json.dumps(self.mixup.state_dict()), encoding="utf-8")

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is None or self.mixup is None:
            return
        path = self._state_file(checkpoint)
        if path.is_file():
            self.mixup.load_state_dict(json.loads(path.read_text(encoding="utf-8")))
        else:
            logger.warning(f"{checkpoint} holds no mixup state: it was saved without mixup, so plans start anew.")

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Trainer's model card, with the mixup config."""
        super().create_model_card(*args, **kwargs)
        path = Path(self.args.output_dir) / "README.md"
        if self.mixup is None or not self.is_world_process_zero() or not path.is_file():
            return
        card = path.read_text(encoding="utf-8")
        if "### Mixup" not in card:
            card += f"\n### Mixup\n\nTrained with hf_mixup:\n\n```yaml\n{self.mixup.config.to_yaml()}```\n"
            path.write_text(card, encoding="utf-8")


class _MixupLogs:
    """Sums of what mixup did between two logs; kept on the device, read when they are logged."""

    def __init__(self) -> None:
        self.batches = self.mixed = 0
        self.weight = 0.0
        self.accuracy: Tensor | None = None
        self.sites: dict[str, None] = {}

    def add(self, plan: MixupPlan, logits: Tensor, mixed: Tensor, problem_type: str) -> None:
        self.batches += 1
        if plan.active:
            self.mixed += 1
            self.weight += float(plan.lam.mean())
            self.sites[plan.site if plan.layer is None else f"{plan.site} {plan.layer}"] = None
        if problem_type == "single_label_classification":
            accuracy = targets.mixed_accuracy(logits, mixed)
            self.accuracy = accuracy if self.accuracy is None else self.accuracy + accuracy

    def drain(self) -> dict[str, Any]:
        logs: dict[str, Any] = {}
        if self.mixed:
            logs["mixup_lambda"] = round(self.weight / self.mixed, 4)
            logs["mixup_site"] = ", ".join(sorted(self.sites))
        if self.accuracy is not None:
            logs["mixup_accuracy"] = round(self.accuracy.item() / self.batches, 4)
        self.__init__()  # type: ignore[misc]
        return logs
