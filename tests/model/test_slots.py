"""The slots' memory."""

import torch

from paliscribe.model.kv_cache import Slots, chunk_size, round_up


class Config:
    num_hidden_layers, num_key_value_heads, head_dim = 2, 2, 4


def made(count: int = 8) -> Slots:
    return Slots(Config, count, 100, 64, dtype=torch.float32, device=torch.device("cpu"))


def test_what_is_written_is_held() -> None:
    slots = made()
    assert slots.capacity == 128
    assert slots._memory.nbytes == 8 * Slots.bytes_each(Config, 100, 64, torch.float32)
    keys, values = torch.randn(7, 2, 4), torch.randn(7, 2, 4)
    owners, positions = torch.tensor([6] * 5 + [1] * 2), torch.tensor([0, 1, 2, 3, 4, 0, 1])
    slots.write(1, slots.indices(owners, positions), keys, values)
    held_keys, held_values = slots.read(1, 1, 7, 64)
    assert held_keys.shape == (6, 2, 64, 4)
    assert torch.equal(held_keys[5, :, :5], keys[:5].transpose(0, 1))
    assert torch.equal(held_values[0, :, :2], values[5:].transpose(0, 1))
    assert not held_keys[1:5].any() and not slots._memory[0].any(), "others, and the other layer, are untouched"


def test_a_request_moves_with_all_that_it_holds() -> None:
    slots = made()
    slots._memory.normal_()
    slots.begin(6, 5)
    slots.tokens[6] = 17
    slots.move(6, 3)
    assert torch.equal(slots._memory[:, :, 3, :, :5], slots._memory[:, :, 6, :, :5]) and slots.tokens[3] == 17
    slots.zero_unwritten(4, 64)
    assert not slots._memory[:, 1, 3, :, 5:64].any()


def test_a_step_finds_numbers_however_far_it_looks() -> None:
    """Whatever an earlier request has left; what the request holds itself is not touched."""
    slots = made()
    slots._memory.fill_(float("nan"))
    slots.begin(0, 5)
    slots._memory[:, :, 0, :, :5] = 1
    slots.zero_unwritten(1, 64)
    values = slots._memory[:, 1, 0]
    assert (values[:, :, :5] == 1).all() and (values[:, :, 5:64] == 0).all() and values[:, :, 64:].isnan().all()
    values[:, :, 5] = 2  # a token that was appended
    slots.zero_unwritten(1, 128)
    assert (values[:, :, 5] == 2).all() and (values[:, :, 64:] == 0).all()


def test_lengths_are_few() -> None:
    assert [round_up(n, 64) for n in (1, 64, 65, 199)] == [64, 64, 128, 256]
    assert [chunk_size(tokens) for tokens in (1, 64, 256, 1024, 4096)] == [64, 64, 128, 256, 256]
