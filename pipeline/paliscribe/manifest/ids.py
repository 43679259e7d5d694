"""Finds ids in constant memory, by their hashes in temporary files: duplicates, and those that are known already."""

import hashlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

BUCKETS = 64  # temporary files
HASH = np.dtype([("high", "<u8"), ("low", "<u8")])
ENTRY = np.dtype([("hash", HASH), ("number", "<i8")])

Hashes = npt.NDArray[np.void]  # [n], of `HASH`


def hashed(ids: pa.Array) -> Hashes:
    """16-byte hashes of ids. The probability of a collision among 100 million ids is about 1e-23."""
    digest = hashlib.blake2b
    return np.frombuffer(b"".join(digest(name.encode(), digest_size=16).digest() for name in ids.to_pylist()), HASH)


class Ids:
    """Hashes of ids in files by a part of the hash, so that equal ones are in the same file.

    100 million ids take 1.6 GB of disk, and 25 MB of memory at a time.
    """

    def __init__(self, folder: Path) -> None:
        self._files = [(folder / f"{number:02d}").open("w+b") for number in range(BUCKETS)]

    def add(self, hashes: Hashes) -> None:
        """Add the hashes of further ids."""
        for file, chosen in zip(self._files, _by_bucket(hashes), strict=True):
            file.write(hashes[chosen].tobytes())

    def duplicates(self) -> Hashes:
        """Hashes that occur more than once, each of them once. Closes the files."""
        found = []
        for file in self._files:
            file.seek(0)
            hashes = np.frombuffer(file.read(), HASH)
            file.close()
            high = np.sort(hashes["high"])
            same = np.unique(high[1:][high[1:] == high[:-1]])
            if same.size:  # hardly ever of ids that differ, so sorting both halves is for these alone
                names, counts = np.unique(hashes[np.isin(hashes["high"], same)], return_counts=True)
                found.append(names[counts > 1])
        return np.concatenate(found) if found else np.empty(0, HASH)


class KnownIds:
    """Hashes of ids, each with a number, in sorted files by a part of the hash. Add all of them, then find some.

    100 million ids take 2.4 GB of disk; sorting them takes 80 MB of memory.
    """

    def __init__(self, folder: Path) -> None:
        self._paths = [folder / f"known-{number:02d}" for number in range(BUCKETS)]
        self._files = [path.open("w+b") for path in self._paths]
        self._sorted: list[tuple[npt.NDArray[Any], ...]] | None = None

    def add(self, hashes: Hashes, numbers: npt.NDArray[np.int64]) -> None:
        """Add the hashes of further ids, with their numbers, which are 0 or more."""
        entries = np.empty(len(hashes), ENTRY)
        entries["hash"], entries["number"] = hashes, numbers
        for file, chosen in zip(self._files, _by_bucket(hashes), strict=True):
            file.write(entries[chosen].tobytes())

    def find(self, hashes: Hashes) -> npt.NDArray[np.int64]:
        """[n]: the number of each id, -1 for one that was not added; of those added twice the number of one."""
        if self._sorted is None:
            self._sorted = [_sorted(file, path) for file, path in zip(self._files, self._paths, strict=True)]
        found = np.full(len(hashes), -1, np.int64)
        for (high, low, numbers), chosen in zip(self._sorted, _by_bucket(hashes), strict=True):
            wanted = hashes[chosen]
            at = np.searchsorted(high, wanted["high"])
            left = np.arange(len(wanted))
            while left.size:  # more than once only where different ids have an equal half
                left = left[at[left] < len(high)]
                left = left[high[at[left]] == wanted["high"][left]]
                equal = low[at[left]] == wanted["low"][left]
                found[chosen[left[equal]]] = numbers[at[left[equal]]]
                left = left[~equal]
                at[left] += 1
        return found


def _by_bucket(hashes: Hashes) -> list[npt.NDArray[np.int64]]:
    """For each bucket the places of its hashes, in order."""
    buckets = (hashes["high"] % BUCKETS).astype(np.uint8)
    order = np.argsort(buckets, kind="stable")
    ends = np.searchsorted(buckets[order], np.arange(BUCKETS), side="right")
    return np.split(order, ends[:-1])


def _sorted(file: BinaryIO, path: Path) -> tuple[npt.NDArray[Any], ...]:
    """The columns of a file of entries, sorted by hash and mapped from the file. Closes it."""
    file.seek(0)
    entries = np.frombuffer(file.read(), ENTRY)
    order = np.argsort(entries["hash"]["high"])
    columns = [entries["hash"]["high"][order], entries["hash"]["low"][order], entries["number"][order]]
    file.seek(0)
    for column in columns:
        file.write(column.tobytes())
    file.close()
    if not len(entries):
        return tuple(columns)
    mapped = np.memmap(path, np.uint64, "r", shape=(3, len(entries)))
    return mapped[0], mapped[1], mapped[2].view(np.int64)
