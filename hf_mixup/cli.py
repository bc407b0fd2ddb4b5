"""The `hf-mixup` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from hf_mixup import __version__
from hf_mixup.mixup_help import mixup_help
from hf_mixup.reporting import interruptible, one_line_errors


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv (`Sequence[str]`, *optional*): the arguments, defaults to those of the process.

    Returns:
        `int`: exit status; 0, 2 for input that cannot work (one line on stderr says why), 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["train"] and words[1:] and words[1] not in ("-h", "--help"):
        try:
            _train(words[1:])
        except SystemExit as end:
            return int(end.code or 0)
        return 0
    # Help, the version, or what is missing: each of them exits.
    _parser().parse_args(words)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hf-mixup", description="Fine-tune text classifiers with mixup.")
    parser.add_argument("--version", action="version", version=f"hf-mixup {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser(
        "train",
        usage="hf-mixup train CONFIG.yaml [--any_field value ...]",
        help="fine-tune and evaluate a text classifier",
        description="Fine-tune and evaluate a text classifier. The YAML file is a flat mapping of ModelArguments,\n"
        "DataArguments and TrainingArguments fields, and mixup: (a recipe, a YAML path, none, or a mapping of\n"
        "MixupConfig fields). Options after it win: --any_field value, --mixup tmix, --mixup.alpha 0.2.\n"
        "`hf-mixup train CONFIG.yaml --help` lists every field.",
        epilog=mixup_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument("config", metavar="CONFIG.yaml", help="the YAML file of the run")
    return parser


def _train(words: list[str]) -> None:
    with one_line_errors():
        # Imported here: torch and transformers take seconds, and --help needs neither.
        from hf_mixup.arguments import parse
        from hf_mixup.classification import finish, prepare

        run = prepare(*parse(words))
    with interruptible(run.trainer.args.output_dir):
        finish(run)


if __name__ == "__main__":
    raise SystemExit(main())
