"""The site of the docs builds without a warning, has every public name, and needs no network."""

import re
from dataclasses import fields
from io import StringIO
from pathlib import Path

import pytest

import hf_mixup
import hf_mixup.evaluation
from hf_mixup import MixupConfig

DOCS = Path(__file__).parents[1] / "docs"
FROM_ELSEWHERE = re.compile(
    r'<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)="(?:https?:)?//|url\(["\']?(?:https?:)?//'
)


def test_the_site_is_whole(tmp_path):
    for package in ("sphinx", "furo", "myst_parser"):
        pytest.importorskip(package, reason=f"{package} is not installed: it is in the extra docs")
    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace, patch_docutils

    warnings = StringIO()
    with patch_docutils(str(DOCS)), docutils_namespace():
        app = Sphinx(DOCS, DOCS, tmp_path, tmp_path / "doctrees", "html", status=None, warning=warnings)
        app.build()
    assert warnings.getvalue() == ""

    documented = set(app.env.domains.python_domain.objects)
    for package in (hf_mixup, hf_mixup.evaluation):
        assert documented >= {f"{package.__name__}.{name}" for name in package.__all__}
    config = (tmp_path / "reference/config.html").read_text(encoding="utf-8")
    assert all(f"<strong>{field.name}</strong>" in config for field in fields(MixupConfig))
    assert "`" not in re.sub(r"<pre>.*?</pre>", "", config, flags=re.DOTALL)

    methods = (tmp_path / "methods.html").read_text(encoding="utf-8")
    assert 'href="https://github.com/hf-mixup/hf_mixup/blob/main/configs/recipes/tmix.yaml"' in methods
    for path in [*tmp_path.rglob("*.html"), *tmp_path.rglob("*.css")]:
        assert not FROM_ELSEWHERE.search(path.read_text(encoding="utf-8")), path.name
