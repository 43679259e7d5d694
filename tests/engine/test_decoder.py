"""When tokens are read, and what is done before anybody asks."""

import threading

import pytest
from models import demo_model, engine, requests
from torch import Tensor

from paliscribe.engine import Engine
from paliscribe.engine.decoder import Decoder


@pytest.mark.parametrize("late", [False, True])
def test_late_reading_leaves_all_of_the_step_under_way(late: bool) -> None:
    """A step with a prefill launches two entries; both wait for the next step, and none of an earlier step does."""
    busy = engine(demo_model(), slots=4, late=late, prefill_tokens=80)  # a request a step joins
    busy.submit(requests(4, max_tokens=24))
    read, decoder = [], busy._decoder

    def watched() -> list[object]:
        before = {id(unread): unread.step for unread in decoder._unread}
        chosen = Decoder.read(decoder)
        left = {id(unread) for unread in decoder._unread}
        read.append(([step for key, step in before.items() if key not in left], [before[key] for key in left]))
        return list(chosen)

    decoder.read = watched  # type: ignore[assignment]
    for _ in range(4):
        busy.step()
    assert [kept for _, kept in read] == [[step] * 2 if late else [] for step in range(4)]
    assert [done for done, _ in read[1:]] == [[step - late] * 2 for step in range(1, 4)]


def test_a_gpu_is_warmed_up_in_the_engines_thread_largest_first() -> None:
    """With stand-ins for the recordings; the parts that are run beforehand are real."""

    class Recordings:
        def __init__(self) -> None:
            self.steps: list[tuple[int, int]] = []
            self.thread: str | None = None

        def record(self, rows: int, length: int) -> bool:
            self.thread = threading.current_thread().name
            self.steps.append((rows, length))
            return True

    model = demo_model()
    warmed = Engine(model)
    recordings = warmed._decoder._graphs = Recordings()  # type: ignore[assignment]
    embedded: list[int] = []
    see = model.encode_images

    def noted(pixels: Tensor, layers: int | None = None) -> Tensor:
        embedded.append(len(pixels))
        return see(pixels, layers)

    try:
        model.encode_images = noted  # type: ignore[method-assign]
        warmed.start()
    finally:
        model.encode_images = see  # type: ignore[method-assign]
        warmed._decoder._graphs = None
        warmed.close()
    assert recordings.thread == "engine"
    assert sorted(recordings.steps) == sorted((n, m) for n in warmed._decoder._counts for m in warmed._decoder.lengths)
    sizes = [rows * length for rows, length in recordings.steps]
    assert sizes == sorted(sizes, reverse=True)
    assert set(embedded) == set(model.shapes.images.sizes)


def test_what_the_warm_up_raises_is_raised_by_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Decoder) -> None:
        raise MemoryError("too little")

    monkeypatch.setattr(Decoder, "warm_up", broken)
    started = Engine(demo_model())
    with pytest.raises(MemoryError, match="too little"):
        started.start()
    assert not started.alive


def test_a_step_whose_tokens_cannot_be_sent_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The half that goes on is asked again for the same token at the same place."""
    wanted = requests(4, max_tokens=8)
    alone = [answer.tokens for answer in Engine(demo_model()).run(wanted)]
    busy = engine(demo_model(), slots=4)
    sent, calls = Decoder._copy_to_host, []

    def failing(self: Decoder, *arguments: object) -> object:
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("cannot be copied")
        return sent(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Decoder, "_copy_to_host", failing)
    assert [answer.tokens for answer in busy.run(wanted)] == alone and len(calls) > 4
