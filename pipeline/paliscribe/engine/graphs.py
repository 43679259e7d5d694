"""Decode steps as CUDA graphs: one launch per step instead of hundreds, which dominate the latency of small batches.

A step is captured once per number of rows and rounded length, and replayed on the same memory.
"""

import contextlib
import gc
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from paliscribe.engine.failures import line
from paliscribe.errors import ReplicaError
from paliscribe.model.kv_cache import Slots
from paliscribe.model.paligemma import Model

WARM_UPS = 2  # runs before a capture, in which libraries choose kernels and allocate workspaces


class DecodeGraphs:
    """Replays `Model.decode_step`, or runs it eagerly where it cannot be captured.

    int8 layers of bitsandbytes read results on the host, which a capture does not allow.
    """

    def __init__(self, model: Model, slots: Slots) -> None:
        self.model, self.slots = model, slots
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        self._positions = torch.zeros(slots.count, dtype=torch.int64, device=model.device)
        self._logits: Tensor | None = None  # [slots, vocab], allocated by the first step
        self._pool = torch.cuda.graph_pool_handle()
        # One stream for all captures: cuBLAS keeps a workspace per stream, 32 MiB on Hopper.
        self._stream = torch.cuda.Stream(model.device)  # type: ignore[no-untyped-call]
        self._recordable = model.spec.quantization != "int8"

    @property
    def recorded(self) -> int:
        """Number of captured steps; 0 where none can be captured."""
        return len(self._graphs)

    @torch.inference_mode()
    def decode_step(self, positions: Sequence[int], length: int) -> Tensor:
        """As `Model.decode_step`; the logits [r, vocab] are valid until the next call."""
        rows = len(positions)
        host = torch.tensor(positions).pin_memory()  # the caching allocator keeps it until the copy is done
        self._positions[:rows].copy_(host, non_blocking=True)
        if not self.record(rows, length) or self._logits is None:
            return self.model.decode_step(self.slots, self._positions[:rows], length)
        self._graphs[rows, length].replay()
        return self._logits[:rows]

    @torch.inference_mode()
    def record(self, rows: int, length: int) -> bool:
        """Capture a step unless it is captured already. The warm-up rewrites the same cache positions: no change.

        Returns False if this model's steps cannot be captured. Raises ReplicaError if a capture fails.
        """
        if self._recordable and (rows, length) not in self._graphs:
            self._warm_up(rows, length)
            self._graphs[rows, length] = self._capture(rows, length)
        return self._recordable

    def _warm_up(self, rows: int, length: int) -> None:
        """Run a step on the capture stream; the current stream waits for it even if it fails."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UPS):
                    self._run(rows, length)
        finally:
            current.wait_stream(self._stream)

    def _capture(self, rows: int, length: int) -> torch.cuda.CUDAGraph:
        """Capture a step without running it. Raises torch.OutOfMemoryError or ReplicaError.

        After running out of memory the capture has ended in order and the engine can continue. After any other error
        CUDA and the allocator may still be capturing, so the replica must restart.
        """
        current = torch.cuda.current_stream()
        graph = torch.cuda.CUDAGraph()
        try:
            # thread_local: GPU calls of other threads do not break the capture.
            with (
                _gc_disabled(),
                torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"),
            ):
                self._run(rows, length)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise ReplicaError(f"a decode step could not be recorded: {line(error)}") from error
        finally:
            torch.cuda.set_stream(current)  # torch does not restore it if the capture cannot be ended
        return graph

    def _run(self, rows: int, length: int) -> None:
        logits = self.model.decode_step(self.slots, self._positions[:rows], length)
        if self._logits is None:
            self._logits = logits.new_empty(self.slots.count, logits.shape[1])
        self._logits[:rows].copy_(logits)


@contextlib.contextmanager
def _gc_disabled() -> Iterator[None]:
    """Disable garbage collection: freeing GPU memory during a capture would be recorded or break it."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
