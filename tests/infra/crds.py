"""Strict validation of manifests against CRDs, like `kubectl apply --validate=strict`: KubeRay's, and others if there.

CEL rules of the CRDs (`x-kubernetes-validations`) are not evaluated.
"""

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from infra.manifests import ROOT

FOLDER = Path(os.environ.get("CRDS", ROOT.parent / "shared/crds"))
GROUPS = ("ray.io", "karpenter.sh", "karpenter.k8s.aws", "monitoring.coreos.com")
METADATA = {"name", "namespace", "labels", "annotations"}  # allowed keys of a manifest's metadata


def closed(schema: Any) -> Any:
    """A copy of the schema that rejects unknown keys, which Kubernetes would drop."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(value) for key, value in schema.items() if key not in ("properties", "default", "description")}
    if isinstance(properties := schema.get("properties"), dict):
        made["properties"] = {name: closed(value) for name, value in properties.items()}
    is_open = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if schema.get("type") == "object" and not is_open:
        made["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        made["type"] = ["integer", "string"]
    return made


def distinct(_: Any, keys: list[str], items: Any, schema: dict[str, Any]) -> Iterator[jsonschema.ValidationError]:
    """Yield an error if two items of a list have equal key values."""
    optional = schema["items"].get("properties", {})
    seen = [tuple(item.get(key, optional.get(key, {}).get("default")) for key in keys) for item in items]
    if len(set(seen)) != len(seen):
        yield jsonschema.ValidationError(f"two items with the same {keys}: {seen}")


Validator = jsonschema.validators.extend(jsonschema.Draft202012Validator, {"x-kubernetes-list-map-keys": distinct})


def path_of(document: dict[str, Any]) -> Path:
    """The file of a document's CRD, as projects name it; it need not exist."""
    kind = document["kind"].lower()
    plural = f"{kind}es" if kind.endswith("s") else f"{kind}s"
    return FOLDER / f"{group_of(document)}_{plural}.yaml"


def group_of(document: dict[str, Any]) -> str:
    """The API group; empty for the core."""
    group, slash, _ = document["apiVersion"].partition("/")
    return group if slash else ""


@cache
def schema_of(path: Path, version: str) -> dict[str, Any]:
    """The strict schema of a custom kind."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the pure Python loader needs seconds for this megabyte
    definition = yaml.load(path.read_text(), loader)["spec"]
    [found] = [v for v in definition["versions"] if v["name"] == version and v["served"]]
    schema: dict[str, Any] = closed(found["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object", "required": ["name"], "propertyNames": {"enum": [*METADATA]}}
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return schema


def problems(document: dict[str, Any]) -> list[str]:
    """Validation errors of a document of a custom kind. Skips the test if its CRD is not there."""
    if not (path := path_of(document)).exists():
        pytest.skip(f"{path} is not there")
    version = document["apiVersion"].rpartition("/")[2]
    errors = Validator(schema_of(path, version)).iter_errors(document)
    return [f"{'/'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]
