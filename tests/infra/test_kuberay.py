"""Kubernetes manifests: schemas of KubeRay, Kubernetes, Ray and paliscribe, and consistency."""

import re
import runpy
import shlex
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from infra.manifests import IMAGE, INFRA, MISSING, changed, documents, values
from pydantic import ValidationError
from ray.autoscaler._private.kuberay.autoscaling_config import _generate_available_node_types_from_ray_cr_spec
from ray.scripts.scripts import start
from ray.serve.schema import ServeDeploySchema
from ray.util.accelerators import NVIDIA_L4, NVIDIA_TESLA_A10G

from infra import crds
from paliscribe.config import parse, parse_serve
from paliscribe.errors import UsageError
from paliscribe.pool.deploy import DRAIN

FOLDER = INFRA / "kuberay"
KUBERNETES = "1.34"
rule = runpy.run_path(str(INFRA / "prometheus/prometheus_rule.py"))["rule"]
FILES = sorted([*FOLDER.glob("*.yaml"), *INFRA.glob("overlays/*/*.yaml")])
ALL = [document for path in FILES if path.name != "kustomization.yaml" for document in documents(path)]
RAYS = [document for document in ALL if crds.group_of(document) == "ray.io"]
CUSTOM = [*(document for document in ALL if crds.group_of(document) in crds.GROUPS), rule()]
OTHERS = [document for document in ALL if crds.group_of(document) not in crds.GROUPS]


def name_of(document: Any) -> str:
    return str(document.get("kind") if isinstance(document, dict) else document)


def rays(kind: str) -> dict[str, Any]:
    [found] = [document for document in RAYS if document["kind"] == kind]
    return found


def cluster_of(document: dict[str, Any]) -> dict[str, Any]:
    spec = document["spec"]
    found: dict[str, Any] = spec.get("rayClusterConfig") or spec.get("rayClusterSpec") or spec
    return found


def groups_of(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Group name -> group, including the head."""
    cluster = cluster_of(document)
    return {"head": cluster["headGroupSpec"]} | {group["groupName"]: group for group in cluster["workerGroupSpecs"]}


GROUPS = [
    pytest.param(document, name, group, id=f"{document['kind']}-{name}")
    for document in RAYS
    for name, group in groups_of(document).items()
]
each_group = partial(pytest.mark.parametrize, ("document", "name", "group"), GROUPS)


@pytest.mark.parametrize("document", CUSTOM, ids=name_of)
def test_the_crds_accept_the_manifests(document: dict[str, Any]) -> None:
    assert crds.problems(document) == []


CLUSTERS = {"RayService": "spec/rayClusterConfig", "RayJob": "spec/rayClusterSpec", "RayCluster": "spec"}
HEAD = "headGroupSpec/template/spec"
WORKER = "workerGroupSpecs/0"


@pytest.mark.parametrize("kind", CLUSTERS)
@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("headGroupSpecs", {}),
        ("headGroupSpec", MISSING),
        ("rayVersion", 2.6),
        ("authOptions/mode", "tokens"),
        ("authOptions/secret", "paliscribe-ray-token"),
        ("autoscalerOptions/version", "v3"),
        ("autoscalerOptions/idleTimeoutSeconds", "300"),
        ("headGroupSpec/rayStartParams/num-cpus", 0),
        (f"{HEAD}/containers", MISSING),
        (f"{HEAD}/containers/0/name", MISSING),
        (f"{HEAD}/containers/0/imge", "paliscribe"),
        (f"{HEAD}/containers/0/startupProbe/httpGet/pth", "/api/healthz"),
        (f"{HEAD}/containers/0/livenessProbe/failureThreshold", "many"),
        (f"{HEAD}/containers/0/env/0", {"value": "without a name"}),
        (f"{HEAD}/containers/0/env/1/name", "AWS_DEFAULT_REGION"),
        (f"{HEAD}/containers/0/resources/limits/memory", "8 GB"),
        (f"{HEAD}/securityContext/runAsRoot", False),
        (f"{HEAD}/terminationGracePeriodSeconds", "120"),
        (f"{WORKER}/maxReplicas", MISSING),
        (f"{WORKER}/minReplicas", "none"),
        (f"{WORKER}/template/spec/tolerations/0/keys", "nvidia.com/gpu"),
        (f"{WORKER}/template/metadata/label", {}),
    ],
)
def test_invalid_cluster_fields_are_rejected(kind: str, place: str, value: Any) -> None:
    assert crds.problems(changed(rays(kind), f"{CLUSTERS[kind]}/{place}", value)) != []


@pytest.mark.parametrize(
    ("kind", "place", "value"),
    [
        ("RayService", "spec/serveConfig", "proxy_location: EveryNode"),
        ("RayService", "spec/serveConfigV2", {"proxy_location": "EveryNode"}),
        ("RayService", "spec/rayClusterConfig", MISSING),
        ("RayService", "spec/upgradeStrategy/clusterUpgradeOption", {}),
        ("RayService", "spec/upgradeStrategy/clusterUpgradeOptions/stepSizePercent", "25"),
        ("RayJob", "spec/entrypoints", "paliscribe annotate"),
        ("RayJob", "spec/backoffLimit", "3"),
        ("RayJob", "spec/shutdownAfterJobFinishes", "true"),
        ("RayJob", "metadata/name", MISSING),
        ("RayJob", "metadata/namspace", "paliscribe"),
        ("RayCluster", "specs", {}),
        ("RayCluster", "spec", MISSING),
    ],
)
def test_invalid_fields_are_rejected(kind: str, place: str, value: Any) -> None:
    assert crds.problems(changed(rays(kind), place, value)) != []


@pytest.mark.parametrize("document", OTHERS, ids=name_of)
def test_kubernetes_accepts_the_manifests(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, KUBERNETES, strict=True)


@each_group()
def test_kubernetes_accepts_the_pods(document: dict[str, Any], name: str, group: dict[str, Any]) -> None:
    template = group["template"]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"], "spec": template["spec"]}
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)


@pytest.mark.parametrize(
    ("kind", "place", "value"),
    [
        ("NetworkPolicy", "spec/ingres", []),
        ("NetworkPolicy", "spec/policyTypes", "Ingress"),
        ("NetworkPolicy", "spec/ingress/0/from/0/podSelectors", {}),
        ("ServiceAccount", "automountServiceAccountToken", "no"),
        ("ConfigMap", "data/job.yaml", {"manifest": "s3://"}),
        ("Service", "spec/ports/0/port", MISSING),
        ("Namespace", "metadata/labels", ["restricted"]),
        ("PodDisruptionBudget", "spec/maxUnavailables", 0),
        ("StatefulSet", "spec/selector", MISSING),
    ],
)
def test_invalid_fields_of_other_kinds_are_rejected(kind: str, place: str, value: Any) -> None:
    document = next(document for document in OTHERS if document["kind"] == kind)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(changed(document, place, value), KUBERNETES, strict=True)


@each_group()
def test_ray_start_accepts_the_params(document: dict[str, Any], name: str, group: dict[str, Any]) -> None:
    """KubeRay passes each as `--key=value` to a shell."""
    words = shlex.split(" ".join(f"--{key}={value}" for key, value in group["rayStartParams"].items()))
    context = start.make_context("ray start", words)
    if name == "head":
        assert context.params["num_cpus"] == 0
    with pytest.raises(Exception, match="No such option"):
        start.make_context("ray start", [*words, "--num-cpu=0"])


@each_group()
def test_pods_are_restricted_and_have_limits_and_probes(
    document: dict[str, Any], name: str, group: dict[str, Any]
) -> None:
    spec = group["template"]["spec"]
    [container] = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"] is True and spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    confined = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert container["securityContext"] == cluster_of(document)["autoscalerOptions"]["securityContext"] == confined
    requests, limits = container["resources"]["requests"], container["resources"]["limits"]
    assert requests["memory"] == limits["memory"] and {"cpu", "ephemeral-storage"} <= requests.keys()
    assert ("nvidia.com/gpu" in limits) is name.startswith("gpu")
    probes = {container[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe")}
    assert probes == {"/api/healthz"}
    ready = container["readinessProbe"]["httpGet"]
    serving = document["kind"] == "RayService" and name != "head"
    assert ready == ({"path": "/-/healthz", "port": 8000} if serving else {"path": "/api/healthz", "port": 52365})


@each_group()
def test_pods_wait_until_their_replicas_have_drained(document: Any, name: str, group: dict[str, Any]) -> None:
    spec = group["template"]["spec"]
    drain = environment(spec)["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]["value"]
    assert DRAIN <= float(drain) < spec["terminationGracePeriodSeconds"]
    if name == "head":
        assert int(environment(spec)["RAY_JOB_STOP_WAIT_TIME_S"]["value"]) >= 60


def environment(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {variable["name"]: variable for variable in spec["containers"][0]["env"]}


@each_group()
def test_references_in_pods_exist(document: dict[str, Any], name: str, group: dict[str, Any]) -> None:
    spec = group["template"]["spec"]
    assert {m["name"] for m in spec["containers"][0]["volumeMounts"]} == {v["name"] for v in spec["volumes"]}
    accounts = {kind["metadata"]["name"] for kind in ALL if kind["kind"] == "ServiceAccount"}
    maps = {kind["metadata"]["name"] for kind in ALL if kind["kind"] == "ConfigMap"}
    assert spec["serviceAccountName"] in accounts
    assert {found["name"] for found in values(spec, "configMap")} <= maps
    assert document["metadata"]["namespace"] == "paliscribe"


def test_secrets_are_referenced_and_never_written() -> None:
    assert not [document for document in ALL if document["kind"] == "Secret"]
    words = (FOLDER / "common.yaml").read_text()
    for document in RAYS:
        named = {found["name"] for found in values(document, "secretKeyRef")} | set(values(document, "secretName"))
        assert {"paliscribe-hf", "paliscribe-ray-token"} <= named
        assert all(f"create secret generic {name} --from-" in words for name in named)
        for variable in [v for found in values(document, "env") for v in found]:
            secret = any(word in variable["name"] for word in ("TOKEN", "KEY", "SECRET", "PASSWORD"))
            assert ("valueFrom" in variable) is secret, variable["name"]
        assert cluster_of(document)["authOptions"] == {"mode": "token", "secretName": "paliscribe-ray-token"}
    assert "--from-literal=auth_token=" in words, "the key that KubeRay reads"


def test_images_are_pinned_to_this_version() -> None:
    for document in RAYS:
        for name, group in groups_of(document).items():
            [image] = values(group, "image")
            assert image.rpartition("/")[2] == (IMAGE if name.startswith("gpu") else f"{IMAGE}-cpu"), name
    others = [image for document in OTHERS for image in values(document, "image")]
    assert all(re.fullmatch(r"\w+:\d+\.\d+\.\d+-\w+", image) for image in others)


def test_network_policies() -> None:
    """Ports open to other namespaces; the policies select every pod."""
    opened: dict[int, set[str]] = {}
    for policy in [kind["spec"] for kind in documents(FOLDER / "common.yaml") if kind["kind"] == "NetworkPolicy"]:
        wanted = policy["podSelector"]["matchLabels"].items()
        labels = {name: g["template"]["metadata"]["labels"] for d in RAYS for name, g in groups_of(d).items()}
        met = {name for name, own in labels.items() if wanted <= own.items()}
        for rule in policy["ingress"]:
            for peer in rule["from"]:
                if "podSelector" in peer:
                    assert peer["podSelector"]["matchLabels"] in (
                        {"app.kubernetes.io/part-of": "paliscribe"},
                        {"gateway.networking.k8s.io/gateway-name": "paliscribe-gateway"},  # KubeRay's: NAME-gateway
                    )
                    continue
                [namespace] = peer["namespaceSelector"]["matchLabels"].values()
                for port in rule["ports"]:
                    opened.setdefault(port["port"], set()).add(namespace)
                    assert met == ({"head"} if port["port"] == 8265 else {"head", "gpu", "gpu-a10g", "cpu"})
    assert opened == {8000: {"ingress-nginx"}, 8080: {"monitoring"}, 8265: {"paliscribe-admin", "kuberay-system"}}


def serve_config(path: Path) -> dict[str, Any]:
    """Read a Serve config file and validate it as `serve deploy` and the endpoint do."""
    [found] = documents(path)
    return check_serve(found)


def check_serve(config: dict[str, Any]) -> dict[str, Any]:
    known = ServeDeploySchema.model_validate(config).model_dump(exclude_unset=True)
    if dropped := list(lost(config, known)):
        raise UsageError(f"keys that Ray ignores: {dropped}")
    for application in config["applications"]:
        parse_serve(application["args"])
    return config


def lost(given: Any, kept: Any, at: str = "") -> Iterator[str]:
    """Paths of keys that Ray's models have dropped."""
    if isinstance(given, dict) and isinstance(kept, dict):
        for key, value in given.items():
            if key in kept:
                yield from lost(value, kept[key], f"{at}/{key}")
            else:
                yield f"{at}/{key}"
    elif isinstance(given, list):
        for before, after in zip(given, kept, strict=True):
            yield from lost(before, after, at)


def of_the_service() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(rays("RayService")["spec"]["serveConfigV2"])
    return found


@pytest.mark.parametrize("origin", ["kuberay", "docker"])
def test_the_endpoint_equals_serve_yaml(origin: str) -> None:
    """The same application, except for host, proxy location, keys and models."""
    other = of_the_service() if origin == "kuberay" else serve_config(INFRA / "docker/serve.yaml")
    check_serve(other)
    plain = serve_config(INFRA / "serve.yaml")
    if origin == "docker":  # one machine
        assert plain["applications"][0]["args"].pop("gateways") > other["applications"][0]["args"].pop("gateways", 1)
    for config in (plain, other):
        assert config["applications"][0]["args"].pop("host") == config["http_options"].pop("host")
        for key in ("keys", "models"):
            config["applications"][0]["args"].pop(key, None)
        config.pop("proxy_location")
    assert other == plain


@pytest.mark.parametrize(
    ("place", "value", "error"),
    [
        ("proxy_locations", "EveryNode", UsageError),
        ("proxy_location", "Everywhere", ValidationError),
        ("http_options/prt", 8000, UsageError),
        ("applications/0/import_path", MISSING, ValidationError),
        ("applications/0/import_path", "paliscribe/online", ValidationError),
        ("applications/0/args/modls", [], UsageError),
        ("applications/0/args/models/0/pool/gpus", 1, UsageError),
        ("applications/0/args/models/0/pool/min_replicas", "one", UsageError),
    ],
)
def test_invalid_fields_of_the_endpoint_are_rejected(place: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        check_serve(changed(of_the_service(), place, value))


def test_the_keys_are_mounted_where_the_endpoint_reads_them() -> None:
    spec = groups_of(rays("RayService"))["gpu"]["template"]["spec"]
    [mount] = [m for m in spec["containers"][0]["volumeMounts"] if m["name"] == "keys"]
    assert of_the_service()["applications"][0]["args"]["keys"] == f"{mount['mountPath']}/keys"
    assert "--from-file=keys=" in (FOLDER / "common.yaml").read_text()


def test_the_job_file_is_valid_and_mounted_where_it_is_read() -> None:
    [config] = [document for document in OTHERS if document["kind"] == "ConfigMap"]
    job = parse(yaml.safe_load(config["data"]["job.yaml"]))
    spec = rays("RayJob")["spec"]
    head = groups_of(rays("RayJob"))["head"]["template"]["spec"]
    [mount] = [m for m in head["containers"][0]["volumeMounts"] if m["name"] == "job"]
    assert spec["entrypoint"] == f"paliscribe annotate {mount['mountPath']}/job.yaml"
    gpus = groups_of(rays("RayJob"))["gpu"]["maxReplicas"]
    assert (job.pool.min_replicas, job.pool.max_replicas) == (1, gpus), "it begins with the first GPU"
    assert job.pool.gpus_per_replica == 1 and job.model.precision != "auto"


def test_the_upgrade_has_what_kuberay_demands() -> None:
    """What its operator checks beyond the schema (ValidateClusterUpgradeOptions in KubeRay's validation.go)."""
    spec = rays("RayService")["spec"]
    strategy = spec["upgradeStrategy"]
    options = strategy["clusterUpgradeOptions"]
    assert (
        strategy["type"] == "NewClusterWithIncrementalUpgrade" and spec["rayClusterConfig"]["enableInTreeAutoscaling"]
    )
    assert 0 < options["stepSizePercent"] <= options["maxSurgePercent"] <= 100 and options["intervalSeconds"] > 0
    assert options["gatewayClassName"]


@pytest.mark.parametrize("document", RAYS, ids=name_of)
def test_the_autoscaler_knows_the_gpus_of_groups_without_nodes(document: dict[str, Any]) -> None:
    """Ray's own reading of the groups: `accelerator_type` is found at zero nodes, and one type has priority."""
    spec = cluster_of(document)
    kinds = _generate_available_node_types_from_ray_cr_spec(spec)
    found = {name: {key for key in kind["resources"] if key.startswith("accelerator")} for name, kind in kinds.items()}
    assert found.pop("gpu") == {"accelerator_type:L4"} and found.pop("gpu-a10g") == {"accelerator_type:A10G"}
    assert not any(found.values())
    assert kinds["gpu"]["priority"] > kinds["gpu-a10g"].get("priority", 0)
    assert (NVIDIA_L4, NVIDIA_TESLA_A10G) == ("L4", "A10G"), "the names that Ray gives to what it finds"
    for name in ("gpu", "gpu-a10g"):
        assert kinds[name]["resources"]["GPU"] == 1 and kinds[name]["max_workers"] == kinds["gpu"]["max_workers"]


def test_metrics_are_scraped_from_every_pod() -> None:
    [monitor] = [document for document in ALL if document["kind"] == "PodMonitor"]
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    [endpoint] = monitor["spec"]["podMetricsEndpoints"]
    for document in RAYS:
        for group in groups_of(document).values():
            assert wanted <= group["template"]["metadata"]["labels"].items()
            ports = group["template"]["spec"]["containers"][0]["ports"]
            assert endpoint["port"] in [port["name"] for port in ports]
