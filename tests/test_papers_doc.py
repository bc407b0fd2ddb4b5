"""docs/papers.md has the paper of every recipe, and every paper that a docstring cites."""

import re
from pathlib import Path

import pytest

from hf_mixup.config.recipes import recipe_names
from tests import methods

ROOT = Path(__file__).parents[1]
# Recipes or what else, authors and title, year, where.
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs/papers.md").read_text(encoding="utf-8").splitlines()
    if re.match(r"\| (?!---|recipe |what )", line)
]
CITED = re.compile(r"([A-Z][a-zé]+)(?: et al\.| and [A-Z][a-z]+)?(?:,? | \()((?:19|20)\d\d)\b")


def first_author(paper):
    return re.match(r"[\w'-]+", paper)[0]


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_has_its_paper(name):
    rows = [row for row in ROWS if f"`{name}`" in row[0]]
    assert rows
    for _, paper, year, where in rows:
        if paper == "none":
            assert methods.METHODS[name].paper.startswith("none")
            continue
        title = re.sub(r" \(\w+\)$", "", paper.partition(": ")[2])
        # A recipe of another's paper says which: "as `tmix`".
        said = " ".join(method.paper for method in methods.METHODS.values() if first_author(paper) in method.paper)
        assert first_author(paper) in methods.METHODS[name].paper
        assert title.partition(":")[0] in said and year[:4] in said and where.startswith("[")


def test_every_paper_that_the_code_cites_is_there():
    text = " ".join(" ".join(path.read_text(encoding="utf-8").split()) for path in (ROOT / "hf_mixup").rglob("*.py"))
    cited = set(CITED.findall(text))
    known = {(first_author(row[1]), year) for row in ROWS for year in re.findall(r"\d{4}", row[2])}
    assert len(cited) > 15 and cited <= known
