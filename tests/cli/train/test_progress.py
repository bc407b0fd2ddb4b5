import fcntl
import io
import json
import logging
import os
import re
import struct
import termios
import threading
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress

import pytest
from transformers import BertConfig, BertForSequenceClassification
from transformers.utils.logging import (
    disable_progress_bar,
    enable_progress_bar,
    get_verbosity,
    is_progress_bar_enabled,
    set_verbosity,
)

from hf_mixup.cli.main import main
from hf_mixup.forward.anatomy.host import LOADING_LOGGER
from tests.toy_text import save_toy_model, write_reviews

HEAD = """\
Model   toy, BertForSequenceClassification with 5,618 parameters, a new head
Data    train.csv, 40 train, 64 validation, 32 test rows; label column 'label': 2 classes ('bad',
        'good')
Length  8 updates of 8 rows, 1.6 epochs of 40 rows, on cpu
Mixup   fixed - with a random text of the batch, after any layer
"""
LINES = """\
update 4 of 8: loss #, #:# left
update 8 of 8: loss #, #:# left
"""
TABLE = """
test, 32 rows     before      after
-----------------------------------
accuracy               #          #
macro_f1               #          #
nll                    #          #
brier                  #          #
ece                    #          #
adaptive_ece           #          #
aurc                   #          #
"""
END = """
Saved   out: the model, its tokenizer, results.json
Use     from transformers import pipeline
        pipeline("text-classification", "out")("...")
Next    --baseline true trains once more with mixup off, to see what mixup did; hf-mixup compare
        CONFIG.yaml compares methods over seeds (docs/comparison.md)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to run in, with a toy model and data; transformers speaks as it does by default."""
    before = get_verbosity(), logging.getLogger("hf_mixup").level, is_progress_bar_enabled()
    set_verbosity(logging.WARNING)
    enable_progress_bar()
    monkeypatch.chdir(tmp_path)
    save_toy_model(tmp_path / "toy")
    for name, count in (("train", 40), ("validation", 64), ("test", 32)):
        write_reviews(tmp_path / f"{name}.csv", count, seed=count)
    yield tmp_path
    set_verbosity(before[0])
    if not before[2]:
        disable_progress_bar()
    logging.getLogger("hf_mixup").setLevel(before[1])


def train(*more, has_validation=True):
    """`hf-mixup train` with a few updates; the exit status."""
    names = ("train", "validation", "test") if has_validation else ("train", "test")
    files = [word for name in names for word in (f"--{name}_file", f"{name}.csv")]
    shape = ["--max_steps", "8", "--logging_steps", "4", "--learning_rate", "1e-3", "--max_seq_length", "32"]
    quiet = ["--save_strategy", "no", "--report_to", "none", "--use_cpu", "--cache_dir", "cache"]
    words = ["--model_name_or_path", "toy", *files, "--mixup", "fixed", "--output_dir", "out", *shape, *quiet, *more]
    return main(["train", *words])


def normal(text):
    """The text without the numbers that a training makes."""
    text = re.sub(r"\d\d:\d\d left", "#:# left", text)
    return re.sub(r"\d\.\d{4}", "#", re.sub(r"(?<= )  +(?=\d\.\d{4})", lambda wide: " " * (len(wide[0]) + 5), text))


@contextmanager
def terminal(encoding="utf-8"):
    """Standard output and error are a terminal; the list holds in the end what was written."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    parts, text = [], []

    def read():
        # The other side is closed in the end.
        with suppress(OSError):
            while part := os.read(master, 4096):
                parts.append(part)

    reader = threading.Thread(target=read)
    reader.start()
    file = io.TextIOWrapper(os.fdopen(slave, "wb", 0), encoding=encoding, write_through=True)
    try:
        with redirect_stdout(file), redirect_stderr(file):
            yield text
    finally:
        file.close()
        reader.join()
        os.close(master)
        text.append(b"".join(parts).decode().replace("\r\n", "\n"))


def test_a_log_file_gets_plain_lines(folder, capfd):
    assert train() == 0
    printed = capfd.readouterr()
    assert normal(printed.out) == HEAD + LINES + TABLE + END
    assert printed.err == ""


def test_a_terminal_gets_one_bar(folder):
    with terminal() as text:
        assert train("--mixup", "default", "--mixup.check_rows", "32") == 0
    head, bar, end = re.fullmatch(r"(.*?\n)(\rtraining:.*?\n)(?!\r)(.*)", text[0], re.DOTALL).groups()
    mixup = """\
Mixup   default with check_rows 32 - as much as held-out predictions ask for, checked 9 times on 32
        validation rows; with a text of another class, after any layer
"""
    assert head == HEAD.partition("Mixup")[0] + mixup
    assert re.search(r"100%\|█+\| 8/8 \[.*, loss \d\.\d{4}, mixup strength \d\.\d\d\]", bar)
    assert bar.count("\n") == 1 and "{" not in bar and "it/s" not in bar
    story, rest = end.split("\n", 1)
    assert story.startswith("mixup: ") and normal(rest) == TABLE + END


def test_an_evaluation_on_the_way_is_a_short_line(folder):
    with terminal() as text:
        assert train("--eval_strategy", "steps", "--eval_steps", "4") == 0
    found = re.findall(r"update (\d): evaluation: (.*)\n", text[0])
    assert [update for update, _ in found] == ["4", "8"]
    assert [normal(line) for _, line in found] == ["accuracy #, macro_f1 #, nll #, brier #, ece #"] * 2


@pytest.mark.parametrize(
    ("options", "lines", "start"), [(["--disable_tqdm", "true"], 2, 1), (["--log_level", "error"], 0, 0)]
)
def test_without_bars_and_in_silence(folder, options, lines, start):
    with terminal() as text:
        assert train(*options) == 0
    assert text[0].count("Model   ") == text[0].count("Saved   ") == start
    assert text[0].count("of 8: loss") == lines and "\r" not in text[0]
    assert "\ntest, 32 rows" in text[0]


def test_characters_that_the_terminal_cannot_write(folder):
    (folder / "toy").rename(folder / "toy-é")
    with terminal("ascii") as text:
        assert train("--model_name_or_path", "toy-é") == 0
    assert "Model   toy-?" in text[0] and "100%|####" in text[0]


def test_a_training_that_is_interrupted_leaves_the_bar(folder, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_mixup.training.trainer.MixupTrainer.training_step", interrupted)
    with terminal() as text:
        assert train() == 130
    assert re.search(r"0/8 .*\ninterrupted\n$", text[0])


# ---- What the model before, and the one without mixup, are measured for ----


def test_measuring_the_untrained_model_changes_nothing(folder, monkeypatch):
    results = {}
    for most in (0, 2000):
        monkeypatch.setattr("hf_mixup.cli.train.results.MOST_BEFORE", most)
        results[most] = results_of(train("--overwrite_output_dir", "--mixup", "default", "--eval_strategy", "epoch"))
    before = results[2000].pop("before")
    assert results[0]["metrics"]["nll"] == results[2000]["metrics"]["nll"] != before["nll"]
    assert "before" not in results[0]


def test_the_baseline_is_the_same_training_with_mixup_off(folder, capsys):
    default = ["--mixup", "default", "--mixup.check_rows", "8", "--overwrite_output_dir"]
    alone = results_of(train(*default))
    weights = (folder / "out" / "model.safetensors").read_bytes()
    capsys.readouterr()
    both = results_of(train(*default, "--baseline", "true"))
    printed = capsys.readouterr().out
    assert (folder / "out" / "model.safetensors").read_bytes() == weights
    assert measured(both) == measured(alone)
    plain = results_of(train("--mixup", "none", "--overwrite_output_dir"))
    assert measured(both["baseline"]) == measured(plain)
    assert both["baseline"]["train"]["step"] == 8 and not (folder / "out" / "mixup_off").exists()
    assert "test, 32 rows     before      after  mixup off\n" in printed
    assert f"{both['metrics']['nll']:11.4f}{both['baseline']['metrics']['nll']:11.4f}\n" in printed
    assert "mixup off: update 8 of 8: loss" in printed and "--baseline" not in printed


def test_the_checkpoints_of_a_baseline_do_not_stay(folder):
    best = ["--load_best_model_at_end", "true", "--eval_strategy", "steps", "--eval_steps", "4", "--save_steps", "4"]
    assert (
        train("--mixup", "tmix", "--baseline", "true", "--overwrite_output_dir", *best, "--save_strategy", "steps") == 0
    )
    assert not (folder / "out" / "mixup_off").exists() and (folder / "out" / "checkpoint-8").is_dir()


def test_a_baseline_that_fails_leaves_the_table_of_the_run(folder, capsys, monkeypatch):
    def fail(run):
        raise FloatingPointError("the loss is not finite")

    monkeypatch.setattr("hf_mixup.cli.train.classification.train_without_mixup", fail)
    assert train("--mixup", "tmix", "--baseline", "true") == 2
    assert "test, 32 rows     before      after\n" in capsys.readouterr().out


def test_what_mixes_nothing_is_said_and_not_compared_with_a_baseline(folder, capsys):
    assert train("--mixup", "default") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "so nothing is mixed; add --eval_strategy epoch" in printed and "--baseline" not in printed
    assert train("--mixup", "tmix", "--per_device_train_batch_size", "1", "--overwrite_output_dir") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "Mixup none: a batch of one has no partners" in printed and "--baseline" not in printed


def test_a_head_that_fits_is_not_called_new(folder, capsys):
    assert train("--mixup", "none") == 0
    assert "parameters, a new head" in " ".join(capsys.readouterr().out.split())
    words = ["--model_name_or_path", "out", "--output_dir", "again", "--ignore_mismatched_sizes", "true"]
    assert train("--mixup", "none", *words) == 0
    assert "parameters, the head that it has" in " ".join(capsys.readouterr().out.split())


def test_a_baseline_trains_on_the_rows_that_were_not_held_out(folder):
    held = ["--mixup", "default", "--mixup.check_rows", "4", "--num_train_epochs", "1", "--max_steps", "-1"]
    both = results_of(train(*held, "--baseline", "true", "--per_device_train_batch_size", "4", has_validation=False))
    assert both["train"]["step"] == both["baseline"]["train"]["step"] == 9


def test_a_baseline_of_nothing_is_refused(folder, capsys):
    assert train("--mixup", "none", "--baseline", "true") == 2
    assert capsys.readouterr().err.endswith("error: baseline=True: mixup is off already; leave it out.\n")


def results_of(status):
    assert status == 0
    with open("out/results.json", encoding="utf-8") as file:
        return json.load(file)


def measured(results):
    """The metrics that are no times."""
    return {name: results["metrics"][name] for name in ("accuracy", "macro_f1", "nll", "brier", "ece", "loss")}


# ---- What a checkpoint lacks ----


@contextmanager
def reports(caplog):
    """What transformers reports of loading, also if its logger does not propagate."""
    LOADING_LOGGER.addHandler(caplog.handler)
    yield lambda: [record.getMessage() for record in caplog.records if record.name == LOADING_LOGGER.name]
    LOADING_LOGGER.removeHandler(caplog.handler)


def save_part(model, left_out):
    """Save a model without some of its parameters."""
    model.save_pretrained("toy", state_dict={k: v for k, v in model.state_dict().items() if left_out not in k})


def test_a_new_head_alone_is_not_reported(folder, caplog):
    with reports(caplog) as said:
        assert train() == 0
        assert said() == []
        save_part(BertForSequenceClassification(BertConfig.from_pretrained("toy")).bert, "pooler")
        assert train("--overwrite_output_dir") == 0
    (line,) = set(said())
    assert "bert.pooler.dense.weight" in line and "\x1b" not in line


def test_a_classifier_without_its_head_is_reported(folder, caplog, capsys):
    config = BertConfig.from_pretrained("toy", id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1})
    save_part(BertForSequenceClassification(config), "classifier")
    with reports(caplog) as said:
        assert train() == 0
    assert "classifier.weight" in said()[0] and "the head that it has" in capsys.readouterr().out
