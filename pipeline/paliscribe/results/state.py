"""State files: JSON objects with a hash of their values, so that a damaged one is refused and not taken for another."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import ValidationError

from paliscribe.errors import RunError
from paliscribe.storage import StorageError, Store

HASH = "check"  # field with the hash of the others; absent from files of older versions
T = TypeVar("T")


class Damaged(RunError):
    """A file of a run is not what was written there. `key`: its key. `what`: what is wrong with it."""

    def __init__(self, uri: str, key: str, what: str) -> None:
        self.key, self.what = key, what
        advice = f"`paliscribe verify {uri}` says what is damaged and what can be repaired"
        if key == "_run/lease.json":
            advice = "if no driver works on this run, delete this file"
        super().__init__(f"{uri}/{key} is damaged ({what}); {advice}")


def encode(values: Mapping[str, Any], indent: int | None = None) -> bytes:
    """Values as a state file. Equal values give equal bytes."""
    whole = {**values, HASH: _hash(values)}
    return json.dumps(whole, indent=indent, sort_keys=indent is None).encode()


def decode(uri: str, key: str, body: bytes | str, build: Callable[[dict[str, Any]], T]) -> T:
    """What `build` makes of the values of a state file. Raises Damaged, also for what `build` cannot take."""
    try:
        values = json.loads(body)
        if not isinstance(values, dict):
            raise TypeError("no JSON object")
        if HASH in values and values.pop(HASH) != _hash(values):
            raise ValueError("its hash differs from its values")
        return build(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise Damaged(uri, key, f"{'.'.join(map(str, first['loc']))}: {first['msg']}"[:120]) from None
    except KeyError as error:
        raise Damaged(uri, key, f"{error} is missing"[:120]) from None
    except (ValueError, TypeError, AttributeError, IndexError, OverflowError, RecursionError) as error:
        raise Damaged(uri, key, str(error)[:120]) from None


def read(store: Store, key: str, build: Callable[[dict[str, Any]], T]) -> T | None:
    """What `build` makes of a state file; None if there is none. Raises Damaged and StorageError."""
    try:
        body = store.get(key)
    except StorageError as error:
        if error.kind == "missing":
            return None
        raise
    return decode(store.uri, key, body, build)


def typed(kind: type[T]) -> Callable[[dict[str, Any]], T]:
    """Builds a data class of values of the declared types, and of no others: raises ValueError and TypeError."""

    def build(values: dict[str, Any]) -> T:
        check_types(kind, values)
        return kind(**values)

    return build


def check_types(kind: type, values: Mapping[str, Any]) -> None:
    """Raise ValueError unless these fields of a data class or a TypedDict have the declared types."""
    declared = _hints(kind)
    for name, value in values.items():
        if name not in declared:
            raise ValueError(f"unknown field {name[:40]!r}")
        if not _fits(value, declared[name]):
            raise ValueError(f"{name} has a value of another type")


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a declared type. Not by Pydantic, which refuses text that holds a name's odd bytes."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any or kind is None:
        return kind is Any or value is None
    if origin in (Union, UnionType):
        return any(_fits(value, each) for each in inner)
    if origin in (list, tuple, Sequence):
        return isinstance(value, list | tuple) and all(_fits(item, inner[0]) for item in value)
    if origin in (dict, Mapping):
        return isinstance(value, dict) and all(_fits(item, inner[1]) for item in value.values())
    if kind in (int, float):
        return isinstance(value, int | float if kind is float else int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _hash(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(dict(values), sort_keys=True).encode()).hexdigest()[:16]
