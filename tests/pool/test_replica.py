"""A replica is ready when it has answered, and says why it cannot."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from models import engine

from paliscribe.config import ModelSpec, PoolConfig
from paliscribe.demo import CHECKPOINT
from paliscribe.errors import ReplicaError
from paliscribe.model import paligemma as model_module
from paliscribe.pool.ready import ready_engine, self_test

torch.set_num_threads(1)


def broken_checkpoint(folder: Path) -> ModelSpec:
    """A model that loads without a word and fails at its first layer: its rotations are half as wide as its heads."""
    shutil.copytree(CHECKPOINT, folder)
    config = json.loads((folder / "config.json").read_text())
    rotations = {"rope_type": "linear", "factor": 1.0, "partial_rotary_factor": 0.5}
    config["text_config"]["rope_parameters"] |= rotations
    (folder / "config.json").write_text(json.dumps(config))
    return ModelSpec(id=str(folder), precision="float32")


def test_a_good_model_has_answered() -> None:
    ready = ready_engine(ModelSpec(), PoolConfig(gpus_per_replica=0))
    assert ready.alive and ready.stats().steps >= 1 and ready.stats().live == 0
    ready.close()


def test_a_model_that_loads_and_cannot_answer(tmp_path: Path) -> None:
    with pytest.raises(ReplicaError, match=r"^the model cannot answer: RuntimeError: The size of tensor a \(32\) must"):
        ready_engine(broken_checkpoint(tmp_path / "model"), PoolConfig(gpus_per_replica=0))


def test_a_layer_that_was_changed_under_us() -> None:
    """As when a release of transformers changes what the encoder's layers take: nothing fails until one is called."""
    model = model_module.load(ModelSpec(), device="cpu")

    class Renamed(torch.nn.Module):
        def forward(self, hidden: torch.Tensor, *, another_name: Any) -> torch.Tensor:
            return hidden

    model.network.model.vision_tower.encoder.layers[3] = Renamed()
    started = engine(model)
    started.start()
    with pytest.raises(ReplicaError, match=r"the model cannot answer: TypeError: .*positional argument"):
        self_test(started)
    assert started.alive, "it answers, if only with an error"
    started.close()
    with pytest.raises(ReplicaError, match="the engine is not running"):
        self_test(started)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(ReplicaError, match=r"was given 0\.5 GPU, and torch sees none"):
        ready_engine(ModelSpec(), PoolConfig(gpus_per_replica=0.5))
