"""Packaging of jobs for submission, and what is rejected before anything is sent."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from front.conftest import Paliscribe, paliscribe
from grammar.test_masks import reference
from ports import free_ports

from paliscribe.config import JobConfig
from paliscribe.errors import UsageError
from paliscribe.submit import pack, variables

__all__ = ["paliscribe"]
NOBODY = "http://127.0.0.1:9"  # never contacted: invalid input is rejected before
JOB = {"manifest": "s3://images/manifest.jsonl", "tasks": ["ocr"], "output": "s3://runs/one"}


def write(folder: Path, **values: object) -> Path:
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(JOB | values))
    return file


def images(folder: Path, *references: str) -> str:
    path = folder / "my images.jsonl"
    path.write_text("".join(json.dumps({"id": str(n), "image": name}) + "\n" for n, name in enumerate(references)))
    return str(path)


def rejected(said: object, *words: str) -> None:
    code, err = said.code, said.err  # type: ignore[attr-defined]
    assert code == 2, err
    assert len(err.strip().splitlines()) == 1 and err.startswith("paliscribe: "), err
    assert all(word in err for word in words), err


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"maxtokens": 5}, ["unknown key 'maxtokens'", "did you mean 'max_tokens'?"]),
        ({"tasks": ["answer en {question.x}"]}, ["placeholder"]),
        ({"output": "runs/one"}, ["output runs/one: a local folder", "s3://", "--shared-paths"]),
        ({"output": "file:///runs/one"}, ["output file:///runs/one: a local folder"]),
        ({"output": "ftp://there/one"}, ["output ftp://there/one", "unknown scheme 'ftp'"]),
        ({"manifest": "/nowhere/images.jsonl"}, ["manifest /nowhere/images.jsonl: no such file"]),
        ({"manifest": str(Path(__file__).parent)}, ["a local folder", "--shared-paths"]),
        ({"model": "/models/mine"}, ["model /models/mine: a local folder", "--shared-paths"]),
        ({"model": {"id": str(Path(__file__).parent)}}, ["a local folder"]),
        ({"mask_decoder": "/nowhere/vae.npz"}, ["mask_decoder /nowhere/vae.npz: No such file"]),
        ({"mask_decoder": __file__}, ["the mask decoder is not an .npz"]),
        ({"manifest": "https://me:pw@host/m.jsonl"}, ["manifest: https://host/m.jsonl contains a user", "AWS_PROFILE"]),
        (
            {"manifest": "https://host/m.jsonl?X-Amz-Signature=abc"},
            ["manifest: https://host/m.jsonl?... contains a user"],
        ),
        ({"output": "s3://key:pw@runs/one"}, ["output: s3://runs/one contains a user"]),
        ({"model": {"id": "https://host/?access_token=abc"}}, ["model.id: https://host/?... contains a user"]),
        ({"tasks": ["ocr", "see https://me:pw@host/"]}, ["tasks: https://host/ contains a user"]),
    ],
)
def test_invalid_jobs_are_rejected(
    tmp_path: Path, paliscribe: Paliscribe, values: dict[str, object], words: list[str]
) -> None:
    said = paliscribe("submit", write(tmp_path, **values), "--address", NOBODY)
    rejected(said, *words)
    assert "pw" not in said.err and "abc" not in said.err and said.out == ""


@pytest.mark.parametrize("reference_", ["scene.jpg", "/data/scene.jpg", "file:///data/scene.jpg", "../scene.jpg"])
def test_local_images_are_rejected(tmp_path: Path, paliscribe: Paliscribe, reference_: str) -> None:
    manifest = images(tmp_path, "s3://images/one.jpg", reference_)
    said = paliscribe("submit", write(tmp_path, manifest=manifest), "--address", NOBODY)
    rejected(said, f"manifest {manifest}, row 2: image ", "scene.jpg: a local file", "--shared-paths")


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("AWS_SECRET_ACCESS_KEY", "AWS_SHARED_CREDENTIALS_FILE"),
        ("AWS_ACCESS_KEY_ID", "AWS_PROFILE"),
        ("AWS_SESSION_TOKEN", "AWS_ROLE_ARN with AWS_WEB_IDENTITY_TOKEN_FILE"),
        ("HF_TOKEN", "HF_TOKEN_PATH"),
        ("HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"),
        ("PALISCRIBE_API_KEYS", "`keys` file"),
        ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"),
        ("WANDB_API_KEY", "a variable with its path"),
        ("db_password", "a variable with its path"),
        ("CLIENT_SECRET", "a variable with its path"),
        ("TOKEN", "a variable with its path"),
    ],
)
@pytest.mark.parametrize("form", ["{}=hush", "{}"])
def test_secrets_are_rejected(
    tmp_path: Path, paliscribe: Paliscribe, monkeypatch: pytest.MonkeyPatch, name: str, instead: str, form: str
) -> None:
    monkeypatch.setenv(name, "hush")
    said = paliscribe("submit", write(tmp_path), "--address", NOBODY, "--env", form.format(name))
    rejected(said, f"--env {name}: ", instead)
    assert "hush" not in said.err


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("=value", "not a valid variable name"),
        ("A B=value", "not a valid variable name"),
        ("NOT_SET_HERE", "not set in this environment"),
        ("AWS_ENDPOINT_URL=https://me:pw@store", "--env AWS_ENDPOINT_URL: https://store contains a user"),
    ],
)
def test_variables_that_are_rejected(given: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        variables([given])


def test_references_and_plain_values_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "annotator")
    given = ["AWS_PROFILE", "AWS_ENDPOINT_URL=http://store:9000", "HF_TOKEN_PATH=/run/token", "EMPTY=", "E=a=b"]
    given += ["AWS_WEB_IDENTITY_TOKEN_FILE=/run/jwt", "AWS_SHARED_CREDENTIALS_FILE=/run/aws", "RAY_AUTH_TOKEN_PATH=/t"]
    found = variables(given)
    assert found["AWS_PROFILE"] == "annotator" and found["EMPTY"] == "" and found["E"] == "a=b"
    assert len(found) == len(given)


def test_the_package_contains_the_job_and_its_files(tmp_path: Path) -> None:
    manifest = images(tmp_path, "s3://images/one.jpg", "https://host/two.jpg?width=100")
    decoder = tmp_path / "vae oid.npz"
    decoder.write_bytes(reference()[2])
    file = write(tmp_path, manifest=manifest, mask_decoder=str(decoder), model="google/paligemma-3b-mix-224")
    package = pack(file)
    (folder := tmp_path / "sent").mkdir()
    package.write(folder)
    assert {path.name for path in folder.iterdir()} == {
        "job.yaml", "manifest-my_images.jsonl", "mask-decoder-vae_oid.npz",
    }  # fmt: skip
    assert (folder / "manifest-my_images.jsonl").read_bytes() == Path(manifest).read_bytes()
    assert (folder / "mask-decoder-vae_oid.npz").read_bytes() == decoder.read_bytes()
    sent = yaml.safe_load((folder / "job.yaml").read_text())
    assert sent == yaml.safe_load(file.read_text()) | {
        "manifest": "manifest-my_images.jsonl",
        "mask_decoder": "mask-decoder-vae_oid.npz",
    }
    assert JobConfig.model_validate(sent) == package.job


def test_several_manifests_are_packed_side_by_side(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    here, there = images(tmp_path, "s3://images/one.jpg"), images(tmp_path / "more", "s3://images/two.jpg")
    package = pack(write(tmp_path, manifest=[here, "s3://b/m.csv", there]))
    assert package.job.manifest == ("manifest-my_images.jsonl", "s3://b/m.csv", "manifest-2-my_images.jsonl")
    assert package.files == {package.job.manifest[0]: Path(here), package.job.manifest[2]: Path(there)}


def test_addresses_visible_to_the_cluster_are_unchanged(tmp_path: Path) -> None:
    package = pack(write(tmp_path, model="s3://models/mine", manifest="https://host/m.jsonl?version=3"))
    assert package.files == {}
    assert (package.job.manifest, package.job.output) == (("https://host/m.jsonl?version=3",), JOB["output"])


def test_shared_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    given = {"manifest": "m.jsonl", "output": "runs/one", "mask_decoder": "/shared/vae.npz"}
    package = pack(write(tmp_path, **given, model={"id": "model", "precision": "float32"}), shared_paths=True)
    job = package.job
    assert package.files == {}
    assert (job.manifest, job.output, job.mask_decoder) == (
        (str(tmp_path / "m.jsonl"),), str(tmp_path / "runs/one"), "/shared/vae.npz",
    )  # fmt: skip
    assert (job.model.id, job.model.precision) == (str(tmp_path / "model"), "float32")


def test_a_missing_or_unreachable_cluster(
    tmp_path: Path, paliscribe: Paliscribe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    rejected(paliscribe("submit", write(tmp_path)), "--address http://HOST:8265", "RAY_API_SERVER_ADDRESS")
    rejected(paliscribe("jobs", "list"), "--address http://HOST:8265")
    rejected(paliscribe("jobs", "list", "--address", "ray://host:10001"), "not a dashboard URL")
    rejected(paliscribe("jobs", "list", "--address", "http://me:pw@host:8265"), "remove user and password")
    [port] = free_ports(1)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", f"127.0.0.1:{port}")
    for command in (["submit", write(tmp_path)], ["jobs", "list"], ["jobs", "status", "x"], ["jobs", "stop", "x"]):
        said = paliscribe(*command)
        assert said.code == 1
        assert said.err == f"paliscribe: no Ray dashboard responds at http://127.0.0.1:{port}: Connection refused\n"


def test_a_server_that_is_not_a_dashboard(hub: str, tmp_path: Path, paliscribe: Paliscribe) -> None:
    said = paliscribe("submit", write(tmp_path), "--address", hub)
    assert said.code == 1 and said.err.startswith(f"paliscribe: the dashboard at {hub}: ")
    assert len(said.err.splitlines()) == 1


def test_the_hubs_token_by_reference(tmp_path: Path) -> None:
    """The alternative to the rejected --env HF_TOKEN works: the hub client reads the file at HF_TOKEN_PATH."""
    (tmp_path / "token").write_text("hf_by_reference\n")
    code = "from paliscribe.cli.doctor import _hugging_face; print(_hugging_face().found)"
    settings = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    for path, found in (("token", "a token is set"), ("none", "no token")):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=settings | {"HF_TOKEN_PATH": str(tmp_path / path), "HF_HOME": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.startswith(found)
