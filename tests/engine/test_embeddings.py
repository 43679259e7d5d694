"""The budget of kept embeddings is one of bytes."""

import torch

from paliscribe.engine.embeddings import Embeddings


def test_the_least_recently_used_go_first() -> None:
    kept = Embeddings(budget=3 * 16)
    for key in "abc":
        kept.keep(key, torch.zeros(4))
    assert kept.get("a") is not None
    kept.keep("d", torch.ones(4))
    assert kept.get("b") is None and kept.get("a") is not None and len(kept) == 3 and kept.bytes == 48


def test_what_is_kept_again_counts_once() -> None:
    kept = Embeddings(budget=32)
    for _ in range(5):
        kept.keep("a", torch.zeros(4))
    assert (len(kept), kept.bytes) == (1, 16)


def test_what_is_larger_than_the_budget_is_not_kept() -> None:
    kept = Embeddings(budget=8)
    kept.keep("a", torch.zeros(4))
    assert (len(kept), kept.bytes) == (0, 0)
