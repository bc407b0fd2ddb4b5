"""`hf-mixup env` says what is installed, and nothing of the folders of a machine."""

import platform
from importlib.metadata import distributions, version
from pathlib import Path

import pytest
import torch

from hf_mixup.cli import environment
from hf_mixup.cli.main import main

ALWAYS = ["hf_mixup", "torch", "transformers", "datasets", "accelerate", "tokenizers", "safetensors", "numpy"]


def test_env_prints_what_is_installed(capsys):
    assert main(["env"]) == 0
    printed = capsys.readouterr().out
    installed = {distribution.name.lower() for distribution in distributions()}
    others = [name for name in environment.OTHERS if name in installed]
    assert "peft" in others
    expected = [f"- {name}: {version(name)}" for name in [*ALWAYS, *others]]
    expected += [f"- Python: {platform.python_version()}", f"- platform: {platform.platform()}"]
    lines = printed.splitlines()
    assert lines[: len(expected)] == expected
    names = [line.partition(":")[0] for line in lines[len(expected) :]]
    assert names == ["- torch is built for", "- accelerator", "- attention kernels"]
    assert ("- accelerator: none" in lines) != torch.accelerator.is_available()
    assert lines[-1].startswith("- attention kernels: eager, sdpa")
    assert str(Path.home()) not in printed and platform.node() not in printed


@pytest.mark.parametrize(
    ("kind", "names", "line"),
    [
        ("cuda", ["A100", "A100", "H100"], "cuda, 2 x A100, 1 x H100"),
        ("xpu", ["Max 1550"], "xpu, 1 x Max 1550"),
        ("mps", ["?"], "mps, 1 x mps"),
    ],
)
def test_devices_are_counted_by_name(monkeypatch, kind, names, line):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device(kind))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: len(names))
    if kind != "mps":
        monkeypatch.setattr(torch.get_device_module(kind), "get_device_name", names.__getitem__)
    assert environment._accelerator() == line


def test_a_package_that_is_missing_is_not_named(monkeypatch, capsys):
    monkeypatch.setattr(environment, "OTHERS", ("no_such_package",))
    monkeypatch.setattr(environment, "PACKAGES", ("another_one",))
    main(["env"])
    printed = capsys.readouterr().out
    assert printed.startswith("- another_one: not installed\n- Python") and "no_such_package" not in printed
