"""An answer as it grows: stop strings, pieces, ends, restarts. Tokens are characters here."""

from collections.abc import Sequence

import numpy as np
import pytest

from paliscribe.engine.generation import Generation
from paliscribe.engine.sampling import Draw
from paliscribe.records import Piece, Prediction, Request

END = frozenset({0})
HALF, REST = 1, 2  # two tokens that only together are a character


def detokenize(tokens: Sequence[int]) -> str:
    text, pending = "", False
    for token in tokens:
        if pending and token == REST:
            text, pending = text[:-1] + "é", False
            continue
        pending = token == HALF
        text += "\N{REPLACEMENT CHARACTER}" if token in (HALF, REST) else chr(token)
    return text


def generation(pieces: list[Piece] | None = None, **options: object) -> Generation:
    request = Request("a", "p", np.zeros((1, 1, 3), np.uint8), "k", 100, **options)  # type: ignore[arg-type]
    return Generation(0, request, [1], detokenize, None if pieces is None else pieces.append)


def say(running: Generation, text: str | list[int], end: bool = True) -> Prediction | None:
    for token in [*(map(ord, text) if isinstance(text, str) else text), *([0] if end else [])]:
        if running.finish is None:
            running.add_token(token, -0.5, END)
    if running.finish is None:
        return None
    running.answer()
    return running.future.result()


def test_an_answer_ends_at_end_of_sequence_or_at_its_limit() -> None:
    answer = say(generation(), "cat")
    assert answer is not None and (answer.text, answer.finish_reason, len(answer.logprobs)) == ("cat", "stop", 4)
    short = generation()
    short.request.max_tokens = 2
    answer = say(short, "cat")
    assert answer is not None and (answer.text, answer.finish_reason, len(answer.logprobs)) == ("ca", "length", 2)


def test_the_text_ends_before_the_first_stop_string() -> None:
    answer = say(generation(stop=("xyz", "\n", "dog")), "cat and dog\nxyz")
    assert answer is not None and (answer.text, answer.finish_reason) == ("cat and ", "stop")


def test_what_may_be_the_start_of_a_stop_string_is_held_back() -> None:
    pieces: list[Piece] = []
    answer = say(generation(pieces, stop=("END",)), "an ENvelope ENDed")
    assert answer is not None and "".join(p.text for p in pieces) == answer.text == "an ENvelope "
    assert [p.text for p in pieces][:4] == ["a", "n", " ", "ENv"]


def test_half_a_character_is_held_back() -> None:
    pieces: list[Piece] = []
    answer = say(generation(pieces), [ord("a"), HALF, REST, ord("b")])
    assert answer is not None and answer.text == "aéb"
    assert [p.text for p in pieces] == ["a", "é", "b", ""]
    assert sum((p.tokens for p in pieces), ()) == answer.tokens
    assert sum((p.logprobs for p in pieces), ()) == answer.logprobs


def test_a_restart_repeats_nothing_to_the_callback() -> None:
    pieces: list[Piece] = []
    running = generation(pieces)
    assert say(running, "ca", end=False) is None
    running.restart()
    answer = say(running, "cat")
    assert answer is not None and "".join(p.text for p in pieces) == answer.text == "cat"
    assert sum((p.logprobs for p in pieces), ()) == answer.logprobs


def test_ends_and_the_scores_of_parts() -> None:
    answer = say(generation(), "<loc a")
    assert answer is not None and answer.ends == (1, 2, 3, 4, 5, 6)
    assert answer.score() == answer.score(0, 6) == pytest.approx(np.exp(-0.5), abs=1e-4)
    answer = Prediction("a", "abcd", (1, 2), (np.log(0.5), np.log(0.25), 0.0), "stop", ends=(2, 4))
    assert (answer.score(0, 2), answer.score(2, 4), answer.score(1, 3)) == (0.5, 0.25, 0.375)
    assert Prediction("a", "abcd", (1,), (0.0,), "stop").score(0, 2) is None
    halves = say(generation(), [*map(ord, "<loc"), HALF, REST])
    assert halves is not None and halves.text == "<locé" and halves.ends == (1, 2, 3, 4, 5, 5)


def draws(running: Generation, count: int) -> list[Draw | None]:
    """How the next tokens are drawn, each asked for twice, as where a step failed and was tried again."""
    found = []
    for _ in range(count):
        assert running.draw() == running.draw()
        found.append(running.draw())
        running.launched += 1
    return found


def test_draws_repeat_with_the_seed() -> None:
    one, same, other = (generation(temperature=1.0, seed=seed) for seed in (1, 1, 2))
    drawn = [draws(g, 3) for g in (one, same, other)]
    assert drawn[0] == drawn[1] != drawn[2]
    one.restart()
    assert draws(one, 3) == drawn[0]
    assert generation().draw() is generation(temperature=1e-38).draw() is None


def test_draws_are_spread_evenly_over_tokens_and_seeds() -> None:
    answers = [draws(generation(temperature=0.5, top_p=0.9, seed=seed), 50) for seed in range(-20, 20)]
    drawn = [draw for answer in answers for draw in answer if draw is not None]
    uniforms = np.array([draw.uniform for draw in drawn])
    assert {(draw.temperature, draw.top_p) for draw in drawn} == {(0.5, 0.9)}
    assert len(set(uniforms)) == len(uniforms) == 2000 and uniforms.min() >= 0 and uniforms.max() < 1
    assert np.histogram(uniforms, 10, (0, 1))[0] == pytest.approx(200, abs=60)
    assert abs(np.corrcoef(uniforms[1:], uniforms[:-1])[0, 1]) < 0.1
