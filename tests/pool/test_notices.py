"""Notices that a machine will be taken away, from metadata services that answer well, badly or not at all."""

import socket
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from metadata import OPEN, PLAIN, Metadata, metadata

from paliscribe.pool import notices
from paliscribe.pool.draining import ADVICE_EVERY, obey
from paliscribe.pool.notices import Ec2, Gce, Notice, Silent, find_service

NO_GCE = {"NO_GCE_CHECK": "true"}
NO_EC2 = {"AWS_EC2_METADATA_DISABLED": "true"}


@pytest.fixture
def cloud() -> Iterator[Metadata]:
    with metadata() as made:
        yield made


def ec2(cloud: Metadata) -> Ec2:
    return Ec2({"AWS_EC2_METADATA_SERVICE_ENDPOINT": cloud.address})


def gce(cloud: Metadata) -> Gce:
    cloud.texts |= {OPEN + "preempted": "FALSE", OPEN + "maintenance-event": "NONE"}
    return Gce({"GCE_METADATA_HOST": cloud.address.removeprefix("http://")})


@pytest.mark.parametrize("action", ["terminate", "stop", "hibernate"])
def test_ec2_has_no_notice_and_then_one(cloud: Metadata, action: str) -> None:
    service = ec2(cloud)
    assert service.ask() is None and service.ask() is None and service.advice() == ""
    assert cloud.count("PUT") == 1, "a token serves for long"
    cloud.announce(120, action)
    notice = service.ask()
    assert notice is not None and 115 < notice.seconds <= 120 and f"EC2 will {action} this machine" in notice.words


def test_a_notice_that_is_late(cloud: Metadata) -> None:
    cloud.announce(-30)
    notice = ec2(cloud).ask()
    assert notice is not None and notice.seconds == 0


def test_a_token_that_has_ended_is_replaced(cloud: Metadata) -> None:
    service = ec2(cloud)
    assert service.ask() is None
    cloud.tokens.clear()
    with pytest.raises(Silent):
        service.ask()
    cloud.announce(60)
    assert service.ask() is not None and cloud.count("PUT") == 2


@pytest.mark.parametrize("token", [(403, "no"), (404, ""), (405, ""), (200, ""), (200, "<html>\n</html>"), (500, "")])
def test_no_token_no_service(cloud: Metadata, token: tuple[int, str]) -> None:
    cloud.announce(60)
    cloud.token = token
    with pytest.raises(Silent):
        ec2(cloud).ask()
    assert cloud.count("GET") == 0, "version 1 is not asked"


@pytest.mark.parametrize(
    "said",
    [
        "",
        "soon",
        "[]",
        "null",
        '{"action": "terminate"}',
        '{"action": 3, "time": "2026-11-29T03:00:00Z"}',
        '{"action": "rename", "time": "2026-11-29T03:00:00Z"}',
        '{"action": "stop", "time": "tomorrow"}',
        '{"action": "stop", "time": 5}',
        "[" * 4000,
        "\x00\xff",
    ],
)
def test_garbage_is_no_notice(cloud: Metadata, said: str) -> None:
    cloud.texts[PLAIN + "spot/instance-action"] = said
    with pytest.raises(Silent):
        ec2(cloud).ask()


def test_advice_is_no_notice(cloud: Metadata) -> None:
    cloud.texts[PLAIN + "events/recommendations/rebalance"] = '{"noticeTime": "2026-11-29T03:00:00Z"}'
    assert ec2(cloud).ask() is None and "recommends" in ec2(cloud).advice()


def test_google_has_no_notice_and_then_one(cloud: Metadata) -> None:
    service = gce(cloud)
    assert service.ask() is None
    cloud.texts[OPEN + "maintenance-event"] = "MIGRATE_ON_HOST_MAINTENANCE"
    assert service.ask() is None, "the machine goes on elsewhere"
    cloud.texts[OPEN + "maintenance-event"] = "TERMINATE_ON_HOST_MAINTENANCE"
    assert service.ask() == Notice("Google Cloud stops this machine for maintenance", 60)
    cloud.texts[OPEN + "preempted"] = "TRUE"
    assert service.ask() == Notice("Google Cloud preempts this machine", 30)
    cloud.flavor = ""
    with pytest.raises(Silent):
        service.ask()


def test_redirects_and_proxies_are_not_followed(cloud: Metadata, monkeypatch: pytest.MonkeyPatch) -> None:
    with metadata() as elsewhere:
        elsewhere.announce(60)
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, elsewhere.address)
        service = ec2(cloud)
        assert service.ask() is None
        cloud.status[PLAIN + "spot/instance-action"] = 302
        cloud.location = elsewhere.address + PLAIN + "spot/instance-action"
        with pytest.raises(Silent):
            service.ask()
        assert not elsewhere.seen


def test_a_service_that_is_slow_is_given_up(cloud: Metadata, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "TIMEOUT", 0.1)
    cloud.pause = 0.5
    with pytest.raises(Silent):
        ec2(cloud).ask()


def test_the_service_of_this_machine_is_found(cloud: Metadata) -> None:
    gce(cloud)
    both = {
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": cloud.address,
        "GCE_METADATA_HOST": cloud.address.removeprefix("http://"),
    }
    assert isinstance(find_service(both), Ec2)
    assert isinstance(find_service(both | NO_EC2), Gce)
    assert find_service(both | NO_EC2 | NO_GCE) is None
    cloud.token = (404, "")
    assert isinstance(find_service(both), Gce)
    cloud.flavor = ""
    assert find_service(both) is None


@pytest.mark.parametrize("address", ["http://127.0.0.1:{port}", "nonsense", "http://", "http://[::1", "http://a:b"])
def test_none_answers(address: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    assert find_service({"AWS_EC2_METADATA_SERVICE_ENDPOINT": address.format(port=port)} | NO_GCE) is None


class Ended(Exception):
    """The test has seen enough."""


@dataclass
class Scripted:
    """A service that says one thing after another."""

    answers: list[Notice | Exception | None]
    advices: list[str] = field(default_factory=list)

    def ask(self) -> Notice | None:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def advice(self) -> str:
        return self.advices.pop(0) if self.advices else ""


def obeyed(service: Scripted, looks: int, failures: int = 0) -> list[Notice]:
    """What is drained in some looks, if the cluster does not answer at first."""
    drained: list[Notice] = []

    def drain(notice: Notice) -> None:
        nonlocal failures
        drained.append(notice)
        failures -= 1
        if failures >= 0:
            raise RuntimeError("the cluster does not answer")

    def pause(seconds: float) -> None:
        nonlocal looks
        looks -= 1
        if not looks:
            raise Ended

    with pytest.raises(Ended):
        obey(service, drain, pause)
    return drained


def test_a_node_is_drained_once() -> None:
    notice = Notice("EC2 will stop this machine", 120)
    assert obeyed(Scripted([None, Silent("slow"), None, notice, notice]), 7) == [notice]


def test_a_drain_that_fails_is_repeated() -> None:
    first, later = Notice("EC2 will stop this machine", 120), Notice("EC2 will stop this machine", 115)
    assert obeyed(Scripted([first, later, later]), 5, failures=1) == [first, later]


def test_advice_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    looks = 3 * ADVICE_EVERY + 1
    assert not obeyed(Scripted([None] * looks, ["", "replace it", "replace it"]), looks)
    assert [record.message for record in caplog.records] == [
        "replace it",
        "EC2 no longer recommends to replace this machine",
    ]
