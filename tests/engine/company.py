"""Answers alone and in company; as a script, in a process of its own, under whatever settings it is given.

    python company.py small|thousand PRECISION:THREADS ...

prints a line of JSON for each precision, number of threads and model.
"""

import json
import random
import sys
from functools import cache

import torch
from models import demo_model, engine, random_model, requests, scene_requests

from paliscribe.config import ModelSpec
from paliscribe.model import paligemma as model_module
from paliscribe.model.paligemma import DTYPES, Model
from paliscribe.records import ONLINE, Prediction, Request

FAMILIES = ("demo", "gemma", "gemma2")
THOUSAND = {"demo": 334, "gemma": 333, "gemma2": 333}
HALF = {"demo": 40, "gemma": 480, "gemma2": 480}  # in bfloat16 and float16, which most CPUs emulate


@cache
def made(family: str, precision: str, layers: int = 4) -> Model:
    exact = precision == "float32"
    if family == "demo":
        return demo_model() if exact else model_module.load(ModelSpec(precision=precision), device="cpu")
    return random_model(7, family, DTYPES[precision], layers)[0]


def load(family: str, count: int, max_tokens: int = 24) -> list[Request]:
    """Captions, text, questions and boxes; some of them drawn, some online."""
    wanted = scene_requests(count, max_tokens=2 * max_tokens) if family == "demo" else requests(count, max_tokens, 10)
    for number, request in enumerate(wanted):
        if number % 4 == 1:
            request.temperature, request.top_p, request.seed = 0.8, 0.9 + number % 2 / 10, number
        if number % 3 == 2:
            request.priority = ONLINE
    return wanted


def alone(model: Model, wanted: list[Request]) -> dict[str, Prediction]:
    """Each request's answer by itself; nothing is kept but what its slot happens to hold."""
    single, answers = engine(model, slots=1), []
    for request in wanted:
        single.forget_images()
        answers += single.run([request])
    return {answer.id: answer for answer in answers}


def together(model: Model, wanted: list[Request], slots: int, seed: int | None = None) -> dict[str, Prediction]:
    """All answers; with a seed the requests are shuffled and come a few at a time, while others are under way."""
    crowd = engine(model, slots=slots)
    if seed is None:
        return {answer.id: answer for answer in crowd.run(wanted)}
    chance, waiting, futures = random.Random(seed), list(wanted), []
    chance.shuffle(waiting)
    while waiting:
        count = chance.choice((1, 2, 5, 12))
        futures += crowd.submit(waiting[:count])
        del waiting[:count]
        for _ in range(chance.randrange(8)):
            crowd.step()
    while crowd.step():
        pass
    return {answer.id: answer for answer in (future.result() for future in futures)}


def differing(found: dict[str, Prediction], wanted: dict[str, Prediction]) -> list[str]:
    """Requests whose answers are not the same to the last bit."""
    assert found.keys() == wanted.keys() and all(answer.error_kind is None for answer in wanted.values())
    return [name for name, answer in wanted.items() if found[name] != answer]


def main(size: str, *wanted: str) -> None:
    for precision, threads in (each.split(":") for each in wanted):
        torch.set_num_threads(int(threads))
        if size == "small":
            say(precision, "gemma", random_model(7, "gemma", DTYPES[precision], num_hidden_layers=2)[0], 16, 5, (9,))
        else:
            exact = precision == "float32"
            for family, count in (THOUSAND if exact else HALF).items():
                say(precision, family, made(family, precision, 4 if exact else 2), count, 16, (1, 7, 40))


def say(precision: str, family: str, model: Model, count: int, max_tokens: int, slots: tuple[int, ...]) -> None:
    wanted = load(family, count, max_tokens)
    answers = alone(model, wanted)
    if errors := {answer.error_message for answer in answers.values() if answer.error_kind is not None}:
        sys.exit(f"requests have errors: {errors}")
    ways = [(number, number) for number in slots] + [(number, None) for number in slots if number > 1]
    found = [together(model, wanted, number, seed) for number, seed in ways]
    said = {
        "precision": precision,
        "family": family,
        "threads": torch.get_num_threads(),
        "requests": len(wanted),
        "answers": len({answer.tokens for answer in answers.values()}),
        "differing": sum(len(differing(each, answers)) for each in found),
        "shapes": model.shapes.describe(),
    }
    print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
