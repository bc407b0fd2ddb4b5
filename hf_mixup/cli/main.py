"""The `hf-mixup` command."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

from hf_mixup.cli.mixup_help import mixup_help
from hf_mixup.cli.terminal import SHOW_TRACEBACK, interruptible, one_line_errors

KERNELS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv (`Sequence[str]`, *optional*): the arguments, defaults to those of the process.

    Returns:
        `int`: exit status; 0; 1 for a model that `inspect` finds cannot be mixed, a training that diverged, or a
            comparison with runs that failed; 2 for whatever went wrong (one line on stderr says what, and `--debug`
            shows the traceback); 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    words, debug = without_debug(words)
    SHOW_TRACEBACK.set(debug)
    if words[:1] == ["train"] and words[1:] and words[1] not in ("-h", "--help"):
        return _status(lambda: _train(words[1:]))
    # Help, the version, or what is missing: each of them exits.
    parser = _parser()
    options, others = parser.parse_known_args(words)
    if options.command == "compare":
        return _status(lambda: _compare(options, others))
    if others:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    commands = {"inspect": _inspect, "report": _report, "env": _env}
    return _status(lambda: commands[options.command](options)) if options.command in commands else 2


def without_debug(words: list[str]) -> tuple[list[str], bool]:
    """The words without `--debug`, unless a value follows it, which makes it the field of the training arguments."""
    followed = [not word.startswith("-") for word in [*words[1:], "-"]][: len(words)]
    kept = [word for word, value in zip(words, followed, strict=True) if word != "--debug" or value]
    return kept, len(kept) < len(words)


def _status(command: Callable[[], int]) -> int:
    """What a command returns, also if it exits."""
    try:
        return command()
    except SystemExit as end:
        return int(end.code or 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hf-mixup",
        description="Fine-tune classifiers of texts and tokens with mixup.",
        epilog="With --debug every command shows the traceback of an error.",
    )
    parser.add_argument("--version", action="version", version=f"hf-mixup {version('hf_mixup')}")
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser(
        "train",
        usage="hf-mixup train CONFIG.yaml [--any_field value ...]",
        help="fine-tune and evaluate a classifier of texts or tokens",
        description="Fine-tune and evaluate a classifier of texts, or of tokens (task: tokens). The YAML file is a\n"
        "flat mapping of ModelArguments, DataArguments and TrainingArguments fields, and mixup: (a recipe, a\n"
        "YAML path, none, or a mapping of MixupConfig fields). Options after it win: --any_field value,\n"
        "--mixup tmix, --mixup.alpha 0.2.\n"
        "`hf-mixup train CONFIG.yaml --help` lists every field.",
        epilog=mixup_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument("config", metavar="CONFIG.yaml", help="the YAML file of the run")
    _add_comparison(commands)
    inspect = commands.add_parser(
        "inspect",
        usage="hf-mixup inspect MODEL [--blocks PATH ...] [--attn_implementation KERNEL]\n"
        "                        [--trust_remote_code] [--json]",
        help="show where a model can be mixed, and how exact that is",
        description="Show where a model can be mixed, and measure on a tiny batch, in float32, how exact a mixture is.",
        epilog="Exit status: 0; 1 if no site but pooled is exact; 2 if the model cannot be loaded.",
    )
    inspect.add_argument(
        "model",
        metavar="MODEL",
        help="a folder; else a model type of transformers such as bert, built at toy size with random weights; else a "
        "hub name. The first line of the report says which it was. A folder wins over a type of its name, and a type "
        "over a hub model: write the whole name of that one, openai-community/gpt2",
    )
    inspect.add_argument(
        "--blocks", nargs="+", metavar="PATH", default=[], help="module paths of the blocks, or of lists"
    )
    inspect.add_argument("--attn_implementation", choices=KERNELS, help="by default what the model chooses")
    inspect.add_argument("--trust_remote_code", action="store_true", help="run model code that comes with the model")
    inspect.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    commands.add_parser("env", help="print versions and devices, for a bug report")
    return parser


def _add_comparison(commands: Any) -> None:
    compare = commands.add_parser(
        "compare",
        usage="hf-mixup compare CONFIG.yaml [--part N/PARTS] [--any_field value ...]",
        help="train with several methods over seeds and sizes, and say what is better",
        description="Train a baseline and other methods over seeds and training-set sizes, with the same number of\n"
        "updates, and compare them on a test split. What is finished stays: the same command resumes after an\n"
        "interruption. The YAML file holds the fields of `hf-mixup train` and those of a comparison: methods,\n"
        "train_sizes, balanced, seeds, label_noise, select_by, measures, measured_samples, outliers, workers.\n"
        "Options after it win: --any_field value; --train_file takes the place of a dataset in the file.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    compare.add_argument("config", metavar="CONFIG.yaml", help="the YAML file of the comparison")
    compare.add_argument("--output_dir", help="in place of the one in the file")
    compare.add_argument("--seeds", type=int, nargs="+", help="in place of those in the file")
    compare.add_argument("--workers", type=int, help="runs at a time; by default one per GPU, or per core, at most 8")
    compare.add_argument("--part", metavar="N/PARTS", help="run a part, such as 3/16; all may run at the same time")
    report = commands.add_parser(
        "report",
        help="write the HTML report of a comparison",
        description="Write one self-contained HTML file, and its pictures as PNG, from the runs that are finished.",
    )
    report.add_argument("folder", metavar="RUN", help="the output_dir of the comparison")


def _compare(options: argparse.Namespace, words: Sequence[str]) -> int:
    with one_line_errors("the same command resumes, with the runs that are missing"):
        from hf_mixup.cli.compare.compare import compare, quiet
        from hf_mixup.cli.compare.findings import format_summary
        from hf_mixup.cli.compare.options import read_comparison, read_part
        from hf_mixup.cli.compare.runs import missing_runs
        from hf_mixup.cli.compare.statistics import FEWEST, MAIN_METRICS
        from hf_mixup.cli.compare.table import write_tables

        given = {name: getattr(options, name) for name in ("output_dir", "seeds", "workers")}
        changes = {name: value for name, value in given.items() if value is not None}
        part, parts = read_part(options.part)
        comparison = read_comparison(options.config, words, changes)
        quiet()
        if len(comparison.seeds) < FEWEST:
            print(f"seeds={comparison.seeds}: a verdict needs at least {FEWEST}", file=sys.stderr)
        failed = compare(comparison, part, parts)
        folder = comparison.output_dir
        summary = write_tables(folder)[1]
        print(format_summary(summary, [metric for metrics in MAIN_METRICS.values() for metric in metrics]))
        missing = missing_runs(folder)
        if parts > 1:
            print(f"\nThis was part {part} of {parts}; the table is of all runs that are there")
        if missing:
            print(f"\n{missing}; the same command without --part runs them")
        print(f"\nresults.csv and summary.csv are in {folder}; `hf-mixup report {folder}` makes pictures of them")
        return 1 if failed else 0


def _report(options: argparse.Namespace) -> int:
    with one_line_errors():
        from hf_mixup.cli.compare.report import write_report
        from hf_mixup.cli.compare.runs import missing_runs

        folder = os.path.expanduser(options.folder)
        print(write_report(folder))
        if missing := missing_runs(folder):
            print(f"{missing}; the `hf-mixup compare` that made the folder runs them", file=sys.stderr)
        return 0


def _inspect(options: argparse.Namespace) -> int:
    with one_line_errors():
        from transformers.utils.logging import disable_progress_bar, set_verbosity_error

        from hf_mixup.cli.inspect.named_model import named_model
        from hf_mixup.evaluation.inspection import inspect_model

        disable_progress_bar()
        set_verbosity_error()
        model, source = named_model(
            os.path.expanduser(options.model), options.attn_implementation, options.trust_remote_code
        )
        inspection = replace(inspect_model(model, options.blocks), source=source)
        print(json.dumps(inspection.to_dict(), indent=2) if options.json else inspection)
        return 0 if inspection.usable else 1


def _env(options: argparse.Namespace) -> int:
    with one_line_errors():
        from hf_mixup.cli.environment import environment

        print(environment())
        return 0


def _train(words: list[str]) -> int:
    with one_line_errors():
        # Imported here: torch and transformers take seconds, and --help needs neither.
        from hf_mixup.cli.train.arguments import parse
        from hf_mixup.cli.train.classification import finish, prepare

        run = prepare(*parse(words))
        with interruptible(run.trainer.args.output_dir):
            results = finish(run)
        return 1 if results["diverged"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
