"""The `hf-mixup` command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv (`Sequence[str]`, *optional*): the arguments, defaults to those of the process.

    Returns:
        `int`: exit status; 0, or 2 for input that cannot work (one line on stderr says why).
    """
    parser = argparse.ArgumentParser(prog="hf-mixup", description="Fine-tune text classifiers with mixup.")
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser(
        "train",
        usage="hf-mixup train CONFIG.yaml [--any_field value ...]",
        help="fine-tune and evaluate a text classifier",
        description="Fine-tune and evaluate a text classifier. The YAML file is a flat mapping of ModelArguments, "
        "DataArguments and TrainingArguments fields, and mixup: (a recipe, a YAML path, none, or a mapping of "
        "MixupConfig fields). Options after it win: --any_field value, --mixup tmix, --mixup.alpha 0.2. "
        "`hf-mixup train CONFIG.yaml --help` lists every field.",
    )
    train.add_argument("config", metavar="CONFIG.yaml", help="the YAML file of the run")
    train.add_argument("overrides", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    return _train([options.config, *options.overrides])


def _train(argv: list[str]) -> int:
    # Imported here: torch and transformers take seconds, and --help needs neither.
    from hf_mixup.arguments import parse
    from hf_mixup.classification import finish, prepare

    try:
        run = prepare(*parse(argv))
    except (ValueError, OSError) as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    finish(run)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
