"""cluster.yaml and on-premises.yaml: Ray's schema, validation and bootstrap, and their commands."""

import json
import os
import re
import shlex
import subprocess
import sys
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Any

import boto3
import click
import jsonschema
import pytest
import ray.autoscaler
import yaml
from botocore.validate import ParamValidator
from infra.manifests import INFRA, MISSING, ROOT, changed, documents
from moto import mock_aws
from packaging.specifiers import SpecifierSet
from ray.autoscaler._private.commands import _bootstrap_config
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start

from paliscribe import __version__

SCHEMA = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
AWS, LOCAL = ROOT / "cluster.yaml", INFRA / "on-premises.yaml"
FILES = pytest.mark.parametrize("path", [AWS, LOCAL], ids=lambda path: path.name)


def described(path: Path) -> dict[str, Any]:
    [found] = documents(path)
    return found


def check(config: dict[str, Any]) -> dict[str, Any]:
    """Validate by Ray's schema, then as `ray up` does before it contacts a provider; returns the file with defaults."""
    jsonschema.validate(config, SCHEMA)
    prepared = prepare_config(config)
    validate_config(prepared)
    return prepared


def aws_node_problems(config: dict[str, Any]) -> str:
    """Errors of the nodes by EC2's API model of RunInstances, which Ray's schema does not check."""
    model = boto3.session.Session()._session.get_service_model("ec2").operation_model("RunInstances")
    shape, found = model.input_shape, ""
    for kind in config["available_node_types"].values():
        call = kind["node_config"] | {"MinCount": 1, "MaxCount": 1}
        found += ParamValidator().validate(call, shape).generate_report()
        if call.get("InstanceType") not in shape.members["InstanceType"].enum:
            found += f"no instance type {call.get('InstanceType')}"
    return found


@FILES
def test_ray_accepts_the_files(path: Path) -> None:
    prepared = check(described(path))
    kinds = prepared["available_node_types"]
    assert kinds[prepared["head_node_type"]]["min_workers"] == (0 if path == AWS else 3)
    assert sum(kind["min_workers"] for kind in kinds.values()) <= prepared["max_workers"]


@pytest.mark.parametrize(
    ("path", "place", "value"),
    [
        (AWS, "max_wrokers", 3),
        (AWS, "max_workers", "sixteen"),
        (AWS, "cluster_name", MISSING),
        (AWS, "provider/type", MISSING),
        (AWS, "provider/cache_stopped_nodes", "no"),
        (AWS, "auth/ssh_usr", "ubuntu"),
        (AWS, "head_node_type", "heda"),
        (AWS, "available_node_types/gpu/min_worker", 1),
        (AWS, "available_node_types/gpu/resources", MISSING),
        (AWS, "available_node_types/gpu/resources/GPU", "one"),
        (AWS, "available_node_types/gpu/min_workers", 25),
        (AWS, "setup_commands", "pip install paliscribe"),
        (AWS, "worker_start_ray_commands/1", ["ray", "start"]),
        (LOCAL, "max_wrokers", 3),
        (LOCAL, "provider/worker_ips", "192.0.2.11"),
        (LOCAL, "provider/head_ip", 10),
        (LOCAL, "file_mounts", []),
    ],
)
def test_invalid_fields_are_rejected(path: Path, place: str, value: Any) -> None:
    with pytest.raises((jsonschema.ValidationError, ValueError)):
        check(changed(described(path), place, value))


@pytest.mark.parametrize("field", ["head_ip", "worker_ips"])
def test_missing_addresses_are_rejected(field: str) -> None:
    with pytest.raises(Exception, match=r"head_ip|worker_ips|Exiting|not supported"):
        check(changed(described(LOCAL), f"provider/{field}", MISSING))


def test_ec2_accepts_the_nodes() -> None:
    assert aws_node_problems(described(AWS)) == ""


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("InstanceTyp", "g6.2xlarge"),
        ("InstanceType", "g6.2xlarg"),
        ("IamInstanceProfile", "paliscribe-writer"),
        ("IamInstanceProfile/Nam", "x"),
        ("InstanceMarketOptions/MarketTyp", "spot"),
        ("BlockDeviceMappings/0/Ebs/VolumeSize", "100"),
    ],
)
def test_invalid_nodes_are_detected(place: str, value: Any) -> None:
    wrong = changed(described(AWS), f"available_node_types/gpu/node_config/{place}", value)
    check(wrong)  # Ray itself does not detect it
    assert aws_node_problems(wrong) != ""


@pytest.fixture
def no_aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake credentials, and a temporary home for the ssh key that Ray creates."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.long
@pytest.mark.usefixtures("no_aws")
def test_ray_bootstraps_aws() -> None:
    """`ray up` on moto until the head is started: key pair, subnets, security group, GPUs of the instance type."""
    with mock_aws():
        found = _bootstrap_config(described(AWS), no_config_cache=True)
    kinds = found["available_node_types"]
    assert kinds["gpu"]["resources"].items() >= {"CPU": 8, "GPU": 1, "accelerator_type:L4": 1}.items()
    assert kinds["gpu_a10g"]["resources"].items() >= {"CPU": 8, "GPU": 1, "accelerator_type:A10G": 1}.items()
    assert kinds["head"]["resources"] == {"CPU": 0} and kinds["head"]["max_workers"] == 0
    for kind in kinds.values():
        assert len(kind["node_config"]["SubnetIds"]) == 3, "one per zone"
        assert kind["node_config"]["SecurityGroupIds"] and kind["node_config"]["KeyName"]


def test_ray_bootstraps_existing_machines() -> None:
    found = _bootstrap_config(described(LOCAL), no_config_cache=True)
    [kind] = found["available_node_types"].values()
    assert kind["min_workers"] == kind["max_workers"] == len(found["provider"]["worker_ips"])


def commands(config: dict[str, Any]) -> list[str]:
    return [line for key, lines in config.items() if key.endswith("_commands") for line in lines]


@FILES
def test_bash_and_ray_parse_the_commands(path: Path) -> None:
    config = described(path)
    for line in commands(config):
        done = subprocess.run(["bash", "-n", "-c", line], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        context = ray_start(config[key][-1])
        assert context.params["head"] is (key[0] == "h")
        assert context.params["metrics_export_port"] == 8080


def ray_start(line: str) -> click.Context:
    """Parse the `ray start` of a command without running it. Raises click.UsageError."""
    words = shlex.split(line.rpartition("ray start ")[2])
    return start.make_context("start", words)


def test_unknown_options_of_ray_start_are_detected() -> None:
    with pytest.raises(click.UsageError):
        ray_start(described(AWS)["head_start_ray_commands"][-1].replace("--dashboard-host", "--dashbord-host"))


@FILES
def test_the_head_is_not_exposed_and_runs_no_tasks(path: Path) -> None:
    config = described(path)
    line = config["head_start_ray_commands"][-1]
    params = ray_start(line).params
    assert params["dashboard_host"] == "127.0.0.1", "accessible through ssh only"
    assert int(re.search(r"RAY_JOB_STOP_WAIT_TIME_S=(\d+)", line)[1]) >= 60  # type: ignore[index]
    if path == AWS:
        assert config["available_node_types"]["head"]["resources"] == {"CPU": 0}
    else:
        assert (params["num_cpus"], params["num_gpus"]) == (0, 0)


@FILES
def test_the_token_is_required_and_not_written_in_the_file(path: Path) -> None:
    config = described(path)
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert "export RAY_AUTH_MODE=token" in config[key][-1]
    home = f"/home/{config['auth']['ssh_user']}"
    assert config["file_mounts"][f"{home}/.ray/auth_token"] == "~/.ray/auth_token"
    assert "RAY_AUTH_TOKEN" not in path.read_text()


@pytest.mark.long
def test_ray_reads_the_token_where_it_is_copied(tmp_path: Path) -> None:
    """`ray get-auth-token --generate` creates the file, and Ray reads it without further settings."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")} | {"HOME": str(tmp_path)}
    program = Path(sys.executable).parent / "ray"
    made = subprocess.run([program, "get-auth-token", "--generate"], env=environment, capture_output=True, check=True)
    assert (tmp_path / ".ray/auth_token").read_bytes().strip() in made.stdout


@FILES
def test_versions_are_pinned_and_consistent(path: Path) -> None:
    config = described(path)
    wheel = f"paliscribe-{__version__}-py3-none-any.whl"
    mounted = {remote: local for remote, local in config["file_mounts"].items() if not local.startswith("~")}
    assert sorted(mounted.values()) == [f"dist/{wheel}", "infra/requirements.txt"]
    assert all(Path(remote).name == Path(local).name for remote, local in mounted.items())
    installs = [line for line in commands(config) if "~/venv/bin/pip install" in line]
    ends = [line.rpartition("/")[2] for line in installs]
    assert ends == (["requirements.txt)"] if path == AWS else []) + ["requirements.txt", wheel]
    assert f"ray=={version('ray')}\n" in (ROOT / "infra/requirements.txt").read_text()


def test_nodes_image_and_lock_have_one_python() -> None:
    image = re.search(r"FROM python:(\d+\.\d+)(\.\d+)", (INFRA / "docker/Dockerfile").read_text())
    assert image is not None
    for name in ("requirements.txt", "constraints.txt"):
        assert f"\n# Python {image[1]}\n" in (INFRA / name).read_text()
    assert [
        line for line in commands(described(AWS)) if f"uv venv --quiet --seed --python {image[1]}{image[2]} " in line
    ]
    assert [line for line in commands(described(LOCAL)) if f"python{image[1]} -m venv ~/venv" in line]


def test_torch_without_cuda_is_the_locks_version() -> None:
    """`+cpu` is a build of the version that requirements.txt pins, so pip leaves it there."""
    [pin] = re.findall(r"^torch==(.+)$", (INFRA / "requirements.txt").read_text(), re.MULTILINE)
    assert f"{pin}+cpu" in SpecifierSet(f"=={pin}")
    for text in (AWS.read_text(), (INFRA / "docker/Dockerfile").read_text()):
        assert re.search(r"--index-url https://download\.pytorch\.org/whl/cpu\s+\S*\$\(grep \^torch== \S+\)", text)


def test_the_head_may_start_the_types_of_its_nodes_only() -> None:
    config = described(AWS)
    policy = json.loads((INFRA / "aws/head-policy.json").read_text())
    [statement] = [
        s for s in policy["Statement"] if "instance/*" in s["Resource"] and "ec2:RunInstances" in s["Action"]
    ]
    needed = statement["Condition"]["StringEquals"]
    workers = [kind["node_config"] for name, kind in config["available_node_types"].items() if name != "head"]
    assert sorted(needed["ec2:InstanceType"]) == sorted(kind["InstanceType"] for kind in workers)
    assert needed["aws:RequestTag/ray-cluster-name"] == config["cluster_name"]
    assert {kind["MetadataOptions"]["HttpTokens"] for kind in workers} == {needed["ec2:MetadataHttpTokens"]}
    for other in policy["Statement"]:
        if "ec2:RunInstances" in other["Action"] and other is not statement:
            assert not any(fnmatch(arn, "*:instance/*") for arn in other["Resource"])


def test_keys_are_unique() -> None:
    """YAML silently accepts duplicate keys."""
    for path in (AWS, LOCAL):
        node = yaml.compose(path.read_text())
        assert node is not None
        keys = [key.value for key, _ in node.value]
        assert len(keys) == len(set(keys))
