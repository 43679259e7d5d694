"""S3 and compatible stores, through boto3, with the standard AWS settings."""

import io
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

from paliscribe.storage.base import RETRYABLE, ObjectInfo, Scheme, StorageError
from paliscribe.storage.parallel import in_order
from paliscribe.storage.s3_client import client, endpoint, retried, translate_errors

_public: set[str] = set()  # buckets that answer without credentials, but not with them
BULK = 1000  # objects in a request to delete them: S3's limit
# Codes of a condition that is not met, and of no object. An answer that is cut off has its status for a code.
UNMET, ABSENT = ("PreconditionFailed", "412"), ("NoSuchKey", "404")


class S3Store:
    """A prefix of a bucket."""

    def __init__(self, bucket: str, prefix: str) -> None:
        self.bucket, self.prefix = bucket, prefix.rstrip("/")
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

    def get_range(self, key: str, start: int, size: int, version: str | None = None) -> bytes:
        """See Store. Sends `If-Match`."""
        from botocore.exceptions import ClientError

        condition = {} if version is None else {"IfMatch": version.rpartition("-")[0]}

        def once() -> bytes:
            try:
                return _range(self.bucket, self._key(key), start, start + size - 1, **condition)
            except StorageError as error:
                if isinstance(error.__cause__, ClientError):
                    code = error.__cause__.response.get("Error", {}).get("Code")
                    if code == "PreconditionFailed":
                        raise StorageError("changed", error.uri, error.message) from error.__cause__
                    if code == "InvalidRange":  # beyond the end
                        return b""
                raise

        return retried(once)

    def put(self, key: str, data: bytes) -> str:
        """See Store."""
        return str(self._call("put_object", key, ("ETag",), Body=data)["ETag"])

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
        return str(self._call("head_object", key, ("ETag",))["ETag"])

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
        head = self._call("head_object", key, ("ETag", "ContentLength"))
        return f"{head['ETag']}-{head['ContentLength']}"

    def delete(self, key: str) -> None:
        """See Store."""
        self._call("delete_object", key)

    def delete_many(self, keys: Iterable[str]) -> None:
        """See Store. A thousand at a time; one by one where a compatible store lacks that call or refuses a key."""
        left = iter(keys)
        while some := list(islice(left, BULK)):
            try:
                refused = self._delete_bulk(some)
            except StorageError as error:
                if error.kind in RETRYABLE:
                    raise
                refused = some  # by one request each, whose errors say why
            for _ in in_order(self.delete, refused):
                pass

    def _delete_bulk(self, keys: Sequence[str]) -> Sequence[str]:
        """Delete objects by one request; returns the keys that it did not delete."""
        names = {self._key(key): key for key in keys}

        def once() -> list[str]:
            with translate_errors(self.uri):
                answer = client().delete_objects(
                    Bucket=self.bucket, Delete={"Objects": [{"Key": name} for name in names], "Quiet": True}
                )
            return [names[error["Key"]] for error in answer.get("Errors", ())]

        return retried(once)

    def _key(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def _uri(self, key: str) -> str:
        return f"s3://{self.bucket}/{self._key(key)}"

    def _list_once(self, arguments: dict[str, str]) -> dict[str, Any]:
        with translate_errors(self.uri):
            page: dict[str, Any] = client().list_objects_v2(**arguments)
        return _whole(self.uri, page, "IsTruncated")  # else it would be taken for an empty prefix

    def _call(self, operation: str, key: str, needed: Sequence[str] = (), **arguments: Any) -> dict[str, Any]:
        """Call an operation on an object. `needed`: fields of its answer."""

        def once() -> dict[str, Any]:
            with translate_errors(self._uri(key)):
                answer: dict[str, Any] = getattr(client(), operation)(
                    Bucket=self.bucket, Key=self._key(key), **arguments
                )
            return _whole(self._uri(key), answer, *needed)

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
                        if code not in UNMET and not (code in ABSENT and "IfMatch" in condition):
                            raise
                        return self._etag_if_written(key, data) if in_doubt else None
                    return str(_whole(self._uri(key), answer, "ETag")["ETag"])
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
        answer = _with_length(uri, _get_object(bucket, key, connections, timeout))
        if max_bytes is not None and answer["ContentLength"] > max_bytes:
            answer["Body"].close()
            raise StorageError("too_large", uri, f"{answer['ContentLength']:,} bytes; the limit is {max_bytes:,}")
        with answer["Body"] as body:
            return body.read(), str(_whole(uri, answer, "ETag")["ETag"])


def _whole(uri: str, answer: dict[str, Any], *names: str) -> dict[str, Any]:
    """An answer with these fields. Raises StorageError if one is missing: it was cut off, which nothing else tells."""
    if any(name not in answer for name in names):
        raise StorageError("unreachable", uri, "the store's answer was cut off")
    return answer


def _with_length(uri: str, answer: dict[str, Any]) -> dict[str, Any]:
    """The answer to a GET, whose body has a length or is sent in chunks; else a part of it would be taken for all."""
    is_chunked = "transfer-encoding" in answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return answer if is_chunked else _whole(uri, answer, "ContentLength")


def _get_object(bucket: str, key: str, connections: int, timeout: float) -> dict[str, Any]:
    """The response to a GET. What these credentials may not read is read without them, if the bucket is public."""
    from botocore.exceptions import ClientError

    if bucket in _public:
        return cast(dict[str, Any], client(connections, timeout, signed=False).get_object(Bucket=bucket, Key=key))
    try:
        return cast(dict[str, Any], client(connections, timeout).get_object(Bucket=bucket, Key=key))
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") != "AccessDenied":
            raise
        try:
            found = client(connections, timeout, signed=False).get_object(Bucket=bucket, Key=key)
        except Exception:
            raise error from None
        _public.add(bucket)
        return cast(dict[str, Any], found)


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
        return _whole(f"s3://{self._bucket}/{self._key}", head, "ETag", "ContentLength")

    def _range(self, first: int, last: int) -> bytes:
        return _range(self._bucket, self._key, first, last, IfMatch=self._etag)


def _range(bucket: str, key: str, first: int, last: int, **condition: str) -> bytes:
    """The bytes from `first` to `last`, inclusive, without retries. Raises StorageError."""
    uri = f"s3://{bucket}/{key}"
    with translate_errors(uri):
        found = client().get_object(Bucket=bucket, Key=key, Range=f"bytes={first}-{last}", **condition)
        answer = _with_length(uri, found)
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


SCHEME = Scheme("s3://", _open, _get, store=endpoint)
