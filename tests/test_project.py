"""What stands in more than one file of the project says the same in each."""

import re
from pathlib import Path

import pytest
import yaml

from hf_mixup import __version__

ROOT = Path(__file__).parents[1]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
PAGES = ["CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "docs/development.md"]
PINS = dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), flags=re.MULTILINE))


def read_yaml(name):
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_pre_commit_lints_as_make_test_does():
    hooks = {
        hook["id"]: (repo, hook) for repo in read_yaml(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]
    }
    assert list(hooks) == ["ruff-check", "ruff-format", "mypy"]
    assert hooks["ruff-check"][0]["rev"] == "v" + PINS["ruff"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "TEST := .venv/test\n" in makefile and "$(TEST)/bin/mypy\n" in makefile and "mypy" in PINS
    assert hooks["mypy"][1]["entry"] == ".venv/test/bin/mypy"


def test_the_version_is_one():
    citation = read_yaml("CITATION.cff")
    versions = re.findall(r"^## (\S+) - (\d{4}-\d\d-\d\d)$", CHANGELOG, flags=re.MULTILINE)
    assert versions[0] == (__version__, str(citation["date-released"]))
    assert citation["version"] == __version__
    assert citation["authors"] == [{"name": "The hf_mixup authors"}]


def test_the_changelog_keeps_its_form():
    headings = re.findall(r"^##+ .*", CHANGELOG, flags=re.MULTILINE)
    assert headings[0] == "## Unreleased"
    parts = [heading for heading in headings if heading.startswith("###")]
    assert set(parts) <= {f"### {name}" for name in ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")}


def test_the_project_is_at_one_address():
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("pyproject.toml", "CITATION.cff", *PAGES))
    text += "".join(form.read_text(encoding="utf-8") for form in FORMS)
    found = re.findall(r"https://github\.com/(hf[-_]mixup/[\w-]+)", text)
    assert len(found) > 8 and set(found) == {"hf-mixup/hf_mixup"}


@pytest.mark.parametrize("form", [form for form in FORMS if form.stem != "config"], ids=lambda form: form.stem)
def test_an_issue_form_is_one_that_github_shows(form):
    content = yaml.safe_load(form.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= set(content)
    assert len({part["id"] for part in content["body"]}) == len(content["body"])
    for part in content["body"]:
        assert part["type"] in {"input", "textarea", "checkboxes"} and part["attributes"]["label"]
        assert all(option["label"] for option in part["attributes"].get("options", []))


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", text):
        assert (ROOT / page).parent.joinpath(link).exists(), link
