"""A seeded sample of a manifest's rows, in one pass and in memory for the sample alone."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Places = npt.NDArray[np.uint64]
STEP, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # of SplitMix64


@dataclass(frozen=True, slots=True)
class Sample:
    """So many `rows`, or all if there are fewer. Which ones follows from the `seed` and the numbers of the rows."""

    rows: int
    seed: int = 0


def sampled(tables: Iterator[pa.Table], sample: Sample) -> Iterator[pa.Table]:
    """The sampled rows of consecutive tables as one table, in the order of the manifest: those with the least hashes.

    All tables are read. Nothing is yielded if there are no rows.
    """
    kept: list[pa.Table] = []
    places = np.zeros(0, np.uint64)  # [rows of `kept`]
    start = 0
    for table in tables:
        found = hashes(start, len(table), sample.seed)
        bound = places.max() if len(places) == sample.rows else np.iinfo(np.uint64).max
        wanted = found <= bound
        if wanted.any():
            kept.append(table.filter(pa.array(wanted)))
            places = np.concatenate([places, found[wanted]])
            if len(places) > sample.rows:
                least = np.sort(np.argpartition(places, sample.rows)[: sample.rows])  # in the order of the manifest
                kept = [pa.concat_tables(kept, promote_options="permissive").take(pa.array(least))]
                places = places[least]
        start += len(table)
    if kept:
        yield pa.concat_tables(kept, promote_options="permissive")


def hashes(start: int, rows: int, seed: int) -> Places:
    """Well mixed numbers of rows from `start` on, uint64 [rows], equal on all machines: SplitMix64 (Steele, 2014)."""
    first = (seed * SECOND) % 2**64
    mixed = (np.arange(start, start + rows, dtype=np.uint64) + np.uint64(1)) * np.uint64(STEP) + np.uint64(first)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(FIRST)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(SECOND)
    found: Places = mixed ^ (mixed >> np.uint64(31))
    return found
