"""Label Studio's own validation and converter take the export, and find the published boxes in it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from demo_run import DemoRun

from paliscribe.export import export
from paliscribe.published import open_tables

SDK = "label-studio-sdk==2.1.2"
TOOL = Path(__file__).parent / "label_studio_tool.py"


@pytest.mark.full
def test_its_converter_finds_the_published_boxes(demo_run: DemoRun, tmp_path: Path) -> None:
    """The SDK is installed in an environment of its own: it brings some 70 packages."""
    export(str(demo_run.output), "label-studio", str(tmp_path / "export"), images=True)
    python = str(tmp_path / "environment" / "bin" / "python")
    (tmp_path / "work").mkdir()
    for command in (
        [sys.executable, "-m", "venv", str(tmp_path / "environment")],
        [python, "-m", "pip", "install", "--quiet", "--no-compile", SDK],
        [python, str(TOOL), str(tmp_path / "export"), str(tmp_path / "work")],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
        assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    sql = "SELECT id, boxes FROM annotations WHERE kind = 'detect' AND status = 'ok'"
    published = open_tables(str(demo_run.output)).connection.execute(sql).fetchall()
    assert sum(len(boxes) for _, boxes in published) == sum(map(len, found.values())) > 0
    for row_id, boxes in published:
        assert [label for label, _ in found[row_id]] == [box["label"] for box in boxes]
        for (_, (x, y, width, height)), box in zip(found[row_id], boxes, strict=True):
            edges = [box[name] for name in ("x_min", "y_min", "x_max", "y_max")]
            assert np.abs(np.subtract((x, y, x + width, y + height), edges)).max() < 1e-3 * max(edges)
