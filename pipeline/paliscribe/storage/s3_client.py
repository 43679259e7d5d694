"""The client of S3 and compatible stores, and its errors as StorageError."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from paliscribe.storage.base import StorageError, StorageErrorKind
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
STATUS: dict[int, StorageErrorKind] = {
    404: "missing",
    408: "unreachable",
    409: "throttled",
    412: "missing",  # as `PreconditionFailed`
    429: "throttled",
    501: "forbidden",  # the store lacks this call
}
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
    "412": "the object was replaced during the read",
    "InvalidBucketName": "not a valid bucket name",
}
_clients: dict[tuple[object, ...], Any] = {}
_lock = threading.Lock()


def client(connections: int = 32, timeout: float = 30.0, *, signed: bool = True) -> Any:
    """The S3 client of this process; clients are thread-safe, sessions are not. Raises StorageError.

    Requests are not signed if `signed` is false or there are no credentials: public buckets answer such reads.
    """
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    key = (connections, timeout) if signed else (connections, timeout, UNSIGNED)
    with _lock:
        if key not in _clients:
            try:
                session = boto3.session.Session()
                is_signed = signed and session.get_credentials() is not None
                _clients[key] = session.client(
                    "s3",
                    region_name=session.region_name or "us-east-1",
                    config=Config(
                        signature_version=None if is_signed else UNSIGNED,
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
        return _clients[key]


def retried(attempt: Callable[[], T]) -> T:
    """`with_retries` for calls of this store."""
    return with_retries(attempt, RETRIES, endpoint())


def endpoint() -> str:
    """The address of the store."""
    return str(client().meta.endpoint_url)


@contextmanager
def translate_errors(uri: str) -> Iterator[None]:
    """Translate botocore's exceptions into StorageError, by code and type."""
    from botocore import UNSIGNED
    from botocore import exceptions as boto
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    try:
        yield
    except boto.ClientError as error:
        found = _error(uri, error.response)
        if found.kind == "forbidden" and client().meta.config.signature_version is UNSIGNED:
            found = StorageError("forbidden", uri, "no AWS credentials were found, and this is not public")
        raise found from error
    except (boto.NoCredentialsError, boto.PartialCredentialsError) as error:
        raise StorageError("forbidden", uri, "no AWS credentials were found") from error
    except (boto.CredentialRetrievalError, boto.TokenRetrievalError, boto.SSOError) as error:
        raise StorageError("forbidden", uri, f"AWS credentials cannot be loaded ({type(error).__name__})") from error
    except boto.ParamValidationError as error:
        raise StorageError("bad_uri", uri, "not a valid bucket or key") from error
    except (boto.BotoCoreError, OSError, HTTPError, ResponseParserError) as error:  # the last two: a truncated answer
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
