"""Sampling on the device: logits to tokens, greedy or by temperature and top-p.

A row's token and log-probability depend on that row alone. Float sums may be split differently for different numbers
of rows and then round differently; so softmax is a single kernel, and sums after it are over integers, exact in any
order. No operation depends on a computed value, so the host never waits for the device.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paliscribe.model.paligemma import to_device

UNIT = 2**53  # a probability of 1; float32 probabilities above 2**-30 are represented exactly
RADIX_SHIFTS, RADIX = (20, 10, 0), 2**10  # radix selection over a probability's 30 bits, 10 at a time, from the highest
MAX_ELEMENTS = 2**22  # probabilities sampled from at a time: 16 rows of PaliGemma's vocabulary, about 250 MB
MIN_TEMPERATURE = 1e-30  # logits divided by it stay representable in float32


@dataclass(frozen=True, slots=True)
class Draw:
    """Sampling parameters of one row. `uniform`, in [0, 1), is the only randomness: equal values draw equal tokens."""

    temperature: float
    top_p: float
    uniform: float


@torch.inference_mode()
def pick(logits: Tensor, draws: Sequence[Draw | None]) -> tuple[Tensor, Tensor]:
    """Choose one token per row: logits [g, vocab] -> int64 [g] and its natural log-probability, float32 [g].

    A row whose draw is None is greedy. `draws` has one entry per row, or is empty. Log-probabilities are those of the
    model's own distribution, before temperature and top-p.
    """
    tokens = logits.argmax(-1)
    drawn = [(row, draw) for row, draw in enumerate(draws) if draw is not None]
    most = max(1, MAX_ELEMENTS // logits.shape[1])
    for part in (drawn[first : first + most] for first in range(0, len(drawn), most)):
        rows = to_device([row for row, _ in part], logits.device)
        tokens[rows] = _sample(logits[rows], [draw for _, draw in part])
    logprobs = torch.log_softmax(logits, -1, dtype=torch.float32)
    return tokens, logprobs.gather(1, tokens[:, None])[:, 0]


def _sample(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Sample by inverting the cumulative distribution of the nucleus, in vocabulary order.

    In order of probability, two nearly equal tokens would swap places, and draws, on a change of a logit's last bit.
    """
    temperature, top_p, uniform = (
        to_device(values, logits.device, torch.float64)[:, None]
        for values in zip(*((d.temperature, d.top_p, d.uniform) for d in draws), strict=True)
    )
    below = logits.float() - logits.amax(-1, keepdim=True)  # maximum at 0: no temperature overflows it
    probabilities = torch.softmax(below / temperature.clamp(min=MIN_TEMPERATURE).float(), dim=-1)
    weights = (probabilities * UNIT).long()
    if any(draw.top_p < 1 for draw in draws):
        weights = torch.where(_nucleus(probabilities, weights, top_p), weights, 0)
    reached = weights.cumsum(-1)
    total = reached[:, -1:]
    wanted = torch.minimum((uniform * total).long(), total - 1)
    return torch.searchsorted(reached, wanted, right=True)[:, 0].clamp(max=logits.shape[1] - 1)


def _nucleus(probabilities: Tensor, weights: Tensor, top_p: Tensor) -> Tensor:
    """Mask of the tokens in the nucleus: bool [g, vocab].

    The nucleus is the smallest set of tokens whose probability reaches top-p: Holtzman et al. 2020, "The Curious Case
    of Neural Text Degeneration". Ties are broken by vocabulary order. The likeliest token is always in it.

    Nothing is sorted. Non-negative floats order like their bit patterns, so the smallest probability of the nucleus is
    found by radix selection: for each group of bits, by the cumulative weight of the tokens that share the higher bits.
    """
    total = weights.sum(-1, keepdim=True)
    wanted = torch.where(top_p < 1, torch.minimum((top_p * UNIT).ceil().long(), total), total).clamp(min=1)
    spare = total - wanted  # total weight of the tokens left out, at most
    bits = probabilities.view(torch.int32)
    least, candidates = torch.zeros_like(spare), weights
    for lowest in RADIX_SHIFTS:
        part = (bits >> lowest & RADIX - 1).long()
        sums = weights.new_zeros(len(weights), RADIX).scatter_add_(1, part, candidates)
        reached = sums.cumsum(-1)
        value = torch.searchsorted(reached, spare, right=True).clamp(max=RADIX - 1)
        spare = spare - (reached - sums).gather(1, value)
        least = least * RADIX + value
        alike = bits >> lowest == least.int()
        candidates = torch.where(alike, weights, 0)
    rank = alike.cumsum(-1)
    from_here = (rank[:, -1:] - rank + 1) * weights  # weight of this token and of its ties later in the vocabulary
    return (bits > least.int()) | (alike & (from_here > spare))
