"""Calibration: isotonic maps against scikit-learn's, expected errors by hand, maps kept beside a run."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression

from paliscribe.errors import UsageError
from paliscribe.evaluation import read_maps
from paliscribe.evaluation.calibration import KEY, Reliability, ScoreMap, isotonic, write_maps
from paliscribe.storage import open_store


def filled(seed: int, rows: int) -> tuple[Reliability, list[float], list[float]]:
    random = np.random.default_rng(seed)
    scores = random.random(rows).round(4).tolist()
    right = [float(random.random() < score**2) for score in scores]
    reliability = Reliability()
    for number, (score, was) in enumerate(zip(scores, right, strict=True)):
        reliability.add(f"id-{number}", score, was)
    return reliability, scores, right


@pytest.mark.parametrize(("seed", "rows"), [(0, 500), (1, 30), (2, 2), (3, 1)])
def test_the_map_is_scikit_learns(seed: int, rows: int) -> None:
    reliability, scores, right = filled(seed, rows)
    found = reliability.fit("exact", "record")
    assert found is not None
    at = np.linspace(0, 1, 333)
    expected = IsotonicRegression(out_of_bounds="clip").fit(scores, right).predict(at)
    assert found(at) == pytest.approx(expected, abs=2e-6)
    assert (np.diff(found(at)) >= 0).all()


def test_violators_are_pooled_by_weight() -> None:
    assert isotonic(np.array([3.0, 1.0, 2.0, 5.0]), np.array([1.0, 3.0, 1.0, 1.0])).tolist() == [1.5, 1.5, 2.0, 5.0]
    assert isotonic(np.array([]), np.array([])).tolist() == []


def test_expected_error_and_curve() -> None:
    reliability = Reliability()
    for number, (score, right) in enumerate([(0.95, 1), (0.95, 0), (0.1, 0), (1.0, 1)]):
        reliability.add(str(number), score, right)
    found = reliability.found("exact", "record")
    assert found is not None
    # bins of a fifteenth: 0.1 alone (off by 0.1), and 0.95, 0.95 and 1 (mean 0.96667, right 0.66667: off by 0.3)
    assert found["expected_error"] == pytest.approx((0.1 * 1 + 0.3 * 3) / 4)
    assert [(each["right"], each["n"]) for each in found["curve"]] == [(0.0, 1), (pytest.approx(2 / 3), 3)]


def test_a_map_mends_scores_that_are_too_high() -> None:
    found = filled(4, 4000)[0].found("exact", "record")
    assert found is not None
    assert found["expected_error"] > 0.1
    assert found["after_map"] < 0.05


def test_without_scores() -> None:
    assert Reliability().found("exact", "record") is None
    assert Reliability().fit("exact", "record") is None


def test_maps_beside_a_run(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    assert read_maps(store) == {}
    maps = {("answer en {q}", "answer"): ScoreMap("exact", "record", (0.1, 0.9), (0.0, 0.5))}
    write_maps(store, maps)
    assert read_maps(store) == maps
    found = read_maps(store)["answer en {q}", "answer"]([0.0, 0.5, 1.0, np.nan])
    assert found[:3].tolist() == pytest.approx([0.0, 0.25, 0.5])
    assert np.isnan(found[3])
    store.put(KEY, b"[]")
    with pytest.raises(UsageError, match="--fit"):
        read_maps(store)
