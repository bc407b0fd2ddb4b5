"""How Sphinx makes a site of the Markdown files beside this one: `make docs`."""

import re
from pathlib import Path

from sphinx.util.logging import getLogger

import hf_mixup
from hf_mixup.config.mixup_config import MixupConfig
from hf_mixup.config.setting import help_by_group
from hf_mixup.config.unlabeled_config import UnlabeledConfig

ROOT = Path(__file__).parent.parent
LOG = getLogger(__name__)
REPOSITORY = "https://github.com/hf-mixup/hf_mixup/blob/main"

project, author = "hf_mixup", "the authors of hf_mixup"
version = release = hf_mixup.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_heading_anchors = 4
# The tables that are generated have no second level of headings.
suppress_warnings = ["myst.header"]

autodoc_member_order = "bysource"
autodoc_typehints = "none"
python_maximum_signature_line_length = 100
# The fields of a config stand in its docstring under questions.
napoleon_custom_sections = [
    (group.capitalize(), "params_style")
    for config in (MixupConfig(), UnlabeledConfig())
    for group, _ in help_by_group(config)
]

html_theme = "furo"
html_title = f"hf_mixup {release}"
html_static_path, html_css_files = ["_static"], ["site.css"]
html_copy_source = html_show_sourcelink = html_show_copyright = False


def link_to_repository(app, page, source):
    """A link out of docs/, `../examples/x.py`, is relative in the repository and goes to GitHub from the site."""
    outside = rf"\]\((?:\.\./){{{page.count('/') + 1}}}([^)#]+)"
    for target in re.findall(outside, source[0]):
        if not (ROOT / target).exists():
            LOG.warning("a link to %s, which does not exist", target, location=page)
    source[0] = re.sub(outside, rf"]({REPOSITORY}/\1", source[0])


def markdown_to_rst(app, what, name, obj, options, lines):
    """What docstrings have of Markdown: fenced code, names in backticks, and lists without an empty line before."""
    text = "\n".join(lines).replace(", **", r", \*\*")
    text = re.sub(r"^( *)```python\n(.*?)^ *```$", as_code_block, text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"(?<![`:\w])`([^`\n]+)`(?!`)", as_literal, text)
    lines[:] = re.sub(r"^( *)(?!- )(\S.*)\n(\1 +)- ", r"\1\2\n\n\3- ", text, flags=re.MULTILINE).split("\n")


def as_code_block(found):
    """A fenced block of Python as a directive."""
    return f"{found[1]}.. code-block:: python\n\n" + re.sub("^", "    ", found[2], flags=re.MULTILINE)


def as_literal(found):
    """What stands in backticks, as a link if it is a public class or function."""
    return f":py:obj:`~hf_mixup.{found[1]}`" if found[1] in hf_mixup.__all__ else f"``{found[1]}``"


def setup(app):
    """Sphinx calls this. Napoleon reads the docstrings after `markdown_to_rst`."""
    app.connect("source-read", link_to_repository)
    app.connect("autodoc-process-docstring", markdown_to_rst, priority=400)
