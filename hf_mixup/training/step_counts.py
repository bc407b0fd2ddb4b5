"""How much of an optimizer step a batch is: of the examples that have a label, or of the tokens that have one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import find_batch_size
from torch import Tensor

from hf_mixup.loss.task import IGNORED, Task
from hf_mixup.loss.token_task import TokenTask
from hf_mixup.training import label_columns
from hf_mixup.training.trainer_seams import TrainerSeams


class StepCounts(TrainerSeams):
    """Trainer in which every labelled example of an optimizer step counts as much, or every labelled token."""

    _task: Task
    _teacher: Any = None
    # Of one optimizer step; of tokens, the mean over the processes.
    _step_examples: int | Tensor | None = None
    # Whether some rows of the data have no label; None as long as nobody knows.
    _has_ignored: bool | None = None

    @property
    def _labels_tokens(self) -> bool:
        return isinstance(self._task, TokenTask)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's, counting the examples that one optimizer step averages over."""
        samples, items = super().get_batch_samples(*args, **kwargs)
        found = [sample.get("labels") if isinstance(sample, Mapping) else None for sample in samples]
        labels = [label for label in found if isinstance(label, Tensor)]
        if self._has_ignored is None and any(label.device.type != "cpu" for label in labels):
            # An accelerator is waited for in the first step only.
            self._has_ignored = any(map(self._has_ignored_rows, labels))
        self._step_examples = sum(
            self._count(label) if isinstance(label, Tensor) else find_batch_size(sample) or 0
            for sample, label in zip(samples, found, strict=True)
        )
        if self._labels_tokens and self.args.world_size > 1:
            # Texts differ in length, so the processes differ in their number of tokens.
            count = torch.as_tensor(self._step_examples, device=self.args.device).float()
            self._step_examples = self.accelerator.reduce(count, "mean").clamp_min(1e-6)
        return samples, items

    def _count(self, labels: Tensor) -> int | Tensor:
        """The examples of a batch that have a label, which all have from a teacher; or the tokens that have one."""
        if isinstance(self._task, TokenTask):
            return self._task.count(labels)
        is_unknown = self._has_ignored is None and labels.device.type != "cpu"
        if self._teacher is not None or self._has_ignored is False or is_unknown or labels.numel() != len(labels):
            return len(labels)
        return int((labels != IGNORED).sum()) if self._has_ignored_rows(labels) else len(labels)

    def _lacks_labels(self, labels: Tensor, count: int | Tensor | None = None) -> bool:
        """Whether some rows of a batch have no label and are left out of it, and others have one."""
        return not self._labels_tokens and 0 < int(self._count(labels) if count is None else count) < len(labels)

    def _has_ignored_rows(self, labels: Tensor) -> bool:
        return not self._labels_tokens and label_columns.has_ignored(labels, self._task.about)

    def _share_of_step(self, loss: Tensor, count: int | Tensor) -> Tensor:
        """The part of the mean loss of `count` examples in the mean over all examples of the optimizer step."""
        total = self._step_examples
        self.loss_is_scaled_for_ga = is_known = isinstance(total, Tensor) or bool(total)
        return loss * (count / total) if is_known else loss  # type: ignore[operator]


def is_none(count: int | Tensor) -> bool:
    """Whether nothing of a batch has a label, as far as that is known without waiting for an accelerator."""
    return isinstance(count, int) and count == 0
