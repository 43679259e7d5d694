"""Attention over prompts and over slots, against torch's own."""

from typing import Any

import pytest
import torch
from torch import Tensor

from paliscribe.model import attention as attention_module
from paliscribe.model.attention import Spans, decode_attention, full_attention, prefill_attention

CPU = torch.device("cpu")


def reference(query: Tensor, key: Tensor, value: Tensor, scaling: float, softcap: float | None) -> Tensor:
    """[q, heads, d] over [n, kv, d], every query over every key."""
    each = query.shape[1] // key.shape[1]
    query, key, value = (
        part.repeat_interleave(times, 1).transpose(0, 1) for part, times in ((query, 1), (key, each), (value, each))
    )
    scores = query @ key.mT * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    return (scores.softmax(-1) @ value).transpose(0, 1)


@pytest.mark.parametrize("aligned", [1, 16])
@pytest.mark.parametrize("count", [1, 9])
@pytest.mark.parametrize("shared", [1, 2, 4])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_a_prompts_attention(
    monkeypatch: pytest.MonkeyPatch, count: int, shared: int, softcap: float | None, aligned: int
) -> None:
    monkeypatch.setattr(attention_module, "CPU_KEYS", aligned)
    torch.manual_seed(0)
    query, key, value = torch.randn(count, 4, 8), torch.randn(9, shared, 8), torch.randn(9, shared, 8)
    found = full_attention(query, key, value, 0.3, softcap)
    assert torch.allclose(found, reference(query, key, value, 0.3, softcap), atol=1e-6)


def test_attention_in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(100, 4, 8), torch.randn(100, 2, 8), torch.randn(100, 2, 8)
    one = full_attention(query, key, value, 0.3, None)
    monkeypatch.setattr(attention_module, "CPU_SCORES", 2 * 100 * 70)
    assert torch.allclose(one, full_attention(query, key, value, 0.3, None), atol=1e-6)


def test_prompts_that_lie_end_to_end_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(20, 4, 8), torch.randn(20, 1, 8), torch.randn(20, 1, 8)
    found = prefill_attention(query, key, value, Spans([(0, 7), (8, 18)], 20, CPU), 0.3, None).view(20, 4, 8)
    for start, end in ((0, 7), (8, 18)):
        part = slice(start, end)
        assert torch.allclose(found[part], reference(query[part], key[part], value[part], 0.3, None), atol=1e-6)
    assert found.isfinite().all()


def test_a_kernel_for_variable_lengths_is_told_whose_rows_are_whose(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a GPU calls it, with a kernel that follows the documentation of torch's."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(20, heads, 8).bfloat16() for heads in (4, 1, 1))
    calls: list[tuple[int, int, dict[str, Any]]] = []

    def kernel(q: Tensor, k: Tensor, v: Tensor, eq: Tensor, ek: Tensor, mq: int, mk: int, **named: Any) -> Tensor:
        calls.append((mq, mk, named))
        assert eq.dtype == torch.int32 and torch.equal(eq, ek) and max(eq.diff()) == mq == mk
        pairs = zip(eq[:-1].tolist(), eq[1:].tolist(), strict=True)
        return torch.cat([reference(q[a:b], k[a:b], v[a:b], named["scale"], None) for a, b in pairs])

    class Cuda(Tensor):
        is_cuda = True

    monkeypatch.setattr(attention_module, "varlen_attention", lambda: kernel)
    spans = Spans([(0, 7), (8, 18)], 20, CPU)
    found = prefill_attention(query.as_subclass(Cuda), key, value, spans, 0.3, None)
    wanted = prefill_attention(query, key, value, spans, 0.3, None)
    assert torch.allclose(found[8:18].float(), wanted[8:18].float(), atol=0.02)
    assert calls == [(10, 10, {"scale": 0.3, "num_splits": 1, "enable_gqa": True})]


@pytest.mark.parametrize("shared", [1, 2, 4])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_slots_are_looked_at_as_far_as_each_goes(shared: int, softcap: float | None) -> None:
    torch.manual_seed(0)
    query, keys, values = torch.randn(3, 4, 8), torch.randn(3, shared, 12, 8), torch.randn(3, shared, 12, 8)
    lengths = torch.tensor([12, 5, 1])
    hidden = (torch.arange(12) >= lengths[:, None])[:, None, None]
    keys.masked_fill_(hidden.mT, float("nan"))
    found = decode_attention(query, keys, values, hidden, 4, 0.3, softcap).view(3, 4, 8)
    for row, length in enumerate(lengths):
        key, value = (part[row, :, :length].transpose(0, 1) for part in (keys, values))
        assert torch.allclose(found[row], reference(query[row : row + 1], key, value, 0.3, softcap)[0], atol=1e-6)


def test_how_far_companions_reach_does_not_show() -> None:
    torch.manual_seed(0)
    query, keys, values = torch.randn(6, 4, 32), torch.randn(6, 1, 512, 32), torch.randn(6, 1, 512, 32)
    hidden = (torch.arange(512) >= 50)[None, None, None].expand(6, 1, 1, -1)
    found = [
        decode_attention(query, keys[:, :, :far], values[:, :, :far], hidden[..., :far], 64, 0.3, None)
        for far in range(64, 513, 64)
    ]
    assert all(torch.equal(found[0], other) for other in found)
