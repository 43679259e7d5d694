"""The kustomizations: built by kubectl, which talks to no cluster for this, and as valid as their bases."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from infra.manifests import INFRA, documents

from infra import crds

FOLDERS = ["kuberay", "overlays/redis"]


def built(folder: Path) -> list[dict[str, Any]]:
    """The documents of a kustomization. Skips the test if kubectl is not installed."""
    if (kubectl := shutil.which("kubectl")) is None:
        pytest.skip("kubectl is not installed")
    done = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def name_of(document: dict[str, Any]) -> tuple[str, str]:
    return document["kind"], document["metadata"]["name"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_manifest_is_named_once(folder: str) -> None:
    """Kustomize's order is its own; nothing is lost and nothing is there twice."""
    found = [name_of(document) for document in built(INFRA / folder)]
    files = ["common.yaml", "karpenter.yaml", "rayservice.yaml"]
    wanted = [name_of(document) for name in files for document in documents(INFRA / "kuberay" / name)]
    if folder != "kuberay":
        wanted += [name_of(document) for document in documents(INFRA / folder / "redis.yaml")]
    assert sorted(found) == sorted(wanted)


@pytest.mark.parametrize("kind", ["RayService", "RayCluster"])
def test_redis_keeps_the_state_of_both_kinds_of_cluster(kind: str, tmp_path: Path) -> None:
    shutil.copytree(INFRA, tmp_path / "infra")
    base = tmp_path / "infra/kuberay/kustomization.yaml"
    base.write_text(base.read_text().replace("rayservice.yaml", f"{kind.lower()}.yaml"))
    documents = built(tmp_path / "infra/overlays/redis")
    [cluster] = [document for document in documents if document["kind"] == kind]
    options = cluster["spec"].get("rayClusterConfig", cluster["spec"])["gcsFaultToleranceOptions"]
    [service] = [document for document in documents if name_of(document) == ("Service", "redis")]
    [redis] = [document for document in documents if document["kind"] == "StatefulSet"]
    [container] = redis["spec"]["template"]["spec"]["containers"]
    assert options["redisAddress"] == f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    assert container["env"][0]["valueFrom"] == options["redisPassword"]["valueFrom"], "one secret"
    text = (INFRA / "overlays/redis/kustomization.yaml").read_text()
    reference = options["redisPassword"]["valueFrom"]["secretKeyRef"]
    assert f"create secret generic {reference['name']} --from-literal={reference['key']}=" in text
    assert crds.problems(cluster) == []
