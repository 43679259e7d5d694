"""How shards are divided between stage processes."""

import numpy as np
import pytest

from paliscribe.batch.dataset import as_block, divide, shards_of


@pytest.mark.parametrize("workers", [1, 2, 7, 64])
@pytest.mark.parametrize("count", [1, 2, 5, 63, 1000, 100_003])
def test_every_shard_once_large_parts_first(count: int, workers: int) -> None:
    shards = np.arange(3, 3 + count)
    parts = list(divide(shards, workers))
    assert np.concatenate(parts).tolist() == shards.tolist()
    sizes = [len(part) for part in parts]
    assert sizes == sorted(sizes, reverse=True)
    assert workers == 1 or sizes[-1] == 1, "at the end no process has much more left than another"


def test_the_number_of_parts_hardly_grows() -> None:
    assert len(list(divide(np.arange(4_000_000), 64))) < 2 * 64 * 13
    assert len(list(divide(np.arange(4_000_000), 1))) == 1


@pytest.mark.parametrize("shards", [[0], [0, 1, 2], [5, 7, 8, 9, 40], list(range(0, 30, 2))])
def test_a_block_holds_ranges(shards: list[int]) -> None:
    block = as_block(np.array(shards))
    assert list(shards_of(block)) == shards
    assert as_block(np.arange(10**6)).num_rows == 1 and as_block(np.array([5, 7, 8, 9, 40])).num_rows == 3
