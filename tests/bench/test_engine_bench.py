"""The bench of the engine compares equal answers, and its last line is what it says."""

import json

import pytest
import torch

from bench import baseline, engine
from bench.engine import SIZES


@pytest.fixture(scope="module")
def subject() -> baseline.Subject:
    return baseline.demo()


@pytest.mark.long
def test_the_last_line_is_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    engine.main(["--models", "demo", "--loads", "natural", "--requests", "12", "--rounds", "1", "--json"])
    *table, last = capsys.readouterr().out.splitlines()
    assert any(line.split()[:1] == ["sorted-32"] for line in table)
    found = json.loads(last)
    assert set(found) == {"machine", "figures", "ratios"} and "commit" in found["machine"]
    assert set(found["ratios"]) == {f"demo/natural/{method}" for method in SIZES}
    assert all(ratio > 0 for ratio in found["ratios"].values())
    figures = found["figures"]["demo/natural"]
    assert set(figures["requests_per_second"]) == {"engine", *SIZES}
    assert set(figures["agreement"].values()) == {1.0}
    assert 0 < figures["occupancy"]["engine"] <= 1 and figures["padding"]["generate-1"] == 0


def test_drawn_lengths_are_what_both_sides_answer(subject: baseline.Subject) -> None:
    figures = engine.compare(subject, "short", 6, 1)
    assert 1 <= figures["tokens"]["shortest"] <= figures["tokens"]["longest"] <= 3
    assert set(figures["agreement"].values()) == {1.0}


def test_waste_of_static_batches() -> None:
    occupancy, padding = baseline.waste([10, 14, 10], [3, 5, 2], 2)
    assert occupancy == (2 + 4 + 1) / (2 * 4 + 1)
    assert padding == 4 / (14 * 2 + 10)
    assert baseline.waste([10], [1], 8) == (1.0, 0.0)


def test_requests_of_a_load_share_images_where_tasks_are_mixed() -> None:
    mixed = baseline.requests("mixed", 9)
    assert [len({r.image_key for r in mixed[i : i + 3]}) for i in (0, 3, 6)] == [1, 1, 1]
    long = baseline.requests("long-tail", 12)
    assert [r.max_tokens >= 60 for r in long] == [i % 6 == 5 for i in range(12)]
    assert [r.max_tokens for r in long] == [r.max_tokens for r in baseline.requests("long-tail", 12)]


@pytest.fixture(autouse=True)
def _threads() -> None:
    torch.set_num_threads(1)
