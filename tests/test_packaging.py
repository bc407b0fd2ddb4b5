"""What is uploaded installs and runs outside of the repository, built from the tree or from the source distribution."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from hf_mixup import __version__
from hf_mixup.config.recipes import recipe_names

ROOT = Path(__file__).parents[1]
PARTS = ("hf_mixup", "configs", "tests", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md")

BY_NAME = """
import sys, tempfile
from pathlib import Path

import torch
from transformers import AutoModelForTokenClassification, TrainingArguments, ViTConfig
from transformers import ViTForImageClassification, set_seed

import hf_mixup
from hf_mixup import MixupTrainer
from hf_mixup.config.recipes import recipe_names
from hf_mixup.cli.inspect.toy import toy_model

assert Path(hf_mixup.__file__).is_relative_to(sys.argv[1]), hf_mixup.__file__
def vit():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    return ViTForImageClassification(ViTConfig(**sizes, image_size=16, patch_size=8, num_labels=3))


def tagger():
    names = {"id2label": dict(enumerate(["O", "B-x", "I-x"])), "label2id": {"O": 0, "B-x": 1, "I-x": 2}}
    return toy_model("bert", auto=AutoModelForTokenClassification, **names)


for name in recipe_names():
    set_seed(0)
    is_image = name in ("input_mixup", "cutmix")
    examples = {"pixel_values": torch.randn(8, 3, 16, 16)} if is_image else {"input_ids": torch.randint(5, 50, (8, 9))}
    rows = [
        {key: value[i] for key, value in examples.items()} | {"labels": i % 3, "group": i % 2} for i in range(8)
    ]
    options = {"max_steps": 1, "report_to": [], "save_strategy": "no", "use_cpu": True, "disable_tqdm": True}
    args = TrainingArguments(tempfile.mkdtemp(), label_names=["labels"], **options)
    mixup = {"recipe": "remix", "class_counts": [3, 3, 2]} if name == "remix" else name
    of_tokens = name in ("intra_lada", "seq_mix")
    if of_tokens:
        rows = [row | {"labels": [0, 1, 2, 0, 1, 2, 2, 0, 0]} for row in rows]
    model = vit() if is_image else tagger() if of_tokens else toy_model("bert")
    needs_more = name in ("few_labels", "ict", "mean_teacher", "mixtext", "softmatch")
    more = {"unlabeled_dataset": rows} if needs_more else {}
    trainer = MixupTrainer(model=model, args=args, train_dataset=rows, mixup=mixup, **more)
    trainer.train()
    print(name)
"""


def run(*command, **options):
    command = [sys.executable, *map(str, command)]
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def copy_of_tree(folder):
    """The parts that are packaged: setuptools builds inside of the folder that it reads."""
    folder.mkdir()
    for part in (ROOT / name for name in (*PARTS, "CITATION.cff")):
        if part.is_dir():
            shutil.copytree(part, folder / part.name, ignore=shutil.ignore_patterns("__pycache__", "recipe_files"))
        else:
            shutil.copy(part, folder)
    return folder


def files_of(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_what_is_uploaded_is_whole_and_trains_every_recipe_outside_of_the_repository(tmp_path):
    source, dist = copy_of_tree(tmp_path / "source"), tmp_path / "dist"
    # A wheel from the source distribution, and one from the tree.
    run("-m", "build", "--no-isolation", "--outdir", dist, source)
    run("-m", "build", "--no-isolation", "--wheel", "--outdir", tmp_path / "tree", source)
    run("-m", "twine", "--no-color", "check", "--strict", *dist.iterdir())

    (wheel,) = dist.glob("*.whl")
    files = files_of(wheel)
    assert files == files_of(tmp_path / "tree" / wheel.name)
    recipes = {f"hf_mixup/config/recipe_files/{name}.yaml" for name in recipe_names()}
    assert {name for name in files if name.endswith(".yaml")} == recipes and "hf_mixup/py.typed" in files
    assert {f"hf_mixup/{path.relative_to(ROOT / 'hf_mixup')}" for path in (ROOT / "hf_mixup").rglob("*.py")} <= {*files}

    (archive,) = dist.glob("*.tar.gz")
    with tarfile.open(archive) as sources:
        names = {name.partition("/")[2] for name in sources.getnames()}
    assert {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "pyproject.toml"} <= names
    assert {f"configs/recipes/{name}.yaml" for name in recipe_names()} <= names
    assert not any(name.startswith("tests") for name in names)

    site = tmp_path / "site"
    run("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel)
    options = {"cwd": tmp_path, "env": {"PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}}
    assert run(site / "bin/hf-mixup", "--version", **options) == f"hf-mixup {__version__}\n"
    trained = run("-c", BY_NAME, site, **options)
    assert [line for line in trained.split() if line in recipe_names()] == recipe_names()
