"""Models are found, and what is wrong with one is said in a line, before anything is started."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hub import COMMIT

from pipeline.config import ModelSpec
from pipeline.errors import UsageError
from pipeline.weights import locate


def located(hub: str, cache: Path, model: str, revision: str | None = None) -> str:
    """What `locate` says in a process of its own, where the hub's address can be set."""
    code = (
        "import sys; from pipeline.config import ModelSpec; from pipeline.errors import UsageError\n"
        "from pipeline.weights import locate\n"
        f"try: print(locate(ModelSpec(id={model!r}, revision={revision!r})))\n"
        "except UsageError as error: print('refused:', error)\n"
    )
    environment = os.environ | {"HF_ENDPOINT": hub, "HF_HOME": str(cache)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_model_of_the_hub_is_pinned_to_its_commit(hub: str, tmp_path: Path) -> None:
    assert located(hub, tmp_path, "acme/paligemma") == (
        f"Located(path='acme/paligemma', revision='{COMMIT}', image_size=448, family='gemma')"
    )


@pytest.mark.parametrize(
    ("model", "revision", "words"),
    [
        ("acme/gated", None, "accept its licence at https://huggingface.co/acme/gated, then set HF_TOKEN"),
        ("acme/nothing", None, "no such repository on Hugging Face"),
        ("acme/no-config", None, "no config.json"),
        ("acme/bert", None, "is a bert, not a PaliGemma"),
        ("acme/paligemma", "no-such-branch", "has no revision 'no-such-branch'"),
        ("a/b/c", None, "neither a folder nor a Hugging Face id"),
    ],
)
def test_refusals_are_one_clear_line(hub: str, tmp_path: Path, model: str, revision: str | None, words: str) -> None:
    said = located(hub, tmp_path, model, revision)
    assert said.startswith("refused: ") and words in said and "\n" not in said


def test_no_hub_to_be_reached(tmp_path: Path) -> None:
    assert "cannot be reached" in located("http://127.0.0.1:9", tmp_path, "acme/paligemma")


def test_the_demo_and_folders(tmp_path: Path) -> None:
    demo = locate(ModelSpec())
    assert demo.is_folder and demo.image_size == 112 and demo.family == "gemma"
    copy = tmp_path / "copy"
    shutil.copytree(demo.path, copy)
    assert locate(ModelSpec(id=str(copy))).revision == demo.revision
    with (copy / "model.safetensors").open("ab") as weights:
        weights.write(b"\0")
    assert locate(ModelSpec(id=str(copy))).revision != demo.revision
    with pytest.raises(UsageError, match="a folder has no revisions"):
        locate(ModelSpec(id=str(copy), revision="main"))
    (copy / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"no \.safetensors"):
        locate(ModelSpec(id=str(copy)))
    with pytest.raises(UsageError, match="no such folder"):
        locate(ModelSpec(id=str(tmp_path / "nothing")))
