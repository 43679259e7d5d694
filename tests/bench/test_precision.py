"""The bench of precision compares with float32, and its last line is what it says."""

import json

import pytest

from bench import precision
from bench.precision import SCORES, TASKS

pytestmark = pytest.mark.long


def test_the_last_line_is_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    precision.main(["--scenes", "4", "--texts", "3", "--variants", "float32", "bfloat16", "nf4-double", "--json"])
    *table, last = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in table[2:]] == ["float32", "bfloat16", "nf4-double"]
    found = json.loads(last)
    assert set(found) == {"machine", "figures", "ratios"} and "commit" in found["machine"]
    figures = found["figures"]
    assert figures.pop("generate") == 1.0
    assert set(figures["float32"]["agreement"].values()) == {1.0}
    assert found["ratios"] == {f"{name}/agreement": f["agreement"]["all"] for name, f in figures.items()}
    for variant in figures.values():
        assert set(variant["scores"]) == set(SCORES)
        assert variant["asked"]["all"] == sum(variant["asked"][task] for task in TASKS) > 30
        assert variant["agreement"]["all"] > 0.5
    sizes = [figures[name]["weight_bytes"] for name in ("nf4-double", "bfloat16", "float32")]
    assert sizes == sorted(sizes) and sizes[1] < 0.6 * sizes[2]
