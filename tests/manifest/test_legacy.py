"""What run files of older versions hold."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from paliscribe.manifest import legacy_digest, scan

ROWS = """\
{"id": "a", "image": "s3://b/é.png", "n": 1, "x": 0.5, "ok": true, "s": "ü", "none": null, "deep": {"k": [1, "é"]}}
{"image": "s3://b/2.png", "n": 2, "s": ""}
{"image": "data:image/png;base64,AA==", "day": "2024-02-29"}
"""
DIGEST = "3ebb3b6ff940184a873eca30e58714306e112c0ba5ce90f748d450ed1b24de72"  # made by commit 7436669


def test_the_digest_of_an_older_version(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(ROWS)
    assert legacy_digest(str(path), image_column="image", id_column="id") == DIGEST


def test_the_digests_of_the_version_before(tmp_path: Path) -> None:
    """Made by commit bd6d1dd: runs that it began go on."""
    rows: list[dict[str, object]] = [
        {"id": "a", "image": "s3://b/é.png", "n": 1, "x": 0.5, "ok": True, "s": "ü", "deep": {"k": [1, "é"]}},
        {"image": "s3://b/2.png", "n": 2, "x": 3, "s": "", "list": ["a"]},
        {"image": "data:image/png;base64,AA==", "x": float("nan")},
    ]
    rows[0] |= {"day": "2024-02-29", "big": 2**60}
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "m.csv").write_text('id,image,s\n1,s3://b/1.png,"x, y"\n2,s3://b/2.png,\n')
    columns = {"n": pa.array([1, None], pa.int8()), "none": pa.nulls(2, pa.int64())}
    columns |= {"f": pa.array([1.0, 2.5], pa.float32()), "l": pa.array([["a"], None])}
    pq.write_table(pa.table({"image": ["s3://b/1.png", "s3://b/2.png"]} | columns), tmp_path / "m.parquet")
    assert [scan(str(tmp_path / name)).digest for name in ("m.jsonl", "m.csv", "m.parquet")] == [
        "columns-bf003fe55375754d53edf0f827051f046438b862feeca4700ca1f3b4062fb74c",
        "columns-49704a52871f6303a15270511b26f4901dd3521b7cdf714acb675aff25678bb8",
        "columns-aa318dcb28472eccc2f069382e43612c15f75e084985461ac361bdae7864ba61",
    ]
