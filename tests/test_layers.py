"""The rooms of the package: each imports only from those before it, and no module is two of something."""

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import torch

from hf_mixup import Mixup
from hf_mixup.forward.anatomy.host import CHECKPOINTS_HOOKS
from tests.plain_config import plain_config
from tests.zoo import toy_batch, toy_model

PACKAGE = Path(__file__).parents[1] / "hf_mixup"
# In the order in which they may be imported.
LAYERS = (
    *("config", "plan", "forward.anatomy", "forward", "loss", "mixup", "training", "evaluation"),
    *("cli.terminal", "cli.mixup_help", "cli.demo", "cli.inspect", "cli.train", "cli.compare", "cli"),
)
LONGEST_MODULE, LONGEST_FUNCTION, MOST_ENTRIES = 300, 50, 8
MOST_MODULES_IN_A_STEP = 9
PATHS = {
    ".".join(("hf_mixup", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
    if "modules" not in path.parts
}
MODULES = sorted(set(PATHS) - {"hf_mixup"})


def imports_of(module):
    """The modules of the package that a module imports, also for types alone and inside of functions."""
    found = set()
    for node in ast.walk(ast.parse(PATHS[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            names = [(str(node.module), alias.name) for alias in node.names]
        else:
            continue
        for origin, name in names:
            if origin.partition(".")[0] == "hf_mixup":
                found.add(f"{origin}.{name}" if f"{origin}.{name}" in PATHS else origin)
    return found


def layer_of(module):
    """The number of the innermost layer that holds a module."""
    inside = module.removeprefix("hf_mixup.")
    holding = [layer for layer in LAYERS if inside == layer or inside.startswith(f"{layer}.")]
    return LAYERS.index(max(holding, key=len))


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_its_layer_and_those_before_it(module):
    wrong = [name for name in imports_of(module) if name == "hf_mixup" or layer_of(name) > layer_of(module)]
    assert not wrong, f"{module} imports {', '.join(wrong)}, which come after it"


def test_no_modules_import_each_other_in_a_circle():
    TopologicalSorter({module: imports_of(module) for module in MODULES}).prepare()


def test_the_top_level_holds_eight_rooms():
    entries = {path.name for path in PACKAGE.iterdir()} - {"__init__.py", "py.typed", "__pycache__", "recipe_files"}
    assert len(entries) <= MOST_ENTRIES, sorted(entries)


@pytest.mark.parametrize("module", MODULES)
def test_modules_and_functions_are_short(module):
    text = PATHS[module].read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST_MODULE
    functions = [
        node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    long = [node.name for node in functions if _lines(node) > LONGEST_FUNCTION]
    assert not long, f"{module}: {', '.join(long)}"


def _lines(function):
    """The lines of a function, less its docstring."""
    docstring = ast.get_docstring(function, clean=False)
    return function.end_lineno - function.lineno + 1 - (len(docstring.splitlines()) if docstring else 0)


def test_a_plain_step_passes_nine_modules():
    model, batch = toy_model("bert").train(), toy_batch()
    mixup, labels, passed = Mixup(model, plain_config(site="hidden")), torch.tensor([0, 1, 2, 0]), set()

    def step():
        plan = mixup.draw(batch, labels=labels)
        with mixup.apply(plan, batch):
            logits = model(**batch).logits
        mixup.loss(logits, labels, plan)

    def note(frame, event, argument):
        if event == "call" and frame.f_code.co_filename.startswith(str(PACKAGE)):
            passed.add(frame.f_code.co_filename)

    step()
    sys.setprofile(note)
    try:
        step()
    finally:
        sys.setprofile(None)
    # transformers < 5.23: host.py as well.
    assert len(passed) <= MOST_MODULES_IN_A_STEP + CHECKPOINTS_HOOKS, sorted(passed)
