"""What a replica is made of: the model on its device, and an engine that has answered before anybody asks it."""

import numpy as np
import torch

from paliscribe.config import ModelSpec, PoolConfig
from paliscribe.engine import Engine, engine_sizes, keep_to_share
from paliscribe.errors import ReplicaError
from paliscribe.model.paligemma import load
from paliscribe.records import ONLINE, Request

ANSWERED = 600.0  # seconds within which the first answer must have come; large models on a CPU need minutes


def ready_engine(spec: ModelSpec, config: PoolConfig) -> Engine:
    """Load a model and start an engine that has shown that it can answer.

    `config.gpus_per_replica`: None for the GPU if there is one. Raises UsageError as `load` does, and ReplicaError if
    the device is not there, the memory does not suffice, or the model fails.
    """
    device = _device(config)
    try:
        keep_to_share(device, config)
        model = load(spec, device=device)
        if config.compile:
            model.compile()
        engine = Engine(model, engine_sizes(model, config))
        engine.start()
    except torch.OutOfMemoryError as error:
        share = f"its share of {config.device_share:g} of " if config.device_share < 1 else ""
        said = str(error).strip().splitlines()[0]
        raise ReplicaError(f"{spec.id} does not fit into {share}the device's memory: {said}") from error
    try:
        prove(engine)
    except ReplicaError:
        engine.close()
        raise
    return engine


def prove(engine: Engine) -> None:
    """Have a started engine answer a small request of its own. Raises ReplicaError with its words if it cannot."""
    size = engine.model.image_size
    grey = np.full((size, size, 3), 128, dtype=np.uint8)
    [future] = engine.submit([Request("proof", "caption en", grey, "grey", 1, ONLINE)])
    try:
        answer = future.result(timeout=ANSWERED)
    except TimeoutError:
        raise ReplicaError(f"the model gave no answer within {ANSWERED:g} s") from None
    if answer.error_kind is not None:
        raise ReplicaError(f"the model cannot answer: {answer.error_message}")


def _device(config: PoolConfig) -> str | None:
    """Where the model goes. Ray shows the GPUs of its node also to a replica that has asked for none."""
    if config.gpus_per_replica is None:
        return None
    if not config.gpus_per_replica:
        return "cpu"
    if not torch.cuda.is_available():
        raise ReplicaError(f"a replica was given {config.gpus_per_replica:g} GPU, and torch sees none on its node")
    return "cuda"
