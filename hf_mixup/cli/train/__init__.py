"""`hf-mixup train`: its fields, and its steps for scripts of one's own."""

from typing import TYPE_CHECKING

from hf_mixup.config.lazy import lazy_names

if TYPE_CHECKING:
    from hf_mixup.cli.demo import load_dataset, model_path
    from hf_mixup.cli.terminal import interruptible, one_line_errors
    from hf_mixup.cli.train.arguments import mixup_errors, parse
    from hf_mixup.cli.train.classification import load_data, quiet_other_processes
    from hf_mixup.cli.train.data import load_splits
    from hf_mixup.cli.train.encoding import encode
    from hf_mixup.cli.train.named_classifier import build_model
    from hf_mixup.cli.train.results import calibrate, report
    from hf_mixup.cli.train.run_fields import DataArguments, ModelArguments
    from hf_mixup.config.recipes import resolve_config
    from hf_mixup.training.checkpoints import check_output_dir

__all__ = [
    "DataArguments",
    "ModelArguments",
    "build_model",
    "calibrate",
    "check_output_dir",
    "encode",
    "interruptible",
    "load_data",
    "load_dataset",
    "load_splits",
    "mixup_errors",
    "model_path",
    "one_line_errors",
    "parse",
    "quiet_other_processes",
    "report",
    "resolve_config",
]

__getattr__ = lazy_names(
    __name__,
    {
        "cli.demo": ["load_dataset", "model_path"],
        "cli.terminal": ["interruptible", "one_line_errors"],
        "cli.train.arguments": ["mixup_errors", "parse"],
        "cli.train.classification": ["load_data", "quiet_other_processes"],
        "cli.train.data": ["load_splits"],
        "cli.train.encoding": ["encode"],
        "cli.train.named_classifier": ["build_model"],
        "cli.train.results": ["calibrate", "report"],
        "cli.train.run_fields": ["DataArguments", "ModelArguments"],
        "config.recipes": ["resolve_config"],
        "training.checkpoints": ["check_output_dir"],
    },
)
