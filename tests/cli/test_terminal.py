import pytest
import torch

from hf_mixup.cli.main import main, without_debug
from hf_mixup.cli.terminal import format_table, in_one_line, one_line_errors


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("alpha=0:\n  expected > 0."), "alpha=0: expected > 0."),
        (KeyError("labels"), "KeyError: 'labels' (--debug shows where)"),
        (RuntimeError(), "RuntimeError: no message (--debug shows where)"),
        (ValueError(), "ValueError: no message (--debug shows where)"),
        (
            torch.OutOfMemoryError("3 GiB"),
            "per_device_train_batch_size: out of memory; lower it, or raise gradient",
        ),
    ],
)
def test_any_error_is_one_line(error, line, capsys):
    assert in_one_line(error).startswith(line)
    with pytest.raises(SystemExit) as end, one_line_errors():
        raise error
    printed = capsys.readouterr().err
    assert end.value.code == 2 and printed.startswith(f"error: {line}") and printed.count("\n") == 1


def test_long_messages_are_cut():
    assert len(in_one_line(RuntimeError("word " * 10_000))) < 1100


def test_the_traceback_is_shown_on_request(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert main(["report", str(tmp_path), "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err
    assert main(["report", str(tmp_path)]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_debug_with_a_value_is_the_field_of_that_name():
    assert without_debug(["train", "run.yaml", "--debug"]) == (["train", "run.yaml"], True)
    assert without_debug(["train", "--debug", "--seed", "1"]) == (["train", "--seed", "1"], True)
    assert without_debug(["train", "--debug", "underflow_overflow"])[1] is False


def test_an_error_of_one_process_alone_is_printed(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    for error, printed in ((ValueError("alpha=0"), ""), (OSError("disk full"), "process 1: error: disk full\n")):
        with pytest.raises(SystemExit), one_line_errors():
            raise error
        assert capsys.readouterr().err == printed


def test_a_table_of_nothing_and_of_what_is_not_finite():
    results = {"split": "test", "rows": {"test": 3}, "metrics": {"nll": None, "accuracy": 0.5, "loss": None}}
    assert "nll               -" in format_table(results) and "accuracy     0.5000" in format_table(results)
    assert "test, 3 rows" in format_table(results | {"metrics": {}})


def test_a_table_has_the_columns_that_were_measured():
    results = {"split": "test", "rows": {"test": 3}, "metrics": {"nll": 0.25, "temperature": 1.5, "runtime": 9.0}}
    beside = {"before": {"nll": 0.75, "runtime": 9.0}, "baseline": {"metrics": {"nll": 0.5, "temperature": 2.0}}}
    assert (
        format_table(results | beside)
        == """
test, 3 rows     before      after  mixup off
---------------------------------------------
nll              0.7500     0.2500     0.5000
temperature           -     1.5000     2.0000"""
    )
    assert format_table(results).splitlines()[1:3] == ["test, 3 rows", "-" * 22]
