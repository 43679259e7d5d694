"""The parts of the model that are our own, against those of transformers."""

import pytest
import torch
from models import random_model
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm

from pipeline.model import Norm


@pytest.mark.parametrize("original", [GemmaRMSNorm, Gemma2RMSNorm])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_norm_is_that_of_transformers(original: type[torch.nn.Module], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    theirs = original(96).to(dtype)
    theirs.weight.data.normal_()
    hidden = torch.randn(4, 7, 96).to(dtype) * 5
    found, wanted = Norm(theirs)(hidden), theirs(hidden)
    assert found.dtype == dtype
    assert torch.allclose(found.float(), wanted.float(), rtol=1e-6 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("family", ["gemma", "gemma2"])
def test_every_norm_of_the_decoder_is_ours(family: str) -> None:
    model, original = random_model(0, family)
    kinds = [type(module).__name__ for module in model.network.model.language_model.modules()]
    theirs = [type(module).__name__ for module in original.model.language_model.modules()]
    assert kinds.count("Norm") == sum(name.endswith("RMSNorm") for name in theirs) > 4
    assert not any(name.endswith("RMSNorm") for name in kinds)
