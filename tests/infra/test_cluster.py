"""cluster.yaml against the schema that Ray's own launcher checks with."""

import copy
import json
from pathlib import Path

import jsonschema
import pytest
import ray.autoscaler
import yaml

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())


def cluster() -> dict[str, object]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_cluster_is_valid() -> None:
    jsonschema.validate(cluster(), SCHEMA)


def test_a_wrong_field_is_noticed() -> None:
    wrong = copy.deepcopy(cluster())
    wrong["max_wrokers"] = 3
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, SCHEMA)


def test_the_head_node_type_exists() -> None:
    described = cluster()
    assert described["head_node_type"] in described["available_node_types"]
    for kind in described["available_node_types"].values():
        assert kind.get("max_workers", 0) <= described["max_workers"]


def test_policy_is_least_privilege() -> None:
    policy = json.loads((ROOT / "infra/aws/writer-policy.json").read_text())
    actions = {action for statement in policy["Statement"] for action in statement["Action"]}
    assert not {action for action in actions if "*" in action}
    writes = [s for s in policy["Statement"] if any(a in s["Action"] for a in ("s3:PutObject", "s3:DeleteObject"))]
    assert [s["Resource"] for s in writes] == ["arn:aws:s3:::YOUR-RUNS-BUCKET/*"]
