"""Decode steps as CUDA graphs: one launch a step instead of hundreds, which a small batch would wait for.

A step's arithmetic is recorded once for each number of rows and each rounded length, and replayed on the same memory.
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

WARM_UPS = 2  # runs before a recording, in which libraries choose their kernels and take their workspaces


class DecodeGraphs:
    """Replays `Model.decode_step`, or runs it where it cannot be recorded.

    An int8 layer of bitsandbytes looks on the host at what it has computed, which no recording survives.
    """

    def __init__(self, model: Model, slots: Slots) -> None:
        self.model, self.slots = model, slots
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        self._positions = torch.zeros(slots.count, dtype=torch.int64, device=model.device)
        self._logits: Tensor | None = None  # [slots, vocab], once it is known what a step returns
        self._pool = torch.cuda.graph_pool_handle()
        # One for all: cuBLAS keeps a workspace for every stream that it has ever met, 32 MiB on a Hopper.
        self._side = torch.cuda.Stream(model.device)  # type: ignore[no-untyped-call]
        self._works = model.spec.quantization != "int8"

    @property
    def recorded(self) -> int:
        """How many steps have been recorded; 0 where none can be."""
        return len(self._graphs)

    @torch.inference_mode()
    def decode_step(self, positions: Sequence[int], length: int) -> Tensor:
        """As `Model.decode_step`; the logits [r, vocab] are valid until the next call."""
        rows = len(positions)
        host = torch.tensor(positions).pin_memory()  # the allocator keeps it until the copy has been made
        self._positions[:rows].copy_(host, non_blocking=True)
        if not self.record(rows, length) or self._logits is None:
            return self.model.decode_step(self.slots, self._positions[:rows], length)
        self._graphs[rows, length].replay()
        return self._logits[:rows]

    @torch.inference_mode()
    def record(self, rows: int, length: int) -> bool:
        """Record a step, unless it has been: warming up repeats it at the same places, which changes nothing.

        False if steps of this model cannot be recorded. Raises ReplicaError if a recording breaks off.
        """
        if self._works and (rows, length) not in self._graphs:
            self._warm_up(rows, length)
            self._graphs[rows, length] = self._capture(rows, length)
        return self._works

    def _warm_up(self, rows: int, length: int) -> None:
        """Run a step as it will be recorded; who comes next waits for it, though it should fail."""
        current = torch.cuda.current_stream()
        self._side.wait_stream(current)
        try:
            with torch.cuda.stream(self._side):
                for _ in range(WARM_UPS):
                    self._run(rows, length)
        finally:
            current.wait_stream(self._side)

    def _capture(self, rows: int, length: int) -> torch.cuda.CUDAGraph:
        """Record a step; it is not run.

        Too little memory is survived, as the recording has then been ended in order. After any other failure CUDA and
        the allocator may still take it to be under way, and nothing that they do can be trusted.
        """
        current = torch.cuda.current_stream()
        graph = torch.cuda.CUDAGraph()
        try:
            # What other threads do on the GPU meanwhile is theirs and must not spoil the recording.
            with (
                _no_collection(),
                torch.cuda.graph(graph, pool=self._pool, stream=self._side, capture_error_mode="thread_local"),
            ):
                self._run(rows, length)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise ReplicaError(f"a decode step could not be recorded: {line(error)}") from error
        finally:
            torch.cuda.set_stream(current)  # which torch leaves undone where a recording cannot be ended
        return graph

    def _run(self, rows: int, length: int) -> None:
        logits = self.model.decode_step(self.slots, self._positions[:rows], length)
        if self._logits is None:
            self._logits = logits.new_empty(self.slots.count, logits.shape[1])
        self._logits[:rows].copy_(logits)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage is collected: what it would free on the GPU would be recorded, or break the recording off."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
