"""Files that are read and written: YAML of users, and results that appear whole. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml


class _UniqueKeys(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = set()
        for key, _ in node.value:
            if str(key.value) in names:
                raise ValueError(f"{key.value!r} is given twice, again in line {key.start_mark.line + 1}.")
            names.add(str(key.value))
        return super().construct_mapping(node, deep)


def load_yaml(text: str) -> Any:
    """What YAML text says. Raises `ValueError` if it is not YAML, or a mapping holds a key twice."""
    try:
        return yaml.load(text, _UniqueKeys)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"not valid YAML: {error}") from error


def read_mapping(path: str | Path, of_what: str) -> dict[str, Any]:
    """The mapping in a file. Raises `ValueError` if it is not YAML, or not a mapping of `of_what`."""
    try:
        values = load_yaml(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(values, Mapping):
        raise ValueError(f"{path}: expected a mapping of {of_what}, got {type(values).__name__}.")
    return {str(name): value for name, value in values.items()}


@contextmanager
def write_whole(path: str | Path) -> Iterator[Path]:
    """Make a file appear whole or not at all.

    Args:
        path (`str` or `Path`): the file; one that is there is replaced. Its folder is there.

    Yields:
        `Path`: the file to write in the block, which takes the place of `path` after it, and is deleted on an error.
    """
    part = Path(path).with_name(f"{Path(path).name}.{uuid4().hex}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
