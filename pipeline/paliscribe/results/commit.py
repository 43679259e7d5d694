"""Commit of a shard: a data file, then a marker that can be written only once.

An attempt writes its records to a file named by shard and attempt, then creates the shard's marker by a conditional
put. The first marker wins. Nothing is renamed, and a file that a marker may name is never deleted. State files are
Arrow, not Parquet, so that `OUTPUT/**/*.parquet` matches published files only: DuckDB and polars do not skip folders
whose name starts with an underscore.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from paliscribe.errors import RunError
from paliscribe.results import state
from paliscribe.storage import Store
from paliscribe.storage.arrow import decode, encode

FIRST_RUN = "_run"


@dataclass(frozen=True, slots=True)
class Marker:
    """Marker of a committed shard: its file and the counts of its records."""

    shard: int
    file: str  # key of the shard file
    sha256: str
    size: int  # bytes
    rows: int
    records: int
    statuses: dict[str, int]
    error_kinds: dict[str, int]
    tokens: int
    replicas: Sequence[str] = ()  # ids of those that answered; empty in markers of older versions

    def as_json(self) -> bytes:
        """Canonical JSON: equal markers give equal bytes."""
        return state.encode(asdict(self))

    @classmethod
    def from_json(cls, body: bytes | str, place: tuple[str, str] = ("", "")) -> "Marker":
        """Parse a marker. `place`: its store and key. Raises Damaged."""
        return state.decode(*place, body, state.typed(cls))


def marker_key(shard: int, base: str = FIRST_RUN) -> str:
    """Key of a shard's marker."""
    return f"{base}/done/shard-{shard:05d}.json"


def write_shard(
    store: Store, shard: int, attempt: str, table: pa.Table, base: str = FIRST_RUN, replicas: Sequence[str] = ()
) -> Marker:
    """Write an attempt's records. They do not count until `commit`. `replicas`: ids of those that answered."""
    body = encode(table)
    key = f"{base}/shards/shard-{shard:05d}.{attempt}.arrow"
    store.put(key, body)
    return described(shard, key, body, table, replicas)


def described(shard: int, key: str, body: bytes, table: pa.Table, replicas: Sequence[str] = ()) -> Marker:
    """The marker of a shard whose records are in this file."""
    return Marker(
        shard=shard,
        file=key,
        sha256=hashlib.sha256(body).hexdigest(),
        size=len(body),
        rows=len(set(table["row"].to_pylist())),
        records=table.num_rows,
        statuses=dict(sorted(Counter(table["status"].to_pylist()).items())),
        error_kinds=dict(sorted(Counter(k for k in table["error_kind"].to_pylist() if k).items())),
        tokens=sum(n or 0 for n in table["tokens"].to_pylist()),
        replicas=list(replicas),
    )


def commit(store: Store, marker: Marker, base: str = FIRST_RUN) -> Marker:
    """Commit an attempt. Returns the effective marker: this one, or that of an earlier attempt."""
    if store.put_if_absent(marker_key(marker.shard, base), marker.as_json()):
        return marker
    return read_marker(store, marker.shard, base)


def read_marker(store: Store, shard: int, base: str = FIRST_RUN) -> Marker:
    """The marker of a committed shard. Raises Damaged."""
    key = marker_key(shard, base)
    marker = Marker.from_json(store.get(key), (store.uri, key))
    if marker.shard != shard:
        raise state.Damaged(store.uri, key, f"it is the marker of shard {marker.shard}")
    return marker


def find_marker(store: Store, shard: int, base: str = FIRST_RUN) -> Marker | None:
    """The marker of a shard, or None if it is not committed."""
    return read_marker(store, shard, base) if store.exists(marker_key(shard, base)) else None


def committed(store: Store, base: str = FIRST_RUN) -> Iterator[int]:
    """The committed shards, in no order, from one listing."""
    start = f"{base}/done/shard-"
    for item in store.list(start):
        yield int(item.key.removeprefix(start).removesuffix(".json"))


def done(store: Store, shards: int, base: str = FIRST_RUN) -> npt.NDArray[np.bool_]:
    """[shards]: whether each shard is committed."""
    found = np.zeros(shards, np.bool_)
    for shard in committed(store, base):
        found[shard] = True
    return found


def read_committed(store: Store, marker: Marker) -> pa.Table:
    """Records of a committed shard. Raises RunError if the file's hash differs from the marker's."""
    body = store.get(marker.file)
    if hashlib.sha256(body).hexdigest() != marker.sha256:
        raise RunError(
            f"{store.uri}/{marker.file} does not match its marker: the output was modified or is corrupt; "
            f"`paliscribe verify {store.uri}` says what can be repaired"
        )
    return decode(body)


def add(counts: Counter[str], more: dict[str, Any]) -> None:
    """Add a marker's counts to a total."""
    for key, value in more.items():
        counts[key] += value
