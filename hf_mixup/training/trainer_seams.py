"""Every private method and attribute of transformers' Trainer that this package relies on.

Each overridden method does what Trainer does and then calls one with a plain name. What a new transformers moves is
mended here and nowhere else; `tests/test_host.py` says what moved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from transformers import Trainer, TrainerCallback
from transformers.trainer import DEFAULT_CALLBACKS


class TrainerSeams(Trainer):
    """Trainer with plainly named methods at the places where it has private ones; by themselves they change nothing."""

    @property
    def _module(self) -> nn.Module:
        assert self.model is not None
        return self.model

    def _with_usual_labels(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """A batch whose labels are of the types that losses take."""
        return dict(inputs)

    def _extra_columns(self) -> Sequence[str]:
        """Columns that are kept although the model does not take them."""
        return ()

    @contextmanager
    def _saving_model(self, folder: Path) -> Iterator[None]:
        """Around the saving of the model to `folder`."""
        yield

    def _on_state_saved(self, folder: str) -> None:
        """After the random state of this process was saved to a checkpoint."""

    def _on_state_loaded(self, folder: str) -> None:
        """After the random state of this process was loaded from a checkpoint."""

    def _set_up_trial(self, trial: Any, set_up: Callable[[Any], None]) -> None:
        """Set up a trial of a search; `set_up` is Trainer's own way."""
        set_up(trial)

    def _set_trial(self, hp_space: Callable[[Any], dict[str, Any]], trial: Any) -> None:
        """Make a trial the current one. The columns that the model takes are looked up anew."""
        self.hp_space, self._trial = hp_space, trial
        self._signature_columns = None

    def _smooths_labels(self) -> bool:
        """Whether Trainer computes the loss with smoothed labels itself."""
        return self.label_smoother is not None

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        assert self._signature_columns is not None
        self._signature_columns = [*dict.fromkeys([*self._signature_columns, *self._extra_columns()])]

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        with self._saving_model(Path(output_dir or self.args.output_dir or ".")):
            super()._save(output_dir, state_dict)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self._on_state_saved(output_dir)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is not None:
            self._on_state_loaded(checkpoint)

    def _hp_search_setup(self, trial: Any) -> None:
        self._set_up_trial(trial, super()._hp_search_setup)


def add_default_callback(callback: type[TrainerCallback]) -> None:
    """Give every Trainer that is made from now on one more callback, once."""
    if callback not in DEFAULT_CALLBACKS:
        DEFAULT_CALLBACKS.append(callback)  # type: ignore[arg-type]


def before_each_update(check: Callable[[], None]) -> TrainerCallback:
    """A callback that calls `check` before the optimizer updates the parameters."""

    class Checking(TrainerCallback):
        def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            check()

    return Checking()
