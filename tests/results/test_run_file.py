"""Only the same run goes on in an output, and what differs is named."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from paliscribe.config import JobConfig, ModelSpec
from paliscribe.errors import RunError, UsageError
from paliscribe.results.run_file import RUN_FILE, Fingerprint, RunFile, refuse_changes
from paliscribe.storage import open_store

JOB = JobConfig(manifest=("m.jsonl",), tasks=("caption en", "ocr"), output="out", partition_by=("task", "kind"))
FINGERPRINT = Fingerprint.of(JOB, manifest="d1", rows=1000, revision="r1", shard_rows=256)
CHANGES: dict[str, tuple[Any, str]] = {
    "manifest": ("d2", "the manifest (1,000 rows then, 1,000 rows now, or other content)"),
    "tasks": (("caption en",), "tasks ('caption en', 'ocr' then, 'caption en' now)"),
    "model": ("other", "model ('demo' then, 'other' now)"),
    "revision": ("r2", "revision ('r1' then, 'r2' now)"),
    "precision": ("float16", "precision ('auto' then, 'float16' now)"),
    "quantization": ("nf4", "quantization ('none' then, 'nf4' now)"),
    "double_quantization": (True, "double_quantization (False then, True now)"),
    "max_tokens": (7, "max_tokens (None then, 7 now)"),
    "shard_rows": (8, "shard_rows (256 then, 8 now)"),
    "image_column": ("url", "image_column ('image' then, 'url' now)"),
    "id_column": ("key", "id_column ('id' then, 'key' now)"),
    "partition_by": ((), "partition_by ('task', 'kind' then, none now)"),
    "mask_decoder": ("v.npz", "mask_decoder (None then, 'v.npz' now)"),
    "draft": (True, "draft (False then, True now)"),
    "options_column": ("o", "options_column (None then, 'o' now)"),
    "drop_columns": (("x",), "drop_columns (none then, 'x' now)"),
    "rename_columns": (("x=y",), "rename_columns (none then, 'x=y' now)"),
}


def test_the_same_run_goes_on(tmp_path: Path) -> None:
    again = Fingerprint.of(JOB, manifest="d1", rows=1000, revision="r1", shard_rows=256)
    assert FINGERPRINT.differences(again) == []
    refuse_changes(open_store(str(tmp_path)), FINGERPRINT, again)


@pytest.mark.parametrize("name", CHANGES)
def test_each_difference_is_named(name: str, tmp_path: Path) -> None:
    value, words = CHANGES[name]
    now = replace(FINGERPRINT, **{name: value})
    assert FINGERPRINT.differences(now) == [words]
    with pytest.raises(UsageError) as caught:
        refuse_changes(open_store(str(tmp_path)), FINGERPRINT, now)
    assert str(caught.value) == (
        f"{tmp_path} contains a run that differs in {words}. Use another output, or undo the change"
    )


def test_nothing_is_left_out() -> None:
    assert {*CHANGES, "rows"} == {field.name for field in fields(Fingerprint)}
    now = replace(FINGERPRINT, rows=2000, **{name: value for name, (value, _) in CHANGES.items()})
    assert len(FINGERPRINT.differences(now)) == len(CHANGES)
    assert "1,000 rows then, 2,000 rows now" in FINGERPRINT.differences(now)[0]


def test_the_run_file_is_written_once_and_read_back(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    assert RunFile.read(store) is None
    file = RunFile(FINGERPRINT, JOB, ModelSpec(id="demo", precision="float32"), 56)
    file.write(store)
    replace(file, image_size=448).write(store)
    assert RunFile.read(store) == file


def test_a_run_from_before_draft_goes_on(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    RunFile(FINGERPRINT, JOB, JOB.model, 56).write(store)
    body = json.loads(store.get(RUN_FILE))
    del body["check"], body["fingerprint"]["draft"], body["job"]["fetch"]["draft"]
    for name in ("drop_columns", "rename_columns"):
        del body["fingerprint"][name], body["job"][name]
    store.put(RUN_FILE, json.dumps(body).encode())
    file = RunFile.read(store)
    assert file is not None and file.fingerprint == FINGERPRINT and file.job == JOB
    drafted = JOB.model_copy(update={"fetch": JOB.fetch.model_copy(update={"draft": True})})
    now = Fingerprint.of(drafted, manifest="d1", rows=1000, revision="r1", shard_rows=256)
    assert file.fingerprint.differences(now) == ["draft (False then, True now)"]


def test_a_run_of_another_version_is_refused(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    RunFile(FINGERPRINT, JOB, JOB.model, 56).write(store)
    body = json.loads(store.get(RUN_FILE)) | {"version": 2, "fingerprint": {}}
    del body["check"]
    store.put(RUN_FILE, json.dumps(body).encode())
    with pytest.raises(RunError, match="written by another version"):
        RunFile.read(store)
