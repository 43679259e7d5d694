"""S3 and everything that speaks it, through boto3. Every standard AWS setting works."""

import io
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from paliscribe.storage.base import ObjectInfo, StorageError, StorageErrorKind
from paliscribe.storage.retry import repeated

RETRIES = 5  # of the store's own reads and writes; `Fetcher` has its own count
CODES: dict[str, StorageErrorKind] = {
    "NoSuchKey": "missing",
    "NoSuchBucket": "missing",
    "NoSuchVersion": "missing",
    "PreconditionFailed": "missing",  # of a read: that version is gone
    "InvalidBucketName": "bad_uri",
    "KeyTooLongError": "bad_uri",
    "InvalidURI": "bad_uri",
    "EntityTooLarge": "too_large",
    "SlowDown": "throttled",
    "Throttling": "throttled",
    "ThrottlingException": "throttled",
    "RequestLimitExceeded": "throttled",
    "TooManyRequests": "throttled",
    "OperationAborted": "throttled",
    "ConditionalRequestConflict": "throttled",
    "RequestTimeout": "unreachable",  # a 400, and yet worth another attempt
}
STATUS: dict[int, StorageErrorKind] = {404: "missing", 408: "unreachable", 409: "throttled", 429: "throttled"}
WORDS = {
    "NoSuchBucket": "no such bucket",
    "AccessDenied": "access denied (S3 says the same of an object that is not there if you may not list)",
    "403": "access denied (S3 says the same of an object that is not there if you may not list)",
    "InvalidAccessKeyId": "this AWS access key is not known to the store",
    "SignatureDoesNotMatch": "the AWS secret key does not fit the access key",
    "ExpiredToken": "the AWS credentials have expired",
    "InvalidToken": "the AWS session token is not valid",
    "RequestTimeTooSkewed": "this machine's clock is wrong",
    "InvalidObjectState": "the object is archived; restore it first",
    "PreconditionFailed": "the object was replaced while it was read",
    "InvalidBucketName": "not a valid bucket name",
}
_clients: dict[tuple[int, float], Any] = {}
_lock = threading.Lock()


def client(connections: int = 32, timeout: float = 30.0) -> Any:
    """The process's client; clients are thread-safe, sessions are not."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    with _lock:
        if (connections, timeout) not in _clients:
            try:
                session = boto3.session.Session()
                _clients[connections, timeout] = session.client(
                    "s3",
                    region_name=session.region_name or "us-east-1",
                    config=Config(
                        max_pool_connections=connections,
                        connect_timeout=min(timeout, 10.0),
                        read_timeout=timeout,
                        retries={"total_max_attempts": 1},  # attempts are counted in one place, `repeated`
                        request_checksum_calculation="when_required",  # stores other than AWS lack the newer ones
                        response_checksum_validation="when_required",
                    ),
                )
            except BotoCoreError as error:
                raise StorageError("forbidden", "s3://", f"the AWS settings cannot be used: {error}") from error
            except ValueError as error:  # its text would repeat the address, which may hold a password
                raise StorageError("bad_uri", "s3://", "AWS_ENDPOINT_URL is not an address") from error
        return _clients[connections, timeout]


@contextmanager
def translated(uri: str) -> Iterator[None]:
    """Turn what botocore raises into a StorageError, by code and type."""
    from botocore import exceptions as boto

    try:
        yield
    except boto.ClientError as error:
        raise _refusal(uri, error.response) from error
    except (boto.NoCredentialsError, boto.PartialCredentialsError) as error:
        raise StorageError("forbidden", uri, "no AWS credentials were found") from error
    except (boto.CredentialRetrievalError, boto.TokenRetrievalError, boto.SSOError) as error:
        raise StorageError("forbidden", uri, f"the AWS credentials cannot be had ({type(error).__name__})") from error
    except boto.ParamValidationError as error:
        raise StorageError("bad_uri", uri, "not a valid bucket or key") from error
    except (boto.BotoCoreError, OSError) as error:
        raise StorageError("unreachable", uri, f"the store cannot be reached ({type(error).__name__})") from error


def _refusal(uri: str, response: dict[str, Any]) -> StorageError:
    """The store's own answer, by its code, else by its HTTP status: a HEAD has no code."""
    code = str(response.get("Error", {}).get("Code", ""))
    metadata = response.get("ResponseMetadata", {})
    status = int(metadata.get("HTTPStatusCode", 0))
    kind = CODES.get(code) or STATUS.get(status) or ("forbidden" if 300 <= status < 500 else "unreachable")
    plain = {"missing": "no such object", "throttled": "the store asks to slow down"}
    words = WORDS.get(code) or plain.get(kind, f"the store answered {code or status}")
    after = str(metadata.get("HTTPHeaders", {}).get("retry-after", ""))
    return StorageError(kind, uri, words, float(after) if after.isdigit() else None)


class S3Store:
    """A prefix of a bucket."""

    def __init__(self, bucket: str, prefix: str) -> None:
        self.bucket, self.prefix = bucket, prefix.strip("/")
        self.uri = f"s3://{bucket}/{self.prefix}".rstrip("/")

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        """See Store."""
        return repeated(lambda: get_once(self.bucket, self._key(key), max_bytes)[0], RETRIES)

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        """See Store."""
        return repeated(lambda: get_once(self.bucket, self._key(key), None), RETRIES)

    def open(self, key: str) -> BinaryIO:
        """See Store: ranges of 8 MiB, each repeated if need be, all of one version."""
        return io.BufferedReader(_Ranges(self.bucket, self._key(key)), buffer_size=8 << 20)

    def put(self, key: str, data: bytes) -> str:
        """See Store."""
        return str(self._call("put_object", key, Body=data)["ETag"])

    def put_file(self, key: str, path: Path) -> str:
        """See Store: in parts where it is large."""
        from boto3.exceptions import S3UploadFailedError
        from botocore.exceptions import ClientError

        def upload() -> None:
            with translated(self._uri(key)):
                try:
                    client().upload_file(str(path), self.bucket, self._key(key))
                except S3UploadFailedError as error:  # boto3 says in words what botocore had said by code
                    if isinstance(error.__context__, ClientError):
                        raise error.__context__ from None
                    raise StorageError("unreachable", self._uri(key), "the upload failed") from error

        repeated(upload, RETRIES)
        return str(self._call("head_object", key)["ETag"])

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """See Store: `If-None-Match: *`. A repeat that meets its own earlier write counts as a success."""
        return self._conditional(key, data, IfNoneMatch="*") is not None

    def put_if_match(self, key: str, data: bytes, etag: str) -> str | None:
        """See Store: `If-Match`."""
        return self._conditional(key, data, IfMatch=etag)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See Store. Folder markers, which some tools make, are no objects here."""
        start = f"{self.prefix}/" if self.prefix else ""
        token: dict[str, str] = {}
        while True:
            arguments = {"Bucket": self.bucket, "Prefix": start + prefix, **token}
            page = repeated(lambda a=arguments: self._list_once(a), RETRIES)  # type: ignore[misc]
            for found in page.get("Contents", []):
                if not found["Key"].endswith("/"):
                    key = found["Key"].removeprefix(start)
                    yield ObjectInfo(key, found["Size"], found["ETag"], found["LastModified"].timestamp())
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def exists(self, key: str) -> bool:
        """See Store."""
        try:
            self._call("head_object", key)
        except StorageError as error:
            if error.kind == "missing":
                return False
            raise
        return True

    def delete(self, key: str) -> None:
        """See Store."""
        self._call("delete_object", key)

    def delete_many(self, keys: Iterable[str]) -> None:
        """See Store. One by one: some stores that speak S3 lack the call for many."""
        for key in keys:
            self.delete(key)

    def _key(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def _uri(self, key: str) -> str:
        return f"s3://{self.bucket}/{self._key(key)}"

    def _list_once(self, arguments: dict[str, str]) -> dict[str, Any]:
        with translated(self.uri):
            page: dict[str, Any] = client().list_objects_v2(**arguments)
        return page

    def _call(self, operation: str, key: str, **arguments: Any) -> dict[str, Any]:
        def once() -> dict[str, Any]:
            with translated(self._uri(key)):
                answer: dict[str, Any] = getattr(client(), operation)(
                    Bucket=self.bucket, Key=self._key(key), **arguments
                )
            return answer

        return repeated(once, RETRIES)

    def _conditional(self, key: str, data: bytes, **condition: str) -> str | None:
        """The new tag, or None where the condition does not hold."""
        from botocore.exceptions import ClientError

        in_doubt = False  # whether an attempt ended without an answer, and may have been carried out

        def once() -> str | None:
            nonlocal in_doubt
            try:
                with translated(self._uri(key)):
                    try:
                        answer = client().put_object(Bucket=self.bucket, Key=self._key(key), Body=data, **condition)
                    except ClientError as error:
                        code = error.response.get("Error", {}).get("Code")
                        if code != "PreconditionFailed" and not (code == "NoSuchKey" and "IfMatch" in condition):
                            raise
                        return self._own(key, data) if in_doubt else None
                    return str(answer["ETag"])
            except StorageError as error:
                in_doubt |= error.kind == "unreachable"
                raise

        return repeated(once, RETRIES)

    def _own(self, key: str, data: bytes) -> str | None:
        """The tag of what is there if it is what an attempt of ours wrote, whose answer was lost."""
        try:
            found, etag = get_once(self.bucket, self._key(key), None)
        except StorageError as error:
            if error.kind == "missing":
                return None
            raise
        return etag if found == data else None


def get_once(
    bucket: str, key: str, max_bytes: int | None, connections: int = 32, timeout: float = 30.0
) -> tuple[bytes, str]:
    """One attempt at a whole object: its bytes and its tag."""
    uri = f"s3://{bucket}/{key}"
    with translated(uri):
        answer = client(connections, timeout).get_object(Bucket=bucket, Key=key)
        if max_bytes is not None and answer["ContentLength"] > max_bytes:
            answer["Body"].close()
            raise StorageError("too_large", uri, f"{answer['ContentLength']:,} bytes; at most {max_bytes:,} are read")
        with answer["Body"] as body:
            return body.read(), str(answer["ETag"])


class _Ranges(io.RawIOBase):
    """An object read range by range, all of the version that was there first."""

    def __init__(self, bucket: str, key: str) -> None:
        self._bucket, self._key, self._at = bucket, key, 0
        head = repeated(self._head, RETRIES)
        self._size, self._etag = int(head["ContentLength"]), str(head["ETag"])

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._size - self._at)
        if wanted <= 0:
            return 0
        data = repeated(lambda: self._range(self._at, self._at + wanted - 1), RETRIES)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _head(self) -> dict[str, Any]:
        with translated(f"s3://{self._bucket}/{self._key}"):
            head: dict[str, Any] = client().head_object(Bucket=self._bucket, Key=self._key)
        return head

    def _range(self, first: int, last: int) -> bytes:
        with translated(f"s3://{self._bucket}/{self._key}"):
            answer = client().get_object(
                Bucket=self._bucket, Key=self._key, Range=f"bytes={first}-{last}", IfMatch=self._etag
            )
            with answer["Body"] as body:
                data: bytes = body.read()
        return data
