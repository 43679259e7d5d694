"""Build a replica's engine: load the model, start the engine, run a self-test."""

import numpy as np
import torch

from paliscribe.config import ModelSpec, PoolConfig
from paliscribe.engine import Engine, engine_sizes, limit_memory_to_share
from paliscribe.errors import ReplicaError
from paliscribe.model.paligemma import load
from paliscribe.records import ONLINE, Request

SELF_TEST_TIMEOUT = 600.0  # seconds for the first answer; large models on a CPU need minutes


def ready_engine(spec: ModelSpec, config: PoolConfig) -> Engine:
    """Load a model, start its engine and run the self-test.

    `config.gpus_per_replica` None: the GPU if there is one. Raises UsageError as `load` does, and ReplicaError if the
    device is missing, out of memory, or the model fails.
    """
    device = _device(config)
    try:
        limit_memory_to_share(device, config)
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
        self_test(engine)
    except ReplicaError:
        engine.close()
        raise
    return engine


def self_test(engine: Engine) -> None:
    """Answer one small request. Raises ReplicaError with the engine's error if that fails."""
    size = engine.model.image_size
    grey = np.full((size, size, 3), 128, dtype=np.uint8)
    [future] = engine.submit([Request("proof", "caption en", grey, "grey", 1, ONLINE)])
    try:
        answer = future.result(timeout=SELF_TEST_TIMEOUT)
    except TimeoutError:
        raise ReplicaError(f"the model did not answer within {SELF_TEST_TIMEOUT:g} s") from None
    if answer.error_kind is not None:
        raise ReplicaError(f"the model cannot answer: {answer.error_message}")


def _device(config: PoolConfig) -> str | None:
    """The model's device. Checks the configuration first: Ray shows a node's GPUs also to replicas without one."""
    if config.gpus_per_replica is None:
        return None
    if not config.gpus_per_replica:
        return "cpu"
    if not torch.cuda.is_available():
        raise ReplicaError(f"a replica was given {config.gpus_per_replica:g} GPU, and torch sees none on its node")
    return "cuda"
