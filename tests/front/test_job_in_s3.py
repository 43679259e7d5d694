"""The same job with manifest, images and output all in S3."""

import json
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pyarrow.fs as fs
import pytest
from front.conftest import TASKS, Paliscribe, published, read_rows, task_flags

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("served")]


def test_everything_in_s3(
    collection: Path, bucket: str, s3_server: Any, tmp_path: Path, paliscribe: Paliscribe
) -> None:
    client = s3_server.client()
    for path in sorted((collection.parent / "images").iterdir()):
        client.upload_file(str(path), bucket, f"pictures/images/{path.name}")
    client.upload_file(str(collection), bucket, "pictures/manifest.jsonl")
    flags = ["--shard-rows", "10", "--json", "--quiet", *task_flags(*TASKS)]
    uri = f"s3://{bucket}/runs/one"
    said = paliscribe("annotate", "--manifest", f"s3://{bucket}/pictures/manifest.jsonl", "--output", uri, *flags)
    assert said.code == 0, said.err
    assert (said.json["records"], said.json["ok"], said.json["errors"]) == (96, 96, 0)

    store = fs.S3FileSystem(
        access_key=s3_server.key, secret_key=s3_server.secret, endpoint_override=s3_server.endpoint, region="us-east-1"
    )
    rows = ds.dataset(f"{bucket}/runs/one", filesystem=store, format="parquet").to_table().to_pylist()
    assert {(row["id"], row["task"]) for row in rows} == {
        (row["id"], task) for row in read_rows(collection) for task in TASKS
    }
    assert len(rows) == 96
    assert all(row["image"].startswith(f"s3://{bucket}/pictures/images/") for row in rows)
    keys = {item["Key"] for item in client.list_objects_v2(Bucket=bucket, Prefix="runs/one/")["Contents"]}
    assert {"runs/one/_SUCCESS", "runs/one/_summary.json"} <= keys
    assert not {key for key in keys if "/_run/shards/" in key or "lease" in key}
    assert json.loads(client.get_object(Bucket=bucket, Key="runs/one/_summary.json")["Body"].read())["ok"] == 96

    local = paliscribe("annotate", "--manifest", collection, "--output", tmp_path / "o", *flags)
    assert local.code == 0, local.err
    texts = {(row["id"], row["task"]): row["text"] for row in rows}
    found = ds.dataset(tmp_path / "o", format="parquet").to_table().to_pylist()
    assert {(row["id"], row["task"]): row["text"] for row in found} == texts
    assert len(published(tmp_path / "o")) == len(TASKS)


def test_an_output_that_may_not_be_written_is_refused(
    collection: Path, bucket: str, s3_server: Any, monkeypatch: pytest.MonkeyPatch, paliscribe: Paliscribe
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.powerless_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.powerless_secret)
    said = paliscribe("annotate", "--manifest", collection, "--output", f"s3://{bucket}/x", "--task", "ocr", "-q")
    assert said.code == 2
    assert said.err.startswith("paliscribe: output s3://") and "access denied" in said.err
    assert len(said.err.splitlines()) == 1
