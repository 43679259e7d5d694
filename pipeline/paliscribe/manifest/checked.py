"""A pass over a manifest that checks it as a whole: duplicate ids, content hash; and cuts it into files."""

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from paliscribe.errors import UsageError
from paliscribe.manifest.columns import ID
from paliscribe.manifest.formats import shown
from paliscribe.manifest.ids import Hashes, Ids, hashed
from paliscribe.manifest.kinds import WORDS
from paliscribe.manifest.messages import listed, quoted
from paliscribe.manifest.naming import Naming
from paliscribe.manifest.reading import Reading, Tell

FILE_ROWS, FILE_BYTES = 131_072, 32 << 20  # a file of the frozen manifest ends with the row that reaches one of them
KINDS = {"str": "s", "bool": "b", "int": "n", "float": "n"}  # what a digest tells apart
COLUMNS = "columns-"  # start of a digest; digests of older versions, of the rows as JSON, have none
MAX_NAMED = 5  # duplicate ids named in an error message

Count = Callable[[int], None]  # gets the number of rows read


@dataclass(frozen=True, slots=True)
class Scan:
    """The result of validating a manifest: its size, its content hash and its carried columns."""

    rows: int
    digest: str  # of the values in order; equal for equal values in another format
    schema: pa.Schema
    nested: tuple[str, ...]  # carried columns with lists or structs, which are JSON text


class Checked:
    """A pass over a manifest that finds duplicate ids, hashes the rows, and cuts them into files."""

    def __init__(
        self,
        source: str | Sequence[str],
        naming: Naming,
        types: Mapping[str, pa.DataType],
        progress: Count = lambda rows: None,
        tell: Tell = lambda words: None,
        limit: int | None = None,
    ) -> None:
        """`types`, `limit`: see `Reading`."""
        self._names, self._limit = (source, naming, types), limit
        self._reading, self._progress = Reading(*self._names, tell, limit), progress
        self._digest = hashlib.sha256()

    def files(self) -> Iterator[pa.Table]:
        """The rows, in tables of the size of a file. Raises UsageError and Mixed."""
        with tempfile.TemporaryDirectory(prefix="paliscribe-") as folder:
            ids = Ids(Path(folder))
            for file in in_files(self._counted(ids)):
                self._digest.update(digest(file))
                yield file
            if (twice := ids.duplicates()).size:
                raise self._duplicates(twice)

    @property
    def reading(self) -> Reading:
        """The pass so far."""
        return self._reading

    def result(self) -> Scan:
        """What was found, once all files are read."""
        types = self._reading.types
        self._digest.update(str([(name, str(kind)) for name, kind in sorted(types.items())]).encode())
        schema = pa.schema(sorted((types | self._reading.empty).items()))
        nested = tuple(sorted(self._reading.nested))
        return Scan(self._reading.rows, f"{COLUMNS}{self._digest.hexdigest()}", schema, nested)

    def _counted(self, ids: Ids) -> Iterator[pa.Table]:
        for table in self._reading.tables():
            ids.add(hashed(table[ID]))
            self._progress(self._reading.rows)
            yield table

    def _duplicates(self, twice: Hashes) -> UsageError:
        """An error with the ids of these hashes."""
        names: dict[str, None] = {}
        reading = Reading(*self._names, limit=self._limit)
        for table in reading.tables():
            names |= dict.fromkeys(table[ID].filter(pa.array(np.isin(hashed(table[ID]), twice))).to_pylist())
            if len(names) >= MAX_NAMED:
                break
        named = list(names)[:MAX_NAMED]
        naming = self._names[1]
        return UsageError(
            f"manifest {shown(reading.source)}: duplicate ids: {listed(named, twice.size)}. Give each row a unique id "
            f"in column {quoted(naming.id)}, or take the images' addresses for ids: --id-column {naming.image}"
        )


def in_files(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Rows in tables that end with the row that reaches `FILE_ROWS` or `FILE_BYTES`."""
    parts: list[pa.Table] = []
    rows, size = 0, 0  # of `parts`
    for table in tables:
        ends = np.cumsum(text_bytes(table))
        start = 0
        while start < len(table):
            before = ends[start - 1] if start else 0
            by_bytes = int(np.searchsorted(ends, before + FILE_BYTES - size)) + 1
            end = min(len(table), by_bytes, start + FILE_ROWS - rows)
            parts.append(table.slice(start, end - start))
            rows, size = rows + end - start, size + int(ends[end - 1] - before)
            if rows == FILE_ROWS or size >= FILE_BYTES:
                yield pa.concat_tables(parts, promote_options="permissive")
                parts, rows, size = [], 0, 0
            start = end
    if parts:
        yield pa.concat_tables(parts, promote_options="permissive")


def text_bytes(table: pa.Table) -> npt.NDArray[np.int64]:
    """Bytes of text in each row."""
    total = np.zeros(len(table), np.int64)
    for column in table.columns:
        if pa.types.is_string(column.type):
            total += pc.fill_null(pc.binary_length(column), 0).to_numpy()
    return total


def digest(table: pa.Table) -> bytes:
    """SHA-256 of the values of a table, by columns. Neither nulls alone, nor 1 or 1.0, make a difference."""
    whole = hashlib.sha256(str(len(table)).encode())
    for name in sorted(table.column_names):
        column = table[name].combine_chunks()
        valid = pc.is_valid(column).to_numpy(zero_copy_only=False)
        if not valid.any():
            continue
        whole.update(f"{len(name.encode())} {name} {KINDS[WORDS[column.type]]}".encode())
        whole.update(np.packbits(valid).tobytes())
        for values in _values(column.drop_null()):
            whole.update(values)
    return whole.digest()


def _values(column: pa.Array) -> Iterator[bytes | pa.Buffer]:
    """The values of a column without nulls; whole numbers alike in columns of integers and of floats."""
    if pa.types.is_string(column.type):
        yield pc.binary_length(column).to_numpy().tobytes()
        offsets = np.frombuffer(column.buffers()[1], np.int32)[column.offset : column.offset + len(column) + 1]
        if offsets[0] < offsets[-1]:
            yield column.buffers()[2][int(offsets[0]) : int(offsets[-1])]
    elif pa.types.is_boolean(column.type):
        yield np.packbits(column.to_numpy(zero_copy_only=False)).tobytes()
    elif pa.types.is_int64(column.type):
        yield column.to_numpy().tobytes()
    else:
        values = column.to_numpy()
        whole = np.abs(values) < 2.0**63
        whole[whole] = values[whole] == np.floor(values[whole])
        yield np.where(whole, values, 0).astype(np.int64).tobytes()
        if not whole.all():
            yield np.flatnonzero(~whole).tobytes()
            yield values[~whole].tobytes()
