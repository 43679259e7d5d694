"""The slots' memory and the attention over it, against torch's own."""

import pytest
import torch
from torch.nn import functional

from pipeline import slots as slots_module
from pipeline.slots import Slots, attention, key_mask, rounded, row_counts


class Config:
    num_hidden_layers, num_key_value_heads, head_dim = 2, 2, 4


def test_what_is_written_and_appended_is_what_is_attended_to() -> None:
    slots = Slots(Config, 8, 100, dtype=torch.float32, device=torch.device("cpu"))
    assert slots.capacity == 128
    assert slots._memory.nbytes == 8 * Slots.bytes_each(Config, 100, torch.float32)
    keys, values = torch.randn(2, 2, 5, 4), torch.randn(2, 2, 5, 4)
    given = slots.writing(torch.tensor([6, 1])).update(keys, values, 1)
    assert given[0] is keys and given[1] is values
    new = torch.randn(2, 2, 1, 4)
    held, _ = slots.appending(torch.tensor([0, 5]), 64).update(new, new, 1)
    assert held.shape == (2, 2, 64, 4)
    assert torch.equal(held[1, :, :5], keys[1]) and torch.equal(held[1, :, 5], new[1, :, 0])
    slots.move(1, 3, 6)
    assert torch.equal(slots._memory[1, 0, 3, :, :6], held[1, :, :6])
    assert not slots._memory[0].any(), "the other layer is untouched"


@pytest.mark.parametrize("count", [1, 6])
@pytest.mark.parametrize("shared", [1, 2, 4])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_attention_is_grouped_query_attention(count: int, shared: int, softcap: float | None) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 4, count, 8), torch.randn(3, shared, 9, 8), torch.randn(3, shared, 9, 8)
    mask = key_mask(torch.tensor([9, 4, 1]), 9, torch.float32)
    found, _ = attention(None, query, key, value, mask, 0.3, softcap)
    key, value = key.repeat_interleave(4 // shared, 1), value.repeat_interleave(4 // shared, 1)
    if softcap is None:
        wanted = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3)
    else:
        scores = torch.tanh(query @ key.mT * 0.3 / softcap) * softcap
        wanted = (scores + mask).softmax(-1) @ value
    assert torch.allclose(found, wanted.transpose(1, 2), atol=1e-6)


def test_attention_in_parts_is_the_same_to_the_last_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 4, 100, 8), torch.randn(2, 2, 100, 8), torch.randn(2, 2, 100, 8)
    mask = key_mask(torch.tensor([100, 60]), 100, torch.float32)
    whole, _ = attention(None, query, key, value, mask, 0.3)
    monkeypatch.setattr(slots_module, "CPU_SCORES", 2 * 2 * 100 * 70)
    parts, _ = attention(None, query, key, value, mask, 0.3)
    assert torch.equal(whole, parts)


def test_masks_show_a_range_of_keys() -> None:
    mask = key_mask(torch.tensor([3, 5]), 6, torch.float32, torch.tensor([-2, 2]))
    assert (mask[:, 0, 0] == 0).tolist() == [
        [True, True, True, False, False, False],
        [False, False, True, True, True, False],
    ]


def test_shapes_are_few() -> None:
    assert [rounded(n, 200) for n in (1, 64, 65, 199)] == [64, 64, 128, 200]
    assert list(row_counts(40, recorded=True)) == [8, 16, 32, 40]
    assert list(row_counts(3, recorded=True)) == [8]
    assert list(row_counts(264, recorded=True)) == [8, 16, 32, 64, 128, 256, 264]
    assert list(row_counts(18, recorded=False)) == [4, 8, 12, 16, 20]
