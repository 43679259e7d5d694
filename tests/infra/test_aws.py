"""IAM policies and lifecycle rules: against AWS's list of actions, moto, and the calls that are made."""

import fnmatch
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore import xform_name
from botocore.exceptions import ClientError
from botocore.validate import ParamValidator
from infra.manifests import INFRA, MISSING, ROOT, changed, documents
from infra.test_cluster import no_aws  # noqa: F401
from moto import mock_aws
from policy_sentry.querying.actions import get_action_data
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.commands import _bootstrap_config
from results.made import Job

from paliscribe import results
from paliscribe.storage import check_writable, open_store, s3_client

POLICIES = ("reader", "writer", "head")
# API calls whose IAM action has another name.
ACTIONS = {"HeadObject": "GetObject", "ListObjectsV2": "ListBucket"} | dict.fromkeys(
    ("CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"), "PutObject"
)
Call = tuple[str, str]  # action, resource


def read(name: str) -> dict[str, Any]:
    body = (INFRA / "aws" / f"{name}.json").read_text()
    for placeholder, real in {"YOUR-REGION": "us-east-1", "YOUR-ACCOUNT": "123456789012"}.items():
        body = body.replace(placeholder, real)
    found: dict[str, Any] = json.loads(body)
    return found


def many(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def problems(policy: dict[str, Any]) -> list[str]:
    """Errors of a policy by its grammar and AWS's list of actions."""
    found = [] if policy.get("Version") == "2012-10-17" else ["version"]
    found += [f"unknown {key}" for key in policy.keys() - {"Version", "Statement"}]
    for statement in policy["Statement"]:
        found += [f"unknown {key}" for key in statement.keys() - {"Sid", "Effect", "Action", "Resource", "Condition"}]
        if statement.get("Effect") != "Allow" or not statement.get("Resource"):
            found.append("no effect or resource")
        for action in many(statement.get("Action", [])):
            data = get_action_data(*action.split(":", 1)) if "*" not in action else {}
            if not data:
                found.append(f"unknown action {action}")
            elif not any(fits(row, resource) for row in rows(data) for resource in many(statement.get("Resource", []))):
                found.append(f"wrong resource type for {action}")
    return found


def rows(data: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return [row for found in data.values() for row in found]


def fits(row: dict[str, Any], resource: str) -> bool:
    """Whether an ARN has the format of a resource type of the action."""
    shape = row["resource_arn_format"]
    if "*" in (shape, resource):
        return shape == resource
    return fnmatch.fnmatchcase(resource, re.sub(r"\$\{\w+\}", "*", shape)) and resource.count(":") == shape.count(":")


def allows(policy: dict[str, Any], action: str, resource: str) -> bool:
    """Whether any statement without conditions allows a call."""
    return any(
        action in many(statement["Action"])
        and any(fnmatch.fnmatchcase(resource, pattern) for pattern in many(statement["Resource"]))
        for statement in policy["Statement"]
        if "Condition" not in statement
    )


@pytest.mark.parametrize("name", POLICIES)
def test_policies_are_valid(name: str) -> None:
    assert problems(read(f"{name}-policy")) == []


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("Statement/0/Action/0", "s3:GetObjekt"),
        ("Statement/0/Action/0", "s3:*"),
        ("Statement/0/Action/0", "s3:Get*"),
        ("Statement/1/Action/0", "s3:PutObject"),  # an object action on a bucket
        ("Statement/0/Resource", "arn:aws:s3:::bucket"),
        ("Statement/0/Resource", MISSING),
        ("Statement/0/Ressource", ["*"]),
        ("Statement/0/Effect", "allow"),
        ("Version", "2012"),
    ],
)
def test_invalid_policies_are_detected(place: str, value: Any) -> None:
    assert problems(changed(read("writer-policy"), place, value)) != []


def test_only_describe_instances_is_granted_on_all_resources() -> None:
    for name in POLICIES:
        for statement in read(f"{name}-policy")["Statement"]:
            assert many(statement["Resource"]) != ["*"] or statement["Action"] == ["ec2:DescribeInstances"]


def test_the_reader_is_read_only() -> None:
    levels = {
        row["access_level"]
        for statement in read("reader-policy")["Statement"]
        for action in many(statement["Action"])
        for row in rows(get_action_data(*action.split(":", 1)))
    }
    assert levels == {"Read", "List"}


@pytest.mark.usefixtures("no_aws")
def test_iam_accepts_the_policies() -> None:
    with mock_aws():
        iam = boto3.client("iam")
        for name in POLICIES:
            iam.create_policy(PolicyName=name, PolicyDocument=json.dumps(read(f"{name}-policy")))
        for name in ("trust-ec2", "trust-eks"):
            iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(read(name)))
        with pytest.raises(ClientError, match="MalformedPolicyDocument"):
            wrong = changed(read("reader-policy"), "Statement/0/Effect", "Alow")
            iam.create_policy(PolicyName="wrong", PolicyDocument=json.dumps(wrong))


def test_only_the_service_accounts_of_the_manifests_may_assume_the_role() -> None:
    [statement] = read("trust-eks")["Statement"]
    trusted = statement["Condition"]["StringEquals"]["YOUR-CLUSTERS-ISSUER:sub"]
    kinds = documents(INFRA / "kuberay/common.yaml")
    accounts = [kind["metadata"] for kind in kinds if kind["kind"] == "ServiceAccount"]
    assert trusted == [f"system:serviceaccount:{meta['namespace']}:{meta['name']}" for meta in accounts]
    roles = {meta["annotations"]["eks.amazonaws.com/role-arn"].rpartition("/")[2] for meta in accounts}
    assert roles == {"paliscribe-eks"} and "--role-name paliscribe-eks" in (INFRA / "aws/README.md").read_text()


@pytest.mark.long
@pytest.mark.usefixtures("no_aws")
def test_the_heads_policy_equals_the_autoscalers_calls() -> None:
    """Ray's provider starts, tags, describes and terminates the nodes of cluster.yaml on moto."""
    calls: set[str] = set()
    profiles = {"head": "paliscribe-head", "gpu": "paliscribe-writer", "gpu_a10g": "paliscribe-writer"}
    profiles["cpu"] = "paliscribe-writer"
    with mock_aws():
        for profile in set(profiles.values()):
            boto3.client("iam").create_instance_profile(InstanceProfileName=profile)
        [described] = documents(ROOT / "cluster.yaml")
        config = _bootstrap_config(described, no_config_cache=True)
        provider = AWSNodeProvider(config["provider"], config["cluster_name"])
        for resource in (provider.ec2, provider.ec2_fail_fast):
            resource.meta.client.meta.events.register("before-call.ec2", lambda model, **_: calls.add(model.name))
        for name, kind in config["available_node_types"].items():
            assert kind["node_config"]["IamInstanceProfile"]["Name"] == profiles[name]
            provider.create_node(kind["node_config"], {"ray-user-node-type": name}, 1)
        nodes = provider.non_terminated_nodes({})
        assert len(nodes) == len(profiles)
        provider.set_node_tags(nodes[0], {"ray-node-status": "up-to-date"})
        provider.terminate_nodes(nodes)
    policy = read("head-policy")
    granted = {action for statement in policy["Statement"] for action in statement["Action"]}
    needed_by_run_instances = {"iam:PassRole", "ssm:GetParameters"}  # the profile, and `resolve:ssm:` of the image
    assert granted == {f"ec2:{call}" for call in calls} | needed_by_run_instances
    tag = {"aws:ResourceTag/ray-cluster-name": described["cluster_name"]}
    for statement in policy["Statement"]:
        if "ec2:TerminateInstances" in statement["Action"]:
            assert statement["Condition"]["StringEquals"] == tag


@pytest.fixture
def calls(bucket: str) -> Iterator[set[Call]]:
    """S3 calls of this process during the test, as actions on the policies' buckets."""
    seen: set[Call] = set()

    def note(model: Any, params: dict[str, Any], context: dict[str, Any], **_: Any) -> None:
        path = params["url_path"].split("?")[0].removeprefix(f"/{bucket}").lstrip("/")
        action = ACTIONS.get(model.name, model.name)
        resource = "arn:aws:s3:::YOUR-RUNS-BUCKET"
        if action == "DeleteObjects":  # each of its keys needs the action of one
            keys = re.findall(r"<Key>(.*?)</Key>", params["body"].decode())
            seen.update(("s3:DeleteObject", f"{resource}/{key}") for key in keys)
            return
        seen.add((f"s3:{action}", resource if action == "ListBucket" else f"{resource}/{path}"))

    s3_client.client().meta.events.register("before-call.s3", note)
    yield seen


@pytest.mark.long
def test_the_writers_policy_equals_the_calls_of_a_run(bucket: str, calls: set[Call], tmp_path: Path) -> None:
    """All S3 calls of a run: write test, lease, shards, parts, a retry, the sweep, and a multipart upload."""
    store = open_store(f"s3://{bucket}/run-1")
    check_writable(store)
    job = Job([{}] * 6)
    with results.hold(store):
        job.annotate(store, lambda row, task: row == 1)
        job.publish(store)
        results.begin_retry(store, 1, [], lambda row: row // 4)
        job.retry(store, 1, lambda row, task: False)
        job.publish(store, 1)
        results.sweep(store, job.layout.shards)
    large = tmp_path / "large"
    large.write_bytes(bytes(9 << 20))
    store.put_file("annotations/large", large)
    with store.open("annotations/large") as file:
        assert len(file.read()) == 9 << 20
    made = set(calls)
    upload = s3_client.client().create_multipart_upload(Bucket=bucket, Key="run-1/given-up")
    s3_client.client().abort_multipart_upload(Bucket=bucket, Key="run-1/given-up", UploadId=upload["UploadId"])
    made |= calls  # boto3 aborts a failed upload itself
    policy = read("writer-policy")
    assert {call for call in made if not allows(policy, *call)} == set()
    granted = {action for statement in policy["Statement"] for action in statement["Action"]}
    assert granted == {action for action, _ in made}


def test_the_readers_policy_is_enough_to_read_results(bucket: str, calls: set[Call]) -> None:
    store = open_store(f"s3://{bucket}/run-1")
    job = Job([{}] * 3)
    job.annotate(store)
    job.publish(store)
    calls.clear()
    for found in list(store.list()):
        assert store.exists(found.key) and len(store.get(found.key)) == found.size
    assert results.read_summary(store) is not None and set(results.committed(store)) == {0}
    assert results.read_lease(store) is None
    policy = read("reader-policy")
    assert {action for action, _ in calls} == {"s3:GetObject", "s3:ListBucket"}
    assert {call for call in calls if not allows(policy, *call)} == set()
    calls.clear()
    store.put("mine", b"")
    store.delete("mine")
    assert len(calls) == 2 and not any(allows(policy, *call) for call in calls)


def test_a_shard_file_that_is_gone_ends_an_unfinished_run(bucket: str) -> None:
    """Why no rule expires `_run/shards/` by age, as the README of infra/aws says."""
    store = open_store(f"s3://{bucket}/run-1")
    job = Job([{}] * 3)
    job.annotate(store)
    store.delete(results.read_marker(store, 0).file)
    with pytest.raises(Exception, match="no such object"):
        job.publish(store)
    rules = read("lifecycle")["Rules"]
    assert not any({"Days", "Date"} & rule.get("Expiration", {}).keys() for rule in rules)


def lifecycle_problems(rules: dict[str, Any]) -> str:
    model = boto3.session.Session()._session.get_service_model("s3")
    shape = model.operation_model("PutBucketLifecycleConfiguration").input_shape
    call = {"Bucket": "runs", "LifecycleConfiguration": rules}
    report: str = ParamValidator().validate(call, shape).generate_report()
    return report


def test_s3_accepts_the_lifecycle_rules(bucket: str, s3_server: Any) -> None:
    rules = read("lifecycle")
    assert lifecycle_problems(rules) == ""
    server = s3_server.client()
    server.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration=rules)
    kept = server.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    assert sorted(rule["ID"] for rule in kept) == sorted(rule["ID"] for rule in rules["Rules"])


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("Rules/0/AbortIncompleteMultipartUploads", {"DaysAfterInitiation": 2}),
        ("Rules/0/AbortIncompleteMultipartUpload/DaysAfterInitiation", "two"),
        ("Rules/1/Status", MISSING),
        ("Rules", MISSING),
    ],
)
def test_invalid_lifecycle_rules_are_detected(place: str, value: Any) -> None:
    assert lifecycle_problems(changed(read("lifecycle"), place, value)) != ""


def aws_commands(text: str) -> Iterator[tuple[str, str, list[str]]]:
    """Service, operation and options of each `aws` command in a text."""
    for line in text.replace("\\\n", " ").splitlines():
        if (words := line.strip().split()) and words[0] == "aws":
            yield words[1], words[2], [word[2:] for word in words if word.startswith("--")]


def command_problems(text: str) -> list[str]:
    """Operations and options of `aws` commands that AWS's API models do not have. `aws s3` is not of the API."""
    found = []
    for service, operation, options in aws_commands(text):
        if service == "s3":
            continue
        model = boto3.session.Session()._session.get_service_model("s3" if service == "s3api" else service)
        names = {xform_name(name, "-"): name for name in model.operation_names}
        if operation not in names:
            found.append(f"no operation {operation}")
            continue
        shape = model.operation_model(names[operation]).input_shape
        known = {xform_name(member, "-") for member in shape.members}
        needed = {xform_name(member, "-") for member in shape.required_members}
        found += [f"{operation}: no option {name}" for name in set(options) - known]
        found += [f"{operation}: {name} is missing" for name in needed - set(options)]
    return found


def test_the_readmes_commands_exist() -> None:
    text = (INFRA / "aws/README.md").read_text()
    assert len(list(aws_commands(text))) >= 10
    assert command_problems(text) == []
    assert command_problems("aws ec2 create-vpc-endpoints") == ["no operation create-vpc-endpoints"]
    wrong = command_problems("aws ec2 create-vpc-endpoint --vpc-ids x --service-name y")
    assert sorted(wrong) == ["create-vpc-endpoint: no option vpc-ids", "create-vpc-endpoint: vpc-id is missing"]
