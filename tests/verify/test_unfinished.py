"""Runs that were interrupted or go on: what is there is verified, and nothing of it is taken for damage."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from batch.alone import alone, draw
from batch.test_append import job, rows
from results.made import Crash, Crashing
from verify.history import History, history
from whole import check_whole

from paliscribe import results
from paliscribe.batch.run import run_append, run_batch, run_retry
from paliscribe.cli import main as cli
from paliscribe.errors import TemporaryError, UsageError
from paliscribe.manifest.frozen import INDEX
from paliscribe.storage import open_store
from paliscribe.verify import repair, verify

__all__ = ["history"]
EVERY = 1 if os.environ.get("FULL") else 7  # writes between two crashes


def crashes(output: str, action: Callable[[], object], patch: pytest.MonkeyPatch) -> None:
    """Let an action crash again and again, each time a few writes later; verify what each crash leaves."""
    at = 1
    while True:
        store: Any = Crashing(open_store(output), at)
        try:
            with alone(patch, store):
                action()
            return
        except Crash:
            at += EVERY
            open_store(output).delete("_run/lease.json")
            if not open_store(output).exists(INDEX):
                continue
            report = verify(output)
            ends = {"_SUCCESS", "_summary.json"}  # a crash right before one of them looks like its loss
            assert {finding.key for finding in report.findings} <= ends, f"write {at - EVERY}: {report.findings}"


def test_what_a_crash_leaves_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results.layout, "PART_RECORDS", 8)
    given = rows(tmp_path, range(8), lost=(1, 6))
    first, grown = job(tmp_path, given[:5], name="one"), job(tmp_path, given, name="two")
    crashes(first.output, lambda: run_batch(first), monkeypatch)
    check_whole(first.output, "finished")
    crashes(first.output, lambda: run_retry(first.output), monkeypatch)
    check_whole(first.output, "finished")
    crashes(first.output, lambda: run_append(grown), monkeypatch)
    check_whole(first.output, "finished")
    draw(tmp_path / "images/6.png", 6)
    crashes(first.output, lambda: run_retry(first.output), monkeypatch)
    assert check_whole(first.output, "finished").checked["records"] == 16


def test_an_altered_shard_of_an_unfinished_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = job(tmp_path, rows(tmp_path, range(5)))
    store: Any = Crashing(open_store(config.output), 10)
    with alone(monkeypatch, store), pytest.raises(Crash):
        run_batch(config)
    open_store(config.output).delete("_run/lease.json")
    assert check_whole(config.output, "unfinished").checked["records"] > 0
    marker = results.read_marker(open_store(config.output), 0)
    (Path(config.output) / marker.file).write_bytes(b"nothing")
    assert [finding.key for finding in verify(config.output).findings] == [marker.file]
    assert repair(config.output).report.good
    with alone(monkeypatch):
        run_batch(config)
    check_whole(config.output, "finished")


def test_a_driver_at_work_is_left_alone(history: History, tmp_path: Path) -> None:
    output = history.copy(tmp_path / "o").output
    with results.hold(open_store(output)):
        report = check_whole(output, "running")
        assert report.driver == f"process {os.getpid()} on {os.uname().nodename}"
        with pytest.raises(TemporaryError, match="another driver holds the lease"):
            repair(output)
    with pytest.raises(UsageError, match="no run is here"):
        verify(str(tmp_path / "nothing"))


def test_the_command(
    history: History, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = history.copy(tmp_path / "o").output

    def said(*flags: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["paliscribe", "verify", output, *flags])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), capsys.readouterr().out

    whole = "whole; checked 14 rows, 4 parts, 13 shards, 16 files, 28 records"
    assert said() == (0, f"{output}: {whole}\n")
    (tmp_path / "o/_summary.json").unlink()
    for number in range(30):
        (tmp_path / f"o/annotations/{number}.parquet").write_bytes(b"x")
    code, text = said()
    assert code == 1 and len(text.splitlines()) == 22 and "... and 11 more" in text and "31 findings" in text
    code, text = said("--json")
    assert code == 1 and (json.loads(text)["damages"], len(json.loads(text)["findings"])) == (31, 20)
    code, text = said("--repair")
    assert code == 0 and whole in text and "moved to _run/stray/" in text
    assert len(list((tmp_path / "o/_run/stray/annotations").iterdir())) == 30
