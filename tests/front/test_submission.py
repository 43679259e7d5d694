"""Jobs on a shared cluster, a Ray head in processes of its own: submitted, followed, stopped, killed, resumed."""

import contextlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import httpx
import psutil
import pyarrow.dataset as ds
import pyarrow.fs as fs
import pytest
import yaml
from front.conftest import Said, hostile, published, read_rows, replicas, write_rows
from front.heads import PROGRAMS, TOKEN, Head, ray_head

pytestmark = [pytest.mark.cluster, pytest.mark.long]
ROOT = Path(__file__).parents[2]
TASKS = ["caption en", "ocr"]
ROWS, SHARD_ROWS = 480, 4
SHARDS = ROWS // SHARD_ROWS


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """One cluster for all."""
    with ray_head() as found:
        yield found


@pytest.fixture(scope="module")
def manifest(collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """480 rows over the collection's images: enough to be interrupted in the middle."""
    rows = [
        row | {"id": f"{turn}-{row['id']}", "image": str(collection.parent / row["image"])}
        for turn in range(ROWS // 24)
        for row in read_rows(collection)
    ]
    return write_rows(tmp_path_factory.mktemp("submission") / "manifest.jsonl", rows)


def job_file(folder: Path, **values: object) -> Path:
    folder.mkdir(exist_ok=True)
    job = {"tasks": TASKS, "shard_rows": SHARD_ROWS, "pool": {"replicas": 1, "threads": 1, "slots": 8}}
    (folder / "job.yaml").write_text(yaml.safe_dump(job | values))
    return folder / "job.yaml"


def begin(
    head: Head, *words: str | Path, code: Path = ROOT, err: IO[str] | int = subprocess.PIPE, **settings: str | None
) -> subprocess.Popen[str]:
    """A command in a process of its own, as on another machine: it has the cluster's address and token, no more.

    `settings`: further environment variables; None takes one away. `code`: the folder to run in. `err`: for stderr.
    """
    environment = head.environment | settings
    return subprocess.Popen(
        [sys.executable, "-m", "paliscribe", *map(str, words)],
        env={key: value for key, value in environment.items() if value is not None},
        cwd=code,
        stdout=subprocess.PIPE,
        stderr=err,
        text=True,
    )


def run(head: Head, *words: str | Path, code: Path = ROOT, **settings: str | None) -> Said:
    process = begin(head, *words, code=code, **settings)  # type: ignore[arg-type]  # no `err` among them
    try:
        out, err = process.communicate(timeout=200)
    finally:
        process.kill()
    assert "Traceback" not in err, err
    return Said(process.returncode, out, err)


def wait_until(true: Callable[[], Any], seconds: float, words: str) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, words
        time.sleep(0.1)


def markers(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (output / "_run" / "done").glob("*.json")}


def pools(head: Head) -> list[psutil.Process]:
    return replicas("paliscribe-batch-", psutil.Process(head.process))


@pytest.fixture(scope="module")
def undisturbed(head: Head, manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the job publishes if nothing happens to it, submitted by Ray's own command line."""
    folder = tmp_path_factory.mktemp("undisturbed")
    hostile(folder / "sent")
    job_file(folder / "sent", manifest=str(manifest), output=str(folder / "output"))
    command = [str(PROGRAMS / "ray"), "job", "submit", "--working-dir", str(folder / "sent"), "--"]
    command += [str(PROGRAMS / "paliscribe"), "annotate", "job.yaml"]
    done = subprocess.run(command, env=head.environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{ROWS} images x 2 tasks annotated with demo" in done.stdout
    return published(folder / "output")


def test_a_checkout_runs_without_an_installation(head: Head, collection: Path, tmp_path: Path) -> None:
    """`ray job submit --working-dir . -- python jobs/annotate.py job.yaml`, with code that no node has installed."""
    checkout, seen = tmp_path / "checkout", tmp_path / "seen"
    for folder in ("pipeline", "jobs"):
        shutil.copytree(ROOT / folder, checkout / folder, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    with (checkout / "pipeline/paliscribe/batch/stage.py").open("a") as file:
        file.write(f"\nimport pathlib, sys\nif 'worker' in sys.argv[0]:\n    pathlib.Path({str(seen)!r}).touch()\n")
    job_file(checkout, manifest=str(collection), output=str(tmp_path / "output"))
    command = [str(PROGRAMS / "ray"), "job", "submit", "--working-dir", str(checkout), "--"]
    command += ["python", "jobs/annotate.py", "job.yaml"]
    done = subprocess.run(command, env=head.environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0 and "24 images x 2 tasks annotated with demo" in done.stdout, done.stdout + done.stderr
    assert seen.exists()


def test_a_job_in_object_storage_followed_to_its_end(
    head: Head, collection: Path, bucket: str, s3_server: Any, tmp_path: Path
) -> None:
    """A manifest that is sent along, images and output in S3, credentials in a file, and this very code."""
    rows = read_rows(collection)
    for row in rows:
        s3_server.client().upload_file(str(collection.parent / row["image"]), bucket, row["image"])
    manifest = write_rows(tmp_path / "m.jsonl", [row | {"image": f"s3://{bucket}/{row['image']}"} for row in rows])
    job = job_file(tmp_path / "job", manifest=str(manifest), output=f"s3://{bucket}/runs/one")
    secrets = tmp_path / "credentials"
    secrets.write_text(
        f"[annotator]\naws_access_key_id = {s3_server.key}\naws_secret_access_key = {s3_server.secret}\n"
    )
    settings = {
        "AWS_SHARED_CREDENTIALS_FILE": str(secrets),
        "AWS_PROFILE": "annotator",
        "AWS_ENDPOINT_URL": s3_server.endpoint,
        "AWS_REGION": "us-east-1",
    }
    shutil.copytree(ROOT / "pipeline", hostile(tmp_path / "code"), dirs_exist_ok=True)
    with (tmp_path / "code/paliscribe/batch/run.py").open("a") as file:
        file.write('print("the code that was sent")\n')
    words = [word for name in settings for word in ("--env", name)]
    said = run(head, "submit", job, *words, "--code", "--follow", code=tmp_path / "code", **settings)
    assert said.code == 0, said.err
    [job_id] = said.out.splitlines()
    assert job_id.startswith("paliscribe-one-")
    assert not [
        line for line in said.err.splitlines() if " INFO " in line.replace("\t", " ") and "job_manager" not in line
    ]
    assert "\nthe code that was sent\n" in said.err and "24 images x 2 tasks annotated with demo" in said.err

    store = fs.S3FileSystem(
        access_key=s3_server.key, secret_key=s3_server.secret, endpoint_override=s3_server.endpoint, region="us-east-1"
    )
    found = ds.dataset(f"{bucket}/runs/one", filesystem=store, format="parquet").to_table().to_pylist()
    assert sorted((r["id"], r["task"]) for r in found) == sorted((row["id"], task) for row in rows for task in TASKS)
    assert {record["status"] for record in found} == {"ok"}

    status = run(head, "jobs", "status", job_id, "--json", **settings).json
    assert (status["state"], status["output"], status["model"]) == ("SUCCEEDED", f"s3://{bucket}/runs/one", "demo")
    assert status["progress"].startswith("finished · 24/24 rows (100%)")
    assert (status["run"]["state"], status["run"]["ok"], status["run"]["rows_done"]) == ("finished", 48, 24)
    shown = httpx.get(f"{head.dashboard}/api/jobs/", headers={"Authorization": f"Bearer {TOKEN['RAY_AUTH_TOKEN']}"})
    assert job_id in shown.text and s3_server.secret not in shown.text and TOKEN["RAY_AUTH_TOKEN"] not in shown.text

    late = rows[0] | {"id": "late", "image": f"s3://{bucket}/{rows[0]['image']}"}
    write_rows(manifest, [*read_rows(manifest), late])
    said = run(head, "submit", job, "--append", *words, "--follow", code=tmp_path / "code", **settings)
    assert said.code == 0 and "25 images x 2 tasks annotated with demo, 1 of them new" in said.err, said.err


def test_a_job_is_stopped_killed_and_resumed(
    head: Head, manifest: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    output = tmp_path / "output"
    job = job_file(tmp_path / "job", manifest=str(manifest), output=str(output))
    stopped = followed_left_and_stopped(head, job, output)
    killed = killed_with_its_pool(head, job, output)
    assert {name: killed[name] for name in stopped} == stopped and len(killed) < SHARDS

    lease = output / "_run/lease.json"
    left = lease.read_bytes()
    again = begin(head, "submit", job, "--shared-paths", "--follow")
    try:
        wait_until(lambda: lease.read_bytes() != left or again.poll() is not None, 120, "the lease is not taken")
        second = run(head, "submit", job, "--shared-paths", "--follow")
        _, err = again.communicate(timeout=200)
    finally:
        again.kill()
    assert again.returncode == 0, err
    assert f"starting the pool of demo · {SHARD_ROWS * len(killed)}/{ROWS} rows" in err, "committed rows count"
    after = markers(output)
    assert len(after) == SHARDS and {name: after[name] for name in killed} == killed
    assert published(output) == undisturbed

    assert second.code == 1
    assert f"\npaliscribe: another driver holds the lease of {output}: process " in second.err
    assert second.err.splitlines()[-1].startswith(f"paliscribe: job {second.out.strip()} failed: ")


def followed_left_and_stopped(head: Head, job: Path, output: Path) -> dict[str, bytes]:
    """Submit a job, follow it, leave it by Ctrl-C, and stop it in its middle; returns its markers."""
    log = job.parent / "followed.log"
    with log.open("w") as written:
        following = begin(head, "submit", job, "--shared-paths", "--follow", err=written)
    try:
        wait_until(lambda: "annotating" in log.read_text() or following.poll() is not None, 120, "it does not begin")
        wait_until(lambda: len(markers(output)) >= 2 or following.poll() is not None, 120, "no shard was committed")
        following.send_signal(signal.SIGINT)
        out, _ = following.communicate(timeout=30)
    finally:
        following.kill()
    err = log.read_text()
    assert following.returncode == 130, err
    job_id = out.strip()
    assert f"job {job_id} continues; `paliscribe jobs stop {job_id}` stops it" in err and "annotating" in err
    status = run(head, "jobs", "status", job_id)
    said = run(head, "jobs", "stop", job_id)
    before = markers(output)
    assert (said.code, said.out) == (0, f"{job_id}: STOPPED\n")
    assert "submit the same job file again to resume" in said.err
    assert 2 <= len(before) < SHARDS, "the run was meant to be stopped in its middle"
    assert f"{job_id}: RUNNING" in status.out and "progress annotating · " in status.out
    assert f"{output}: running (process " in status.out and f"of {ROWS} committed" in status.out
    assert "paliscribe: SIGTERM: stopped. " in run(head, "jobs", "logs", job_id).out
    listed = {found["id"]: found for found in run(head, "jobs", "list", "--json").json}
    assert (listed[job_id]["state"], listed[job_id]["output"]) == ("STOPPED", str(output))
    wait_until(lambda: not pools(head), 30, "the pool of a stopped job goes on")
    return before


def killed_with_its_pool(head: Head, job: Path, output: Path) -> dict[str, bytes]:
    """Go on with a run by hand and kill its driver: its pool goes too. Returns its markers."""
    before = len(markers(output))
    driver = begin(head, "annotate", job, RAY_ADDRESS=head.gcs)
    try:
        wait_until(lambda: len(markers(output)) > before or driver.poll() is not None, 120, "it does not go on")
        assert driver.poll() is None and len(pools(head)) == 1
    finally:
        driver.kill()
        driver.communicate()
    wait_until(lambda: not pools(head), 30, "the pool outlives its driver")
    wait_until(lambda: not actors(head, "_Reaper", "_DriverSentinel"), 30, "the reaper outlives the pool")
    return markers(output)


def actors(head: Head, *names: str) -> list[str]:
    """The actors of these classes that run on the cluster."""
    found = []
    for process in psutil.Process(head.process).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [line for line in process.cmdline()[:1] if line.startswith(tuple(f"ray::{n}" for n in names))]
    return found


def test_what_is_asked_of_jobs_that_are_not_there(head: Head) -> None:
    for command in ("status", "logs", "stop"):
        said = run(head, "jobs", command, "nothing")
        assert said.code == 2
        assert said.err == f"paliscribe: no job nothing at {head.dashboard}; list jobs with `paliscribe jobs list`\n"


@pytest.mark.parametrize(
    ("token", "words"),
    [(None, "it requires a token; "), ("0" * 32, "it rejects the token of RAY_AUTH_TOKEN; ")],
    ids=["none", "wrong"],
)
@pytest.mark.parametrize("mode", ["token", None])
def test_without_the_token_nothing_is_told(
    head: Head, tmp_path: Path, token: str | None, words: str, mode: str | None
) -> None:
    job = job_file(tmp_path / "job", manifest="s3://images/m.jsonl", output="s3://runs/one")
    settings = {"HOME": str(tmp_path), "RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": token}
    for command in (["submit", job], ["jobs", "list"])[mode is None :]:
        said = run(head, *command, code=ROOT, **settings)
        assert (said.code, said.out) == (1, "")
        assert said.err.startswith(f"paliscribe: the dashboard at {head.dashboard}: {words}")
        assert len(said.err.splitlines()) == 1


def test_the_dashboards_api_wants_the_token(head: Head, tmp_path: Path) -> None:
    for path in ("/api/jobs/", "/api/version", "/api/serve/applications/"):
        assert httpx.get(head.dashboard + path).status_code == 401
        wrong = httpx.get(head.dashboard + path, headers={"Authorization": "Bearer " + "0" * 32})
        assert wrong.status_code == 403
    assert httpx.post(f"{head.dashboard}/api/jobs/", json={"entrypoint": "true"}).status_code == 401
    (tmp_path / "token").write_text(TOKEN["RAY_AUTH_TOKEN"])
    by_path = {"RAY_AUTH_MODE": None, "RAY_AUTH_TOKEN": None, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    said = run(head, "jobs", "list", "--json", code=ROOT, **by_path)
    assert said.code == 0, said.err
    assert isinstance(said.json, list)
