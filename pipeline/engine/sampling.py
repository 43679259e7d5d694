"""From logits to tokens, on the device: the likeliest one, or one drawn from the likely ones."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.model import to_device


@dataclass(frozen=True, slots=True)
class Draw:
    """How a row's token is drawn. `uniform`, in [0, 1), is all the chance there is: equal ones draw equal tokens."""

    temperature: float
    top_p: float
    uniform: float


@torch.inference_mode()
def pick(logits: Tensor, draws: Sequence[Draw | None]) -> tuple[Tensor, Tensor]:
    """Choose a token a row: float32 [g, vocab] -> int64 [g] and its natural log-probability, float32 [g].

    A row whose draw is None gets its likeliest token; one draw a row, or none at all. The log-probability is that of
    the model's own distribution, before temperature and top-p.
    """
    tokens = logits.argmax(-1)
    drawn = [row for row, draw in enumerate(draws) if draw is not None]
    if drawn:
        rows = to_device(drawn, logits.device)
        tokens[rows] = _drawn(logits[rows], [draw for draw in draws if draw is not None])
    return tokens, logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(-1)


def _drawn(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Invert the cumulative distribution over the tokens of the nucleus, likeliest first.

    The nucleus is the smallest set of tokens whose probability reaches top-p: Holtzman et al. 2020,
    "The Curious Case of Neural Text Degeneration". It holds at least the likeliest token.
    """
    temperature, top_p, uniform = (
        to_device(values, logits.device, torch.float32)[:, None]
        for values in zip(*((d.temperature, d.top_p, d.uniform) for d in draws), strict=True)
    )
    probabilities, order = torch.softmax(logits / temperature, dim=-1).sort(dim=-1, descending=True, stable=True)
    reached = probabilities.cumsum(-1)
    inside = reached - probabilities < top_p
    inside[:, 0] = True
    total = torch.where(inside, reached, 0).amax(-1, keepdim=True)
    place = torch.searchsorted(reached, uniform * total, right=True)
    return order.gather(1, place.clamp(max=inside.sum(-1, keepdim=True) - 1))[:, 0]
