"""Arithmetic: whether pods fit the instance types that their NodePools name, and nodes of cluster.yaml their types.

Nothing here asks AWS: the figures are those of Karpenter's reference for AL2023.
"""

import re
from typing import Any

import pytest
from infra.manifests import INFRA, ROOT, changed, documents, values
from infra.test_kuberay import ALL, OTHERS, each_group
from ray.autoscaler._private.kuberay.utils import parse_quantity

# CPUs, MiB and GPUs that a node offers to pods: https://karpenter.sh/docs/reference/instance-types/ of 2026-08-21.
ALLOCATABLE = {
    "m6i.large": (1.93, 6903, 0),
    "m6i.xlarge": (3.92, 14162, 0),
    "m7i.xlarge": (3.92, 14162, 0),
    "m6a.xlarge": (3.92, 14162, 0),
    "c6i.2xlarge": (7.91, 14162, 0),
    "m6i.2xlarge": (7.91, 29317, 0),
    "c6i.4xlarge": (15.89, 27381, 0),
    "c6a.4xlarge": (15.89, 27381, 0),
    "c7i.4xlarge": (15.89, 27381, 0),
    "m6i.4xlarge": (15.89, 57691, 0),
    "g6.2xlarge": (7.91, 29317, 1),
    "g6.4xlarge": (15.89, 57691, 1),
    "g5.2xlarge": (7.91, 29317, 1),
    "g5.4xlarge": (15.89, 57691, 1),
}
DAEMONS = (0.3, 512)  # CPUs and MiB for DaemonSets: network, proxy, device plugin, node exporter
GIB = 1 << 30


def node_pools() -> dict[str, dict[str, Any]]:
    """NodePool name -> its template's spec."""
    kinds = [document for document in ALL if document["kind"] == "NodePool"]
    return {kind["metadata"]["name"]: kind["spec"]["template"]["spec"] for kind in kinds}


def required(pool: dict[str, Any], key: str) -> list[str]:
    [found] = [requirement["values"] for requirement in pool["requirements"] if requirement["key"] == key]
    return found


def disk() -> float:
    """GiB for pods: the volume less the kubelet's 1 GiB and the 10 % below which it evicts."""
    [kind] = [document for document in ALL if document["kind"] == "EC2NodeClass"]
    [device] = kind["spec"]["blockDeviceMappings"]
    size = float(parse_quantity(device["ebs"]["volumeSize"])) / GIB
    return size * 0.9 - 1


def wanted(spec: dict[str, Any], *more: dict[str, Any]) -> dict[str, float]:
    """Requests of a pod by resource, in CPUs and bytes. `more`: those of containers that KubeRay adds."""
    every = [container["resources"]["requests"] for container in spec["containers"]]
    total: dict[str, float] = {}
    for requests in [*every, *more]:
        for name, amount in requests.items():
            total[name] = total.get(name, 0) + float(parse_quantity(amount))
    return total


def types_that_fit(spec: dict[str, Any], *more: dict[str, Any]) -> set[str]:
    """Instance types of the pod's NodePool that could hold it beside the DaemonSets."""
    need, pool = wanted(spec, *more), node_pools()[spec["nodeSelector"]["karpenter.sh/nodepool"]]
    return {
        name
        for name in required(pool, "node.kubernetes.io/instance-type")
        if need["cpu"] + DAEMONS[0] <= ALLOCATABLE[name][0]
        and need["memory"] / (1 << 20) + DAEMONS[1] <= ALLOCATABLE[name][1]
        and need.get("nvidia.com/gpu", 0) <= ALLOCATABLE[name][2]
        and need["ephemeral-storage"] / GIB <= disk()
    }


def added(document: dict[str, Any], name: str) -> list[dict[str, Any]]:
    spec = document["spec"]
    cluster = spec.get("rayClusterConfig") or spec.get("rayClusterSpec") or spec
    return [cluster["autoscalerOptions"]["resources"]["requests"]] if name == "head" else []


@each_group()
def test_pods_fit_two_types_of_their_node_pool(document: dict[str, Any], name: str, group: dict[str, Any]) -> None:
    spec = group["template"]["spec"]
    assert len(types_that_fit(spec, *added(document, name))) >= 2, "one more, when the first is sold out"
    types = required(node_pools()[spec["nodeSelector"]["karpenter.sh/nodepool"]], "node.kubernetes.io/instance-type")
    assert ("g" in {kind[0] for kind in types}) is name.startswith("gpu")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("containers/0/resources/requests/cpu", "16"),
        ("containers/0/resources/requests/memory", "60Gi"),
        ("containers/0/resources/requests/ephemeral-storage", "110Gi"),
        ("containers/0/resources/requests/nvidia.com~gpu", "2"),
    ],
)
def test_pods_that_are_too_large_are_detected(place: str, value: str) -> None:
    [job] = [document for document in ALL if document["kind"] == "RayJob"]
    spec = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
    *path, last = place.split("/")
    requests = dict(spec["containers"][0]["resources"]["requests"]) | {last.replace("~", "/"): value}
    assert types_that_fit(spec)
    assert not types_that_fit(changed(spec, "/".join(path), requests))


def test_the_disk_holds_cache_and_image() -> None:
    """The weights' volume is a part of the disk, beside about 12 GB of image."""
    limits = [limit for document in ALL for limit in values(document, "sizeLimit")]
    assert limits and all(float(parse_quantity(limit)) / GIB + 12 <= disk() for limit in limits)


@each_group()
def test_the_head_is_on_demand_and_never_moved(document: dict[str, Any], name: str, group: dict[str, Any]) -> None:
    spec = group["template"]["spec"]
    pool = node_pools()[spec["nodeSelector"]["karpenter.sh/nodepool"]]
    kept = group["template"]["metadata"].get("annotations", {})
    if name == "head":
        assert required(pool, "karpenter.sh/capacity-type") == ["on-demand"] and pool["expireAfter"] == "Never"
        assert kept == {
            "karpenter.sh/do-not-disrupt": "true",
            "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
        }
        [budget] = [kind["spec"] for kind in OTHERS if kind["kind"] == "PodDisruptionBudget"]
        assert budget["maxUnavailable"] == 0
        assert budget["selector"]["matchLabels"].items() <= group["template"]["metadata"]["labels"].items()
    else:
        assert "on-demand" in required(pool, "karpenter.sh/capacity-type") and not kept


@each_group()
def test_pods_tolerate_the_taints_of_their_nodes(document: dict[str, Any], name: str, group: dict[str, Any]) -> None:
    spec = group["template"]["spec"]
    tainted = node_pools()[spec["nodeSelector"]["karpenter.sh/nodepool"]].get("taints", [])
    tolerated = [(item["key"], item["effect"]) for item in spec.get("tolerations", []) if item["operator"] == "Exists"]
    assert all((taint["key"], taint["effect"]) in tolerated for taint in tainted)
    assert bool(tainted) is name.startswith("gpu")


def test_redis_fits() -> None:
    [redis] = [kind for kind in OTHERS if kind["kind"] == "StatefulSet"]
    assert types_that_fit(redis["spec"]["template"]["spec"])


def test_every_node_pool_is_used_and_has_the_node_class() -> None:
    pools, [node_class] = node_pools(), [kind["metadata"]["name"] for kind in ALL if kind["kind"] == "EC2NodeClass"]
    text = "".join((INFRA / "kuberay" / f"{name}.yaml").read_text() for name in ("rayjob", "rayservice", "raycluster"))
    assert set(re.findall(r"karpenter\.sh/nodepool: ([\w-]+)", text)) == pools.keys()
    reference = {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": node_class}
    assert all(pool["nodeClassRef"] == reference for pool in pools.values())


def test_the_launchers_nodes_offer_what_they_declare() -> None:
    """Ray's launcher takes the machine's CPUs, of which none are reserved; the types are Karpenter's too."""
    [config] = documents(ROOT / "cluster.yaml")
    for name, kind in config["available_node_types"].items():
        cpus, _, gpus = ALLOCATABLE[kind["node_config"]["InstanceType"]]
        assert kind["resources"].get("CPU", 0) <= cpus + 0.2 and kind["resources"].get("GPU", 0) == gpus, name
