"""Notices that a machine will be taken away, as its cloud's metadata service gives them.

Asked are only link-local addresses, or those that the variables of the clouds' own libraries name; without proxies,
and no redirect is followed. Standard library only: it runs in every process of a node.
"""

import contextlib
import http.client
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol
from urllib.parse import urlsplit

LINK_LOCAL = "http://169.254.169.254"
TIMEOUT = 1.0  # seconds to connect, and for each part of an answer
MOST = 4096  # bytes of an answer that are read
TOKEN_SECONDS = 21_600  # that a token of EC2 is valid: the most
TAKEN_AWAY = ("terminate", "stop", "hibernate")  # what EC2 announces
GCE_SECONDS = 30.0  # from Google's notice to the end of the machine
MAINTENANCE = "TERMINATE_ON_HOST_MAINTENANCE"  # Google's notice for machines that cannot be moved, as those with GPUs
MAINTENANCE_SECONDS = 60.0  # the least between that notice and the end; an hour with some GPUs


@dataclass(frozen=True, slots=True)
class Notice:
    """The machine will be taken away. `words`: by whom and how; `seconds`: until then, at least 0."""

    words: str
    seconds: float


class Silent(Exception):
    """The service did not answer, or not as it should."""


class Service(Protocol):
    """A cloud's metadata service."""

    def ask(self) -> Notice | None:
        """The notice, or None if there is none. Raises Silent."""

    def advice(self) -> str:
        """What is said of the machine that is no notice yet, in words; empty if nothing. Raises Silent."""


def find_service(environment: Mapping[str, str] = os.environ) -> Service | None:
    """The metadata service of this machine; None if none answers now."""
    for service in (Ec2(environment), Gce(environment)):
        if service.is_allowed:
            with contextlib.suppress(Silent):
                service.ask()
                return service
    return None


class Ec2:
    """Amazon's, version 2. Raises Silent where only version 1 answers."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self.is_allowed = environment.get("AWS_EC2_METADATA_DISABLED", "").lower() != "true"
        self._base = environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or LINK_LOCAL
        self._token = ""

    def ask(self) -> Notice | None:
        """See `Service`."""
        said = self._get("spot/instance-action")
        return None if said is None else _of_ec2(said)

    def advice(self) -> str:
        """See `Service`."""
        return "EC2 recommends to replace this machine soon" if self._get("events/recommendations/rebalance") else ""

    def _get(self, name: str) -> str | None:
        """A text of the service; None if there is none."""
        if not self._token:
            self._token = self._new_token()
        status, _, body = _request(
            self._base, "GET", f"/latest/meta-data/{name}", {"X-aws-ec2-metadata-token": self._token}
        )
        if status == 404:
            return None
        if status != 200:
            self._token = ""  # 401: it has ended
            raise Silent(f"{name}: {status}")
        return body

    def _new_token(self) -> str:
        lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_SECONDS)}
        status, _, body = _request(self._base, "PUT", "/latest/api/token", lifetime)
        if status != 200 or not body.isascii() or not body.isprintable() or not body or " " in body:
            raise Silent(f"no token: {status}")
        return body


class Gce:
    """Google's."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self.is_allowed = environment.get("NO_GCE_CHECK", "").lower() != "true"
        host = environment.get("GCE_METADATA_HOST")
        self._base = f"http://{host}" if host else LINK_LOCAL

    def ask(self) -> Notice | None:
        """See `Service`."""
        if self._get("preempted") == "TRUE":
            return Notice("Google Cloud preempts this machine", GCE_SECONDS)
        if self._get("maintenance-event") == MAINTENANCE:
            return Notice("Google Cloud stops this machine for maintenance", MAINTENANCE_SECONDS)
        return None

    def advice(self) -> str:
        """See `Service`."""
        return ""

    def _get(self, name: str) -> str:
        flavor = {"Metadata-Flavor": "Google"}
        status, headers, body = _request(self._base, "GET", f"/computeMetadata/v1/instance/{name}", flavor)
        if status != 200 or headers.get("Metadata-Flavor") != "Google":
            raise Silent(f"{name}: {status}")
        return body


def _of_ec2(said: str) -> Notice:
    """The notice in EC2's JSON. Raises Silent if it is none."""
    try:
        given = json.loads(said)
        action, time = given["action"], datetime.fromisoformat(given["time"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise Silent(f"not a notice: {said[:100]!r}") from error
    if action not in TAKEN_AWAY:
        raise Silent(f"not a notice: {said[:100]!r}")
    end = time if time.tzinfo else time.replace(tzinfo=UTC)
    return Notice(
        f"EC2 will {action} this machine at {given['time']}", max(0.0, (end - datetime.now(UTC)).total_seconds())
    )


def _request(base: str, method: str, path: str, headers: Mapping[str, str]) -> tuple[int, http.client.HTTPMessage, str]:
    """Status, headers and text of an answer. Raises Silent if there is none."""
    try:
        place = urlsplit(base)
        connection = http.client.HTTPConnection(place.hostname or "", place.port or 80, timeout=TIMEOUT)
        with contextlib.closing(connection):
            connection.request(method, f"{place.path.rstrip('/')}{path}", headers=dict(headers))
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read(MOST).decode("ascii", "replace").strip()
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Silent(repr(error)) from error
