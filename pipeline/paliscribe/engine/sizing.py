"""How much an engine takes on: slots, their length, the prefill of one step. From the model, the device and the job."""

from dataclasses import dataclass

import torch

from paliscribe.config import PoolConfig
from paliscribe.engine.scheduler import Limits
from paliscribe.model.kv_cache import Slots
from paliscribe.model.paligemma import Model

# With those for online requests a step has 256 rows, so that no product crosses a tile; more make a step of an H100
# longer without making it do more: its arithmetic is the limit then.
MOST_SLOTS = 248
SLOT_SHARE = 0.6  # of the memory that is left beside weights, graphs and logits; the rest is for activations
# Bytes, by estimate, as none has been measured: of what recorded decode steps keep, of what drawing tokens takes, and
# of a process on a GPU (context, libraries), which no limit on its allocations counts.
GRAPHS, DRAWS, CONTEXT = 3 * 2**29, 2**28, 2**29
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
        multiple=_step(model),
        gather=min(slots, -(-GPU_FULL // model.image_tokens)) if gpu else 1,
    )
    return Sizes(limits, capacity, config.embedding_cache * 2**20)


def _step(model: Model) -> int:
    """Rows by which decode steps grow on a CPU, where they are few; batch may fill those that would be empty."""
    smallest = model.shapes.rows.sizes[0]
    return smallest if model.device.type != "cuda" and smallest <= ONLINE_SLOTS else 1


def slots_in_memory(*, free: int, total: int, share: float, weights: int, beside: int, each: int) -> int:
    """Slots that a replica's part of a device's memory holds, all numbers but `share` in bytes.

    `free`, `total`: of the device now; `share`: the replica's part of the total, above 0 to 1; `weights`: what it has
    taken already; `beside`: what steps will need beside slots and activations; `each`: of a slot. Others may fill the
    rest of the device at any time, so only the part counts.
    """
    left = max(0, min(free, int(total * share) - weights) - beside)
    return max(1, min(MOST_SLOTS, int(left * SLOT_SHARE) // each - ONLINE_SLOTS))


def keep_to_share(device: str | None, config: PoolConfig) -> None:
    """Let this process take no more of a GPU than its share: what it lacks then fails here, not in its neighbour."""
    if device == "cuda" and config.device_share < 1:
        total = torch.cuda.mem_get_info()[1]
        torch.cuda.set_per_process_memory_fraction(max(0.0, config.device_share - CONTEXT / total))


def beside_slots(model: Model) -> int:
    """Bytes that decode steps take beside slots and activations: graphs, draws, logits and their log-probabilities."""
    vocabulary = model.network.lm_head.weight.shape[0]
    each = model.dtype.itemsize + 2 * torch.float32.itemsize
    return GRAPHS + DRAWS + (MOST_SLOTS + ONLINE_SLOTS) * int(vocabulary) * each


def _slots_on_gpu(model: Model, capacity: int, share: float) -> int:
    free, total = torch.cuda.mem_get_info(model.device)
    return slots_in_memory(
        free=free,
        total=total,
        share=share,
        weights=torch.cuda.memory_reserved(model.device) + (CONTEXT if share < 1 else 0),
        beside=beside_slots(model),
        each=Slots.bytes_each(model.config, capacity, model.chunk, model.dtype),
    )
