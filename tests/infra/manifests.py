"""Helpers to read, modify and search the files of infra/."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from paliscribe import __version__

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
IMAGE = f"paliscribe:{__version__}"
MISSING = object()


def documents(path: Path) -> list[dict[str, Any]]:
    """The documents of a YAML file."""
    return list(yaml.safe_load_all(path.read_text()))


def changed(document: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """A copy with another value at a path such as `spec/containers/0/name`. MISSING removes it."""
    made = copy.deepcopy(document)
    *inner, last = [int(part) if part.isdigit() else part for part in place.split("/")]
    found: Any = made
    for part in inner:
        found = found[part]
    if value is MISSING:
        del found[last]
    else:
        found[last] = value
    return made


def values(node: Any, key: str) -> Iterator[Any]:
    """All values of a key, at any depth."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name == key:
                yield value
            yield from values(value, key)
    elif isinstance(node, list):
        for item in node:
            yield from values(item, key)
