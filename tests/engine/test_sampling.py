"""Greedy and drawn tokens against the textbook's distribution, and a row's against the same row's in other company."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from paliscribe.engine import sampling
from paliscribe.engine.sampling import Draw, pick

LOGITS = torch.log(torch.tensor([0.1, 0.5, 0.15, 0.25]))
FLOATS = [torch.float32, torch.bfloat16, torch.float16]


def drawn(temperature: float, top_p: float, uniform: float, logits: Tensor = LOGITS) -> int:
    return int(pick(logits[None], [Draw(temperature, top_p, uniform)])[0])


def by_sorting(logits: Tensor, draw: Draw) -> int:
    """The textbook's way: sort, cut off, invert; in the integers that probabilities are."""
    below = logits.float() - logits.float().max()
    weights = [int(p * 2**53) for p in torch.softmax(below / draw.temperature, 0).tolist()]
    nucleus, reached = list[int](), 0
    for token in sorted(range(len(weights)), key=lambda token: (-weights[token], token)):
        if nucleus and draw.top_p < 1 and reached >= math.ceil(draw.top_p * 2**53):
            break
        nucleus.append(token)
        reached += weights[token]
    rest = int(draw.uniform * reached)
    for token in sorted(nucleus):
        rest -= weights[token]
        if rest < 0:
            return token
    raise AssertionError("the nucleus must be reached")


def mixed(rows: int) -> list[Draw | None]:
    """Draws of every kind, greedy ones among them."""
    made: list[Draw | None] = []
    for row in range(rows):
        draw = Draw((0.3, 1.0, 2.5)[row % 3], (1.0, 0.5, 0.9, 0.999999, 1e-9)[row % 5], (row * 0.381966) % 1)
        made.append(None if row % 7 == 3 else draw)
    return made


def test_greedy_takes_the_likeliest_and_its_log_probability() -> None:
    tokens, logprobs = pick(torch.stack([LOGITS, LOGITS.flip(0) + 3]), [None, None])
    assert tokens.tolist() == [1, 2]
    assert logprobs.tolist() == pytest.approx([np.log(0.5)] * 2, abs=1e-6)


@pytest.mark.parametrize("dtype", FLOATS)
def test_logits_are_taken_as_they_are(dtype: torch.dtype) -> None:
    """The first of the likeliest tokens, and float32 scores, whatever the logits are."""
    logits = (torch.randn(9, 3001, generator=torch.Generator().manual_seed(1)) * 4).to(dtype)
    logits[2, [5, 70, 2000]] = logits.max() + 1
    tokens, logprobs = pick(logits, mixed(9))
    exact = torch.log_softmax(logits.double(), -1).gather(1, tokens[:, None])[:, 0]
    assert tokens[3] == logits[3].float().argmax() and pick(logits, [])[0][2] == 5
    assert logprobs.dtype == torch.float32 and logprobs.tolist() == pytest.approx(exact.tolist(), abs=2e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_distribution(temperature: float) -> None:
    steps = 2000
    uniforms = [(i + 0.5) / steps for i in range(steps)]
    tokens, _ = pick(LOGITS.expand(steps, -1), [Draw(temperature, 1.0, u) for u in uniforms])
    shares = np.bincount(tokens.numpy(), minlength=4) / steps
    assert shares == pytest.approx(torch.softmax(LOGITS / temperature, 0).numpy(), abs=2 / steps)


def test_the_nucleus_is_the_smallest_set_that_reaches_top_p() -> None:
    uniforms = [i / 50 for i in range(50)]
    assert {drawn(1.0, 0.5, u) for u in uniforms} == {1}
    assert {drawn(1.0, 0.51, u) for u in uniforms} == {1, 3}
    assert {drawn(1.0, 0.76, u) for u in uniforms} == {1, 3, 2}
    assert {drawn(1.0, 1e-9, u) for u in uniforms} == {1}, "never empty"
    assert [drawn(1.0, 1.0, u) for u in (0.0, 0.0999, 0.1001, 0.5999, 0.6001, 0.9999999)] == [0, 0, 1, 1, 2, 3]


@pytest.mark.parametrize("dtype", FLOATS)
def test_draws_are_those_of_sorting(dtype: torch.dtype) -> None:
    """With many tokens that are as likely as others, of which the first ones are of the nucleus."""
    generator = torch.Generator().manual_seed(2)
    for round_ in range(20):
        logits = torch.randn(40, 120, generator=generator) * 3
        logits = (logits.round(decimals=round_ % 3) - (round_ % 4) * 30 * (logits < 0)).to(dtype)
        draws = mixed(40)
        wanted = [
            int(row.argmax()) if draw is None else by_sorting(row, draw)
            for row, draw in zip(logits, draws, strict=True)
        ]
        assert pick(logits, draws)[0].tolist() == wanted


@pytest.mark.parametrize("at_once", [sampling.MAX_ELEMENTS, 3 * 70001])
@pytest.mark.parametrize("dtype", FLOATS)
def test_company_changes_no_bit(dtype: torch.dtype, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "MAX_ELEMENTS", at_once)
    logits = (torch.randn(12, 70001, generator=torch.Generator().manual_seed(3)) * 4).to(dtype)
    draws = mixed(12)
    threads = torch.get_num_threads()
    torch.set_num_threads(4)  # a sum of one row is then split among them
    try:
        together = pick(logits, draws)
        for rows in ([7], [11, 0], list(range(11, -1, -1)), [1, 1, 4, 8, 8]):
            tokens, logprobs = pick(logits[rows], [draws[row] for row in rows])
            assert torch.equal(tokens, together[0][rows]) and torch.equal(logprobs, together[1][rows])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_the_last_bit_of_a_logit_changes_no_draw(top_p: float) -> None:
    """Of two tokens that are as good as equally likely, whichever it is that is ahead."""
    one, other = torch.tensor([0.0, 2.0, 1.0, 2.0]), torch.tensor([0.0, 2.0, 1.0, 2.0])
    one[1] += 2.0**-22
    other[3] += 2.0**-22
    for uniform in (0.01, 0.2, 0.4, 0.7, 0.9):
        assert drawn(1.0, top_p, uniform, one) == drawn(1.0, top_p, uniform, other)


def test_the_same_nucleus_gives_the_same_draws() -> None:
    """Whether top-p leaves all tokens in or there is none, and with or without others that have one."""
    for uniform in (i / 40 for i in range(40)):
        everything = drawn(1.0, 1.0, uniform)
        assert everything == drawn(1.0, 0.99, uniform)
        beside, _ = pick(LOGITS.expand(2, -1), [Draw(1.0, 1.0, uniform), Draw(1.0, 0.3, uniform)])
        assert beside.tolist() == [everything, 1]


class Operations(TorchDispatchMode):
    """Notes what is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Sequence[Any], args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_nothing_is_sorted_and_nobody_waits() -> None:
    """A vocabulary is too long for a sort in every step; and what is decided on the host waits for the device."""
    with Operations() as seen:
        pick(LOGITS.expand(4, -1), [Draw(1.0, 1.0, 0.3), Draw(1.0, 0.6, 0.3), None, Draw(0.1, 0.9, 0.3)])
    assert "argmax" in seen.names
    assert not seen.names & {"sort", "argsort", "topk", "_local_scalar_dense", "nonzero", "is_nonzero", "equal"}


def test_log_probabilities_are_the_models_own() -> None:
    tokens, logprobs = pick(LOGITS[None], [Draw(3.0, 1.0, 0.001)])
    assert tokens.tolist() == [0] and logprobs.item() == pytest.approx(np.log(0.1), abs=1e-6)


def test_greedy_rows_are_left_alone_beside_drawn_ones() -> None:
    tokens, _ = pick(LOGITS.expand(3, -1), [None, Draw(1.0, 1.0, 0.99), None])
    assert tokens.tolist() == [1, 3, 1]


def test_the_ends_of_what_is_allowed() -> None:
    assert drawn(1.0, 1.0, 0.0) == 0 and drawn(1.0, 1.0, 1 - 2**-53) == 3
    assert {drawn(temperature, 1.0, u) for temperature in (1e-300, 1e-9, 0.01) for u in (0.0, 0.5, 1 - 2**-53)} == {1}
    impossible = torch.tensor([-math.inf, 0.0, -math.inf, 0.0])
    assert [drawn(1.0, top_p, u, impossible) for top_p in (1.0, 0.7) for u in (0.0, 0.6)] == [1, 3] * 2


def test_numbers_that_are_none_stay_in_their_row() -> None:
    logits = LOGITS.repeat(3, 1)
    logits[1] = math.nan
    tokens, logprobs = pick(logits, [Draw(1.0, 0.9, 0.99), Draw(1.0, 0.9, 0.5), Draw(1.0, 1.0, 0.0)])
    assert [int(tokens[0]), int(tokens[2])] == [3, 0] and 0 <= tokens[1] < 4
    assert logprobs.isnan().tolist() == [False, True, False]
