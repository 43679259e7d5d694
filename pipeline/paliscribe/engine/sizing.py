"""Engine sizes: slots, slot length and prefill limit, from the model, the device and the job."""

from dataclasses import dataclass

import torch

from paliscribe.config import PoolConfig
from paliscribe.engine.scheduler import Limits
from paliscribe.model.kv_cache import Slots
from paliscribe.model.paligemma import Model

# With ONLINE_SLOTS, a step has 256 rows: whole tiles of a matrix product. On an H100 more rows add latency and no
# throughput: the step is compute-bound there.
MAX_SLOTS = 248
SLOT_SHARE = 0.6  # of the memory left after weights, graphs and logits; the rest is for activations
# Bytes, estimated, not measured: memory of captured decode steps, workspace of sampling, and the CUDA context and
# libraries of a process, which torch's memory limit does not count.
GRAPHS, DRAWS, CONTEXT = 3 * 2**29, 2**28, 2**29
CPU_SLOTS = 32
ONLINE_SLOTS = 8  # reserved for online requests, in addition to batch slots
CPU_PREFILL = 1024  # tokens: fewer lower a small model's throughput, more raise every request's latency
GPU_PREFILL = 4096  # tokens: 16 images at 224 px; computed 26 ms on an H100 for a 3B model
GPU_FULL = 2048  # tokens below which a prefill underuses a GPU


@dataclass(frozen=True, slots=True)
class Sizes:
    """What an engine allocates and admits. `capacity`: tokens per slot."""

    limits: Limits
    capacity: int
    embedding_bytes: int


def engine_sizes(model: Model, config: PoolConfig | None = None) -> Sizes:
    """Sizes for a model on its device; settings that the configuration leaves open get defaults."""
    config = config or PoolConfig()
    capacity = min(model.context, model.image_tokens + config.text_tokens)
    gpu = model.device.type == "cuda"
    slots = config.slots or (_slots_on_gpu(model, capacity, config.device_share) if gpu else CPU_SLOTS)
    limits = Limits(
        slots=slots + ONLINE_SLOTS,
        reserve=ONLINE_SLOTS,
        prefill_tokens=config.prefill_tokens or (GPU_PREFILL if gpu else CPU_PREFILL),
        multiple=_row_multiple(model),
        gather=min(slots, -(-GPU_FULL // model.image_tokens)) if gpu else 1,
    )
    return Sizes(limits, capacity, config.embedding_cache * 2**20)


def _row_multiple(model: Model) -> int:
    """Row granularity of small decode steps on a CPU; batch may fill the padding rows. 1 elsewhere."""
    smallest = model.shapes.rows.sizes[0]
    return smallest if model.device.type != "cuda" and smallest <= ONLINE_SLOTS else 1


def slots_in_memory(*, free: int, total: int, share: float, weights: int, workspace: int, slot_bytes: int) -> int:
    """Number of slots that fit into a replica's share of device memory. All sizes in bytes.

    `free`, `total`: of the device; `share`: the replica's fraction of `total`, in (0, 1]; `weights`: already allocated
    by it; `workspace`: needed by steps beside slots and activations; `slot_bytes`: of one slot. Other processes may
    fill the rest of the device at any time, so only the share counts.
    """
    left = max(0, min(free, int(total * share) - weights) - workspace)
    return max(1, min(MAX_SLOTS, int(left * SLOT_SHARE) // slot_bytes - ONLINE_SLOTS))


def limit_memory_to_share(device: str | None, config: PoolConfig) -> None:
    """Limit this process to its share of GPU memory: it runs out of memory here, not in the replica beside it."""
    if device == "cuda" and config.device_share < 1:
        total = torch.cuda.mem_get_info()[1]
        torch.cuda.set_per_process_memory_fraction(max(0.0, config.device_share - CONTEXT / total))


def workspace_bytes(model: Model) -> int:
    """Bytes of decode steps beside slots and activations: graphs, sampling, logits and their log-probabilities."""
    vocabulary = model.network.lm_head.weight.shape[0]
    per_logit = model.dtype.itemsize + 2 * torch.float32.itemsize
    return GRAPHS + DRAWS + (MAX_SLOTS + ONLINE_SLOTS) * int(vocabulary) * per_logit


def _slots_on_gpu(model: Model, capacity: int, share: float) -> int:
    free, total = torch.cuda.mem_get_info(model.device)
    return slots_in_memory(
        free=free,
        total=total,
        share=share,
        weights=torch.cuda.memory_reserved(model.device) + (CONTEXT if share < 1 else 0),
        workspace=workspace_bytes(model),
        slot_bytes=Slots.bytes_each(model.config, capacity, model.chunk, model.dtype),
    )
