"""What a failure leaves in memory, and an engine that is dropped: nothing, with no garbage collected."""

import gc
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from models import demo_model, engine, requests
from torch import Tensor

from paliscribe.engine import Engine
from paliscribe.errors import ReplicaError
from paliscribe.model.paligemma import Model
from paliscribe.records import Piece

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def demo() -> Model:
    return demo_model()


@pytest.fixture(autouse=True)
def no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Room:
    """A device's memory: room for so many tensors, which is free again when nobody holds them any more."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._given: list[weakref.ref[Tensor]] = []

    @property
    def taken(self) -> int:
        return sum(given() is not None for given in self._given)

    def take(self) -> Tensor:
        if self.taken >= self.most:
            raise torch.OutOfMemoryError("no room")
        tensor = torch.zeros(1)
        self._given.append(weakref.ref(tensor))
        return tensor


def plainly(room: Room, count: int) -> list[Tensor]:
    tensors = []
    for _ in range(count):
        tensors.append(room.take())
    return tensors


def translated(room: Room, count: int) -> list[Tensor]:
    """As a library that has errors of its own."""
    try:
        return plainly(room, count)
    except torch.OutOfMemoryError as error:
        raise RuntimeError("the kernel could not be launched") from error


def kept(room: Room, count: int) -> list[Tensor]:
    """As a library that looks at an error on its way: error, traceback and frame hold each other."""
    try:
        return plainly(room, count)
    except torch.OutOfMemoryError as error:
        seen = error
        assert seen is error
        raise


Take = Callable[[Room, int], list[Tensor]]
ways = pytest.mark.parametrize("take", [plainly, translated, kept])


@ways
def test_a_prefill_that_lacks_memory_is_answered_in_parts(
    demo: Model, monkeypatch: pytest.MonkeyPatch, take: Take
) -> None:
    wanted = requests(32, max_tokens=8)
    alone = {answer.id: answer.tokens for answer in Engine(demo).run(wanted)}
    room, groups, prefill = Room(10), [], demo.prefill

    def tight(features: Tensor, prompts: Sequence[Any], *rest: Any) -> Tensor:
        groups.append(len(prompts))
        activations = take(room, len(prompts))
        assert len(activations) == len(prompts)
        return prefill(features, prompts, *rest)

    monkeypatch.setattr(demo, "prefill", tight)
    answers = engine(demo, slots=32, prefill_tokens=2**20).run(wanted)
    assert {answer.id: answer.tokens for answer in answers} == alone
    assert groups == [32, 16, 8, 8, 16, 8, 8]
    assert room.taken == 0


@ways
def test_a_decode_step_that_lacks_memory_leaves_none_taken(
    demo: Model, monkeypatch: pytest.MonkeyPatch, take: Take
) -> None:
    wanted = requests(8, max_tokens=8)
    alone = {answer.id: answer.tokens for answer in Engine(demo).run(wanted)}
    room, found, decode_step = Room(6), [], demo.decode_step
    busy = engine(demo, slots=8)

    def tight(*arguments: Any) -> Tensor:
        found.append(room.taken)
        activations = take(room, len(busy._decoder.live))
        assert activations
        return decode_step(*arguments)

    monkeypatch.setattr(demo, "decode_step", tight)
    answers = busy.run(wanted)
    assert {answer.id: answer.tokens for answer in answers} == alone
    assert len(found) > 2 and not any(found), "what a failed step had allocated is there for the next one"


@pytest.mark.parametrize("is_full", [True, False])
def test_a_device_that_lacks_memory_for_one_request_is_tried_with_one_image(
    demo: Model, monkeypatch: pytest.MonkeyPatch, is_full: bool
) -> None:
    """Without memory for any image the device is to blame, with memory for one the request is."""
    wanted = [
        replace(request, prompt="a prompt of many words") if i == 5 else request
        for i, request in enumerate(requests(8))
    ]
    alone = {answer.id: answer.tokens for answer in Engine(demo).run(wanted)}
    prefill, embed, most = demo.prefill, demo.embed_images, max(len(demo.tokenize(r.prompt)) for r in wanted)
    taken = threading.Event()

    def tight(features: Tensor, prompts: Sequence[Any], *rest: Any) -> Tensor:
        if max(map(len, prompts)) == most:
            if is_full:
                taken.set()  # by another process
            raise torch.OutOfMemoryError("no room")
        return prefill(features, prompts, *rest)

    def tight_too(pixels: Tensor) -> Tensor:
        if taken.is_set():
            raise torch.OutOfMemoryError("no room")
        return embed(pixels)

    monkeypatch.setattr(demo, "prefill", tight)
    monkeypatch.setattr(demo, "embed_images", tight_too)
    if is_full:
        with pytest.raises(ReplicaError, match="cannot take a single image any more: OutOfMemoryError: no room"):
            engine(demo, slots=8).run(wanted)
        return
    answers = {answer.id: answer for answer in engine(demo, slots=8).run(wanted)}
    failed = answers.pop("r5")
    assert (failed.error_kind, failed.error_message) == ("model", "OutOfMemoryError: no room")
    assert all(answer.tokens == alone[id] for id, answer in answers.items()) and len(answers) == 7


@ways
def test_a_device_that_failed_is_told_of_in_words(demo: Model, monkeypatch: pytest.MonkeyPatch, take: Take) -> None:
    room, ended = Room(2), threading.Event()

    def broken(*_: Any) -> Tensor:
        try:
            return take(room, 3)[0]
        except RuntimeError as error:
            raise torch.AcceleratorError("CUDA error: an illegal memory access\nand much advice") from error

    monkeypatch.setattr(demo, "prefill", broken)
    monkeypatch.setattr("threading.excepthook", lambda _: ended.set())
    dying = Engine(demo)
    dying.start()
    futures = dying.submit(requests(3))
    errors = [future.exception(60) for future in futures]
    assert ended.wait(60) and not dying.alive
    dying.close()
    for error in errors:
        assert isinstance(error, ReplicaError) and (error.__cause__, error.__context__) == (None, None)
        assert str(error).endswith("the device failed: AcceleratorError: CUDA error: an illegal memory access")
    with pytest.raises(ReplicaError, match="an illegal memory access"):
        dying.submit(requests(1))
    assert room.taken == 0, "the engine, its futures and their errors are still held"


def test_a_step_that_failed_changes_no_sampled_answer(demo: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [replace(r, temperature=1.5, top_p=0.95, seed=n) for n, r in enumerate(requests(8, max_tokens=12))]
    alone = {answer.id: answer.tokens for request in wanted for answer in Engine(demo).run([request])}
    steps, decode_step = 0, demo.decode_step

    def failing(*arguments: Any) -> Tensor:
        nonlocal steps
        steps += 1
        return decode_step(*arguments)[:, : 0 if steps in (2, 5) else None]  # no vocabulary: choosing fails, later on

    monkeypatch.setattr(demo, "decode_step", failing)
    answers = engine(demo, slots=8).run(wanted)
    assert steps > 5 and {answer.id: answer.tokens for answer in answers} == alone


def test_a_request_that_is_cancelled_while_its_step_fails_does_not_come_back(
    demo: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode_step = demo.decode_step
    busy = engine(demo, slots=8)
    futures = busy.submit(requests(8, max_tokens=6))

    def failing(*_: Any) -> Tensor:
        monkeypatch.setattr(demo, "decode_step", decode_step)
        assert futures[7].cancel()
        raise RuntimeError("no fault of its own")

    monkeypatch.setattr(demo, "decode_step", failing)
    while busy.step():
        pass
    assert futures[7].cancelled() and all(future.result().error_kind is None for future in futures[:7])
    assert busy.stats().live == busy.stats().waiting == 0


@pytest.mark.parametrize("held", [False, True], ids=["futures dropped", "futures held"])
@pytest.mark.parametrize("threaded", [False, True], ids=["stepped", "threaded"])
def test_an_engine_that_is_dropped_is_gone(demo: Model, threaded: bool, held: bool) -> None:
    pieces: list[Piece] = []
    dropped = engine(demo, slots=4)
    if threaded:
        dropped.start()
    futures = [*dropped.submit(requests(6, max_tokens=6)), *dropped.submit(requests(2, max_tokens=6), pieces.append)]
    futures[5].cancel()
    while not threaded and dropped.step():
        pass
    outcomes = [future.cancelled() or future.result(60).error_kind is None for future in futures]
    assert all(outcomes) and pieces
    dropped.close()
    slots = dropped._decoder.slots
    memory = [weakref.ref(value) for value in vars(slots).values() if isinstance(value, Tensor)]
    gone: list[weakref.ref[Any]] = [weakref.ref(dropped), weakref.ref(slots), *memory]
    assert memory
    if not held:
        futures.clear()
    del dropped, slots
    assert [each() for each in gone] == [None] * len(gone)


def test_a_future_outlives_its_engine(demo: Model) -> None:
    dropped = engine(demo)
    [future] = dropped.submit(requests(1))
    gone = weakref.ref(dropped)
    del dropped
    assert gone() is None
    assert future.cancel() and future.cancelled()
