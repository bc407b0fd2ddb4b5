"""The code in the README runs."""

import re
from pathlib import Path

import pytest
import torch

from hf_mixup.resolve import resolve_config
from tests.toy_runs import collate, examples, steady_bert

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
    assert len(seen) == 5 and seen[-1] is None


@pytest.mark.parametrize("link", re.findall(r"\]\((?!https?:)([^)#]+)\)", README))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists()


def test_every_recipe_named_is_there():
    for name in re.findall(r"`(\w+_mix\w*|manifold|tmix)`", README):
        if name not in ("hf_mixup",):
            assert resolve_config(name)
