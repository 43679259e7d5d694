"""Real parts for tests: an S3 server of our own on loopback."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import whole
from demo_run import demo_run
from hub import hub
from seaweed import S3Server, Seaweed, served

from paliscribe.storage import s3_client

__all__ = ["demo_run", "hub"]

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two busy threads in each of two processes thrash two cores
for name in [name for name in os.environ if name.startswith("AWS_")]:
    del os.environ[name]
os.environ["AWS_EC2_METADATA_DISABLED"] = os.environ["NO_GCE_CHECK"] = "true"


whole.watch()

SLOW = (  # files that compute for more than some seconds, or open a browser
    "api/test_display.py",
    "batch/test_append.py",
    "batch/test_members_inside.py",
    "batch/test_preview.py",
    "batch/test_shared_cases.py",
    "batch/test_stalling.py",
    "bench/*",
    "chaos/*",
    "demo/test_checkpoint.py",
    "demo/test_training.py",
    "engine/test_company.py",
    "engine/test_loop.py",
    "engine/test_resolutions.py",
    "engine/test_soak.py",
    "evaluation/*",
    "images/test_allowed_addresses.py",
    "images/test_costs.py",
    "images/test_odd_images.py",
    "images/test_optional_formats.py",
    "images/test_untrusted.py",
    "infra/*",
    "manifest/*",
    "model/test_download.py",
    "model/test_model.py",
    "model/test_weights.py",
    "online/background/*",
    "online/test_attacks.py",
    "online/test_clients.py",
    "online/test_costly_images.py",
    "online/test_openapi.py",
    "online/test_page*.py",
    "online/test_reference.py",
    "pool/test_isolation.py",
    "results/test_lease.py",
    "results/test_publish.py",
    "storage/test_archives.py",
    "storage/test_s3.py",
    "storage/test_stores.py",
    "test_signals.py",
    "verify/*",
    "view/*",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`slow` is left out by `make quick`; `long` runs with LONG=1 or FULL=1 only, `full` with FULL=1 only."""
    here, skipped = Path(__file__).parent, pytest.mark.skip(reason="takes minutes: make test-full")
    postponed = pytest.mark.skip(reason="takes minutes: make test-long, of which .ci/run runs a part")
    other = pytest.mark.skip(reason="in another part of make test-long")
    part = long_part({item.path for item in items if item.get_closest_marker("long")})
    for item in items:
        place = item.path.relative_to(here)
        if item.get_closest_marker("cluster") and place.parts[0] != "front":  # `make test` looks for them there
            assert item.get_closest_marker("long") or item.get_closest_marker("full"), f"{place}: move it to front/"
        if any(place.match(pattern) for pattern in SLOW):
            item.add_marker("slow")
        if item.get_closest_marker("full") and not os.environ.get("FULL"):
            item.add_marker(skipped)
        if item.get_closest_marker("long"):
            if not (os.environ.get("LONG") or os.environ.get("FULL")):
                item.add_marker(postponed)
            elif item.path not in part:
                item.add_marker(other)


def long_part(files: set[Path]) -> set[Path]:
    """Those of the files with long tests that this run is for: all, or every third for PART=1/3, 2/3 and 3/3."""
    number, _, parts = os.environ.get("PART", "1/1").partition("/")
    assert 1 <= int(number) <= int(parts), f"PART={number}/{parts}"
    return set(sorted(files)[int(number) - 1 :: int(parts)])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """A test that passes ends with the check that the runs are whole that were finished in it, or for it."""
    try:
        yield
        whole.check_noted()
    finally:
        whole.forget()


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """An S3 server for the whole session of this process. A test that ends it starts it again."""
    with served(lambda: tmp_path_factory.mktemp("s3")) as seaweed:
        yield seaweed


@pytest.fixture(scope="session")
def s3_server(seaweed: Seaweed) -> S3Server:
    """What leads to the session's S3 server."""
    return seaweed.server


@pytest.fixture
def bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A fresh bucket, with this process's AWS settings leading to it."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    s3_server.client().create_bucket(Bucket=name)
    for key, value in s3_server.environment().items():
        monkeypatch.setenv(key, value)
    s3_client._clients.clear()
    yield name
    s3_client._clients.clear()
