"""The closed sets of sizes in which products run, so that a request's numbers are its own to the last bit.

What a row of a product comes out as follows from the product's shape and from the library, not from its neighbours'
values. So rows of many requests go through products of a few sizes only, filled up with rows that nobody reads; and
which sizes give equal rows on this machine is found out by trying (`Probe`): random rows, in every size and in several
places. Sizes that differ from the chosen ones are left out. If no two agree one size is left, and if rows depend on
their place even there, nothing is shared: a request's rows then have products of their own.

A similar aim, for other models, by kernels of fixed shape: He et al. 2025, "Defeating Nondeterminism in LLM Inference".
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes that give equal rows, ascending. A call costs as much as `call` rows.

    `apart`: a row depends on its place, so each request begins a piece of its own.
    """

    sizes: tuple[int, ...]
    call: int = 0
    apart: bool = False

    def pieces(self, count: int) -> tuple[int, ...]:
        """Sizes whose sum is at least `count`, at the least cost; none for none."""
        return _cheapest(self.sizes, self.call, count)[1]

    def filled(self, count: int) -> int:
        """The rows that `count` take once filled up."""
        return sum(self.pieces(count))

    def totals(self, most: int) -> list[int]:
        """What 1, 2, ... `most` rows take once filled up, each number once."""
        return sorted({self.filled(count) for count in range(1, most + 1)})

    def words(self) -> str:
        """For the log and `doctor`."""
        first, *others = self.sizes
        said = f"{first} to {others[-1]} in {len(self.sizes)} sizes" if others else str(first)
        return said + (", each request apart" if self.apart else "")

    def places(self, counts: Iterable[int]) -> tuple[list[int], int]:
        """Where the rows of each request begin, and the rows of all, filled up."""
        starts, end = [], 0
        for count in counts:
            starts.append(end)
            end += self.filled(count) if self.apart else count
        return starts, self.filled(end)


@dataclass(frozen=True, slots=True)
class Shapes:
    """Of one model on one machine: sizes of tokens in prefills, of rows in decode steps, and of images."""

    tokens: Sizes
    rows: Sizes
    images: Sizes
    any_length: bool = True  # False: how far a step looks shows in its rows, so every step looks at whole slots

    def words(self) -> str:
        """For the log and `doctor`."""
        parts = (("tokens of a prefill", self.tokens), ("rows of a step", self.rows), ("images", self.images))
        said = "; ".join(f"{name}: {found.words()}" for name, found in parts)
        return said + ("" if self.any_length else "; steps look at whole slots")


@cache
def _cheapest(sizes: tuple[int, ...], call: int, count: int) -> tuple[int, tuple[int, ...]]:
    """The cost in rows, and the pieces: the smallest size that is enough, or the largest that is not and the rest."""
    if count <= 0:
        return 0, ()
    ways: list[tuple[int, tuple[int, ...]]] = []
    if enough := [size for size in sizes if size >= count]:
        ways.append((enough[0] + call, (enough[0],)))
    if below := [size for size in sizes if size < count]:
        cost, pieces = _cheapest(sizes, call, count - below[-1])
        ways.append((below[-1] + call + cost, (below[-1], *pieces)))
    return min(ways, key=lambda way: way[0])


Run = Callable[[Tensor], Sequence[Tensor]]  # rows [n, ...] -> what becomes of each: [n, ...], one or more


def choose(runs: Sequence[tuple[Run, Tensor]], sizes: Sequence[int], *, call: int, most: int) -> Sizes:
    """Of the sets of sizes in which all `runs` give equal rows, the cheapest for 1 to `most` rows.

    Each run has a pool of rows [n, ...] that go through it in every size, twice, in other places the second time.
    """
    groups: list[tuple[list[Tensor], list[int]]] = []
    for size in sorted(sizes):
        found = _results(runs, size)
        if found is None:
            continue
        alike = next((group for kept, group in groups if all(map(torch.equal, kept, found))), None)
        if alike is None:
            groups.append((found, [size]))
        else:
            alike.append(size)
    if not groups:
        return Sizes((min(sizes),), call, apart=True)
    sets = [Sizes(tuple(alike), call) for _, alike in groups]
    counts = range(1, most + 1, max(1, most // 64))
    return min(sets, key=lambda found: sum(_cheapest(found.sizes, call, count)[0] for count in counts))


def _results(runs: Sequence[tuple[Run, Tensor]], size: int) -> list[Tensor] | None:
    """What becomes of all pools' rows in products of this size; None if that depends on where they stand."""
    found: list[Tensor] = []
    for run, pool in runs:
        generator = torch.Generator().manual_seed(size)
        others = torch.randperm(len(pool), generator=generator).to(pool.device)
        first, second = _through(run, pool, size), _through(run, pool[others], size)
        count = len(pool)
        for one, other in zip(first, second, strict=True):
            again = one[
                torch.arange(count, len(one), device=pool.device) % count
            ]  # what the rows that fill up should be
            if size > 1 and not (torch.equal(one[others], other[:count]) and torch.equal(one[count:], again)):
                return None
            found.append(one[:count])
    return found


def _through(run: Run, pool: Tensor, size: int) -> list[Tensor]:
    """All rows of the pool, and the first ones again, through products of `size` rows: what becomes of each."""
    order = torch.arange(-(-len(pool) // size) * size, device=pool.device) % len(pool)
    done = [run(pool[part]) for part in torch.split(order, size)]
    return [torch.cat(parts) for parts in zip(*done, strict=True)]
