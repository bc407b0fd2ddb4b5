"""The code in the README runs."""

import re
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import Trainer

from hf_mixup.config.recipes import resolve_config
from tests.toy_runs import arguments, collate, examples, steady_bert

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def code_blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_accelerate_loop_trains():
    [loop] = [block for block in code_blocks("python") if "Accelerator" in block]
    model = steady_bert()
    before = {name: value.clone() for name, value in model.named_parameters()}
    names = {"model": model, "loader": torch.utils.data.DataLoader(examples(), batch_size=8, collate_fn=collate)}
    exec(loop, names)
    assert names["loss"].isfinite()
    assert any(not torch.equal(before[name], value.cpu()) for name, value in model.named_parameters())


def test_the_ways_to_say_mixup_are_configs(tmp_path, monkeypatch):
    [ways] = [block for block in code_blocks("python") if "MixupTrainer(..., mixup=" in block]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_mixup.yaml").write_text("alpha: 0.2")
    names = {"MixupTrainer": lambda *args, mixup: seen.append(resolve_config(mixup))}
    seen = []
    exec(ways.replace("import MixupConfig, MixupTrainer", "import MixupConfig"), names)
    assert len(seen) == 6 and seen[-1] is None


@pytest.mark.parametrize(("library", "lines"), [("numpy", 12), ("torch", 12)])
def test_mixup_in_twelve_lines(library, lines):
    [code] = [block for block in code_blocks("python") if "x_mixed" in block and f"import {library}" in block]
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
    [code] = [block for block in code_blocks("python") if "MixupCollator(" in block]
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


def test_every_recipe_named_is_there():
    for name in re.findall(r"`(\w+_mix\w*|manifold|tmix)`", README):
        if name not in ("hf_mixup",):
            assert resolve_config(name)
