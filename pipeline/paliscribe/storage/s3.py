"""S3 and compatible stores, through boto3, with the standard AWS settings."""

import io
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from paliscribe.storage.base import ObjectInfo, Scheme, StorageError, StorageErrorKind
from paliscribe.storage.retry import T, with_retries

RETRIES = 5  # of reads and writes through S3Store; `Fetcher` sets its own number
CODES: dict[str, StorageErrorKind] = {
    "NoSuchKey": "missing",
    "NoSuchBucket": "missing",
    "NoSuchVersion": "missing",
    "PreconditionFailed": "missing",  # in a read: the version was replaced
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
    "RequestTimeout": "unreachable",  # status 400, but temporary
}
STATUS: dict[int, StorageErrorKind] = {404: "missing", 408: "unreachable", 409: "throttled", 429: "throttled"}
WORDS = {
    "NoSuchBucket": "no such bucket",
    "AccessDenied": "access denied (S3 says the same of an object that is not there if you may not list)",
    "403": "access denied (S3 says the same of an object that is not there if you may not list)",
    "InvalidAccessKeyId": "the store does not know this AWS access key",
    "SignatureDoesNotMatch": "the AWS secret key does not match the access key",
    "ExpiredToken": "the AWS credentials have expired",
    "InvalidToken": "the AWS session token is not valid",
    "RequestTimeTooSkewed": "this machine's clock is wrong",
    "InvalidObjectState": "the object is archived; restore it first",
    "PreconditionFailed": "the object was replaced during the read",
    "InvalidBucketName": "not a valid bucket name",
}
_clients: dict[tuple[int, float], Any] = {}
_lock = threading.Lock()


def client(connections: int = 32, timeout: float = 30.0) -> Any:
    """The S3 client of this process; clients are thread-safe, sessions are not. Raises StorageError."""
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
                        retries={"total_max_attempts": 1},  # only `with_retries` retries
                        request_checksum_calculation="when_required",  # compatible stores may lack newer checksums
                        response_checksum_validation="when_required",
                    ),
                )
            except BotoCoreError as error:
                raise StorageError("forbidden", "s3://", f"the AWS settings cannot be used: {error}") from error
            except ValueError as error:  # its text may contain a password of the address
                raise StorageError("bad_uri", "s3://", "AWS_ENDPOINT_URL is not an address") from error
        return _clients[connections, timeout]


def retried(attempt: Callable[[], T]) -> T:
    """`with_retries` for calls of this store."""
    return with_retries(attempt, RETRIES, _endpoint())


def _endpoint() -> str:
    return str(client().meta.endpoint_url)


@contextmanager
def translate_errors(uri: str) -> Iterator[None]:
    """Translate botocore's exceptions into StorageError, by code and type."""
    from botocore import exceptions as boto

    try:
        yield
    except boto.ClientError as error:
        raise _error(uri, error.response) from error
    except (boto.NoCredentialsError, boto.PartialCredentialsError) as error:
        raise StorageError("forbidden", uri, "no AWS credentials were found") from error
    except (boto.CredentialRetrievalError, boto.TokenRetrievalError, boto.SSOError) as error:
        raise StorageError("forbidden", uri, f"AWS credentials cannot be loaded ({type(error).__name__})") from error
    except boto.ParamValidationError as error:
        raise StorageError("bad_uri", uri, "not a valid bucket or key") from error
    except (boto.BotoCoreError, OSError) as error:
        raise StorageError("unreachable", uri, f"the store cannot be reached ({type(error).__name__})") from error


def _error(uri: str, response: dict[str, Any]) -> StorageError:
    """The error of a store's response, by its code, or by its HTTP status: responses to HEAD have no code."""
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
        return retried(lambda: get_once(self.bucket, self._key(key), max_bytes)[0])

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        """See Store."""
        return retried(lambda: get_once(self.bucket, self._key(key), None))

    def open(self, key: str) -> BinaryIO:
        """See Store. Reads ranges of 8 MiB, each with retries, all of one version."""
        return io.BufferedReader(_Ranges(self.bucket, self._key(key)), buffer_size=8 << 20)

    def put(self, key: str, data: bytes) -> str:
        """See Store."""
        return str(self._call("put_object", key, Body=data)["ETag"])

    def put_file(self, key: str, path: Path) -> str:
        """See Store. Large files are uploaded in parts."""
        from boto3.exceptions import S3UploadFailedError
        from botocore.exceptions import ClientError

        def upload() -> None:
            with translate_errors(self._uri(key)):
                try:
                    client().upload_file(str(path), self.bucket, self._key(key))
                except S3UploadFailedError as error:  # boto3 drops botocore's error code
                    if isinstance(error.__context__, ClientError):
                        raise error.__context__ from None
                    raise StorageError("unreachable", self._uri(key), "the upload failed") from error

        retried(upload)
        return str(self._call("head_object", key)["ETag"])

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """See Store. Sends `If-None-Match: *`. A retry that finds its own earlier write is a success."""
        return self._conditional(key, data, IfNoneMatch="*") is not None

    def put_if_match(self, key: str, data: bytes, etag: str) -> str | None:
        """See Store. Sends `If-Match`."""
        return self._conditional(key, data, IfMatch=etag)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See Store. Folder markers, which some tools create, are left out."""
        start = f"{self.prefix}/" if self.prefix else ""
        token: dict[str, str] = {}
        while True:
            arguments = {"Bucket": self.bucket, "Prefix": start + prefix, **token}
            page = retried(lambda a=arguments: self._list_once(a))  # type: ignore[misc]
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

    def version(self, key: str, *, settled: bool = True) -> str | None:
        """See Store: the ETag and the size."""
        head = self._call("head_object", key)
        return f"{head['ETag']}-{head['ContentLength']}"

    def delete(self, key: str) -> None:
        """See Store."""
        self._call("delete_object", key)

    def delete_many(self, keys: Iterable[str]) -> None:
        """See Store. One by one, since some compatible stores lack the bulk call."""
        for key in keys:
            self.delete(key)

    def _key(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def _uri(self, key: str) -> str:
        return f"s3://{self.bucket}/{self._key(key)}"

    def _list_once(self, arguments: dict[str, str]) -> dict[str, Any]:
        with translate_errors(self.uri):
            page: dict[str, Any] = client().list_objects_v2(**arguments)
        return page

    def _call(self, operation: str, key: str, **arguments: Any) -> dict[str, Any]:
        def once() -> dict[str, Any]:
            with translate_errors(self._uri(key)):
                answer: dict[str, Any] = getattr(client(), operation)(
                    Bucket=self.bucket, Key=self._key(key), **arguments
                )
            return answer

        return retried(once)

    def _conditional(self, key: str, data: bytes, **condition: str) -> str | None:
        """A conditional put. Returns the new ETag, or None if the condition does not hold."""
        from botocore.exceptions import ClientError

        in_doubt = False  # whether an attempt got no response, and may have succeeded

        def once() -> str | None:
            nonlocal in_doubt
            try:
                with translate_errors(self._uri(key)):
                    try:
                        answer = client().put_object(Bucket=self.bucket, Key=self._key(key), Body=data, **condition)
                    except ClientError as error:
                        code = error.response.get("Error", {}).get("Code")
                        if code != "PreconditionFailed" and not (code == "NoSuchKey" and "IfMatch" in condition):
                            raise
                        return self._etag_if_written(key, data) if in_doubt else None
                    return str(answer["ETag"])
            except StorageError as error:
                in_doubt |= error.kind == "unreachable"
                raise

        return retried(once)

    def _etag_if_written(self, key: str, data: bytes) -> str | None:
        """The object's ETag if its content is `data`: written by an earlier attempt whose response was lost."""
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
    """Read a whole object, without retries: its bytes and its ETag. Raises StorageError."""
    uri = f"s3://{bucket}/{key}"
    with translate_errors(uri):
        answer = client(connections, timeout).get_object(Bucket=bucket, Key=key)
        if max_bytes is not None and answer["ContentLength"] > max_bytes:
            answer["Body"].close()
            raise StorageError("too_large", uri, f"{answer['ContentLength']:,} bytes; the limit is {max_bytes:,}")
        with answer["Body"] as body:
            return body.read(), str(answer["ETag"])


class _Ranges(io.RawIOBase):
    """A seekable stream of an object, read by range requests, all of the version that existed at the start."""

    def __init__(self, bucket: str, key: str) -> None:
        self._bucket, self._key, self._at = bucket, key, 0
        head = retried(self._head)
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
        data = retried(lambda: self._range(self._at, self._at + wanted - 1))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _head(self) -> dict[str, Any]:
        with translate_errors(f"s3://{self._bucket}/{self._key}"):
            head: dict[str, Any] = client().head_object(Bucket=self._bucket, Key=self._key)
        return head

    def _range(self, first: int, last: int) -> bytes:
        with translate_errors(f"s3://{self._bucket}/{self._key}"):
            answer = client().get_object(
                Bucket=self._bucket, Key=self._key, Range=f"bytes={first}-{last}", IfMatch=self._etag
            )
            with answer["Body"] as body:
                data: bytes = body.read()
        return data


def _open(uri: str) -> S3Store:
    bucket, _, prefix = uri.partition("://")[2].partition("/")
    if not bucket:
        raise StorageError("bad_uri", uri, "s3:// needs a bucket")
    return S3Store(bucket, prefix)


def _get(uri: str, max_bytes: int, connections: int, timeout: float) -> bytes:
    bucket, _, key = uri.partition("://")[2].partition("/")
    return get_once(bucket, key, max_bytes, connections, timeout)[0]


SCHEME = Scheme("s3://", _open, _get, store=_endpoint)
