"""Requests that exhaust a node's memory, which Ray's memory monitor frees by ending processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from chaos.memory_monitor import MOST, PLACES, ROOM

pytestmark = [pytest.mark.cluster, pytest.mark.long]
PROGRAM = Path(__file__).with_name("memory_monitor.py")


@pytest.mark.skipif(psutil.virtual_memory().available < ROOM + MOST, reason="needs 15 GiB of free memory")
def test_requests_that_take_a_nodes_memory_are_isolated() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment["PYTHONPATH"] = str(PROGRAM.parents[2])  # of `bench`
    process = subprocess.run(
        [sys.executable, str(PROGRAM)], env=environment, capture_output=True, text=True, timeout=400, check=False
    )
    assert process.returncode == 0, process.stderr[-2000:]
    found = json.loads(process.stdout.splitlines()[-1])
    assert set(found["errors"]) == set(map(str, PLACES)), found
    assert found["wrong"] == 0 and found["good"] == 58
    for kind, message in found["errors"].values():
        assert kind == "replica_lost" and "2 replicas were lost with this request alone" in message
        assert "ran out of memory, and Ray ended its process" in message
