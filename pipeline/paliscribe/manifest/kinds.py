"""The type of a carried column: what its values are, and the type that holds all of them.

A column's values are of some kinds: `str`, `bool`, `int`, `float`, and `nan` (not a number), `big` (a whole number that
a float does not hold) and `huge` (one beyond 64 bits). Whole numbers and floats together are floats. Where no type
holds all values they are text, which is known only at the end of a pass: then a second one reads them so.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

EXACT = 2**53  # whole numbers up to here are exact as floats
TYPES: dict[type, pa.DataType] = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
WORDS = {kind: python.__name__ for python, kind in TYPES.items()}

Kinds = frozenset[str]
T = TypeVar("T")


class Mixed(Exception):
    """A manifest must be read again, with these types for some of its carried columns."""

    def __init__(self, types: Mapping[str, pa.DataType]) -> None:
        super().__init__(types)
        self.types = types


def settled(attempt: Callable[[Mapping[str, pa.DataType]], T]) -> T:
    """The result of a pass over a manifest, which is repeated with the types that an attempt asks for."""
    types: dict[str, pa.DataType] = {}
    while True:
        try:
            return attempt(types)
        except Mixed as mixed:
            types |= mixed.types


def kind_of(value: bool | int | float | str) -> str:
    """The kind of one value."""
    if isinstance(value, (bool, str)):
        return type(value).__name__
    if isinstance(value, int):
        return "int" if abs(value) <= EXACT else "big" if -(2**63) <= value < 2**63 else "huge"
    return "nan" if value != value else "float"


def kind_of_column(column: pa.Array) -> str:
    """The kind of a column's values, of which there is at least one."""
    kind = column.type
    if pa.types.is_uint64(kind):
        return "huge"
    if pa.types.is_int64(kind):
        ends = pc.min_max(column)
        return "big" if max(-ends["min"].as_py(), ends["max"].as_py()) > EXACT else "int"
    if pa.types.is_float64(kind):
        return "nan" if pc.all(pc.is_nan(column)).as_py() else "float"
    return WORDS[kind]


def natural(kinds: Kinds) -> pa.DataType | None:
    """The type that holds values of these kinds as they are read; None if there is none."""
    if kinds <= {"int", "big"}:
        return pa.int64()
    if kinds <= {"int", "float", "nan"}:
        return pa.float64()
    return {Kinds({"str"}): pa.string(), Kinds({"bool"}): pa.bool_()}.get(kinds)


def common(kinds: Kinds) -> pa.DataType:
    """The type that holds values of these kinds once they are converted. NaN among other values is null."""
    return natural(kinds) or natural(kinds - {"nan"}) or pa.string()


def carried_type(kind: pa.DataType) -> pa.DataType:
    """The type in which a column of this type is carried that has no values."""
    if pa.types.is_dictionary(kind):
        return carried_type(kind.value_type)
    if pa.types.is_integer(kind):
        return pa.int64()
    if pa.types.is_floating(kind):
        return pa.float64()
    return kind if pa.types.is_boolean(kind) else pa.string()


def converted(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """A column in a type that `common` found; NaN is null. Raises an error of Arrow if a value has no place in it."""
    if pa.types.is_float64(column.type) and kind != column.type:
        column = pc.if_else(pc.is_nan(column), None, column)
    return column.cast(kind)


def array(values: Iterable[Any], kind: pa.DataType) -> pa.Array:
    """Single values as a column of this type, as `converted` has them. Raises ValueError."""
    if kind == pa.string():
        return pa.array(map(_spelled, values), kind)
    if kind == pa.float64():
        return pa.array([None if value is None else float(value) for value in values], kind)
    return pa.array([None if value != value else value for value in values], kind)


def _spelled(value: Any) -> str | None:
    """A value as text, as Arrow writes it."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float):
        return None if value != value else pa.scalar(value).cast(pa.string()).as_py()
    return str(value).lower()
