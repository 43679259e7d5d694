"""A model in an object store is found without reading it, and fetched once a node."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from paliscribe.config import ModelSpec
from paliscribe.errors import UsageError
from paliscribe.model import download as download_module
from paliscribe.model import paligemma as model
from paliscribe.model.download import download, model_objects
from paliscribe.model.weights import locate
from paliscribe.records import Request
from paliscribe.storage import open_store

LOCAL = """
import sys
from paliscribe.config import ModelSpec
from paliscribe.model.weights import locate
print(locate(ModelSpec(id=sys.argv[1])).local()[0])
"""


@pytest.fixture
def prefix(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The demo checkpoint in an object store, and a cache that has no model."""
    shapes = download_module.cache_folder() / "shapes"
    if shapes.is_dir():  # of the same model: not probed again
        shutil.copytree(shapes, tmp_path / "cache/shapes")
    monkeypatch.setenv("PALISCRIBE_CACHE", str(tmp_path / "cache"))
    uri = f"s3://{bucket}/models/demo"
    store = open_store(uri)
    for path in Path(locate(ModelSpec()).path).iterdir():
        store.put_file(path.name, path)
    store.put("older/model.safetensors", b"of another model")
    return uri


def test_a_prefix_is_located_without_reading_its_weights(prefix: str, tmp_path: Path) -> None:
    found = locate(ModelSpec(id=prefix))
    assert found.path == prefix and found.image_size == 112 and found.revision.startswith("sha256:")
    assert not (tmp_path / "cache/models").exists()
    assert locate(ModelSpec(id=prefix, revision=found.revision)) == found
    open_store(prefix).put("tokenizer_config.json", b"{}")
    with pytest.raises(UsageError, match=f"it is at sha256:[0-9a-f]+ now, not at {found.revision}"):
        locate(ModelSpec(id=prefix, revision=found.revision))


def test_two_processes_of_a_node_fetch_it_once(prefix: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", LOCAL, prefix]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[0].strip() for process in both]
    models = tmp_path / "cache" / "models"
    [folder] = [path for path in models.iterdir() if path.is_dir()]
    assert said == [str(folder)] * 2, "what a model is loaded from"
    assert {path.name for path in folder.iterdir()} == {found.key for found in model_objects(open_store(prefix))}
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    loaded = model.load(ModelSpec(id=prefix))
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert loaded.located.revision == locate(ModelSpec(id=prefix)).revision
    assert loaded.network.num_parameters() == model.load(ModelSpec()).network.num_parameters()


def test_while_one_fetches_the_others_wait(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from concurrent.futures import ThreadPoolExecutor

    fetches: list[Any] = []
    fetch = download_module._fetch

    def slow(*arguments: Any) -> None:
        fetches.append(arguments)
        time.sleep(0.3)
        fetch(*arguments)

    monkeypatch.setattr(download_module, "_fetch", slow)
    revision, store = locate(ModelSpec(id=prefix)).revision, open_store(prefix)
    with ThreadPoolExecutor(4) as threads:
        folders = set(threads.map(lambda _: download(store, revision), range(4)))
    assert len(fetches) == len(folders) == 1


def test_a_fetch_that_was_cut_short_leaves_nothing_that_looks_whole(
    prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    located = locate(ModelSpec(id=prefix))
    store = open_store(prefix)
    left = tmp_path / "cache" / "models" / f".partial-{located.revision.replace(':', '-')}"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half of it")
    (left / "stray.json").write_text("{}")
    folder = download(store, located.revision)
    assert not left.exists() and not (folder / "stray.json").exists()
    assert (folder / "model.safetensors").stat().st_size > 1000
    store.put("model.safetensors", b"rewritten")
    with pytest.raises(UsageError, match="no longer sha256:0123"):
        download(store, "sha256:0123")
    assert [path.name for path in folder.parent.iterdir() if not path.name.endswith(".lock")] == [folder.name]


def test_what_is_wrong_is_said_in_a_line(
    prefix: str, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal(uri: str) -> str:
        with pytest.raises(UsageError) as caught:
            locate(ModelSpec(id=uri))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    store = open_store(f"s3://{bucket}/other")
    assert refusal(f"s3://{bucket}/nothing") == f"model s3://{bucket}/nothing: no model found"
    assert refusal("s3://no-such-bucket-here/model").startswith("model s3://no-such-bucket-here/model")
    store.put("pytorch_model.bin", b"pickled")
    store.put("config.json", json.dumps({"model_type": "paligemma"}).encode())
    assert "has no .safetensors file" in refusal(store.uri)
    store.put("model.safetensors", b"")
    store.put("config.json", json.dumps({"model_type": "bert"}).encode())
    assert "is a bert, not a PaliGemma" in refusal(store.uri)
    store.delete("config.json")
    assert "no config.json" in refusal(store.uri)
    monkeypatch.setenv("PALISCRIBE_CACHE", "/proc/nothing")
    with pytest.raises(UsageError, match="cannot be cached in /proc/nothing/models"):
        model.load(ModelSpec(id=prefix))


def test_it_answers_as_the_folder_does(prefix: str) -> None:
    import numpy as np

    from paliscribe.engine import Engine

    request = Request("a", "caption en", np.zeros((112, 112, 3), np.uint8), "a", 12)
    ours, packaged = (Engine(model.load(spec)).run([request])[0] for spec in (ModelSpec(id=prefix), ModelSpec()))
    assert ours.tokens == packaged.tokens and ours.logprobs == packaged.logprobs
