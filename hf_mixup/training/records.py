"""What a mixed training writes: logs, the state from which plans resume, the config beside the model, its card."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_mixup.config.mixup_config import AUTO, MixupConfig
from hf_mixup.mixup import Mixup
from hf_mixup.training.logs import MixupLogs
from hf_mixup.training.state import CONFIG_NAME, load_state, save_state
from hf_mixup.training.trainer_seams import TrainerSeams


class MixupRecords(TrainerSeams):
    """Trainer that writes what mixup did. Nothing that it saves says "mixed" of a training that was not."""

    mixup: Mixup | None = None
    # Whether a checkpoint says that batches were mixed.
    _was_mixed: bool = False
    _logs: MixupLogs

    def _mixup_of_current_model(self) -> Mixup:
        """The Mixup of the model being trained; `model_init` and sharding replace the model that was given."""
        assert self.mixup is not None
        if self.mixup.model is not self.model:
            state = self.mixup.state_dict()
            self.mixup = Mixup(self._module, self.mixup.config, self.args.seed, self.args.process_index)
            self.mixup.load_state_dict(state)
        return self.mixup

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add what mixup did since the last log to the training logs."""
        if "loss" in logs and self.mixup is not None:
            logs.update(self._logs.drain())
            if self.mixup.config.strength == AUTO:
                logs["mixup_strength"] = round(self.mixup.planner.strength, 4)
        super().log(logs, *args, **kwargs)

    @property
    def _saved_config(self) -> MixupConfig | None:
        """The config that is saved with the model."""
        return None if self.mixup is None else self.mixup.config

    @property
    def _has_mixed(self) -> bool:
        """Whether some batch was mixed, so that nothing saved says so of a training in which none was."""
        return self.mixup is not None and (self._was_mixed or self.mixup.mixed > 0)

    @contextmanager
    def _saving_model(self, folder: Path) -> Iterator[None]:
        """The mixup config is saved with a model that was mixed."""
        with super()._saving_model(folder):
            yield
        if self._has_mixed and self._saved_config is not None and self.args.should_save:
            self._saved_config.save(folder / CONFIG_NAME)

    def _on_state_saved(self, folder: str) -> None:
        """The plans resume with the random state."""
        super()._on_state_saved(folder)
        if self.mixup is not None:
            save_state(folder, self.mixup, self.args.process_index, self.args.world_size)

    def _on_state_loaded(self, folder: str) -> None:
        """The plans resume with the random state."""
        super()._on_state_loaded(folder)
        if self.mixup is not None and self._saved_config is not None:
            load_state(folder, self.mixup, self.args.process_index, self.args.world_size, self._saved_config)
            self._was_mixed = Path(folder, CONFIG_NAME).is_file()

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Trainer's model card, with the mixup config."""
        super().create_model_card(*args, **kwargs)
        path = Path(self.args.output_dir or ".") / "README.md"
        config = self._saved_config
        if config is None or not self._has_mixed or not self.is_world_process_zero() or not path.is_file():
            return
        with path.open("a", encoding="utf-8") as card:
            card.write(f"\n### Mixup\n\nTrained with hf_mixup:\n\n```yaml\n{config.to_yaml()}```\n")
