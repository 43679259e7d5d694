"""Decode steps as CUDA graphs: one launch a step instead of hundreds, which a small batch would wait for.

A step's arithmetic is recorded once for each number of rows and each rounded length, and replayed on the same memory.
"""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.model import Model
from pipeline.slots import Slots

log = logging.getLogger(__name__)
WARM_UPS = 2  # runs before a recording, in which libraries choose their kernels and take their workspaces


class DecodeGraphs:
    """Replays `Model.decode_step`. Falls back to running it, for good, where a step cannot be recorded.

    An int8 layer of bitsandbytes looks on the host at what it has computed, which no recording survives.
    """

    def __init__(self, model: Model, slots: Slots) -> None:
        self.model, self.slots = model, slots
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        self._positions = torch.zeros(slots.count, dtype=torch.int64, device=model.device)
        vocabulary = model.network.lm_head.weight.shape[0]
        self._logits = torch.empty(slots.count, vocabulary, dtype=torch.float32, device=model.device)
        self._pool = torch.cuda.graph_pool_handle()
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
        if not self.record(rows, length):
            return self.model.decode_step(self.slots, self._positions[:rows], length)
        self._graphs[rows, length].replay()
        return self._logits[:rows]

    @torch.inference_mode()
    def record(self, rows: int, length: int) -> bool:
        """Record a step, unless it has been: warming up repeats it at the same places, which changes nothing.

        False if steps of this model cannot be recorded.
        """
        if not self._works or (rows, length) in self._graphs:
            return self._works
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                self._run(rows, length)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            # What other threads do on the GPU meanwhile is theirs and must not spoil the recording.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                self._run(rows, length)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # a module that waits for the device in mid-step, as some quantised ones do
            log.warning("decode steps run without CUDA graphs: %s", str(error).splitlines()[0])
            self._works = False
            return False
        self._graphs[rows, length] = graph
        return True

    def _run(self, rows: int, length: int) -> None:
        self._logits[:rows].copy_(self.model.decode_step(self.slots, self._positions[:rows], length))
