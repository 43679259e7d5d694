"""Closed sets of product sizes: batch invariance, so that a request's numbers do not depend on the batch, bit for bit.

A row's result depends on the product's shape and the library, not on the values of other rows. So rows of many requests
go through products of a few sizes only, padded with unused rows. `probe` finds the sizes that give equal rows on this
machine: random rows, in every size and at several positions. Sizes that disagree with the chosen set are left out. If
no two sizes agree, one is kept. If rows depend on their position even there, requests share no product.

The same goal by fixed-shape kernels, for other models: He et al. 2025, "Defeating Nondeterminism in LLM Inference".
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes that give equal rows, ascending. `call`: fixed cost of a call, in rows.

    `apart`: results depend on a row's position, so each request starts a piece of its own.
    """

    sizes: tuple[int, ...]
    call: int = 0
    apart: bool = False

    def pieces(self, count: int) -> tuple[int, ...]:
        """The cheapest sizes whose sum is at least `count`; empty for 0."""
        return _cheapest(self.sizes, self.call, count)[1]

    def padded(self, count: int) -> int:
        """`count` rows after padding."""
        return sum(self.pieces(count))

    def padded_counts(self, most: int) -> list[int]:
        """The distinct padded sizes of 1, 2, ... `most` rows, ascending."""
        return sorted({self.padded(count) for count in range(1, most + 1)})

    def describe(self) -> str:
        """A summary for the log and `doctor`."""
        first, *others = self.sizes
        said = f"{first} to {others[-1]} in {len(self.sizes)} sizes" if others else str(first)
        return said + (", each request apart" if self.apart else "")

    def layout(self, counts: Iterable[int]) -> tuple[list[int], int]:
        """First row of each request in a packed batch, and the total number of rows, padding included."""
        starts, end = [], 0
        for count in counts:
            starts.append(end)
            end += self.padded(count) if self.apart else count
        return starts, self.padded(end)


@dataclass(frozen=True, slots=True)
class Shapes:
    """Product sizes of one model on one machine: tokens of a prefill, rows of a decode step, images."""

    tokens: Sizes
    rows: Sizes
    images: Sizes
    any_length: bool = True  # False: results depend on the read length, so every step reads whole slots

    def describe(self) -> str:
        """A summary for the log and `doctor`."""
        parts = (("tokens of a prefill", self.tokens), ("rows of a step", self.rows), ("images", self.images))
        said = "; ".join(f"{name}: {found.describe()}" for name, found in parts)
        return said + ("" if self.any_length else "; steps read whole slots")


@cache
def _cheapest(sizes: tuple[int, ...], call: int, count: int) -> tuple[int, tuple[int, ...]]:
    """Cost in rows, and pieces: the smallest size that is enough, or the largest smaller one plus the rest."""
    if count <= 0:
        return 0, ()
    ways: list[tuple[int, tuple[int, ...]]] = []
    if enough := [size for size in sizes if size >= count]:
        ways.append((enough[0] + call, (enough[0],)))
    if below := [size for size in sizes if size < count]:
        cost, pieces = _cheapest(sizes, call, count - below[-1])
        ways.append((below[-1] + call + cost, (below[-1], *pieces)))
    return min(ways, key=lambda way: way[0])


Run = Callable[[Tensor], Sequence[Tensor]]  # rows [n, ...] -> one or more results [n, ...]


def choose(runs: Sequence[tuple[Run, Tensor]], sizes: Sequence[int], *, call: int, most: int) -> Sizes:
    """Of the sets of sizes in which all `runs` give equal rows, the cheapest for 1 to `most` rows.

    Each run has a pool of rows [n, ...], which goes through it in every size twice, the second time in another order.
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
    """Results of all pools in products of this size; None if they depend on a row's position."""
    found: list[Tensor] = []
    for run, pool in runs:
        generator = torch.Generator().manual_seed(size)
        others = torch.randperm(len(pool), generator=generator).to(pool.device)
        first, second = _through(run, pool, size), _through(run, pool[others], size)
        count = len(pool)
        for one, other in zip(first, second, strict=True):
            again = one[
                torch.arange(count, len(one), device=pool.device) % count
            ]  # expected results of the padding rows
            if size > 1 and not (torch.equal(one[others], other[:count]) and torch.equal(one[count:], again)):
                return None
            found.append(one[:count])
    return found


def _through(run: Run, pool: Tensor, size: int) -> list[Tensor]:
    """Run the pool through products of `size` rows, padded with its first rows; the results, concatenated."""
    order = torch.arange(-(-len(pool) // size) * size, device=pool.device) % len(pool)
    done = [run(pool[part]) for part in torch.split(order, size)]
    return [torch.cat(parts) for parts in zip(*done, strict=True)]
