"""How much an engine takes on: slots, their length, the prefill of one step. From the model, the device and the job."""

from dataclasses import dataclass

import torch

from pipeline.config import PoolConfig
from pipeline.engine.scheduler import Limits
from pipeline.model import Model
from pipeline.slots import ROW_STEP, Slots

MOST_SLOTS = 256  # more make a step of an H100 longer without making it do more: its arithmetic is the limit then
SLOT_SHARE = 0.6  # of the memory that the weights leave free; the rest is for activations, logits and embeddings
CPU_SLOTS = 32
ONLINE_SLOTS = 8  # kept for online requests, on top of those that batch can use
CPU_PREFILL = 1024  # tokens: fewer make a small model slower, more make everybody wait longer
GPU_PREFILL = 4096  # tokens: 16 images at 224 px, by arithmetic 26 ms of an H100 for a 3B model
GPU_FULL = 2048  # tokens below which a prefill leaves much of a GPU idle


@dataclass(frozen=True, slots=True)
class Sizes:
    """What an engine allocates and admits. `capacity`: tokens of a slot."""

    limits: Limits
    capacity: int
    embedding_bytes: int


def engine_sizes(model: Model, config: PoolConfig | None = None) -> Sizes:
    """Sizes for a model on its device; what the configuration leaves open is chosen here."""
    config = config or PoolConfig()
    capacity = min(model.context, model.image_tokens + config.text_tokens)
    gpu = model.device.type == "cuda"
    slots = config.slots or (_slots_on_gpu(model, capacity, config.device_share) if gpu else CPU_SLOTS)
    limits = Limits(
        slots=slots + ONLINE_SLOTS,
        reserve=ONLINE_SLOTS,
        prefill_tokens=config.prefill_tokens or (GPU_PREFILL if gpu else CPU_PREFILL),
        multiple=1 if gpu else ROW_STEP,
        gather=min(slots, -(-GPU_FULL // model.image_tokens)) if gpu else 1,
    )
    return Sizes(limits, capacity, config.embedding_cache * 2**20)


def slots_in_memory(*, free: int, total: int, share: float, weights: int, each: int) -> int:
    """Slots that a replica's part of a device's memory holds, all numbers but `share` in bytes.

    `free`, `total`: of the device now; `share`: the replica's part of the total, above 0 to 1; `weights`: what it has
    taken already; `each`: of a slot. Others may fill the rest of the device at any time, so only the part counts.
    """
    left = min(free, int(total * share) - weights)
    return max(1, min(MOST_SLOTS, int(left * SLOT_SHARE) // each - ONLINE_SLOTS))


def keep_to_share(device: str | None, config: PoolConfig) -> None:
    """Let this process take no more of a GPU than its share: what it lacks then fails here, not in its neighbour."""
    if device == "cuda" and config.device_share < 1:
        torch.cuda.set_per_process_memory_fraction(config.device_share)


def _slots_on_gpu(model: Model, capacity: int, share: float) -> int:
    free, total = torch.cuda.mem_get_info(model.device)
    return slots_in_memory(
        free=free,
        total=total,
        share=share,
        weights=torch.cuda.memory_reserved(model.device),
        each=Slots.bytes_each(model.config, capacity, model.dtype),
    )
