"""Greedy and drawn tokens against the textbook's distribution."""

import numpy as np
import pytest
import torch

from pipeline.engine.sampling import Draw, pick

LOGITS = torch.log(torch.tensor([0.1, 0.5, 0.15, 0.25]))


def drawn(temperature: float, top_p: float, uniform: float) -> int:
    return int(pick(LOGITS[None], [Draw(temperature, top_p, uniform)])[0])


def test_greedy_takes_the_likeliest_and_its_log_probability() -> None:
    tokens, logprobs = pick(torch.stack([LOGITS, LOGITS.flip(0) + 3]), [None, None])
    assert tokens.tolist() == [1, 2]
    assert logprobs.tolist() == pytest.approx([np.log(0.5)] * 2, abs=1e-6)


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
    assert drawn(1.0, 1.0, 0.9999999) == 0


def test_log_probabilities_are_the_models_own() -> None:
    tokens, logprobs = pick(LOGITS[None], [Draw(3.0, 1.0, 0.999)])
    assert tokens.tolist() == [0] and logprobs.item() == pytest.approx(np.log(0.1), abs=1e-6)


def test_greedy_rows_are_left_alone_beside_drawn_ones() -> None:
    tokens, _ = pick(LOGITS.expand(3, -1), [None, Draw(1.0, 1.0, 0.99), None])
    assert tokens.tolist() == [1, 0, 1]
