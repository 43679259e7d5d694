"""Records with masks of 80 KB: 2,048 of them, which DuckDB reads at once, do not fit into the memory of commands."""

import json
import sys
from pathlib import Path

import pytest

from bench.made_run import SEGMENT, make
from paliscribe.cli import main as cli
from paliscribe.evaluation import Options, evaluate
from paliscribe.export import Filters, export
from paliscribe.storage import open_store

ROWS, LENGTHS, FEW = 2200, 20_000, 40


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run whose rows have a mask of many run lengths."""
    output = str(tmp_path_factory.mktemp("large") / "run")
    make(open_store(output), ROWS, lengths=LENGTHS)
    return output


def test_export(run: str, tmp_path: Path) -> None:
    """Fails if records are read by DuckDB."""
    found = export(run, "coco", str(tmp_path / "coco"), Filters(where=f"row < {FEW}"))
    assert found["boxes"] == FEW
    [path] = (tmp_path / "coco").rglob("*.json")
    annotations = json.loads(path.read_text())["annotations"]
    assert all(len(each["segmentation"]["counts"]) >= LENGTHS for each in annotations)


def test_evaluate(run: str, tmp_path: Path) -> None:
    """Fails if records are joined by DuckDB."""
    shape = {"bbox": [0, 0, 50, 50], "label": "cat", "segmentation": {"size": [480, 640], "counts": [640 * 480]}}
    rows = [{"id": f"id-{row}", SEGMENT: [shape]} for row in range(FEW)]
    (tmp_path / "truth.jsonl").write_text("\n".join(map(json.dumps, rows)))
    boxes, masks = evaluate(run, Options(str(tmp_path / "truth.jsonl")))["tasks"]
    assert (boxes["of"], masks["of"]) == ("boxes", "masks")
    assert boxes["rows"]["evaluated"] == masks["rows"]["evaluated"] == FEW
    assert masks["rows"]["without_truth"] == ROWS - FEW


def test_report_and_query(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fails if DuckDB has no more memory for large records."""

    def paliscribe(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["paliscribe", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    assert paliscribe("report", run, "-o", str(tmp_path / "r.html"), "--samples", "2", "--quiet") == (0, "", "")
    sql = "SELECT * FROM annotations WHERE row < {} ORDER BY row"
    code, out, err = paliscribe("query", run, sql.format(FEW), "--format", "jsonl")
    assert (code, len(out.splitlines()), err) == (0, 2 * FEW, "")
    code, out, err = paliscribe("query", run, sql.format(ROWS), "--format", "jsonl", "--memory", "64")
    assert code == 2 and "--memory 4000" in err
