"""The closed sets of sizes: how counts are put together from them, and which of them are chosen."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from paliscribe.model.shapes import Run, Shapes, Sizes, choose

Product = Callable[[Tensor], Tensor]


@pytest.mark.parametrize(
    ("call", "count", "wanted"),
    [
        (0, 0, ()),
        (0, 1, (4,)),
        (0, 4, (4,)),
        (0, 5, (4, 4)),  # 8 rows in two calls cost what one call of 8 costs: see below
        (1, 5, (8,)),
        (0, 9, (8, 4)),
        (0, 16, (16,)),
        (20, 9, (16,)),  # a call more costs more than the rows it saves
        (0, 33, (16, 16, 4)),
        (2, 40, (16, 16, 8)),
    ],
)
def test_pieces_are_the_cheapest_that_are_enough(call: int, count: int, wanted: tuple[int, ...]) -> None:
    found = Sizes((4, 8, 16), call)
    pieces = found.pieces(count)
    assert sum(pieces) == sum(wanted) == found.padded(count) >= count
    assert sum(pieces) + call * len(pieces) == sum(wanted) + call * len(wanted)
    if call:
        assert pieces == wanted


@pytest.mark.parametrize("call", [0, 3, 64])
@pytest.mark.parametrize("sizes", [(1,), (3,), (1, 4, 8), (5, 6, 21), tuple(range(4, 65, 4))])
def test_pieces_are_sizes_and_leave_no_piece_out(sizes: tuple[int, ...], call: int) -> None:
    found = Sizes(sizes, call)
    costs = []
    for count in range(1, 150):
        pieces = found.pieces(count)
        assert set(pieces) <= set(sizes)
        assert sum(pieces) >= count > sum(pieces[:-1]), "the last piece has rows of somebody too"
        costs.append(sum(pieces) + call * len(pieces))
    assert costs == sorted(costs), "more rows cost no less"


def test_totals_are_all_numbers_of_rows_that_occur() -> None:
    assert Sizes((4, 8, 16), 64).padded_counts(20) == [4, 8, 16, 20]
    assert Sizes((1,), 64).padded_counts(3) == [1, 2, 3]
    assert Sizes((64, 256), 0).padded_counts(1) == [64]
    some = Sizes((4, 12, 32), 5)
    assert some.padded_counts(100) == sorted({some.padded(count) for count in range(1, 101)})


def test_requests_lie_end_to_end_or_begin_pieces_of_their_own() -> None:
    counts = [70, 64, 3]
    assert Sizes((64, 128)).layout(counts) == ([0, 70, 134], 192)
    assert Sizes((64,), 32, apart=True).layout(counts) == ([0, 128, 192], 256)
    assert Sizes((64,)).layout([]) == ([], 0)


@pytest.mark.parametrize("counts", [[1], [64], [65, 1], [130, 64, 7, 70]])
def test_apart_no_piece_has_rows_of_two(counts: list[int]) -> None:
    sizes = Sizes((64,), 32, apart=True)
    starts, total = sizes.layout(counts)
    ends = [start + count for start, count in zip(starts, counts, strict=True)]
    assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))
    begins = list(itertools.accumulate(sizes.pieces(total), initial=0))
    assert set(starts) <= set(begins), "each begins where a piece begins"
    assert total == begins[-1] >= ends[-1]


def test_words_say_what_was_found() -> None:
    one, two, three = Sizes((64, 256)), Sizes((1, 8)), Sizes((1,), apart=True)
    shared, alone = Shapes(one, two, two).describe(), Shapes(one, two, three, any_length=False).describe()
    assert "64" in shared and "256" in shared and "apart" not in shared and "whole slots" not in shared
    assert "apart" in alone and "whole slots" in alone


def through(product: Product) -> Run:
    """A run of `choose`, and a note of the sizes it was tried in."""
    return lambda rows: [product(rows)]


def pool(count: int = 40) -> Tensor:
    return torch.arange(1.0, count + 1)[:, None] * torch.ones(3)


def by_size(group: Callable[[int], int]) -> Run:
    """Rows come out as those of the group that their product's size is in."""
    return through(lambda rows: rows + 100 * group(len(rows)))


def by_place(rows: Tensor) -> Tensor:
    """The second half of a product rounds otherwise than the first."""
    return rows + 0.5 * (torch.arange(len(rows)) >= len(rows) // 2)[:, None]


def test_all_sizes_are_kept_that_give_equal_rows() -> None:
    found = choose([(through(lambda rows: rows * 2), pool())], (8, 1, 4), call=3, most=40)
    assert found == Sizes((1, 4, 8), 3)


@pytest.mark.parametrize(
    ("small", "most", "wanted"),
    [
        ((1, 4), 4, (1, 4)),  # few rows: small sizes waste less
        ((1, 4), 400, (8, 16, 32)),  # many: large ones have fewer calls
        ((1,), 400, (4, 8, 16, 32)),
    ],
)
def test_of_sizes_that_differ_the_cheapest_are_kept(small: tuple[int, ...], most: int, wanted: tuple[int, ...]) -> None:
    run = by_size(lambda size: int(size in small))
    found = choose([(run, pool())], (1, 4, 8, 16, 32), call=4, most=most)
    assert found.sizes == wanted and not found.apart


def test_groups_need_not_be_neighbours() -> None:
    found = choose([(by_size(lambda size: size // 8 % 2), pool())], (8, 16, 24, 32, 40), call=8, most=40)
    assert found.sizes in {(8, 24, 40), (16, 32)} and not found.apart


def test_where_nothing_is_equal_one_size_is_left() -> None:
    found = choose([(by_size(lambda size: size), pool())], (1, 4, 8, 16), call=8, most=16)
    assert len(found.sizes) == 1 and not found.apart


def test_every_run_has_its_say() -> None:
    runs = [(by_size(lambda size: int(size <= 4)), pool()), (by_size(lambda size: int(size <= 16)), pool(9))]
    found = choose(runs, (1, 2, 4, 8, 16, 32, 64), call=64, most=16)
    assert found.sizes in {(1, 2, 4), (8, 16), (32, 64)}
    two_results: Run = lambda rows: [rows, rows + len(rows)]  # noqa: E731
    assert len(choose([(two_results, pool())], (2, 4), call=0, most=8).sizes) == 1


def test_a_size_in_which_the_place_matters_is_left_out() -> None:
    """16 and more round by place; in one row there is only one place."""
    run = through(lambda rows: by_place(rows) if len(rows) >= 16 else rows)
    assert choose([(run, pool())], (4, 8, 16, 32), call=64, most=400) == Sizes((4, 8), 64)
    found = choose([(through(by_place), pool())], (1, 4, 8), call=64, most=400)
    assert found.sizes == (1,), "a product of one row is its own whatever the place"


def test_where_the_place_always_matters_nothing_is_shared() -> None:
    assert choose([(through(by_place), pool())], (128, 64, 256), call=32, most=400) == Sizes((64,), 32, apart=True)


def test_the_place_of_one_row_is_enough() -> None:
    """A library's last rows, as those of a vector that is not filled: each place is tried."""

    def last(rows: Tensor) -> Tensor:
        rows = rows.clone()
        rows[-1] += 0.5
        return rows

    assert choose([(through(last), pool())], (8, 16), call=0, most=16).apart


def test_a_pool_smaller_than_a_size_fills_it() -> None:
    tried: list[int] = []

    def run(rows: Tensor) -> list[Tensor]:
        tried.append(len(rows))
        return [rows]

    assert choose([(run, pool(5))], (2, 64), call=0, most=64).sizes == (2, 64)
    assert set(tried) == {2, 64}, "products are of these sizes only"


def test_nothing_is_taken_for_equal_that_is_no_number() -> None:
    """Rows that came out as NaN say nothing about a size."""
    run = through(lambda rows: rows * float("nan"))
    assert choose([(run, pool())], (4, 8), call=0, most=8).apart
