"""Stdout is for results: what Ray prints while a run is on goes elsewhere."""

import pytest
from ray._private.worker import print_to_stdstream

from paliscribe.pool.ray_cluster import cluster

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("served")]


def test_warnings_of_the_raylet_stay_off_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with cluster():
        print_to_stdstream({"lines": ["WARNING: 10 PYTHON worker"], "pid": "raylet", "is_err": False}, False)
    print("the result")
    assert capsys.readouterr().out == "the result\n"
