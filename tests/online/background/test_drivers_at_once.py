"""Two drivers at once on one batch: one writer, and a finished state that is never overwritten."""

import os
from pathlib import Path

import pytest
from online.background.order_trial import trial

TRIALS = 50 if os.environ.get("FULL") else 2


@pytest.mark.long
def test_two_drivers_of_one_batch(tmp_path: Path) -> None:
    stops = claims = 0
    for seed in range(TRIALS):
        (folder := tmp_path / f"{seed}").mkdir()
        stopped, claimed, wrong = trial(folder, seed)
        assert wrong == [], f"seed {seed}"
        stops, claims = stops + stopped, claims + claimed
    assert stops >= TRIALS and claims > TRIALS, "the drivers were not disturbed"
    print(f"{TRIALS} trials, {stops} stops, {claims} claims")
