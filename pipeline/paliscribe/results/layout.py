"""Assignment of shards to parts, and of a part's files to the generations that publish them."""

import bisect
from dataclasses import dataclass

PART_RECORDS = 1_000_000  # about 128 MB of Parquet at some 130 bytes a record


@dataclass(frozen=True, slots=True)
class Layout:
    """Assignment of shards to parts. Depends on the run's settings, and on what was appended, only.

    `appended`: for each append its first shard, and how often the run had been retried before. An append begins a part,
    so that the parts before it stay as they are.
    """

    shards: int
    shard_rows: int
    rows: int
    tasks: tuple[str, ...]
    partition_by: tuple[str, ...]
    appended: tuple[tuple[int, int], ...] = ()

    @property
    def part_shards(self) -> int:
        """Number of consecutive shards in a part; the last part of the run or of an append may have fewer."""
        return max(1, PART_RECORDS // (self.shard_rows * len(self.tasks)))

    @property
    def parts(self) -> int:
        """Number of parts of the run."""
        return self._first_parts[-1]

    def shards_of(self, part: int) -> range:
        """The shards of a part."""
        segment = bisect.bisect_right(self._first_parts, part) - 1
        first = self._first_shards[segment] + (part - self._first_parts[segment]) * self.part_shards
        return range(first, min(self._first_shards[segment + 1], first + self.part_shards))

    def part_of(self, shard: int) -> int:
        """The part that contains a shard."""
        segment = bisect.bisect_right(self._first_shards[:-1], shard) - 1
        return self._first_parts[segment] + (shard - self._first_shards[segment]) // self.part_shards

    def parts_in(self, generation: int) -> int:
        """Number of parts in a generation: those that were there when it began. All are in generation 0."""
        appended_before = sum(retries < generation for _, retries in self.appended)
        return self._first_parts[1 + appended_before] if generation else self.parts

    def retried_generation(self, part: int, generation: int) -> int:
        """The generation whose dead letters of a part are those that the retry `generation` annotates."""
        segment = bisect.bisect_right(self._first_parts, part) - 1
        return retried_generation(generation, self.appended[segment - 1][1] if segment else 0)

    @property
    def _first_shards(self) -> tuple[int, ...]:
        """First shard of the run and of each append, then the number of shards."""
        return (0, *(shard for shard, _ in self.appended), self.shards)

    @property
    def _first_parts(self) -> tuple[int, ...]:
        """First part of the run and of each append, then the number of parts."""
        firsts = [0]
        for start, end in zip(self._first_shards, self._first_shards[1:], strict=False):
            firsts.append(firsts[-1] + -(-(end - start) // self.part_shards))
        return tuple(firsts)


def retried_generation(generation: int, retries: int) -> int:
    """The generation whose dead letters a retry annotates, for rows that were annotated after so many retries.

    The one before, but 0 for the first retry after an append: generation 0 annotates what is appended.
    """
    return generation - 1 if generation - 1 > retries else 0
