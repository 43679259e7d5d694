"""Correctness checks of the engine on a device, which must pass before any rate is measured.

The demo model in float32 is compared with `model.generate` on the CPU. The full-size model in its own precision is
compared with the same weights in float32: first the logits of the first token from our prefill, then the engine's
answers to the same requests among others.

Where tokens differ, the reference's logits decide: the gap is how much higher they are for the reference's own token
than for ours, at the first different step. A gap within the tolerance is a near-tie: it is reported. Any other
difference ends the benchmark.
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

# For the demo's float32 logits, which reach 20. On a CPU ours differ from those of `generate` by at most 2e-5, since
# the order of sums differs; on a GPU it differs again. 1e-3 is fifty times that, and below all gaps between the two
# best tokens of the compared answers (at least 0.003).
NEAR_TIE = 1e-3
# First logits: root mean square of the difference to float32, relative to the standard deviation of the logits, in
# units of the precision's epsilon (bfloat16: 2**-7). Rounding errors grow with depth. At full depth (27 + 18 and
# 27 + 26 layers) and a hidden size of 256, a CPU gave 1.3 (Gemma) and 2.8 (Gemma 2) in bfloat16, 1.3 and 2.3 in
# float16, for our layers and transformers' alike. Hence 8, which is 6 % in bfloat16. A kernel that reads wrong memory,
# or wrong positions, give far more.
EPSILONS = 8.0
MIN_TOLERANCE = 1e-4  # for float32, where the reference rounds too; 1e-6 was measured


class WrongAnswer(Exception):
    """The engine's answers differ from the model's, so its rates would be meaningless."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The first step at which an answer differs from its reference. A token is None if that answer has ended."""

    request: str
    step: int
    ours: int | None
    theirs: int | None
    gap: float  # logit of the reference's token minus that of ours, by the reference


@dataclass(frozen=True, slots=True)
class Reference:
    """An answer of `model.generate`: tokens, including the end token, and logits [steps, vocab]."""

    tokens: list[int]
    logits: Tensor


def demo(device: str, count: int) -> dict[str, Any]:
    """Compare the demo model in float32 on the device with `generate` on the CPU. Raises WrongAnswer."""
    on_cpu = baseline.demo()
    on_device = model_module.load(ModelSpec(precision="float32"), device=device)
    wanted = baseline.requests("natural", count)
    answers = Engine(on_device).run(wanted)
    end = on_device.tokenizer.eos_token_id
    return compare_answers(wanted, answers, references(on_cpu, wanted, 1, end), NEAR_TIE, end)


def own_precision(subject: Subject, wanted: Sequence[Request], probes: int) -> dict[str, Any]:
    """Compare the model in its own precision with float32: first logits and answers of `wanted[:probes]`.

    Raises WrongAnswer.
    """
    some, tolerance = wanted[:probes], tolerance_of(subject.model.dtype)
    first = first_logits(subject, some)
    answers = Engine(subject.model).run(wanted)[:probes]
    release(subject.model.device.type)  # the reference needs the memory
    theirs = references(full_size.in_float32(subject), some, probes)
    expected = torch.stack([reference.logits[0] for reference in theirs])
    same_precision = torch.stack([reference.logits[0] for reference in references(subject, some, probes, limit=1)])
    spread = float(expected.std(-1).mean())
    figures: dict[str, Any] = {"probes": probes, "tolerance": tolerance, "spread": spread}
    figures["first_logits"] = logit_differences(first, expected)
    figures["first_logits_of_generate"] = logit_differences(same_precision, expected)
    if not figures["first_logits"]["relative"] <= tolerance:  # also true for NaN
        raise WrongAnswer(
            f"first logits are {figures['first_logits']['relative']:.2%} off those of float32, over {tolerance:.2%}"
        )
    # Twice: both logits may be off by the tolerance, in opposite directions.
    return figures | {"answers": compare_answers(some, answers, theirs, 2 * tolerance * spread)}


def tolerance_of(dtype: torch.dtype) -> float:
    """The tolerance of first logits against float32: see `EPSILONS`."""
    return max(EPSILONS * torch.finfo(dtype).eps, MIN_TOLERANCE)


def first_logits(subject: Subject, wanted: Sequence[Request]) -> Tensor:
    """Logits of the first token, from one prefill of all requests: float32 [n, vocab]."""
    model = subject.model
    prompts = [model.tokenize(request.prompt) for request in wanted]
    capacity = model.image_tokens + max(map(len, prompts)) + 64  # 64: room for padding
    slots = make_slots(model, len(wanted), capacity)
    features = model.embed_images(model.upload([request.pixels for request in wanted]))
    return model.prefill(features, prompts, slots, range(len(wanted))).float().clone()


def references(
    subject: Subject, wanted: Sequence[Request], size: int, end: int | None = None, limit: int | None = None
) -> list[Reference]:
    """Answers of `generate` with logits, in static batches of `size`; at most `limit` tokens each."""
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


def logit_differences(ours: Tensor, expected: Tensor) -> dict[str, float]:
    """Differences between logits [n, vocab]. `relative`: RMS over standard deviation, of the worst row."""
    difference = (ours - expected).abs()
    relative = difference.square().mean(-1).sqrt() / expected.std(-1)
    return {
        "relative": float(relative.max()),
        "most": float(difference.max()),
        "mean": float(difference.mean()),
        "same_token": float((ours.argmax(-1) == expected.argmax(-1)).float().mean()),
    }


def compare_answers(
    wanted: Sequence[Request],
    answers: Sequence[Prediction],
    references: Sequence[Reference],
    near_tie: float,
    end: int | None = None,
) -> dict[str, Any]:
    """The share of equal answers, and near-ties. Raises WrongAnswer for any other difference, and for errors."""
    for answer in answers:
        if answer.error_kind is not None:
            raise WrongAnswer(f"request {answer.id} was refused: {answer.error_kind}: {answer.error_message}")
    found = [
        difference
        for request, answer, reference in zip(wanted, answers, references, strict=True)
        if (difference := _difference(request, answer, reference, end)) is not None
    ]
    wrong = [difference for difference in found if not difference.gap <= near_tie]
    if wrong:
        first = wrong[0]
        raise WrongAnswer(
            f"{len(wrong)} of {len(wanted)} answers differ from model.generate. Request {first.request} has token "
            f"{first.ours} instead of {first.theirs} at step {first.step}, where the reference's own token is ahead by "
            f"{first.gap:.4g}; a near-tie is at most {near_tie:.4g}"
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
    """Whether answers depend on other requests, in the model's own precision on its device.

    Runs the first `probes` requests alone, then all together, then all in another order. Returns the shares of equal
    tokens, of bit-identical log-probabilities, and of answers equal in both.
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
            raise WrongAnswer(f"request {answer.id} was refused: {answer.error_kind}: {answer.error_message}")
    return {"alone": _equal_shares(alone, together), "shuffled": _equal_shares(shuffled, together)}


def _equal_shares(ours: dict[str, Prediction], others: dict[str, Prediction]) -> dict[str, float]:
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
