"""What the engine answers on a device, before its speed there is worth a figure.

The demo model in float32 is compared with `model.generate` on the CPU. The full-size model in its own precision is
compared with the same weights in float32, at two places: the logits of the first token as our prefill computes them,
and the answers that the engine gives to the same requests in the company of others.

Where tokens differ, the reference's own logits decide: how much higher does it put its own token than ours, at the
first step at which they differ? Within the tolerance that is a near-tie: it is reported, and the bench goes on.
Anything else ends it.
"""

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from bench import baseline, full_size
from bench.baseline import Subject
from bench.engine_parts import make_slots
from bench.machine import release
from paliscribe.config import ModelSpec
from paliscribe.engine import Engine
from paliscribe.model import paligemma as model_module
from paliscribe.records import Prediction, Request

# Of the demo's float32 logits, which reach 20. On a CPU ours differ from those of `generate` by at most 2e-5, for sums
# are taken in another order; a GPU takes yet another one. 1e-3 is fifty times that, and less than any of the gaps
# between the two best tokens of the answers that are compared (0.003 and more).
NEAR_TIE = 1e-3
# First logits: the root mean square of the difference to float32, in parts of the logits' own standard deviation, in
# units of the precision's epsilon (bfloat16: 2**-7). Rounding grows with depth. At full depth (27 + 18 and 27 + 26
# layers) and hidden sizes of 256 a CPU gave 1.3 (Gemma) and 2.8 (Gemma 2) in bfloat16, 1.3 and 2.3 in float16, ours and
# transformers' alike. So 8: 6 % in bfloat16. Kernels that read wrong memory, or positions that are off, are far above.
EPSILONS = 8.0
LEAST_TOLERANCE = 1e-4  # for float32, whose reference rounds as much: 1e-6 was measured there


class Wrong(Exception):
    """The engine's answers are not the model's: figures of its speed would be worthless."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Where an answer leaves its reference for the first time; tokens are None where an answer has ended too early."""

    request: str
    step: int
    ours: int | None
    theirs: int | None
    gap: float  # of the reference's logits: how much higher its own token is


@dataclass(frozen=True, slots=True)
class Reference:
    """What `model.generate` answers: its tokens, the end token included, and the logits [steps, vocab] of each."""

    tokens: list[int]
    logits: Tensor


def demo(device: str, count: int) -> dict[str, Any]:
    """The demo model in float32 on the device against `generate` on the CPU. Raises Wrong."""
    on_cpu = baseline.demo()
    on_device = model_module.load(ModelSpec(precision="float32"), device=device)
    wanted = baseline.requests("natural", count)
    answers = Engine(on_device).run(wanted)
    end = on_device.tokenizer.eos_token_id
    return judged(wanted, answers, references(on_cpu, wanted, 1, end), NEAR_TIE, end)


def own_precision(subject: Subject, wanted: Sequence[Request], probes: int) -> dict[str, Any]:
    """The model in its own precision against float32: first logits, and the answers of the first `probes` of `wanted`.

    Raises Wrong.
    """
    some, tolerance = wanted[:probes], tolerance_of(subject.model.dtype)
    first = first_logits(subject, some)
    answers = Engine(subject.model).run(wanted)[:probes]
    release(subject.model.device.type)  # before the reference needs the memory
    theirs = references(full_size.in_float32(subject), some, probes)
    expected = torch.stack([reference.logits[0] for reference in theirs])
    same_precision = torch.stack([reference.logits[0] for reference in references(subject, some, probes, limit=1)])
    spread = float(expected.std(-1).mean())
    figures: dict[str, Any] = {"probes": probes, "tolerance": tolerance, "spread": spread}
    figures["first_logits"] = apart(first, expected)
    figures["first_logits_of_generate"] = apart(same_precision, expected)
    if not figures["first_logits"]["relative"] <= tolerance:  # a NaN is wrong too
        raise Wrong(
            f"first logits are {figures['first_logits']['relative']:.2%} off those of float32, {tolerance:.2%} may be"
        )
    # Two logits, each off by as much as it may be, in opposite directions.
    return figures | {"answers": judged(some, answers, theirs, 2 * tolerance * spread)}


def tolerance_of(dtype: torch.dtype) -> float:
    """How far first logits may be from those of float32: see `EPSILONS`."""
    return max(EPSILONS * torch.finfo(dtype).eps, LEAST_TOLERANCE)


def first_logits(subject: Subject, wanted: Sequence[Request]) -> Tensor:
    """Of our prefill of all of them together, float32 [n, vocab]."""
    model = subject.model
    prompts = [model.tokenize(request.prompt) for request in wanted]
    capacity = model.image_tokens + max(map(len, prompts)) + 64  # padding of a prefill included
    slots = make_slots(model, len(wanted), capacity)
    features = model.embed_images(model.upload([request.pixels for request in wanted]))
    return model.prefill(features, prompts, slots, range(len(wanted))).float().clone()


def references(
    subject: Subject, wanted: Sequence[Request], size: int, end: int | None = None, limit: int | None = None
) -> list[Reference]:
    """What `generate` answers in batches of `size`, with its logits; at most `limit` tokens."""
    found = []
    for number, batch in enumerate(baseline.batches(subject, wanted, size)):
        network = subject.network
        inputs = {name: values.to(network.device) for name, values in batch.inputs.items()}
        inputs["pixel_values"] = inputs["pixel_values"].to(network.dtype)
        output = network.generate(
            **inputs,
            max_new_tokens=limit or batch.limit,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        logits = torch.stack(output.logits, dim=1).float()
        tokens = output.sequences[:, batch.inputs["input_ids"].shape[1] :].tolist()
        for row, request in enumerate(wanted[number * size : (number + 1) * size]):
            most = min(request.max_tokens, len(tokens[row]))
            if end in tokens[row]:
                most = min(most, tokens[row].index(end) + 1)
            found.append(Reference(tokens[row][:most], logits[row, :most]))
    return found


def apart(ours: Tensor, expected: Tensor) -> dict[str, float]:
    """How far logits [n, vocab] are from those that are expected. `relative`: of the worst row."""
    difference = (ours - expected).abs()
    relative = difference.square().mean(-1).sqrt() / expected.std(-1)
    return {
        "relative": float(relative.max()),
        "most": float(difference.max()),
        "mean": float(difference.mean()),
        "same_token": float((ours.argmax(-1) == expected.argmax(-1)).float().mean()),
    }


def judged(
    wanted: Sequence[Request],
    answers: Sequence[Prediction],
    references: Sequence[Reference],
    near_tie: float,
    end: int | None = None,
) -> dict[str, Any]:
    """The share of equal answers, and the near-ties among the others. Raises Wrong for all that is neither."""
    for answer in answers:
        if answer.error_kind is not None:
            raise Wrong(f"request {answer.id} was refused: {answer.error_kind}: {answer.error_message}")
    found = [
        difference
        for request, answer, reference in zip(wanted, answers, references, strict=True)
        if (difference := _difference(request, answer, reference, end)) is not None
    ]
    wrong = [difference for difference in found if not difference.gap <= near_tie]
    if wrong:
        first = wrong[0]
        raise Wrong(
            f"{len(wrong)} of {len(wanted)} answers are not those of model.generate. Request {first.request} has token "
            f"{first.ours} instead of {first.theirs} at step {first.step}, where the reference puts its own higher by "
            f"{first.gap:.4g}; up to {near_tie:.4g} would be a near-tie"
        )
    return {
        "requests": len(wanted),
        "same": 1 - len(found) / len(wanted),
        "near_tie": near_tie,
        "near_ties": [asdict(difference) for difference in found],
    }


def _difference(request: Request, answer: Prediction, reference: Reference, end: int | None) -> Difference | None:
    ours: list[int | None] = [*answer.tokens, *([end] if answer.finish_reason == "stop" else [])]
    theirs: list[int | None] = list(reference.tokens)
    longest = max(len(ours), len(theirs))
    ours += [None] * (longest - len(ours))
    theirs += [None] * (longest - len(theirs))
    step = next((step for step, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1]), None)
    if step is None:
        return None
    mine, other, gap = ours[step], theirs[step], math.inf
    if mine is not None and other is not None:
        gap = float(reference.logits[step, other] - reference.logits[step, mine])
    return Difference(request.id, step, mine, other, gap)


def invariance(subject: Subject, wanted: Sequence[Request], probes: int) -> dict[str, Any]:
    """Whether an answer depends on its company, in the model's own precision on its device.

    The first `probes` of the requests alone; all of them together; all of them in another order. Shares of equal
    tokens, of log-probabilities that are equal to the last bit, and of answers that are equal in all of both.
    """
    engine = Engine(subject.model)

    def answered(some: Sequence[Request]) -> dict[str, Prediction]:
        engine.forget_images()
        return {answer.id: answer for answer in engine.run(some)}

    together = answered(wanted)
    alone: dict[str, Prediction] = {}
    for request in wanted[:probes]:
        alone |= answered([request])
    other = list(wanted)
    random.Random(0).shuffle(other)
    shuffled = answered(other)
    for answer in (*together.values(), *alone.values(), *shuffled.values()):
        if answer.error_kind is not None:
            raise Wrong(f"request {answer.id} was refused: {answer.error_kind}: {answer.error_message}")
    return {"alone": _equal(alone, together), "shuffled": _equal(shuffled, together)}


def _equal(ours: dict[str, Prediction], others: dict[str, Prediction]) -> dict[str, float]:
    pairs = [(answer, others[name]) for name, answer in ours.items()]
    tokens = [a == b for one, two in pairs for a, b in itertools.zip_longest(one.tokens, two.tokens)]
    logprobs = [a == b for one, two in pairs for a, b in itertools.zip_longest(one.logprobs, two.logprobs)]
    whole = [one.tokens == two.tokens and one.logprobs == two.logprobs for one, two in pairs]
    return {
        "requests": len(pairs),
        "tokens": sum(tokens) / max(1, len(tokens)),
        "logprobs": sum(logprobs) / max(1, len(logprobs)),
        "answers": sum(whole) / max(1, len(whole)),
    }
