"""Packages that come with an extra of `hf_mixup`, as its installed metadata list them. Imports no torch."""

from __future__ import annotations

import re
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires

# Imported by another name than that of the distribution.
IMPORT_NAMES = {"scikit-learn": "sklearn"}


def install_advice(error: ModuleNotFoundError) -> str | None:
    """What to install, for an import that failed.

    Args:
        error (`ModuleNotFoundError`): names the package that is missing.

    Returns:
        `str | None`: one line with the package and the extra that holds it; `None` for a package of no extra.
    """
    # A checkout that is not installed has no metadata.
    with suppress(PackageNotFoundError):
        for requirement in requires("hf_mixup") or ():
            found = re.match(r'([\w.-]+)[^;]*; extra == "(\w+)"', requirement)
            if found and IMPORT_NAMES.get(found[1], found[1].replace("-", "_")) == error.name:
                return f'{found[1]} is not installed: pip install "hf_mixup[{found[2]}]"'
    return None
