"""What run files of older versions hold."""

from pathlib import Path

from paliscribe.manifest import legacy_digest

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
