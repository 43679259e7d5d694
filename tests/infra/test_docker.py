"""Container image and compose file: linted, validated by schema, and partly run without Docker."""

import importlib.metadata
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import boto3
import click
import httpx
import pytest
import yaml
from botocore.exceptions import ClientError
from compose_spec import PyCompose
from infra.manifests import IMAGE, INFRA, MISSING, ROOT, changed, documents, values
from infra.test_kuberay import groups_of, rays
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from ports import free_ports
from ray.scripts.scripts import start

FOLDER = INFRA / "docker"
DOCKERFILE = FOLDER / "Dockerfile"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PROGRAMS = Path(sys.executable).parent
PINS = dict(line.split("==") for line in (INFRA / "requirements.txt").read_text().splitlines() if line[0] != "#")


def lint(path: Path) -> list[str]:
    """Codes of the hadolint rules that a Dockerfile violates."""
    found = subprocess.run([PROGRAMS / "hadolint", "--format=json", path], capture_output=True, check=False)
    return [item["code"] for item in json.loads(found.stdout)]


def test_hadolint_passes() -> None:
    assert lint(DOCKERFILE) == []


@pytest.mark.parametrize(
    ("line", "instead", "rule"),
    [
        ("FROM python:3.11.14-slim-bookworm\n", "FROM python:latest\n", "DL3007"),
        ("FROM python:3.11.14-slim-bookworm\n", "FROM python\n", "DL3006"),
        ("USER 10001:10001", "USER root", "DL3002"),
        ("WORKDIR /home/paliscribe", "RUN apt-get update && apt-get install -y wget", "DL3008"),
        ("RUN pip install --requirement /tmp/requirements.txt", "RUN pip install torch", "DL3013"),
        ('CMD ["paliscribe", "serve", "--host", "0.0.0.0"]', "CMD paliscribe serve", "DL3025"),
        ("COPY pipeline pipeline", "ADD pipeline pipeline", "DL3020"),
        ("WORKDIR /source", "WORKDIR source", "DL3000"),
        ("EXPOSE 8000", "EXPOSED 8000", "DL1000"),
    ],
)
def test_hadolint_detects_errors(line: str, instead: str, rule: str, tmp_path: Path) -> None:
    text = DOCKERFILE.read_text()
    assert line in text
    (tmp_path / "Dockerfile").write_text(text.replace(line, instead))
    assert rule in lint(tmp_path / "Dockerfile")


def instructions(name: str) -> list[str]:
    joined = DOCKERFILE.read_text().replace("\\\n", " ")
    return [line.split(maxsplit=1)[1] for line in joined.splitlines() if line.split(maxsplit=1)[:1] == [name]]


def test_the_base_image_is_a_pinned_supported_python() -> None:
    bases = {line.split()[0] for line in instructions("FROM")}
    [python] = [re.fullmatch(r"python:(\d+\.\d+\.\d+)-slim-\w+", base) for base in bases]
    assert python and python[1] in SpecifierSet(PROJECT["requires-python"])


def test_dependencies_are_installed_before_the_code() -> None:
    stage = DOCKERFILE.read_text().rpartition("FROM ")[2]
    order = [stage.index(words) for words in ("pip install --requirement", "--from=wheel", "USER 10001")]
    assert order == sorted(order) and instructions("USER") == ["10001:10001"]
    users = {group["template"]["spec"]["securityContext"]["runAsUser"] for group in groups_of(rays("RayJob")).values()}
    assert users == {10001}


def test_pins_satisfy_pyproject() -> None:
    for line in PROJECT["dependencies"]:
        wanted = Requirement(line)
        assert PINS[canonicalize_name(wanted.name)] in wanted.specifier, line
    assert {group["rayVersion"] for group in values_of_clusters()} == {PINS["ray"]}


def values_of_clusters() -> list[dict[str, Any]]:
    kinds = [rays("RayService")["spec"]["rayClusterConfig"], rays("RayJob")["spec"]["rayClusterSpec"]]
    return [*kinds, rays("RayCluster")["spec"]]


def test_pins_are_complete_and_consistent() -> None:
    """Requirements of pinned packages, if that version is installed, are pinned and satisfied."""
    checked = 0
    for name, pin in PINS.items():
        if importlib.metadata.version(name).split("+")[0] != pin:
            continue
        extras = {"ray": ("data", "serve"), "uvicorn": ("standard",)}.get(name, ())
        for line in importlib.metadata.requires(name) or []:
            wanted = Requirement(line)
            here = wanted.marker is None or any(wanted.marker.evaluate({"extra": extra}) for extra in ("", *extras))
            if here and not wanted.name.startswith(("nvidia", "cuda", "triton")):
                assert wanted.specifier.contains(PINS[canonicalize_name(wanted.name)], prereleases=True), (name, line)
        checked += 1
    assert checked > 5


def ignored(path: str) -> bool:
    """Whether .dockerignore excludes a path: the last line that matches it or one of its parents decides."""
    verdict = False
    parents = [path, *map(str, Path(path).parents)][:-1]
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.strip().removeprefix("!")
        if not pattern or pattern.startswith("#"):
            continue
        deep = pattern.removeprefix("**/")
        names = [Path(each).name if deep != pattern else each for each in parents]
        if any(fnmatchcase(name, deep) and (deep != "*" or "/" not in name) for name in names):
            verdict = not line.startswith("!")
    return verdict


def copied() -> list[str]:
    found: list[str] = []
    for line in instructions("COPY"):
        if not line.startswith("--from"):
            found += shlex.split(line)[:-1]
    return found


def test_copied_files_exist_and_secrets_are_ignored() -> None:
    assert copied() == ["pyproject.toml", "README.md", "LICENSE", "pipeline", "infra/requirements.txt"]
    for source in copied():
        assert (ROOT / source).exists() and not ignored(source), source
    for kept_out in (
        ".git",
        ".env",
        "infra/docker/.env",
        "pipeline/.env",
        "tests/hub.py",
        "dist/x.whl",
        "demo-output/a",
    ):
        assert ignored(kept_out), kept_out
    assert ignored("pipeline/__pycache__/x.pyc") and not ignored(
        "pipeline/paliscribe/demo/checkpoint/model.safetensors"
    )


def test_the_wheel_built_from_the_copied_files_is_complete(tmp_path: Path) -> None:
    """The first build stage, run locally on the files that it copies."""
    for source in copied():
        if source.startswith("infra"):
            continue
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, tmp_path / source, ignore=shutil.ignore_patterns("__pycache__", ".env"))
        else:
            shutil.copy(ROOT / source, tmp_path / source)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        "wheels",
        ".",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    [wheel] = (tmp_path / "wheels").iterdir()
    assert wheel.name == f"{IMAGE.replace(':', '-')}-py3-none-any.whl"
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = (
        "py.typed",
        "online/page/page.html",
        "online/page/style.css",
        "online/page/examples/shapes.jpg",
        "demo/checkpoint/model.safetensors",
    )
    assert {f"paliscribe/{name}" for name in wanted} <= names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"paliscribe"}, "nothing else in site-packages"


def compose(name: str = "compose.yaml") -> dict[str, Any]:
    [found] = documents(FOLDER / name)
    return found


def validated(config: dict[str, Any]) -> PyCompose:
    """Validate a compose file by its specification, after resolving merge keys. Raises ValueError."""
    return PyCompose.from_yaml(yaml.safe_dump(config))


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_compose_files_are_valid(name: str) -> None:
    assert set(validated(compose(name)).service_names()) <= {"s3", "bucket", "head", "endpoint"}


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("servics", {}),
        ("services", MISSING),
        ("services/head/imge", "paliscribe"),
        ("services/head/command", 3),
        ("services/head/ports", ["8265:dashboard"]),
        ("services/head/shm_size", "two"),
        ("services/head/healthcheck/intervall", "5s"),
        ("services/endpoint/depends_on/head/condition", "healthy"),
        ("services/endpoint/build/contxt", "."),
        ("services/s3/env_file", {"path": ".env"}),
    ],
)
def test_invalid_compose_fields_are_rejected(place: str, value: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        validated(changed(compose(), place, value))


def test_compose_is_pinned_on_loopback_and_without_secrets() -> None:
    services = compose()["services"]
    assert {service["image"] for service in services.values()} == {IMAGE, "chrislusf/seaweedfs:4.48"}
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        assert service["env_file"] == [".env"]
        assert not [key for key in service.get("environment", {}) if re.search("TOKEN|KEY|SECRET", key)]
    example = dict(line.split("=") for line in (FOLDER / "env.example").read_text().split("\n") if line[:1] not in "#")
    needed = {"RAY_AUTH_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "PALISCRIBE_API_KEYS"}
    assert needed <= example.keys() and set(example.values()) == {""}
    assert subprocess.run(["git", "check-ignore", "-q", FOLDER / ".env"], cwd=ROOT, check=False).returncode == 0


def test_references_in_compose_exist() -> None:
    config = compose()
    head = config["services"]["head"]
    command = shlex.split(head["command"])
    context: click.Context = start.make_context("ray start", command[2:])
    assert command[:2] == ["ray", "start"] and context.params["head"] and context.params["block"]
    assert head["environment"]["RAY_AUTH_MODE"] == "token"
    for service in config["services"].values():
        if "build" in service:
            context_folder = (FOLDER / service["build"]["context"]).resolve()
            assert context_folder == ROOT and (context_folder / service["build"]["dockerfile"]) == DOCKERFILE
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert source in config["volumes"] or (FOLDER / source).is_file()
    assert set(values(config["services"], "condition")) == {"service_healthy", "service_completed_successfully"}


@pytest.fixture
def s3_service(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Run the command of the `s3` service on loopback with free ports; yields the environment to access it."""
    keys = {"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "a secret of somebody's"}
    service = compose()["services"]["s3"]
    line = service["command"].replace("-dir=/data", f"-dir={tmp_path}").replace("-ip=s3", "-ip=127.0.0.1")
    ports = free_ports(8)
    line = line.replace("-s3.port=8333", f"-s3.port={ports[0]}").replace("-ip.bind=0.0.0.0", "-ip.bind=127.0.0.1")
    flags = [f"-{name}={port}" for name, port in zip(PORTS, ports[1:], strict=True)]
    flags += [f"-s3.localSocket={tmp_path}/s3.sock", f"-filer.localSocket={tmp_path}/filer.sock"]
    flags += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
    process = subprocess.Popen(
        [PROGRAMS / "weed", *shlex.split(line), *flags],
        env=os.environ | keys,
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        address = service["healthcheck"]["test"][-1].replace("8333", str(ports[0]))
        until = time.monotonic() + 60
        while not healthy(address):
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.3)
        given = compose()["services"]["bucket"]["environment"]
        yield keys | given | {"AWS_ENDPOINT_URL": given["AWS_ENDPOINT_URL"].replace("s3:8333", f"127.0.0.1:{ports[0]}")}
    finally:
        process.kill()
        process.wait()
        for name, port in zip(PORTS, ports[1:], strict=True):
            Path(f"/tmp/seaweedfs-{name.split('.')[0]}-grpc-{port}.sock").unlink(missing_ok=True)


PORTS = (
    *("master.port", "volume.port", "filer.port"),
    *("master.port.grpc", "volume.port.grpc", "filer.port.grpc", "s3.port.grpc"),
)


def healthy(address: str) -> bool:
    try:
        return httpx.get(address, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def test_the_s3_server_and_its_bucket(s3_service: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of both services: keys of .env work, others do not, and creating the bucket is idempotent."""
    script = compose()["services"]["bucket"]["command"]
    assert script[:2] == ["python", "-c"]
    for _ in range(2):
        command = [sys.executable, *script[1:]]
        done = subprocess.run(command, env=os.environ | s3_service, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    for name, value in s3_service.items():
        monkeypatch.setenv(name, value)
    assert [bucket["Name"] for bucket in boto3.client("s3").list_buckets()["Buckets"]] == ["paliscribe"]
    with pytest.raises(ClientError, match=r"InvalidAccessKeyId|Forbidden|AccessDenied"):
        boto3.client("s3", aws_access_key_id="else", aws_secret_access_key="no").list_buckets()
