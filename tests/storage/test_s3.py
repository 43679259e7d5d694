"""What only S3 does: credentials, lost answers, conditions that a store ignores."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, ConnectionClosedError, ReadTimeoutError
from chaos.proxy import proxied

from paliscribe.storage import StorageError, check_writable, open_store, retry, s3_client


def refused(call: Callable[[], object]) -> StorageError:
    with pytest.raises(StorageError) as caught:
        call()
    return caught.value


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.01)


def test_buckets(bucket: str) -> None:
    error = refused(lambda: open_store("s3://no-such-bucket-here").get("k"))
    assert (error.kind, error.message) == ("missing", "no such bucket")
    assert refused(lambda: open_store("s3://No_Bucket!").get("k")).kind == "bad_uri"


def test_credentials(bucket: str, s3_server: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    store = open_store(f"s3://{bucket}")
    (tmp_path / "f").write_bytes(b"x")
    calls: list[Callable[[], object]] = [
        lambda: store.get("k"),
        lambda: store.exists("k"),
        lambda: list(store.list()),
        lambda: store.put("k", b""),
        lambda: store.put_file("k", tmp_path / "f"),
        lambda: store.put_if_absent("k", b""),
        lambda: check_writable(store),
    ]

    def kinds(key: str | None, secret: str = "") -> set[str]:
        for name, value in (("AWS_ACCESS_KEY_ID", key), ("AWS_SECRET_ACCESS_KEY", secret)):
            monkeypatch.delenv(name) if key is None else monkeypatch.setenv(name, str(value))
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        s3_client._clients.clear()
        return {refused(call).kind for call in calls}

    assert kinds(s3_server.powerless_key, s3_server.powerless_secret) == {"forbidden"}
    assert "the AWS secret key does not match" in str(refused(calls[0])) or "access denied" in str(refused(calls[0]))
    assert kinds("unknown", "x") == {"forbidden"}
    assert kinds(s3_server.key, "wrong") == {"forbidden"}
    assert kinds(None) == {"forbidden"}
    assert "no AWS credentials" in str(refused(calls[0]))


def test_settings_that_cannot_be_used(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    s3_client._clients.clear()
    assert refused(lambda: open_store("s3://b").get("k")).kind == "forbidden"
    monkeypatch.delenv("AWS_PROFILE")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "me:secret@nonsense")
    assert refused(lambda: open_store("s3://b").get("k")).kind == "bad_uri"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    s3_client._clients.clear()
    assert refused(lambda: open_store("s3://bucket").get("k")).kind == "unreachable"


def test_endpoints_are_addressed_by_path(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store.example:9000")
    s3_client._clients.clear()
    url = s3_client.client().generate_presigned_url("get_object", Params={"Bucket": "some-bucket", "Key": "k"})
    assert url.startswith("http://store.example:9000/some-bucket/k?")


def test_folder_markers_are_no_objects(bucket: str) -> None:
    for key in ("p/", "p/a/", "p/a/1"):
        s3_client.client().put_object(Bucket=bucket, Key=key, Body=b"")
    assert [found.key for found in open_store(f"s3://{bucket}/p").list()] == ["a/1"]


class Unsteady:
    """A real client whose first `put_object` calls are carried out or not, and then lose their answer."""

    def __init__(self, client: Any, losses: list[bool], ignore_conditions: bool = False) -> None:
        self.client, self.losses, self.ignore = client, losses, ignore_conditions

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)

    def put_object(self, **arguments: Any) -> Any:
        if self.ignore:
            arguments.pop("IfNoneMatch", None)
        if self.losses:
            if self.losses.pop(0):
                self.client.put_object(**arguments)
                raise ReadTimeoutError(endpoint_url="http://store")
            raise ConnectionClosedError(endpoint_url="http://store")
        return self.client.put_object(**arguments)


def unsteady(*losses: bool, ignore_conditions: bool = False) -> None:
    s3_client._clients[32, 30.0] = Unsteady(s3_client.client(), list(losses), ignore_conditions)


class NoBulk:
    """A real client of a store that lacks the bulk call, or refuses some keys of it."""

    def __init__(self, client: Any, refused: list[str] | None) -> None:
        self.client, self.refused = client, refused

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)

    def delete_objects(self, **arguments: Any) -> Any:
        if self.refused is None:
            response = {"Error": {"Code": "NotImplemented"}, "ResponseMetadata": {"HTTPStatusCode": 501}}
            raise ClientError(response, "DeleteObjects")
        objects = [item for item in arguments["Delete"]["Objects"] if item["Key"] not in self.refused]
        self.client.delete_objects(Bucket=arguments["Bucket"], Delete={"Objects": objects})
        return {"Errors": [{"Key": key, "Code": "InternalError"} for key in self.refused]}


@pytest.mark.parametrize("refused", [None, ["p/1", "p/2"]])
def test_objects_are_deleted_one_by_one_where_bulk_deletion_fails(bucket: str, refused: list[str] | None) -> None:
    store = open_store(f"s3://{bucket}/p")
    for key in "1234":
        store.put(key, b"")
    s3_client._clients[32, 30.0] = NoBulk(s3_client.client(), refused)
    store.delete_many("123")
    assert [found.key for found in store.list()] == ["4"]


def test_a_lost_answer_is_resolved_by_content(bucket: str) -> None:
    store = open_store(f"s3://{bucket}/p")
    unsteady(False, True)
    assert store.put_if_absent("mine", b"attempt 1")
    unsteady(True)
    etag = store.put("lease", b"0")
    unsteady(False, True, False)
    renewed = store.put_if_match("lease", b"1", etag)
    assert renewed is not None and store.get_with_etag("lease") == (b"1", renewed)


def test_a_lost_answer_never_claims_what_another_wrote(bucket: str) -> None:
    store = open_store(f"s3://{bucket}/p")
    store.put("theirs", b"attempt 2")
    unsteady(False)
    assert not store.put_if_absent("theirs", b"attempt 1")
    unsteady(False)
    assert store.put_if_match("theirs", b"attempt 1", '"0123"') is None
    assert store.get("theirs") == b"attempt 2"


def test_a_store_that_ignores_conditions_is_refused(bucket: str) -> None:
    unsteady(ignore_conditions=True)
    store = open_store(f"s3://{bucket}")
    assert "conditional writes" in str(refused(lambda: check_writable(store)))
    assert not list(store.list())


def test_an_object_that_changes_while_it_is_read(bucket: str) -> None:
    store = open_store(f"s3://{bucket}")
    store.put("k", b"a" * (20 << 20))
    with store.open("k") as source:
        source.read(10)
        store.put("k", b"b" * (20 << 20))
        error = refused(source.read)
    assert error.kind == "missing" and "replaced" in error.message


@pytest.mark.parametrize("kind", ["truncated", "truncated headers"])
def test_a_truncated_answer_is_retried(kind: str, bucket: str, s3_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any call, once each: also of those whose answers botocore reads itself."""
    store = open_store(f"s3://{bucket}/run")
    for name in ("k", "gone", "a/b"):
        store.put(name, b"value" * 100)
    with proxied(s3_server.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
        s3_client._clients.clear()

        def cut(call: Callable[[], object]) -> object:
            proxy.disturb(0, {kind: 1.0}, most=1)
            found = call()
            assert proxy.given[kind] == 1
            return found

        assert cut(lambda: store.get("k")) == b"value" * 100
        assert cut(lambda: store.get_range("k", 5, 5)) == b"value"
        assert cut(lambda: [found.key for found in store.list()]) == ["a/b", "gone", "k"]
        assert cut(lambda: store.exists("k")) is True
        assert str(cut(lambda: store.version("k"))).endswith("-500")
        assert cut(lambda: store.open("k").read()) == b"value" * 100
        assert cut(lambda: store.put("new", b"x"))
        assert cut(lambda: store.put_if_absent("once", b"x")) is True
        assert cut(lambda: store.put_if_absent("k", b"x")) is False
        assert cut(lambda: store.put_if_match("k", b"x", '"0123"')) is None
        assert cut(lambda: store.put_if_match("absent", b"x", '"0123"')) is None
        cut(lambda: store.delete_many(["gone", "new"]))
        cut(lambda: store.delete("once"))
        assert refused(lambda: cut(lambda: store.get("once"))).kind == "missing"
        proxy.disturb(0, {kind: 1.0}, most=1000)
        with retry.hurried():
            assert refused(lambda: list(store.list())).kind == "unreachable"
