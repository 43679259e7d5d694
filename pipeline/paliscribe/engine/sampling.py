"""From logits to tokens, on the device: the likeliest one, or one drawn from the likely ones.

A row's token and score depend on nothing but the row. Kernels that add floats may split a row as the number of rows
asks, and round otherwise then; so a softmax is one kernel's, and what is added up after it are integers, whose sum is
the same in whatever order. What is done never depends on what was computed, so nobody waits for the device.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paliscribe.model.paligemma import to_device

UNIT = 2**53  # a probability of 1: what a float32 holds of one that is likelier than 2**-30 is kept to the last bit
PARTS, VALUES = (20, 10, 0), 2**10  # the lowest bits of the parts that a probability's 30 bits are looked at in
AT_ONCE = 2**22  # probabilities that are drawn from at a time: 16 rows of PaliGemma's vocabulary, in about 250 MB
LEAST_TEMPERATURE = 1e-30  # of a float32 that logits can still be divided by


@dataclass(frozen=True, slots=True)
class Draw:
    """How a row's token is drawn. `uniform`, in [0, 1), is all the chance there is: equal ones draw equal tokens."""

    temperature: float
    top_p: float
    uniform: float


@torch.inference_mode()
def pick(logits: Tensor, draws: Sequence[Draw | None]) -> tuple[Tensor, Tensor]:
    """Choose a token a row: [g, vocab] of any float -> int64 [g] and its natural log-probability, float32 [g].

    A row whose draw is None gets its likeliest token; one draw a row, or none at all. The log-probability is that of
    the model's own distribution, before temperature and top-p.
    """
    tokens = logits.argmax(-1)
    drawn = [(row, draw) for row, draw in enumerate(draws) if draw is not None]
    most = max(1, AT_ONCE // logits.shape[1])
    for part in (drawn[first : first + most] for first in range(0, len(drawn), most)):
        rows = to_device([row for row, _ in part], logits.device)
        tokens[rows] = _drawn(logits[rows], [draw for _, draw in part])
    logprobs = torch.log_softmax(logits, -1, dtype=torch.float32)
    return tokens, logprobs.gather(1, tokens[:, None])[:, 0]


def _drawn(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Invert the cumulative distribution over the tokens of the nucleus, in the order of the vocabulary.

    In the order of likelihood two tokens that are as good as equally likely would change places, and draws, with the
    last bit of a logit.
    """
    temperature, top_p, uniform = (
        to_device(values, logits.device, torch.float64)[:, None]
        for values in zip(*((d.temperature, d.top_p, d.uniform) for d in draws), strict=True)
    )
    below = logits.float() - logits.amax(-1, keepdim=True)  # the likeliest at 0, which no temperature makes infinite
    probabilities = torch.softmax(below / temperature.clamp(min=LEAST_TEMPERATURE).float(), dim=-1)
    weights = (probabilities * UNIT).long()
    if any(draw.top_p < 1 for draw in draws):
        weights = torch.where(_nucleus(probabilities, weights, top_p), weights, 0)
    reached = weights.cumsum(-1)
    total = reached[:, -1:]
    wanted = torch.minimum((uniform * total).long(), total - 1)
    return torch.searchsorted(reached, wanted, right=True)[:, 0].clamp(max=logits.shape[1] - 1)


def _nucleus(probabilities: Tensor, weights: Tensor, top_p: Tensor) -> Tensor:
    """Which tokens are of the nucleus: bool [g, vocab].

    It is the smallest set of tokens whose probability reaches top-p: Holtzman et al. 2020, "The Curious Case of Neural
    Text Degeneration". Of tokens that are equally likely the first ones belong to it, and at least the likeliest does.

    Nothing is sorted. Floats from 0 on are ordered as their bits are, so the least probability of the nucleus is found
    part by part of its bits: by how much weight all tokens have that share the parts before and are below in this one.
    """
    total = weights.sum(-1, keepdim=True)
    wanted = torch.where(top_p < 1, torch.minimum((top_p * UNIT).ceil().long(), total), total).clamp(min=1)
    spare = total - wanted  # what the least likely tokens may have together, so as to be left out
    bits = probabilities.view(torch.int32)
    least, candidates = torch.zeros_like(spare), weights
    for lowest in PARTS:
        part = (bits >> lowest & VALUES - 1).long()
        sums = weights.new_zeros(len(weights), VALUES).scatter_add_(1, part, candidates)
        reached = sums.cumsum(-1)
        value = torch.searchsorted(reached, spare, right=True).clamp(max=VALUES - 1)
        spare = spare - (reached - sums).gather(1, value)
        least = least * VALUES + value
        alike = bits >> lowest == least.int()
        candidates = torch.where(alike, weights, 0)
    rank = alike.cumsum(-1)
    from_here = (rank[:, -1:] - rank + 1) * weights  # what those as likely as this one have that are no earlier
    return (bits > least.int()) | (alike & (from_here > spare))
