"""Finds duplicate ids in constant memory, by their hashes in temporary files."""

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

BUCKETS = 64  # temporary files
HASH = np.dtype([("high", "<u8"), ("low", "<u8")])

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
        buckets = (hashes["high"] % BUCKETS).astype(np.uint8)
        order = np.argsort(buckets, kind="stable")
        ends = np.searchsorted(buckets[order], np.arange(BUCKETS), side="right")
        for file, found in zip(self._files, np.split(hashes[order], ends[:-1]), strict=True):
            file.write(found.tobytes())

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
