"""A sample of rows follows from the seed and the rows' numbers, however the manifest is cut."""

import itertools

import numpy as np
import pyarrow as pa
import pytest

from paliscribe.manifest.sampling import Sample, hashes, sampled


def taken(rows: int, cuts: list[int], sample: Sample) -> list[int]:
    edges = [0, *cuts, rows]
    whole = pa.table({"id": list(range(rows)), "text": [None] * (rows // 2) + ["x"] * (rows - rows // 2)})
    tables = (whole.slice(start, end - start) for start, end in itertools.pairwise(edges))
    found = list(sampled(tables, sample))
    assert len(found) <= 1
    return found[0]["id"].to_pylist() if found else []


@pytest.mark.parametrize("rows", [0, 1, 9, 10, 11, 1000])
def test_a_sample_is_the_same_however_the_rows_come(rows: int) -> None:
    sample = Sample(10, 3)
    first = taken(rows, [], sample)
    assert len(first) == min(rows, 10) and first == sorted(set(first))
    for cuts in ([rows // 2], [rows // 3, rows // 2], list(range(1, rows, 7))):
        assert taken(rows, cuts, sample) == first
    if rows == 1000:
        assert taken(rows, [], Sample(10, 4)) != first and first != list(range(10))


def test_samples_are_spread_evenly() -> None:
    counts = np.zeros(10, int)
    for seed in range(200):
        counts += np.bincount(np.array(taken(1000, [300], Sample(20, seed))) // 100, minlength=10)
    assert counts.sum() == 4000 and abs(counts - 400).max() < 100  # 5 standard deviations
    assert len(np.unique(np.concatenate([hashes(0, 10_000, seed) for seed in range(20)]))) == 200_000
