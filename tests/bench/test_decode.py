"""The bench of decoding runs, and its last line is what it says."""

import json

import pytest

from bench import decode
from bench.decode import FORM_SIDES, FORMS, SIDES, TASKS


@pytest.mark.long
def test_the_last_line_is_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    decode.main(["--images", "1", "--rounds", "1", "--size", "112", "--scenes", "1", "--json"])
    *table, last = capsys.readouterr().out.splitlines()
    assert len(table) > len(SIDES) + 4
    found = json.loads(last)
    assert set(found) == {"machine", "figures", "ratios"} and "commit" in found["machine"]
    figures, ratios = found["figures"], found["ratios"]
    sides = [f"{width}x{height}" for width, height in SIDES]
    forms = {f"{name}@{width}x{height}" for name in FORMS for width, height in FORM_SIDES}
    assert set(ratios) == {f"{pair}@{side}" for pair in ("ours/pillow", "draft/ours") for side in sides} | forms
    ways = ("pillow", "ours", "draft", "mean_difference", "max_difference")
    shares = {f"{name}@{task}" for name in ("asked", "agreement") for task in TASKS}
    assert set(figures) == {f"{way}@{side}" for way in ways for side in sides} | shares
    assert all(value > 0 for value in ratios.values())
    assert all(0 < figures[f"mean_difference@{side}"] <= figures[f"max_difference@{side}"] for side in sides)
    assert figures["asked@all"] == sum(figures[f"asked@{task}"] for task in TASKS[:-1]) > 0
    assert all(0 <= figures[f"agreement@{task}"] <= 1 for task in TASKS)


def test_photographs_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "_photographs", list)
    one, other = (decode.photograph(number, 640, 480) for number in (0, 1))
    assert one == decode.photograph(0, 640, 480) != other
    assert decode.difference(one, 112)[0] > 0
