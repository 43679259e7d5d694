"""An online request overtakes the batch work that saturates an engine."""

import json

import pytest

from bench import baseline, mixed

pytestmark = pytest.mark.long


def test_first_tokens_take_at_most_two_steps_more_than_when_idle() -> None:
    subject = baseline.demo()
    subject.let_end(False)
    waits = mixed.first_tokens(subject, 12)
    assert [wait.steps for wait in waits["idle"]] == [1] * 12
    assert max(wait.steps for wait in waits["saturated"]) <= 3
    assert all(wait.milliseconds > 0 for found in waits.values() for wait in found)


def test_the_last_line_is_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    mixed.main(["--models", "demo", "--probes", "4", "--requests", "40", "--rounds", "1", "--json"])
    *table, last = capsys.readouterr().out.splitlines()
    assert sum("steps: median" in line for line in table) == 2
    found = json.loads(last)
    assert set(found) == {"machine", "figures", "ratios"}
    assert set(found["ratios"]) == {"demo/batch", "demo/all", "demo/first-token/more-steps"}
    assert found["ratios"]["demo/batch"] == found["figures"]["demo"]["batch"] > 0
