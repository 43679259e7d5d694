"""Odd images and mutations of them: right pixels, or a dead letter by kind, within bounds, and nothing on stderr."""

import json
import os
import subprocess
import sys
from pathlib import Path

from paliscribe.errors import ROW_ERROR_KINDS

COUNT, MUTATIONS = (10_000, 10) if os.environ.get("FULL") else (250, 3)


def test_odd_images() -> None:
    root = Path(__file__).parents[2]
    places = os.pathsep.join([str(root / "tests"), *filter(None, sys.path)])
    run = subprocess.run(
        [sys.executable, str(root / "tests/images/odd.py"), "0", str(COUNT), str(MUTATIONS)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": places},
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert not run.stderr
    found = json.loads(run.stdout)
    assert not found["wrong"]
    assert sum(found["outcomes"].values()) == COUNT * MUTATIONS and set(found["outcomes"]) <= {"ok", *ROW_ERROR_KINDS}
    assert found["outcomes"]["ok"] and found["outcomes"]["corrupt"]
    assert found["slowest"][0] < 10 and found["peak"] < 2**30
