"""How shards are divided between stage processes, and begun again when Ray gives up a dataset."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from ray.exceptions import ActorUnavailableError

from paliscribe.batch import dataset
from paliscribe.batch.dataset import MOST_LOSSES, annotate_shards, as_block, divide, shards_of
from paliscribe.batch.progress import Progress
from paliscribe.errors import TemporaryError
from paliscribe.results import Marker


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


def rounds_of(monkeypatch: pytest.MonkeyPatch, commits: int) -> tuple[list[int], list[list[int]]]:
    """The shards that are committed, and those of each dataset, if Ray's error follows so many commits of one.

    Ray raises the error if a node is lost in a certain moment, which cannot be had at will.
    """
    tried: list[list[int]] = []
    done: list[int] = []

    def one_round(plan: Any, pool: Any, shards: npt.NDArray[np.int64], *others: Any) -> Iterator[Marker]:
        tried.append(shards.tolist())
        for number, shard in enumerate(tried[-1]):
            if number == commits:
                raise ActorUnavailableError("the node does not answer", None)
            yield Marker(shard, "", "", 0, 0, 0, {}, {}, 0)

    monkeypatch.setattr(dataset, "_round", one_round)
    nothing: Any = None
    markers = annotate_shards(nothing, nothing, np.array([3, 5, 6, 9, 12]), cpus=1, workers=1, progress=Progress())
    try:
        done += (marker.shard for marker in markers)
    except TemporaryError as error:
        assert "does not answer" in str(error) and "run the same command again" in str(error)
    return done, tried


def test_shards_that_are_lost_with_a_node_are_begun_by_others(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rounds_of(monkeypatch, 2) == ([3, 5, 6, 9, 12], [[3, 5, 6, 9, 12], [6, 9, 12], [12]])


def test_a_run_ends_if_no_node_commits_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rounds_of(monkeypatch, 0) == ([], [[3, 5, 6, 9, 12]] * MOST_LOSSES)
