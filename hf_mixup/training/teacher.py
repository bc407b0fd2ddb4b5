"""A teacher: a trained classifier whose guesses become a part of what another model learns (distillation)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from hf_mixup.config.checks import number
from hf_mixup.forward.anatomy.inputs import logits_of, model_config, text_config
from hf_mixup.loss.task import IGNORED, Task
from hf_mixup.training.trainer_checks import overrides_loss


class Teacher:
    """The guesses of a trained model, blended into the labels of the batches that another one is trained on.

    Example i learns (1 - w) y_i + w p_i: its label, and the probabilities that the teacher gives its row, which is not
    mixed. These are mixed as labels are (after MixKD, Liang et al. 2021, in which the teacher is given mixtures). A row
    without a label learns p_i alone. The teacher is in evaluation mode and gets no gradients; it costs one forward pass
    per batch.

    Args:
        model (`nn.Module`): takes the batches of the trainer and returns logits of the same classes.
        weight (`float`, defaults to 1.0): w, from 0 to 1.
        temperature (`float`, defaults to 1.0): its logits are divided by it. Those of the student are not, so its
            gradients keep their scale, and the loss has no factor of its square (Hinton et al. 2015 divide both).

    Raises:
        ValueError: for what is not a model, and numbers out of range.
    """

    def __init__(self, model: nn.Module, weight: float = 1.0, temperature: float = 1.0) -> None:
        if not isinstance(model, nn.Module):
            kind = type(model).__name__
            raise ValueError(
                f"teacher={model!r:.80}: expected a model (torch.nn.Module), got an object of type {kind}."
            )
        self.model = model
        self.weight = number(high=1)("teacher_weight", weight)
        self.temperature = number(open_low=True)("teacher_temperature", temperature)

    def attach(self, trainer: Any) -> Teacher:
        """The same, checked and ready for the batches of a trainer: on its device, in evaluation mode."""
        self.check(trainer)
        self.model.to(trainer.args.device).eval()
        return self

    def check(self, trainer: Any) -> None:
        """Raise `ValueError` for a trainer whose model or loss does not go with the teacher."""
        about, theirs = model_config(trainer.model), None
        with suppress(ValueError):
            theirs = model_config(self.model)
        if about.problem_type == "regression" or (about.problem_type is None and about.num_labels == 1):
            raise ValueError(
                f"teacher: needs classes, and the model predicts scores (num_labels={about.num_labels}, "
                f"problem_type={about.problem_type!r})."
            )
        if not set(self.model.modules()).isdisjoint(trainer.model.modules()):
            raise ValueError("teacher: shares modules with the model, which is trained; give it a copy.deepcopy.")
        if overrides_loss(type(trainer)) or trainer.compute_loss_func is not None or "compute_loss" in vars(trainer):
            raise ValueError(
                "teacher: not with a compute_loss_func or a compute_loss of your own, which its guesses would not "
                "reach; blend them into the labels there."
            )
        if theirs is None:
            return
        self._check_number(theirs.num_labels, about.num_labels)
        known, needed = (getattr(text_config(model), "vocab_size", None) for model in (self.model, trainer.model))
        if known is not None and needed is not None and known < needed:
            raise ValueError(
                f"teacher: knows {known} tokens, and the model has vocab_size={needed}; expected one tokenizer. "
                "Let another teacher write its probabilities into the data, and train on these."
            )
        names = [[config.id2label[at].lower() for at in range(config.num_labels)] for config in (theirs, about)]
        if names[0] != names[1] and sorted(names[0]) == sorted(names[1]):
            raise ValueError(f"teacher: its classes are {names[0]}, those of the model {names[1]}; expected one order.")

    @staticmethod
    def _check_number(given: int, expected: int) -> None:
        if given != expected:
            raise ValueError(
                f"teacher: gives {given} logits, and the model has num_labels={expected}; expected the same classes, "
                "in the same order."
            )

    def logits(self, inputs: Mapping[str, Any], num_labels: int) -> Tensor:
        """What it says of the rows, divided by its temperature: `(batch, num_labels)`.

        Raises:
            ValueError: for another number of logits.
        """
        if self.model.training:
            self.model.eval()
        with torch.no_grad():
            logits = logits_of(self.model(**inputs)).float() / self.temperature
        self._check_number(logits.shape[-1], num_labels)
        return logits

    def teach(self, inputs: Mapping[str, Any], labels: Tensor, task: Task) -> tuple[Tensor, Tensor]:
        """The labels of a batch, and what is learnt in their place.

        Args:
            inputs (`Mapping`): what the model is given, without labels.
            labels (`torch.Tensor`): class indices `(batch,)`, -100 for none; probabilities or multi-hot vectors
                `(batch, num_labels)`.
            task (`Task`): of the model that is trained.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: the labels, with the likeliest class where there is none; the targets
            `(batch, num_labels)`, not mixed.

        Raises:
            ValueError: for another number of logits, and labels that are out of range.
        """
        logits = self.logits(inputs, task.about.num_labels)
        is_single = task.problem_type(labels) == "single_label_classification"
        guesses = logits.softmax(-1) if is_single else logits.sigmoid()
        weight = torch.full_like(guesses[:, :1], self.weight)
        if is_single and not labels.is_floating_point():
            has_none = labels.reshape(-1) == IGNORED
            labels = torch.where(has_none, guesses.argmax(-1), labels.reshape(-1))
            weight = weight.masked_fill(has_none.unsqueeze(1), 1.0)
        return labels, torch.lerp(task.targets(labels, None, guesses.device), guesses, weight)
