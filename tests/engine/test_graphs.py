"""Recording decode steps, with torch's own recording over a device, streams and graphs that are scripted."""

import contextlib
import gc
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from paliscribe.engine.graphs import WARM_UPS, DecodeGraphs
from paliscribe.errors import ReplicaError

VOCABULARY = 5


class Stream:
    def __init__(self, device: "Device") -> None:
        self.waited_for: list[Stream] = []
        device.streams.append(self)

    def wait_stream(self, other: "Stream") -> None:
        self.waited_for.append(other)


class Device:
    """What torch.cuda knows: the stream of this thread, the graph that is being recorded, and what ran where."""

    def __init__(self) -> None:
        self.streams: list[Stream] = []
        self.main = self.current = Stream(self)
        self.recording: Graph | None = None
        self.ran: list[tuple[Stream, bool, bool]] = []  # its stream, whether it was recorded, whether garbage is let be
        self.fails: Callable[[], None] = lambda: None

    def model(self, dtype: torch.dtype = torch.float32, quantization: str = "none") -> Any:
        """A model whose step only notes that it ran."""

        def decode_step(slots: Any, positions: Tensor, length: int) -> Tensor:
            self.ran.append((self.current, self.recording is not None, gc.isenabled()))
            self.fails()
            return torch.full((len(positions), VOCABULARY), float(length), dtype=dtype)

        network = SimpleNamespace(lm_head=SimpleNamespace(weight=torch.empty(VOCABULARY, 2)))
        spec = SimpleNamespace(quantization=quantization)
        return SimpleNamespace(device=torch.device("cpu"), network=network, spec=spec, decode_step=decode_step)

    def fail_in_recordings(self, error: Exception) -> None:
        def fails() -> None:
            if self.recording is not None:
                self.recording.broken = not isinstance(error, torch.OutOfMemoryError)
                raise error

        self.fails = fails


class Graph:
    """A recording. It cannot be ended once something was done that may not be recorded."""

    device: Device
    broken = False
    replays = 0

    def capture_begin(self, *_: Any, **__: Any) -> None:
        assert self.device.recording is None
        self.device.recording = self

    def capture_end(self) -> None:
        self.device.recording = None
        if self.broken:
            raise torch.AcceleratorError("CUDA error: operation failed due to a previous error during capture")

    def replay(self) -> None:
        self.replays += 1


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    made = Device()

    def set_stream(stream: Stream) -> None:
        made.current = stream

    @contextlib.contextmanager
    def stream(wanted: Stream) -> Iterator[None]:
        before = made.current
        set_stream(wanted)
        try:
            yield
        finally:
            set_stream(before)

    monkeypatch.setattr(torch.cuda.graph, "default_capture_stream", None)
    monkeypatch.setattr(torch._C, "_host_emptyCache", lambda: None, raising=False)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    for name, value in {
        "Stream": lambda *_: Stream(made),
        "CUDAGraph": type("CUDAGraph", (Graph,), {"device": made}),
        "graph_pool_handle": lambda: (0, 1),
        "current_stream": lambda *_: made.current,
        "set_stream": set_stream,
        "stream": stream,
        "synchronize": lambda *_: None,
        "empty_cache": lambda: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return made


def graphs(model: Any) -> DecodeGraphs:
    return DecodeGraphs(model, SimpleNamespace(count=8))  # type: ignore[arg-type]


def test_every_step_is_recorded_once_and_replayed(device: Device) -> None:
    made = graphs(device.model())
    assert made.record(8, 64) and made.record(8, 128) and made.record(8, 64)
    assert made.recorded == 2 and len(device.ran) == 2 * (WARM_UPS + 1)
    assert made.decode_step([1, 2, 3], 64).shape == (3, VOCABULARY)
    assert made.decode_step([1, 2, 3], 64).shape == (3, VOCABULARY)
    recorded: list[Any] = list(made._graphs.values())
    assert [graph.replays for graph in recorded] == [0, 0, 2]


def test_all_recordings_share_one_stream(device: Device) -> None:
    """A stream costs cuBLAS's workspace, and memory of a pool is used again by recordings of one stream only."""
    made = graphs(device.model())
    for rows in (8, 4, 2):
        made.record(rows, 64)
    assert {stream for stream, *_ in device.ran} == {device.streams[1]} and len(device.streams) == 2
    assert device.current is device.main
    assert device.main.waited_for == device.streams[1:] * 3 and device.streams[1].waited_for == [device.main] * 3


@pytest.mark.parametrize("enabled", [True, False])
def test_no_garbage_is_collected_while_recording(device: Device, enabled: bool) -> None:
    (gc.enable if enabled else gc.disable)()
    try:
        graphs(device.model()).record(8, 64)
        assert gc.isenabled() == enabled
        assert [(recorded, collects) for _, recorded, collects in device.ran] == [(False, enabled)] * 2 + [
            (True, False)
        ]
        device.fail_in_recordings(torch.OutOfMemoryError("no room"))
        with pytest.raises(torch.OutOfMemoryError):
            graphs(device.model()).record(8, 64)
        assert gc.isenabled() == enabled
    finally:
        gc.enable()


def test_a_recording_that_breaks_off_ends_the_replica(device: Device) -> None:
    """Torch does not leave the stream of a recording that cannot be ended: later steps would not wait for prefills."""
    made = graphs(device.model())
    made.record(8, 64)
    device.fail_in_recordings(RuntimeError("operation not permitted when stream is capturing\nand much advice"))
    with pytest.raises(ReplicaError, match="a decode step could not be recorded: AcceleratorError: CUDA error"):
        made.record(4, 64)
    assert device.current is device.main
    assert made.recorded == 1 and gc.isenabled()


def test_an_error_of_the_step_itself_ends_the_replica_too(device: Device) -> None:
    made = graphs(device.model())
    device.fail_in_recordings(ValueError("a mistake"))
    with pytest.raises(ReplicaError):
        made.record(4, 64)
    assert device.current is device.main


def test_lack_of_memory_for_a_recording_is_survived(device: Device) -> None:
    made = graphs(device.model())
    device.fail_in_recordings(torch.OutOfMemoryError("no room"))
    with pytest.raises(torch.OutOfMemoryError):
        made.record(8, 64)
    assert device.current is device.main and made.recorded == 0
    device.fails = lambda: None
    assert made.record(8, 64) and made.recorded == 1


def test_a_warm_up_that_fails_is_waited_for(device: Device) -> None:
    def fails() -> None:
        raise torch.OutOfMemoryError("no room")

    made, device.fails = graphs(device.model()), fails
    with pytest.raises(torch.OutOfMemoryError):
        made.record(8, 64)
    assert device.current is device.main and device.main.waited_for == [device.ran[0][0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_stay_what_the_model_makes_of_them(device: Device, dtype: torch.dtype) -> None:
    made = graphs(device.model(dtype))
    assert made.decode_step([1, 2], 64).dtype == dtype
    assert torch.equal(made.decode_step([1, 2], 64), torch.full((2, VOCABULARY), 64.0, dtype=dtype))


def test_int8_is_never_recorded(device: Device) -> None:
    made = graphs(device.model(quantization="int8"))
    assert not made.record(8, 64) and not device.ran
    assert made.decode_step([1, 2], 64).shape == (2, VOCABULARY)
    assert made.recorded == 0 and device.ran == [(device.main, False, True)]
