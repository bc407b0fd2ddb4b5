"""`hf-mixup compare` on toy reviews: real trainings in real processes."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from filelock import FileLock

from hf_mixup.cli.compare.compare import asked_of_all, run_one, runs_elsewhere, start_worker, visible_gpus
from hf_mixup.cli.compare.options import read_comparison
from hf_mixup.cli.compare.table import write_tables
from hf_mixup.cli.main import main
from tests.distributed.launch import SERVER
from tests.plain_config import PLAIN
from tests.toy_text import save_toy_model, write_reviews

# Trained on the labels of others: lambda 0 gives the text of the partner, the label stays the example's own.
BROKEN = {"mixup": PLAIN | {"lam": 0.0, "label_rule": "own", "self_pairs": False}}


@pytest.fixture
def toy_comparison(tmp_path):
    """Writes the YAML file of a comparison of a few seconds; keyword arguments change fields."""

    def write(**changes):
        values = {
            "output_dir": str(tmp_path / "out"),
            "methods": {"none": None, "same": {"mixup": "none"}, "broken": BROKEN},
            "train_sizes": [16],
            "seeds": [0, 1, 2],
            "measures": [],
            "workers": 2,
            "model_name_or_path": save_toy_model(tmp_path / "toy"),
            "train_file": write_reviews(tmp_path / "train.csv", 80),
            "validation_file": write_reviews(tmp_path / "dev.csv", 40, seed=1),
            "test_file": write_reviews(tmp_path / "test.csv", 60, seed=2),
            "cache_dir": str(tmp_path / "cache"),
            "max_steps": 40,
            "per_device_train_batch_size": 8,
            "learning_rate": 5e-3,
            "use_cpu": True,
        } | changes
        path = tmp_path / "comparison.yaml"
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        return str(path)

    return write


def start_forked_worker(numbers, gpus, threads, parent):
    """As `start_worker`, in a process whose parent is the server that it was forked from."""
    start_worker(numbers, gpus, threads, os.getppid())


@pytest.fixture
def quick_workers(monkeypatch):
    """The workers are forked from a server, rather than import everything anew."""
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: SERVER)
    monkeypatch.setattr("hf_mixup.cli.compare.compare.start_worker", start_forked_worker)


def verdicts(folder, method):
    summary = pd.read_csv(Path(folder) / "summary.csv", keep_default_na=False)
    rows = summary[summary["method"] == method]
    return dict(zip(rows["metric"], rows["verdict"], strict=True))


@pytest.mark.slow
def test_a_method_is_not_different_from_itself_and_random_targets_are_worse(toy_comparison, tmp_path, capsys):
    methods = {"none": None, "same": {"mixup": "none"}, "again": None, "broken": BROKEN}
    assert main(["compare", toy_comparison(methods=methods)]) == 0
    same, again, broken = (verdicts(tmp_path / "out", name) for name in ("same", "again", "broken"))
    directed = {metric for metric in same if same[metric]}
    assert {"accuracy", "nll", "brier", "ece", "adaptive_ece", "nll_scaled", "aurc"} <= directed
    # By construction; no margin is declared for a loss.
    assert {same[metric] for metric in directed - {"test_loss"}} == {"equivalent"}
    assert not {"better", "worse"} & set(again.values()) and "no difference seen" in again.values()
    summary = pd.read_csv(tmp_path / "out/summary.csv").set_index(["method", "metric"])
    assert summary.loc[("same", "ece"), ["low_texts", "high_texts"]].tolist() == [0, 0]
    assert summary.loc[("broken", "accuracy"), "high_texts"] < 0
    assert {broken[metric] for metric in ("accuracy", "macro_f1", "nll", "brier")} == {"worse"}
    assert "broken" in capsys.readouterr().out


def finished(folder):
    return {path: path.stat().st_mtime_ns for path in Path(folder).glob("runs/*/result.json")}


def test_a_killed_comparison_goes_on_and_repeats_nothing(toy_comparison, quick_workers, tmp_path):
    path = toy_comparison(max_steps=60, seeds=[0, 1])
    command = [sys.executable, "-m", "hf_mixup.cli.main", "compare", path]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 300
    while not finished(tmp_path / "out") and time.monotonic() < deadline:
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    # The workers notice that they are alone.
    while children_of(first.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    before = finished(tmp_path / "out")
    assert 0 < len(before) < 6
    assert main(["compare", path]) == 0
    after = finished(tmp_path / "out")
    assert len(after) == 6
    assert {path: after[path] for path in before} == before


def test_ctrl_c_ends_all_of_it_and_says_how_to_go_on(toy_comparison, tmp_path):
    command = [sys.executable, "-m", "hf_mixup.cli.main", "compare", toy_comparison(max_steps=100_000)]
    running = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        # What is started in the background of a shell ignores it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 300
    while not [*(tmp_path / "out").glob("runs/*/training")] and time.monotonic() < deadline:
        time.sleep(0.05)
    # As a terminal does: to the workers too.
    os.killpg(running.pid, signal.SIGINT)
    try:
        _, said = running.communicate(timeout=60)
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
    assert running.returncode == 130 and b"Traceback" not in said
    assert said.decode().splitlines()[-1] == "interrupted; the same command resumes, with the runs that are missing"
    # multiprocessing's resource tracker ends when it sees that the others are gone, a moment after them.
    while children_of(running.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not children_of(running.pid) and not finished(tmp_path / "out")
    assert not [*(tmp_path / "out").glob("runs/*/error.txt")]


def test_a_killed_worker_takes_no_run_with_it(toy_comparison, quick_workers, tmp_path, capsys):
    path, before = toy_comparison(seeds=[0, 1]), {}

    def kill_a_worker():
        deadline = time.monotonic() + 300
        while not finished(tmp_path / "out") and time.monotonic() < deadline:
            time.sleep(0.01)
        before.update(finished(tmp_path / "out"))
        multiprocessing.active_children()[-1].kill()

    killer = threading.Thread(target=kill_a_worker)
    killer.start()
    assert main(["compare", path]) == 0
    killer.join()
    assert "A worker was killed" in capsys.readouterr().out
    after = finished(tmp_path / "out")
    assert 0 < len(before) < len(after) == 6 and {path: after[path] for path in before} == before


def children_of(session):
    """Processes of a session that are still there."""
    alive = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.getsid(int(entry.name)) == session and is_running(entry):
                alive.append(entry.name)
        except (ProcessLookupError, FileNotFoundError):
            continue
    return alive


def is_running(entry):
    return "State:\tZ" not in (entry / "status").read_text()


def test_variants_are_picked_by_the_development_split(toy_comparison, quick_workers, tmp_path):
    methods = {"none": None, "either": [BROKEN, {"mixup": "none"}]}
    assert main(["compare", toy_comparison(methods=methods, seeds=[0])]) == 0
    result = yaml.safe_load((tmp_path / "out/runs/either-size16-noise0-seed0/result.json").read_text())
    assert result["variant"] == {"mixup": "none"}


def test_a_comparison_may_grow_but_not_change(toy_comparison, quick_workers, tmp_path, capsys):
    rising = {"mixup": PLAIN | {"alpha": 0.4, "schedule": {0: 0, 1: 1}}}
    few = {"methods": {"none": None, "rising": rising}, "seeds": [0], "max_steps": 4, "workers": 1}
    assert main(["compare", toy_comparison(**few)]) == 0
    before = finished(tmp_path / "out")
    assert main(["compare", toy_comparison(**few | {"seeds": [0, 1]})]) == 0
    after = finished(tmp_path / "out")
    assert len(after) == 4 and {path: after[path] for path in before} == before
    assert main(["compare", toy_comparison(**few | {"max_steps": 5})]) == 2
    assert "holds a comparison that differs in run: max_steps" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_sizes": [41]}, "train_sizes=41: class 'bad' has 40 training rows"),
        (
            {"methods": {"none": None, "fast": {"mixup": "none", "attn_implementation": "eagr"}}},
            "methods: fast: .*eagr",
        ),
        ({"methods": {"none": None, "tmix": {"mixup.alpa": 1}}}, "methods: tmix: .*alpa.* Did you mean 'alpha'"),
        ({"methods": {"none": None, "deep": {"mixup": {"site": "hidden", "layers": [5]}}}}, "methods: deep: .*layer 5"),
        ({"select_by": "acuracy"}, "select_by='acuracy': .* Did you mean 'accuracy'"),
        ({"learning_rat": 1}, "unknown field 'learning_rat'. Did you mean 'learning_rate'"),
        ({"outliers": "absent.csv"}, "outliers='absent.csv': no such file"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_run(toy_comparison, tmp_path, capsys, changes, message):
    values = yaml.safe_load(Path(toy_comparison()).read_text()) | changes
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump({name: value for name, value in values.items() if value is not None}))
    assert main(["compare", str(path)]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out/runs").exists()


def test_a_folder_with_something_else_is_left_alone(toy_comparison, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("years of work")
    assert main(["compare", toy_comparison()]) == 2
    assert "is not empty and holds no comparison" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_a_changed_recipe_is_not_mixed_with_runs_of_the_old_one(toy_comparison, quick_workers, tmp_path, capsys):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("alpha: 0.2")
    methods = {"none": None, "mine": {"mixup": str(recipe)}}
    few = {"methods": methods, "seeds": [0], "max_steps": 2, "workers": 1}
    assert main(["compare", toy_comparison(**few)]) == 0
    recipe.write_text("alpha: 0.5")
    assert main(["compare", toy_comparison(**few | {"seeds": [0, 1]})]) == 2
    assert "methods: mine: its recipe has changed since" in capsys.readouterr().err
    # A run that is older than a field was made with the field's default, and null was the default.
    result = tmp_path / "out/runs/mine-size16-noise0-seed0/result.json"
    known = json.loads(result.read_text())
    del known["mixup"]["warmup_batches"]
    known["mixup"] |= {"memory": None, "kappa": None}
    result.write_text(json.dumps(known))
    recipe.write_text("alpha: 0.2")
    assert main(["compare", toy_comparison(**few)]) == 0
    recipe.write_text("{alpha: 0.2, warmup_batches: 5}")
    assert main(["compare", toy_comparison(**few)]) == 2
    assert "(warmup_batches)" in capsys.readouterr().err
    # Left out for once and then defined anew: the old runs are still known.
    assert main(["compare", toy_comparison(**few | {"methods": ["none", "label_smoothing"]})]) == 0
    changed = {"none": None, "mine": {"mixup": "tmix"}}
    assert main(["compare", toy_comparison(**few | {"methods": changed})]) == 2
    assert "differs in methods: mine" in capsys.readouterr().err


def test_other_data_are_not_mixed_with_runs_of_the_old_ones(toy_comparison, quick_workers, tmp_path, capsys):
    few = {"methods": ["none", "label_smoothing"], "seeds": [0], "max_steps": 2, "workers": 1, "test_file": None}
    path = toy_comparison(**few)
    assert main(["compare", path]) == 0
    assert main(["compare", path, "--seeds", "0", "1"]) == 0
    with (tmp_path / "train.csv").open("a") as file:
        file.write("a lovely plot with a twist,good\n")
    assert main(["compare", path]) == 0
    assert main(["compare", path, "--seeds", "0", "1", "2"]) == 2
    assert "holds a comparison of other data" in capsys.readouterr().err


@pytest.mark.slow
def test_two_parts_at_once_give_the_table_of_one_run(toy_comparison, tmp_path):
    few = {"methods": ["none", "label_smoothing"], "seeds": [0, 1], "max_steps": 2, "workers": 1}
    path = toy_comparison(**few)
    # Not in threads: two models that are loaded at once in one process may leave transformers without tied weights.
    command = [sys.executable, "-m", "hf_mixup.cli.main", "compare", path]
    parts = [subprocess.Popen([*command, "--part", f"{part}/2"], stdout=subprocess.PIPE, text=True) for part in (1, 2)]
    for number, part in enumerate(parts, 1):
        assert f"This was part {number} of 2" in part.communicate()[0] and part.returncode == 0
    assert len(finished(tmp_path / "out")) == 4
    # The same without parts, in this process.
    whole = read_comparison(path, changes={"output_dir": str(tmp_path / "whole")})
    threads_before = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    for cell in whole.cells():
        run_one(whole, cell, tmp_path / "whole/runs" / cell.name)
    torch.set_num_threads(threads_before)
    shutil.copy(tmp_path / "out/comparison.yaml", tmp_path / "whole")
    write_tables(tmp_path / "whole")
    tables = [(tmp_path / folder / "results.csv").read_text() for folder in ("out", "whole")]
    assert tables[0] == tables[1] and "nll" in tables[0]


def test_a_run_of_another_process_is_left_to_it(toy_comparison, tmp_path):
    comparison = read_comparison(toy_comparison(seeds=[0], max_steps=2))
    folder = tmp_path / "out/runs" / comparison.cells()[0].name
    folder.mkdir(parents=True)
    assert not runs_elsewhere(tmp_path / "out", comparison.cells()[0])
    with FileLock(folder / ".lock"):
        assert run_one(comparison, comparison.cells()[0], folder) == "is left to the process that is running it"
        assert runs_elsewhere(tmp_path / "out", comparison.cells()[0])
    assert [path.name for path in folder.iterdir()] == [".lock"]


def test_what_another_part_asked_for_meanwhile_stays_asked_for(toy_comparison, tmp_path):
    path = toy_comparison()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/.lock-1-of-2").touch()
    (tmp_path / "out/comparison.yaml.0123.part").touch()
    first = asked_of_all(read_comparison(path, changes={"seeds": [1]}), tmp_path / "out", "digest")
    (tmp_path / "out/comparison.yaml").write_text(yaml.safe_dump(first, sort_keys=False))
    second = asked_of_all(read_comparison(path, changes={"seeds": [0, 1]}), tmp_path / "out", "digest")
    assert second == first | {"seeds": [1, 0]}
    with pytest.raises(ValueError, match="holds a comparison of other data"):
        asked_of_all(read_comparison(path), tmp_path / "out", "another")


@pytest.mark.parametrize(
    ("lock", "words", "running"),
    [(".lock", [], "another comparison"), (".lock-2-of-3", ["--part", "2/3"], "part 2/3 of the comparison")],
)
def test_no_part_runs_twice_at_a_time(toy_comparison, tmp_path, capsys, lock, words, running):
    (tmp_path / "out").mkdir()
    path = toy_comparison(seeds=[0], max_steps=2)
    with FileLock(tmp_path / "out" / lock):
        assert main(["compare", path, *words]) == 2
    assert f"{running} is running in it" in capsys.readouterr().err


def test_the_gpus_of_a_process_are_those_it_may_see(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert visible_gpus() == ["2", "5"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert visible_gpus() == ["0", "1", "2"]
