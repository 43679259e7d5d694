"""The engine against `model.generate` at the resolutions of the released models, both families, in miniature."""

import pytest
import torch

from bench import baseline, full_size
from paliscribe.config import PoolConfig
from paliscribe.engine import Engine, engine_sizes

torch.set_num_threads(1)


QUICK = [("gemma", 224), ("gemma2", 224)]
LONG = [pytest.param(*each, marks=pytest.mark.long) for each in (("gemma", 448), ("gemma2", 448), ("gemma", 896))]
FULL = pytest.param("gemma2", 896, marks=pytest.mark.full)


@pytest.mark.parametrize(("family", "pixels"), [*QUICK, *LONG, FULL])
def test_equals_generate(family: str, pixels: int) -> None:
    """PaliGemma 2 at 896 px included: its image alone is as long as its sliding window, 4,096 tokens."""
    subject = full_size.subject(family, pixels, "cpu", "float32", small=True)
    for parameter in subject.network.parameters():  # both forms share them
        parameter.data.mul_(3.0 if parameter.ndim > 1 else 1.0)
    head = torch.nn.Parameter(torch.randn_like(subject.network.lm_head.weight))  # tied, it repeats itself
    subject.network.lm_head.weight = subject.model.network.lm_head.weight = head
    assert subject.model.window in (None, 4096)
    wanted = full_size.requests(pixels, 3, 6)
    engine = Engine(subject.model, engine_sizes(subject.model, PoolConfig(text_tokens=64, slots=2)))
    ours = [list(answer.tokens) for answer in engine.run(wanted)]
    theirs = [output[0].tolist() for output in baseline.generate(subject, baseline.batches(subject, wanted, 1))]
    assert ours == theirs
    assert len({token for tokens in ours for token in tokens}) > 3
