"""The benchmark of large runs works at a small size, and its state is a run's."""

from pathlib import Path

from bench import scale
from paliscribe import manifest, results
from paliscribe.storage import open_store


def test_manifests_and_freeze(tmp_path: Path) -> None:
    digests = set()
    for kind in scale.FORMATS:
        path = tmp_path / f"m.{kind}"
        scale.write_manifest(path, 300)
        assert scale.freeze(path, tmp_path / kind)["shards"] == 2
        frozen = manifest.load(open_store(str(tmp_path / kind)))
        assert frozen is not None and frozen.rows == 300 and frozen.schema.names == ["n", "source"]
        digests.add(frozen.digest)
    assert len(digests) == 3, "other texts"


def test_ends(tmp_path: Path) -> None:
    path, output = tmp_path / "m.parquet", tmp_path / "run"
    scale.write_manifest(path, 1000)
    scale.freeze(path, output)
    figures = scale.ends(path, output)
    store = open_store(str(output))
    summary = results.read_summary(store)
    assert summary is not None and summary["records"] == 1000 and summary["errors"] == 12
    assert figures["parts"] == 1 and figures["sweep calls"] < 10 and results.retry_begun(store, 1)
    assert len(list(store.list("_run/shards/"))) == 4, "those with errors; lost attempts are swept"
    assert set(results.retry_rows(store, 1, 3)) == {775, 875, 975}


def test_nine_tenths(tmp_path: Path) -> None:
    path, output = tmp_path / "m.parquet", tmp_path / "run"
    scale.write_manifest(path, 5000)
    scale.freeze(path, output)
    scale.commit_tenths(output, 9)
    assert results.done(open_store(str(output)), 20).sum() == 18
